"""Files of strangers: whatever they hold, one sentence, little memory, and little time."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import trimesh
from trimesh.exchange import gltf

from dual_denoising.data.files import read_cloud
from dual_denoising.demo.reader import MOST, Reader
from tests.conftest import ROOT, assert_refuses, instances


@pytest.fixture(scope="module")
def read():
    return Reader(seconds=20)


def test_of_a_large_scan_a_part_comes_back(read, tmp_path):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).normal(size=(3 * MOST, 3)))
    assert read(tmp_path / "scan.npy", 64).shape == (MOST, 3)


@pytest.mark.parametrize("kind", ["corrupt", "zeros", "instances"])
def test_a_bad_file_is_one_sentence_that_names_it_alone(tmp_path, kind):
    read = Reader(seconds=3, memory=2**28)
    path = tmp_path / ("a.npz" if kind == "zeros" else "a.glb")
    if kind == "zeros":
        np.savez_compressed(path, np.broadcast_to(np.float32(0), (3 * 10**7, 3)))  # 360 MB
    else:
        path.write_bytes(instances(60_000) if kind == "instances" else b"glTF" + bytes(range(256)))
    read(ROOT / "data/base_meshes/samples/door_01.glb", 8)
    started = time.monotonic()
    words = assert_refuses(path.name, read, path, 64)
    assert str(tmp_path) not in words
    assert kind != "zeros" or "memory" in words
    assert "\n" not in words
    assert time.monotonic() - started < 30


def test_a_gltf_reaches_no_other_file(read, tmp_path):
    secret, folder = tmp_path / "secret.bin", tmp_path / "upload"
    folder.mkdir()
    files = gltf.export_gltf(trimesh.Scene(trimesh.creation.box()), merge_buffers=True)
    document = json.loads(files.pop("model.gltf"))
    secret.write_bytes(*files.values())
    for uri in (str(secret), "../secret.bin", f"file://{secret}"):
        document["buffers"][0]["uri"] = uri
        (folder / "a.gltf").write_text(json.dumps(document))
        assert_refuses(r"a\.gltf", read, folder / "a.gltf", 8)


def test_two_read_at_once(read):
    paths = sorted((ROOT / "data/base_meshes/samples").glob("*.glb"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: read(path, 64), paths))
    for path, points in zip(paths, found, strict=True):
        np.testing.assert_array_equal(points, read_cloud(path, 64))
