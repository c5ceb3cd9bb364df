import numpy as np
import pytest
import torch

from dual_denoising.clip.features import StandInBank
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.errors import InputError
from dual_denoising.evaluation import classifier as zeroshot
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.model import dual_denoising as model_module
from dual_denoising.model.numpy_io import on_arrays


@pytest.fixture
def source(modelnet_h5):
    return ModelNetH5(*modelnet_h5(), split="test", name="toy", up="y")


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


def test_forward_is_encode_then_logits(toy, wake, clouds):
    model = wake(toy()).eval()
    classify = ZeroShotClassifier(model, torch.eye(4, 12), num_noise=3, timestep=200, seed=5)
    indices = torch.tensor([9, 4, 1, 0, 7])
    features = model.encode(clouds, 3, 200, 5, indices)
    torch.testing.assert_close(classify(clouds, indices), classify.logits(features))


def test_type_weights_must_fit(toy):
    with pytest.raises(InputError, match=r"type_weights is .* has 2 feature types, image, text"):
        ZeroShotClassifier(toy(), torch.eye(4, 12), type_weights=[1.0, 1.0, 1.0])


def test_numpy_in_numpy_out(toy, wake, clouds):
    model = wake(toy()).eval()
    classify = ZeroShotClassifier(model, np.eye(4, 12, dtype=np.float32), 2, 300)
    expected = classify(clouds, torch.tensor([3, 1, 4, 0, 5]))
    given = classify(clouds.double().numpy(), np.array([3, 1, 4, 0, 5]))
    assert isinstance(given, np.ndarray)
    np.testing.assert_array_equal(given, expected.detach().numpy())
    features = model.encode(clouds.numpy(), 2, 300)
    np.testing.assert_array_equal(features, model.encode(clouds, 2, 300).detach().numpy())
    weights = np.eye(4, 12)  # float64
    given = ZeroShotClassifier(model, weights, 2, 300)(clouds.numpy(), np.array([3, 1, 4, 0, 5]))
    np.testing.assert_array_equal(given, expected.detach().numpy())
    whole = on_arrays(lambda cloud, indices: cloud, torch.zeros(1), np.ones((1, 2, 3), int))
    assert whole.dtype == np.float32


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        (np.zeros((20, 3)), r"shape \(20, 3\); they must be \(B, N, 3\)"),
        (np.zeros((1, 20, 6)), r"shape \(1, 20, 6\)"),
        (np.zeros((0, 20, 3)), r"shape \(0, 20, 3\)"),
        (np.full((1, 20, 3), np.nan), "not finite numbers"),
        (np.full((1, 20, 3), "a"), "not finite numbers"),
    ],
)
def test_arrays_that_are_no_clouds_are_named(toy, clouds, message):
    with pytest.raises(InputError, match=message):
        on_arrays(toy().encode, torch.zeros(1), clouds)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_weights": np.eye(4, 9)}, "9 wide, the model's features 12"),
        ({"timestep": 1000}, "timestep is 1000: choose one from 0 to 999"),
        ({"num_noise": 0}, "num_noise is 0"),
        ({"type_weights": [0.0, 0.0]}, "one > 0"),
    ],
)
def test_classifiers_that_cannot_work_are_named_when_made(toy, fields, message):
    with pytest.raises(InputError, match=message):
        ZeroShotClassifier(toy(), **({"class_weights": np.eye(4, 12)} | fields))


@pytest.mark.parametrize("scale", [0.08, 0.0])
def test_grid_is_every_setting_by_itself(toy, wake, clouds, scale, monkeypatch):
    model = wake(toy(noise_scale=scale)).eval()
    classify = ZeroShotClassifier(model, torch.eye(4, 12))
    indices, paths, steps, seeds = torch.tensor([9, 4, 1, 0, 7]), [3, 1], [0, 500, 999], [0, 6]
    with monkeypatch.context() as patch:
        patch.setitem(model_module.CLOUDS_AT_ONCE, False, 11)  # of five clouds two paths at a time
        grid = classify.grid(clouds, indices, paths, steps, seeds)
    assert grid.shape == (3, 2, 2, 5, 4)
    for t, step in enumerate(steps):
        for s, count in enumerate(paths):
            for r, seed in enumerate(seeds):
                alone = ZeroShotClassifier(model, torch.eye(4, 12), count, step, seed)
                torch.testing.assert_close(grid[t, s, r], alone(clouds, indices))


def test_grid_encodes_once_where_the_points_are_clean(toy, clouds):
    model = toy().eval()
    calls = []
    encode = model.point_dae.encode
    model.point_dae.encode = lambda *a: calls.append(len(a[0].points)) or encode(*a)
    classify = ZeroShotClassifier(model, torch.eye(4, 12))
    classify.grid(clouds, torch.arange(5), [1, 2, 16], [0], [0, 1, 2])
    assert calls == [5]  # five clouds, for 16 paths of three seeds and for every S


def test_seen_names_are_counted(source):
    training = {"dataset": "shapenet55", "class_names": ["sofa", "car"]}
    seen, note = zeroshot.seen(training, source)
    assert not seen
    assert note == "1 of 3 names seen in training, data set not"
    assert (
        zeroshot.seen(training | {"class_names": ["car"]}, source)[1] == "no name seen in training"
    )


def test_another_teacher_is_refused():
    with pytest.raises(InputError, match=r"learned from ViT-B-32/openai, but .* stand-in"):
        zeroshot.check_teacher({"teacher": "ViT-B-32/openai"}, StandInBank(), "runs/x/model")
