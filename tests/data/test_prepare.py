import json
import os
import re
import shutil
import signal
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
import trimesh

from dual_denoising.data import prepare
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.folder import Folder
from dual_denoising.data.modelnet import ModelNetH5, open_modelnet
from dual_denoising.data.points import normalise
from dual_denoising.data.sources import known_names
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import InputError
from tests.conftest import assert_refuses


@pytest.fixture
def tree(tmp_path):
    """ModelNet10 as Princeton's tree, five boxes of every class and split, z-up, numbered on."""
    root, rng = tmp_path / "ModelNet10", np.random.default_rng(0)
    for kind in known_names("modelnet10"):
        for first, split in ((1, "train"), (4, "test")):
            folder = root / kind / split
            folder.mkdir(parents=True)
            for number in range(first, first + (3 if split == "train" else 2)):
                mesh = trimesh.creation.box(extents=[*rng.uniform(1, 2, 2), 9])
                mesh.export(folder / f"{kind}_{number:04d}.off")
    return root


def convert(root, out, split="test", points=64):
    source = open_modelnet(str(root), split, 10, points_per_mesh=points)
    return source, prepare.convert(source, out, points, workers=0)


def stored(path):
    with h5py.File(path) as file:
        return file["data"][()]


def test_h5_holds_what_the_reader_reads(tree, tmp_path):
    out = tmp_path / "data" / "modelnet10"
    source, entry = convert(tree, out)
    convert(tree, out, "train")
    again = open_modelnet(str(out), "test", 10)
    assert (type(again).__name__, again.up, again.ids) == ("ModelNetH5", "y", list(source.ids))
    assert again.labels.tolist() == source.labels.tolist()
    for index in (0, 11, 19):
        want = CloudDataset(source, 64)[index]["points"].numpy()
        got = normalise(again.read(index))
        assert np.ptp(got, axis=0).argmax() == 1  # z-up became y-up
        order = [np.lexsort(p.round(4).T) for p in (want, got)]
        np.testing.assert_allclose(got[order[1]], want[order[0]], atol=1e-3)
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest) == ["modelnet10_test", "modelnet10_train"]
    assert manifest["modelnet10_test"] == entry
    assert entry["sha256"] == fingerprint(out / "modelnet10_test.h5")
    assert (entry["clouds"], entry["read_as"], entry["classes"]["bed"]) == (20, "z", 2)
    assert not list(out.glob("*.partial"))


def test_bad_meshes_are_all_named_and_the_others_kept(tree, tmp_path, monkeypatch):
    out = tmp_path / "out"
    bad = [tree / "bed" / "test" / "bed_0004.off", tree / "sofa" / "test" / "sofa_0005.off"]
    whole = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(b"OFF\nrubbish")
    assert_refuses(r"2 of 20 clouds: .*bed_0004\.off.*sofa_0005\.off", convert, tree, out)
    assert not (out / "modelnet10_test.h5").exists()
    for path, content in zip(bad, whole, strict=True):
        path.write_bytes(content)
    read = []
    whole_read = Folder.read
    monkeypatch.setattr(
        Folder, "read", lambda s, i, rng: read.append(s.files[i].name) or whole_read(s, i)
    )
    convert(tree, out)
    assert sorted(set(read)) == ["bed_0004.off", "sofa_0005.off"]
    convert(tree, tmp_path / "fresh")
    mended, fresh = (stored(path / "modelnet10_test.h5") for path in (out, tmp_path / "fresh"))
    np.testing.assert_array_equal(mended, fresh)


def test_killed_and_started_again_it_writes_the_same(tree, tmp_path, call, monkeypatch):
    def dies(self, index, rng, read=Folder.read):
        if index == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index, rng)

    killed = tmp_path / "a" / "modelnet10"
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", dies)
        job = get_context("fork").Process(target=convert, args=(tree, killed, "train"))
        job.start()
        job.join()
    with h5py.File(killed / "modelnet10_train.partial") as file:
        assert file["done"][()].sum() == 20
    for root in ("a", "b"):
        line = f"prepare_data data=modelnet10 source={tree} workers=2 points=64"
        out, _ = call(f"{line} data_root={tmp_path / root}")
        assert "modelnet10_test.h5: 20 clouds of 64 points, y-up" in out
    for split in ("train", "test"):
        paths = [tmp_path / root / "modelnet10" / f"modelnet10_{split}.h5" for root in "ab"]
        np.testing.assert_array_equal(*map(stored, paths))


