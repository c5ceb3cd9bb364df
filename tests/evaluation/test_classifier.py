import numpy as np
import pytest
import torch

from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.model import dual_denoising
from tests.conftest import each


def test_logits_are_100_times_the_cosine(toy):
    weights = torch.nn.functional.normalize(torch.randn(4, 12), dim=-1)
    classify = ZeroShotClassifier(toy(), weights)
    features = torch.randn(3, 2, 12)
    cosine = torch.nn.functional.cosine_similarity(
        features[:, :, None], weights[None, None], dim=-1
    )
    torch.testing.assert_close(classify.logits(features), 100 * cosine.mean(1))
    image_only = ZeroShotClassifier(toy(), weights, type_weights=[1.0, 0.0])
    torch.testing.assert_close(image_only.logits(features), 100 * cosine[:, 0])


def test_a_centre_and_a_penalty_change_the_cosine_as_they_say(toy):
    normal, center = torch.nn.functional.normalize, 0.5 * torch.eye(12)[0]
    weights, features = normal(torch.randn(4, 12), dim=-1), torch.randn(3, 2, 12)
    penalty = torch.tensor([0.0, 0.1, 0.0, 0.2])
    classify = ZeroShotClassifier(toy(), weights, center=center)
    classify.penalty = penalty
    moved = normal(features, dim=-1)[:, :, None] - center, (weights - center)[None, None]
    cosine = torch.nn.functional.cosine_similarity(*moved, dim=-1)
    torch.testing.assert_close(classify.logits(features), 100 * (cosine.mean(1) - penalty))


def test_forward_is_encode_then_logits(toy, wake, clouds):
    model = wake(toy()).eval()
    classify = ZeroShotClassifier(model, torch.eye(4, 12), num_noise=3, timestep=200, seed=5)
    indices = torch.tensor([9, 4, 1, 0, 7])
    features = model.encode(clouds, 3, 200, 5, indices)
    torch.testing.assert_close(classify(clouds, indices), classify.logits(features))


@pytest.mark.parametrize(
    "fields",
    each(class_weights=[np.eye(4, 9)], timestep=[1000], num_noise=[0])
    + each(type_weights=[[0.0, 0.0], [], [1.0, 1.0, 1.0]]),
)
def test_classifiers_that_cannot_work_are_named_when_made(toy, fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        ZeroShotClassifier(toy(), **({"class_weights": np.eye(4, 12)} | fields))


@pytest.mark.parametrize("scale", [0.08, 0.0])
def test_grid_is_every_setting_by_itself(toy, wake, clouds, scale, monkeypatch):
    model = wake(toy(noise_scale=scale)).eval()
    classify = ZeroShotClassifier(model, torch.eye(4, 12))
    indices, paths, steps, seeds = torch.tensor([9, 4, 1, 0, 7]), [3, 1], [0, 500, 999], [0, 6]
    with monkeypatch.context() as patch:
        patch.setattr(dual_denoising, "CPU_BATCH", 11)  # two paths at a time
        grid = classify.grid(clouds, indices, paths, steps, seeds)
    assert grid.shape == (3, 2, 2, 5, 4)
    for t, step in enumerate(steps):
        for s, count in enumerate(paths):
            for r, seed in enumerate(seeds):
                alone = ZeroShotClassifier(model, torch.eye(4, 12), count, step, seed)
                torch.testing.assert_close(grid[t, s, r], alone(clouds, indices))
            torch.testing.assert_close(grid[t, s], alone.draws(clouds, indices, seeds))


def test_grid_encodes_once_where_the_points_are_clean(toy, clouds):
    model = toy().eval()
    calls = []
    encode = model.point_dae.encode
    model.point_dae.encode = lambda *a: calls.append(len(a[0].points)) or encode(*a)
    classify = ZeroShotClassifier(model, torch.eye(4, 12))
    classify.grid(clouds, torch.arange(5), [1, 2, 16], [0], [0, 1, 2])
    assert calls == [5]  # five clouds, for 16 paths of three seeds and for every S
