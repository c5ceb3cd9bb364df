import numpy as np
import pytest
import torch

from dual_denoising.clip.features import StandInBank, TextBank
from dual_denoising.clip.targets import Targets
from dual_denoising.data.feature_file import FeatureFile
from dual_denoising.data.sources import ArraySource
from dual_denoising.errors import InputError
from tests.conftest import assert_refuses, write_features, write_h5


@pytest.fixture
def bank(tmp_path):
    names = ["bed", "nightstand", "trash can", "sofa"]
    features = np.arange(4 * 3 * 5).reshape(4, 3, 5).astype(np.float32)
    return TextBank(write_features(tmp_path / "text.h5", names, features))


def shapes(names=("sofa", "bed"), labels=(0, 1, 1, 0)):
    clouds = [np.full((4, 3), index) for index in range(4)]
    return ArraySource("shapes", "train", "y", names, np.array(labels), "abcd", "here", clouds)


def test_names_are_found_under_other_spellings(bank):
    found = bank.lookup(["night_stand", "bin", "bed"])
    assert torch.equal(found, bank.lookup(["nightstand", "trash can", "bed"]))


def test_an_unknown_name_lists_the_nearest(bank):
    assert_refuses(r"'sofas' \(sofa", bank.lookup, ["bed", "sofas"])


def test_stand_in_is_seeded_and_tells_names_apart():
    bank = StandInBank(width=64)
    features = bank.lookup(["night_stand", "night stand", "bed"])[:, 0]
    assert torch.equal(features[0], features[1])
    assert torch.cosine_similarity(features[0], features[2], dim=0).abs() < 0.5
    assert "no meaning" in bank.teacher


def test_targets_draw_a_prompt_of_the_clouds_class(bank):
    source = shapes()
    make = Targets(["text"], source, bank)
    indices, keys = torch.arange(4).repeat(50), torch.arange(200)
    drawn = make(indices, keys)[:, 0]
    table = bank.lookup(source.class_names)
    for index, row in zip(indices, drawn, strict=True):
        assert (table[source.labels[index]] == row).all(1).any()
    assert len(drawn.unique(dim=0)) == 6  # two classes × three prompts
    assert torch.equal(make(indices, keys), make(indices, keys))


def test_mixed_targets_lie_between_a_name_and_its_nearest(bank):
    three = shapes(("bed", "sofa", "mug"), [0, 1, 2, 2])
    features = torch.tensor([[[1.0, 0]], [[0.8, 0.6]], [[0, 2.0]]])  # sofa is nearest to both
    bank.lookup = lambda names: features
    make = Targets(["text"], three, bank, mix=0.25)
    drawn = make(torch.zeros(99, dtype=torch.long), torch.arange(99))[:, 0].unique(dim=0)
    torch.testing.assert_close(drawn, torch.tensor([[0.75, 0.5], [0.95, 0.15]]))


def test_image_targets_are_each_clouds_own(bank, tmp_path):
    images = np.arange(20).reshape(4, 5).astype(np.float32)
    path = write_features(tmp_path / "images.h5", ["d", "c", "b", "a"], images, kind="id")
    make = Targets(["image", "text"], shapes(), bank, path)
    drawn = make(torch.tensor([0, 3]), torch.tensor([0, 1]))
    assert drawn.shape == (2, 2, 5)
    np.testing.assert_array_equal(drawn[:, 0].numpy(), images[[3, 0]])
    mean, std = make.statistics()
    np.testing.assert_allclose(mean[0].numpy(), images.mean(0))
    np.testing.assert_allclose(std[0].numpy(), images.std(0), rtol=1e-6)


def test_statistics_are_those_of_the_clouds_not_of_the_classes(bank):
    uneven = shapes(labels=[0, 1, 1, 1])
    mean, std = Targets(["text"], uneven, bank).statistics()
    rows = bank.lookup(uneven.class_names)[uneven.labels].flatten(0, 1)
    torch.testing.assert_close(mean[0], rows.mean(0))
    torch.testing.assert_close(std[0], rows.std(0, correction=0))


def test_foreign_image_features_are_refused(bank, tmp_path):
    features = np.ones((3, 5), np.float32)
    path = write_features(tmp_path / "few.h5", ["a", "b", "c"], features, kind="id")
    assert_refuses(r"1 of 4.*'d'", Targets, ["image"], shapes(), bank, path)
    path = write_features(tmp_path / "b16.h5", list("abcd"), np.ones((4, 5)), "id", "ViT-B-16")
    assert_refuses(r"b16\.h5.*ViT-B-16", Targets, ["image"], shapes(), bank, path)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [("abc", np.inf, "1 .*'b'"), ("abc", 0.0, "1 .*'b'"), ("aba", 2.0, "'a'")],
)
def test_broken_and_doubled_features_are_named(tmp_path, keys, value, words):
    features = np.ones((3, 5), np.float32)
    features[1] = value
    with pytest.raises(InputError, match=words):
        FeatureFile(write_features(tmp_path / "x.h5", list(keys), features, kind="id"), "id")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, r"bank\.h5"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n123"), r"bank\.h5"),
        (lambda path: write_h5(path, [1], [1]), "'name', 'feature'"),
        (lambda path: write_features(path, ["a", "b"], np.zeros((3, 5))), r"\(3, 5\)"),
        (lambda path: write_features(path, ["a"], np.zeros((1, 0, 5))), r"\(1, 0, 5\)"),
        (lambda path: write_h5(path, [1], [1], name=[1], feature=[[0.5]]), r"bank\.h5"),
    ],
)
def test_files_that_are_no_feature_files_are_named(tmp_path, write, words):
    write(tmp_path / "bank.h5")
    assert "bank.h5" in assert_refuses(words, TextBank, str(tmp_path / "bank.h5"))
