"""The image tower: what it learns of named shapes, and its features as a teacher's."""

import numpy as np
import pytest
import torch

from dual_denoising.clip import image_tower
from dual_denoising.clip.cache import Rendered, cache
from dual_denoising.clip.features import StandInBank, TextBank
from dual_denoising.clip.image_tower import ImageTeacher, ImageTower
from dual_denoising.clip.micro_clip import Training, Views
from dual_denoising.clip.targets import Targets
from dual_denoising.clip.views import Renderer
from dual_denoising.data.feature_file import FeatureFile
from dual_denoising.data.primitives import Primitives
from tests.conftest import assert_refuses

NAMES = ["airplane", "chair", "mug"]
BANK = "data/clip_text/clip_vitb32_openai_text.h5"
SMALL = {"size": 32, "patch": 4, "width": 32, "depth": 2, "heads": 2}


def test_it_learns_the_names_of_pictures_and_its_features_join_the_texts(tmp_path):
    torch.manual_seed(0)
    text, source = TextBank(BANK), Primitives("train", 6, classes=NAMES, num_points=512)
    tower, folder = ImageTower(**SMALL), tmp_path / "model"
    settings = Training(250, 18, 2e-3, warmup=10)
    taught, device = Views(source, 4, tower.image_size), torch.device("cpu")
    found = image_tower.train_and_test(tower, text, taught, [source], settings, folder, device)
    results, counts = found
    assert results["primitives train"]["top1"] > 0.6  # of three, on what it was trained with
    assert results["primitives train"]["n_taught"] == counts["shapes"] == 18
    teacher = ImageTeacher(str(folder), text)
    path = tmp_path / "features.h5"
    pictures = Rendered(source, Renderer([(30, 20), (120, 20)], size=32))
    assert cache(teacher, source, pictures, ["a {}"], path) == {}
    every = torch.arange(18)
    drawn = Targets(["image", "text"], source, text, str(path))(every, every)  # (18, 2, 512)
    lengths = text.lookup(NAMES).norm(dim=-1).mean()
    torch.testing.assert_close(drawn[:, 0].norm(dim=-1), lengths.expand(18))
    units = torch.nn.functional.normalize(drawn[:, 0], dim=-1)
    guesses = (units @ text.class_weights(NAMES).T).argmax(1).numpy()
    assert (guesses == source.labels).mean() > 0.6  # one space: a picture is near its name
    assert_refuses("prompts", cache, teacher, source, pictures, ["the {}"], tmp_path / "other.h5")


def test_accuracies_of_taught_and_other_names_are_counted_apart():
    """A tower whose features are given: the first two names' shapes right, a third's wrong."""
    text, source = StandInBank(8), Primitives("test", 2, classes=NAMES, num_points=16)
    weights = text.class_weights(NAMES)
    mug_as_chair = weights[[0, 0, 1, 1, 1, 1]]
    mug_as_chair[4:] += 0.5 * weights[2]

    class Given(ImageTower):
        def forward(self, pixels):
            return mug_as_chair[pixels[:, 0, 0, 0].mul(127.5).add(127.5).round().long()]

    views = Views(source, 1, 32)
    views.pictures = np.empty((6, 1, 32, 32, 3), np.uint8)
    views.pictures[:] = np.arange(6).reshape(6, 1, 1, 1, 1)  # each is filled with its number
    found = image_tower.evaluate(Given(**SMALL), text, views, NAMES[:2])
    assert (found["n"], found["n_taught"], found["names_taught"]) == (6, 4, 2)
    assert (found["top1_taught"], found["top1_untaught"]) == (1, 0)
    assert found["top1"] == found["top1_one_view"] == pytest.approx(4 / 6)
    assert found["top1_untaught_among_untaught"] == 1  # mug is then the only name


def test_the_tower_of_the_repository_names_shapes_that_it_was_not_trained_on(tmp_path):
    wanted = "airplane bathtub bottle car chair guitar lamp mug table vase"
    names = wanted.split()
    text, source = TextBank(BANK), Primitives("test", 3, classes=names, num_points=512)
    pictures = Rendered(source, Renderer([(30, 20), (210, 20)], size=64))
    teacher = ImageTeacher("data/image_tower", text)
    path = tmp_path / "features.h5"
    cache(teacher, source, pictures, ["a {}"], path)
    views = FeatureFile(str(path), kind="id").take(source.ids).mean(1)
    guesses = (views @ text.class_weights(names).T).argmax(1).numpy()
    assert (guesses == source.labels).mean() > 0.5  # chance is 0.1