def test_check_names_what_is_wrong_and_exits_so(tree, tmp_path, call):
    bed = tree / "bed"
    (bed / "train" / "bed_0002.off").unlink()
    shutil.copy(tree / "sofa" / "test" / "sofa_0004.off", bed / "test" / "bed_0005.off")
    (tree / "desk" / "train" / "desk_0001.off").write_bytes(b"")
    (bed / "train" / "thumbs.db").write_bytes(b"x")
    shutil.rmtree(tree / "toilet" / "test")
    (tree / "toilet" / "test").mkdir()
    shutil.rmtree(tree / "table")
    (tree / "Tables").mkdir()
    arguments = ["data=modelnet10", f"source={tree}", "workers=0"]
    text, _ = call("prepare_data", "check", *arguments, status=1)
    for named in ("bed_0002: ", "desk_0001.off: ", "thumbs.db: ", "table/test: ", "Tables: "):
        assert named in text
    for both in (r"sofa/test/sofa_0004\.off.*bed/test/bed_0005\.off", "test .*toilet", "26 .*3991"):
        assert re.search(both, text)
    assert "academic research only" in text
    assert not (tmp_path / "data").exists()


def test_a_whole_data_set_has_no_problems(data_root):
    for split, n in (("test", 908), ("train", 3991)):
        source = open_modelnet(str(data_root / "modelnet10"), split, 10)
        assert len(source.labels) == n
        assert prepare.problems("modelnet10", [source]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=modelnet40", "source=/nowhere"], "source is /nowhere"),
        (["data=modelnet40", "source=."], "no modelnet40 train"),
        (["data=shapenet55", "source=."], "shapenet55 is read as it was downloaded"),
        (["data=primitives", "source=."], "data=primitives does not read one folder"),
    ],
)
def test_bad_input_is_one_line(call, arguments, message):
    out, errors = call("prepare_data", *arguments, status=1)
    assert f"error: {message}" in errors.replace("error: .: ", "error: ")
    assert "primitives" in message or "\n  download: " in out


def test_without_a_source_it_says_where_to_get_the_data(call):
    out, _ = call("prepare_data", "data=modelnet40", "name=mine")
    assert "modelnet.cs.princeton.edu" in out
    assert "source=/path" in out


def test_points_are_never_made_up_in_silence(tmp_path, tree, source, call):
    with pytest.raises(InputError, match=r"12 of 12 clouds.*'0'.*num_points=64.*40"):
        prepare.convert(source, tmp_path / "out", 64, workers=0)
    prepare.convert(source, tmp_path / "out", 64, workers=0, few="repeat")
    arguments = ["data=modelnet10", f"source={tree}", "points=3000", "workers=0"]
    call("prepare_data", *arguments, f"data_root={tmp_path}")
    first = stored(tmp_path / "modelnet10" / "modelnet10_test.h5")[0]
    assert len(np.unique(first, axis=0)) == 3000


def test_the_source_is_never_overwritten(tmp_path, modelnet_h5):
    path, names = modelnet_h5()
    os.rename(path, tmp_path / "toy_test.h5")
    source = ModelNetH5(tmp_path / "toy_test.h5", names, split="test", name="toy", up="y")
    before = fingerprint(tmp_path / "toy_test.h5")
    assert_refuses(r"toy_test\.h5", prepare.convert, source, tmp_path, 40, workers=0)
    assert fingerprint(tmp_path / "toy_test.h5") == before


def test_a_damaged_manifest_is_named_before_any_work(tree, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{")
    assert_refuses(r"manifest\.json", convert, tree, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_files_of_others_are_left_alone(tree, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("shape_names.txt", "folder_all.h5"):
        (folder / name).write_text("mine\n")
    source = Folder(str(tree), name="folder")
    assert_refuses(r"folder_all\.h5", prepare.convert, source, folder, 8, 0)
    (folder / "folder_all.h5").unlink()
    for _ in range(2):  # the second time it is its own
        prepare.convert(source, folder, 8, 0)
        assert (folder / "shape_names.txt").read_text() == "mine\n"
        assert (folder / "folder_all_names.txt").read_text() != "mine\n"
