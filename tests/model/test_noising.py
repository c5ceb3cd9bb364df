import torch
from scipy import stats

from dual_denoising import keyed_random
from dual_denoising.model.noising import Noising


def test_timesteps_are_uniform():
    steps = Noising().draw_timesteps(keyed_random.key(3, torch.arange(50_000)))
    counts = torch.bincount(steps, minlength=1000)
    assert len(counts) == 1000
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
