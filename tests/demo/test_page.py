"""The demo page in a real browser, as a user drives it."""

import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from tests.conftest import ROOT, free_port, glb, ink, instances

pytestmark = pytest.mark.browser
CHAIR = ROOT / "data/base_meshes/samples/small_plastic_chair.glb"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page's address; ended as Ctrl-C does, and then nothing of an upload is left."""
    uploads = tmp_path_factory.mktemp("uploads")
    port = free_port()
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/demo.py"), f"port={port}", "megabytes=5"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background jobs ignore it, and so would this one
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(uploads)},
    )
    address = f"http://127.0.0.1:{port}"
    while run.stdout.readline().strip() != address:
        assert run.poll() is None
    assert list(uploads.iterdir())
    yield address
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=30)
    assert not [path for path in uploads.rglob("*") if path.is_file()]


def opened(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.goto(address)
    page.wait_for_selector("#file input[type=file]", state="attached")
    page.wait_for_timeout(500)
    return page


def answer_to(page, path):
    page.set_input_files("#file input[type=file]", str(path))
    page.wait_for_selector("#answer h2", timeout=60_000)
    return page.inner_text("#answer")


def type_names(page, words):
    box = page.locator("#names textarea, #names input")
    box.fill(words)
    box.press("Enter")


def complaint(page):
    """The sentence of the newest message, which is then closed."""
    words = page.wait_for_selector(".toast-body", timeout=60_000).inner_text()
    page.click(".toast-close")
    page.wait_for_selector(".toast-body", state="detached")
    return " ".join(words.split())


def test_a_mesh_is_named_rebuilt_and_attacked(browser, server):
    page = opened(browser, server)
    assert answer_to(page, CHAIR) == "chair"
    page.wait_for_timeout(1500)
    assert min(ink(page, place) for place in range(3)) > 10
    type_names(page, "lamp, toilet, bathtub")
    page.wait_for_function("!document.querySelector('#answer').innerText.includes('chair')")
    type_names(page, "chair, table, bed")
    page.wait_for_function("document.querySelector('#answer').innerText == 'chair'")
    before = page.evaluate("document.querySelectorAll('canvas')[1].toDataURL()")
    page.wait_for_timeout(1000)
    page.fill("#t input[type=number]", "999")
    page.wait_for_function(
        "before => document.querySelectorAll('canvas')[1].toDataURL() != before", arg=before
    )
    page.get_by_role("tab", name="Attack").click()
    page.click("#go")
    page.wait_for_function("document.querySelector('#moved').innerText.includes('at most')")
    moved = float(re.search(r"at most (0\.\d+)", page.inner_text("#moved"))[1])
    assert 0 < moved <= 0.025 * np.sqrt(3) + 1e-3
    assert "chair" in page.inner_text("#before")
    assert "%" in page.inner_text("#after")
    page.wait_for_timeout(500)
    assert ink(page, 4) > 10
    page.close()


def test_bad_input_is_a_sentence_and_the_server_lives(browser, server, tmp_path):
    page = opened(browser, server)
    bomb, large = tmp_path / "bomb.glb", tmp_path / "large.glb"
    bomb.write_bytes(instances(60_000))
    page.set_input_files("#file input[type=file]", str(bomb))
    assert "bomb.glb" in complaint(page)
    page = opened(browser, server)
    large.write_bytes(glb({"asset": {"version": "2.0"}}, bytes(200 * 2**20)))
    page.set_input_files("#file input[type=file]", str(large))
    assert "size" in complaint(page)
    page = opened(browser, server)
    answer_to(page, CHAIR)
    type_names(page, "<script>document.title='mine'</script>, chair")
    assert "script" in complaint(page)
    assert page.title() == "Dual Denoising"
    type_names(page, "chair, door")
    page.wait_for_function("document.querySelector('#answer').innerText == 'chair'")
    page.close()


def test_a_new_shape_clears_what_was_of_the_last(browser, server, tmp_path):
    page = opened(browser, server)
    answer_to(page, CHAIR)
    bad = tmp_path / "bad.glb"
    bad.write_bytes(b"glTF")
    page.click("#file button[aria-label='Clear'], #file button[aria-label='Remove']")
    page.set_input_files("#file input[type=file]", str(bad))
    assert "bad.glb" in complaint(page)
    assert "Choose" in page.inner_text("#answer")
    page.close()


def test_a_port_that_is_taken_is_named(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, errors = call("demo", f"port={port}", status=1)
    assert f"port is {port}" in errors
    _, errors = call("demo", "megabytes=0", status=1)
    assert "megabytes" in errors
