"""The Princeton Shape Benchmark as downloaded, prepared, and read again."""

import numpy as np
import pytest
import trimesh

from dual_denoising.data import prepare
from dual_denoising.data.points import normalise
from dual_denoising.data.princeton import open_princeton, read_classification
from tests.conftest import assert_refuses

TRAIN = """PSB 1
3 3

furniture 0 0

table furniture 0

round table 2
7
812

chair furniture 1
100
"""
TEST = "PSB 1\n1 1\nstool 0 1\n205\n"
SIZES = {7: (1, 2, 3), 812: (2, 2, 1), 100: (1, 1, 1), 205: (3, 1, 1)}


@pytest.fixture
def download(tmp_path):
    root = tmp_path / "psb_v1"
    classes = root / "benchmark" / "classification" / "v1" / "base"
    classes.mkdir(parents=True)
    (classes / "train.cla").write_text(TRAIN.replace("3 3", "4 3"))
    (classes / "test.cla").write_text(TEST)
    for number, size in SIZES.items():
        folder = root / "benchmark" / "db" / str(number // 100) / f"m{number}"
        folder.mkdir(parents=True)
        trimesh.creation.box(size).export(folder / f"m{number}.off")
    return root


def test_models_stand_under_their_leaf_names(download):
    train, test = (open_princeton(str(download), split, 64) for split in ("train", "test"))
    assert (train.class_names, test.class_names) == (["chair", "round"], ["stool"])
    found = {i: train.class_names[label] for i, label in zip(train.ids, train.labels, strict=True)}
    assert found == {"m7": "round", "m812": "round", "m100": "chair"}
    for index, key in enumerate(train.ids):
        on_face = np.isclose(np.abs(train.read(index)), np.array(SIZES[int(key[1:])]) / 2)
        assert on_face.any(1).all()
    assert not np.array_equal(train.read(0), train.read(0, np.random.default_rng(0)))


def test_both_splits_are_prepared_into_one_folder_and_read_with_their_own_names(download, tmp_path):
    out = tmp_path / "out"
    for split in ("train", "test"):
        source = open_princeton(str(download), split, 64)
        prepare.convert(source, out, 64, workers=0)
    for split in ("train", "test"):
        source, again = (open_princeton(str(p), split, 64) for p in (download, out))
        assert list(again.class_names) == list(source.class_names)
        assert again.labels.tolist() == source.labels.tolist()
        want, got = (np.sort(normalise(s.read(0)), axis=0) for s in (source, again))
        np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("PSB 2\n0 0", "PSB 1"),
        ("PSB 1\n1 2\nstool 0 2\n205", r"test\.cla"),
        ("PSB 1\n1 1\nstool 0 one\n205", "one"),
    ],
)
def test_damaged_classifications_are_named(tmp_path, content, words):
    path = tmp_path / "test.cla"
    path.write_text(content)
    assert "test.cla" in assert_refuses(words, read_classification, path)
    assert_refuses("princeton", open_princeton, str(tmp_path), "test")
