import pytest
import torch
from scipy import stats

from dual_denoising import keyed_random
from dual_denoising.model.noising import Noising


def test_the_schedule_is_linear_from_0_to_s_and_weighs_by_it():
    noising, t = Noising(0.08), torch.tensor([0, 500, 999])
    sigma = torch.tensor([0.0, 0.08 * 500 / 999, 0.08])
    torch.testing.assert_close(noising.sigma(t), sigma)
    torch.testing.assert_close(noising.weight(t), 1 / (1 + sigma**2))


def test_the_cloud_is_corrupted_by_equation_2(clouds):
    keys, t = torch.arange(5), torch.tensor([0, 111, 222, 333, 999])
    epsilon = keyed_random.gaussian(keyed_random.key(keys, keyed_random.POINT_NOISE), 96, 3)
    expected = clouds + 0.1 * (t / 999)[:, None, None] * epsilon
    torch.testing.assert_close(Noising(0.1).corrupt(clouds, t, keys), expected)


def test_timesteps_are_uniform():
    steps = Noising().draw_timesteps(keyed_random.key(3, torch.arange(50_000)))
    counts = torch.bincount(steps, minlength=1000)
    assert len(counts) == 1000
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("merge", "expected"), [(100, [0, 0, 1, 9]), (1, [0, 99, 100, 999])])
def test_timesteps_are_merged(merge, expected):
    t = torch.tensor([0, 99, 100, 999])
    assert Noising(merge=merge).merged(t).tolist() == expected
