"""A model's folder to the Hub and back, with the Hub's own tool and a server of our own."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from dual_denoising.evaluation import hubness
from dual_denoising.reports import card

REPO, COMMIT = "user/name", "0" * 39 + "1"
SITE = f"https://huggingface.co/{REPO}"


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's API that an upload and a download use; one repository."""

    files: dict[str, bytes]

    def log_message(self, *_):
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def say(self, value, **headers):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(200)
        for key, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.body()
        if self.path.endswith("/create"):
            return self.say({"url": SITE})
        if self.path.endswith("/validate-yaml"):  # the head of the card
            return self.say({"errors": [], "warnings": []})
        if "/preupload/" in self.path:  # everything in the commit itself, nothing to LFS
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return self.say({"files": [file | how for file in json.loads(body)["files"]]})
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.say({"commitUrl": f"{SITE}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def do_GET(self):
        if "/resolve/" in self.path:
            content = self.files[self.path.rpartition(f"{COMMIT}/")[2]]
            return self.say(content, ETag=f'"{sha1(content)}"', X_Repo_Commit=COMMIT)
        names = [
            {"rfilename": name, "type": "file", "path": name, "size": len(x), "oid": sha1(x)}
            for name, x in self.files.items()
        ]
        if "/tree/" in self.path:
            return self.say(names)
        return self.say({"id": REPO, "sha": COMMIT, "siblings": names})

    do_HEAD = do_GET


@pytest.fixture
def hub():
    handler = type("Own", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.files
    server.shutdown()


LOAD = """
import sys
from dual_denoising import DualDenoising
DualDenoising.from_pretrained("user/name").save_pretrained(sys.argv[1])
"""


def test_a_model_goes_to_the_hub_and_comes_back(trained, hub, tmp_path):
    address, files = hub
    folder, back = trained / "model", tmp_path / "back"
    card.write_card(folder)
    sha256 = hubness.save(torch.zeros(3, 2, 12), folder)
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }

    def run(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    run(str(Path(sys.executable).with_name("hf")), "upload", REPO, str(folder))
    assert {"README.md", "config.json", "model.safetensors", "training.json"} <= files.keys()
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    run(sys.executable, "-c", LOAD, str(back))
    assert (back / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (back / "model.safetensors").read_bytes() == files["model.safetensors"]
    (downloaded,) = (tmp_path / "hf").glob(f"hub/*/snapshots/*/{hubness.FILE}")
    assert hubness.load(downloaded.parent, sha256).shape == (3, 2, 12)
