from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from dual_denoising import keyed_random
from dual_denoising.attacks import CWEOT
from dual_denoising.baselines.base import Baseline
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.sources import ArraySource
from dual_denoising.evaluation import certificate
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.systems import System
from dual_denoising.model.noising import Noising
from dual_denoising.model.tokens import Grouping, choose_centers, group
from tests.conftest import assert_refuses, each

POINTS = 16


class Linear(Baseline):
    """sign(w·x + b): its smoothed vote is itself, and |w·x + b| / ‖w‖ the exact L2 radius."""

    noising, feature_width, logit_scale = Noising(0.2), 3, 1.0

    def __init__(self):
        super().__init__()
        drawn = torch.randn(3 * POINTS, generator=torch.Generator().manual_seed(5))
        self.weight = nn.Parameter(drawn / drawn.norm())

    def margin(self, clouds):
        return clouds.flatten(1).to(self.weight) @ self.weight + 0.05

    def encode(self, clouds):
        margin = self.margin(clouds)
        ones = torch.ones_like(margin)  # without which their cosine had no slope
        return torch.stack([margin, -margin, ones], -1)

    def own_weights(self, names):
        return torch.eye(2, 3)


def shapes(model, count=24):
    """Clouds whose labels the linear model gets right."""
    drawn = torch.randn(count, POINTS, 3, generator=torch.Generator().manual_seed(1))
    labels, ids = (model.margin(0.3 * drawn) < 0).long().numpy(), [str(i) for i in range(count)]
    names, points = ["plus", "minus"], (0.3 * drawn).numpy()
    return ArraySource("shapes", "test", "y", names, labels, ids, "drawn", points)


@pytest.fixture
def bench(tmp_path, record):
    def build(**changed):
        model = Linear()
        test = CloudDataset(shapes(model), POINTS, unit_sphere=False)
        system = System(model, model, replace(record, num_points=POINTS), "drawn")
        config = {"subset": None, "subset_seed": 0, "timestep": [500], "choosing": 20}
        config |= {"draws": 400, "alpha": 0.001, "seed": 0, "radii": [0]}
        config |= {"attacked": 8, "attack": None} | changed

        def attack(_, model):
            return CWEOT(model, searches=5, steps=60, lr=0.02, judges=40, kappa=0.1)

        return certificate.Certification(system, test, config, tmp_path, attack)

    return build


def test_certified_radii_stay_below_the_exact_ones_of_a_linear_model(bench):
    (found,) = bench(attacked=0)
    model = Linear()
    clouds = torch.tensor(shapes(model).clouds)
    exact = model.margin(clouds).abs().detach().numpy()  # ‖w‖ is 1
    assert (found.answers[exact > 0.05] == found.labels[exact > 0.05]).all()
    assert (found.radii <= exact).all()
    most = found.sigma * stats.norm.ppf(0.001 ** (1 / 400))  # of 400 votes for one class
    close = np.minimum(exact, most)[exact > 0.05]
    assert np.median(found.radii[exact > 0.05] / close) > 0.6
    assert found.accuracy(0.0) >= found.accuracy(0.05) >= found.accuracy(1.0) == 0


def test_no_attack_comes_nearer_than_a_certificate(bench):
    (found,) = bench()
    won = np.isfinite(found.moved)
    assert won.sum() >= 4
    assert (found.moved[won] >= found.radii[won]).all()
    assert np.isnan(found.moved).sum() >= 16  # not attacked


def test_votes_are_kept_and_other_settings_refused(bench, monkeypatch):
    (first,) = bench(attacked=0)
    monkeypatch.setattr(certificate.SmoothedClassifier, "votes", None)  # nothing is left to count
    (again,) = bench(attacked=0)
    np.testing.assert_array_equal(first.radii, again.radii)
    assert_refuses("votes_t500", bench, draws=500)


def test_logits_that_are_not_finite_are_no_votes(bench):
    broken = bench(attacked=0)
    with torch.no_grad():
        broken.system.model.weight.fill_(torch.nan)
    assert_refuses("cloud 0", list, broken)


def test_our_model_sees_the_noised_cloud_alone(toy, wake, clouds):
    model = wake(toy(feature_types=["text"])).eval()
    weights = nn.functional.normalize(torch.randn(4, 12), dim=-1)
    smoothed = certificate.SmoothedClassifier(ZeroShotClassifier(model, weights, 1, 700)).eval()
    drawn = smoothed.draws(clouds, torch.arange(5), [3, 8])  # (2, 5, 4)
    keys = keyed_random.path_keys(8, torch.arange(5), 1)[:, 0]
    noisy = model.noising.add_noise(clouds, torch.full((5,), 700), keys)
    tokens = group(noisy, Grouping(choose_centers(noisy, 8)), 6)
    layers = model.point_dae.encode(tokens, torch.full((5,), 7))
    features = model.denoise_features(layers, keys[:, None])[:, 0]
    torch.testing.assert_close(drawn[1], smoothed.classifier.logits(features))
    counts = smoothed.votes(clouds[0], 0, range(40))
    answers = smoothed.draws(clouds[:1], torch.tensor([0]), range(40))[:, 0].argmax(-1)
    np.testing.assert_array_equal(counts, np.bincount(answers, minlength=4))


def test_bounds_hold_as_often_as_they_claim():
    rng = np.random.default_rng(0)
    p, n, alpha, trials = 0.8, 200, 0.05, 4000
    won = rng.binomial(n, p, trials)
    counted = np.stack([won, n - won], 1)
    _, radii = certificate.certify(np.array([[9, 1]] * trials), counted, 1.0, alpha)
    too_far = (radii > stats.norm.ppf(p)).mean()
    assert too_far <= alpha + 3 * np.sqrt(alpha / trials)
    assert too_far > 0.02  # and is not idle


def test_certify_and_predict_by_hand():
    choosing = np.array([[9, 1, 0], [9, 1, 0], [0, 0, 10]])
    counted = np.array([[1000, 0, 0], [520, 480, 0], [999, 1, 0]])
    answers, radii = certificate.certify(choosing, counted, 0.04, 0.001)
    np.testing.assert_array_equal(answers, [0, certificate.ABSTAINS, certificate.ABSTAINS])
    np.testing.assert_allclose(radii, [0.04 * stats.norm.ppf(0.001**0.001), 0, 0])
    np.testing.assert_array_equal(certificate.predict(counted, 0.001), [0, certificate.ABSTAINS, 0])


@pytest.mark.parametrize(
    "changed",
    each(timestep=[[0], 500], alpha=[0.6], draws=[9], choosing=["x"], attacked=[-1])
    + each(radii=[0.1], seed=[2**16]),
)
def test_settings_that_certify_nothing_are_named(bench, changed):
    assert_refuses(next(iter(changed)), bench, **changed)
