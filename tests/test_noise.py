import numpy as np
import torch
from scipy import stats

from dual_denoising import keyed_random as noise


def test_schedule_is_linear_from_0_to_s():
    sigma = noise.noise_scale(torch.tensor([0, 500, 999]), 0.08)
    torch.testing.assert_close(sigma, torch.tensor([0.0, 0.08 * 500 / 999, 0.08]))


def test_corrupt_is_equation_2(clouds):
    epsilon = torch.ones_like(clouds)
    noisy = noise.corrupt(clouds, torch.tensor([0, 0.1, 0.2, 0.3, 0.4]), epsilon)
    torch.testing.assert_close(noisy[0], clouds[0])
    torch.testing.assert_close(noisy[3], clouds[3] + 0.3)


def test_normals_are_standard_and_uncorrelated():
    keys = noise.key(7, torch.arange(200))
    draws = noise.gaussian(keys, 1024, 3).double()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    between_clouds = np.corrcoef(draws.flatten(1).numpy())
    between_axes = np.corrcoef(draws.flatten(0, 1).T.numpy())
    assert abs(between_clouds - np.eye(200)).max() < 6 / np.sqrt(3072)
    assert abs(between_axes - np.eye(3)).max() < 5 / np.sqrt(200 * 1024)
    halves = draws.flatten(1)[:, :1536].flatten(), draws.flatten(1)[:, 1536:].flatten()
    assert abs(np.corrcoef(*halves)[0, 1]) < 5 / np.sqrt(200 * 1536)  # Box–Muller's two outputs


def test_uniforms_and_timesteps_are_uniform():
    draws = noise.uniform(noise.key(3, torch.arange(50_000)), 1)
    assert draws.min() > 0
    assert draws.max() < 1
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    steps = noise.timesteps(noise.key(3, torch.arange(50_000)), 1000)
    counts = torch.bincount(steps, minlength=1000)
    assert len(counts) == 1000
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_uniforms_never_reach_1():
    draw = noise.uniform(noise.key(0, 171, 34663), 1)  # its 24 bits are all ones
    assert draw.item() == 1 - 2**-24


def test_a_draw_depends_on_its_key_alone():
    indices, paths = torch.tensor([5, 17, 900]), torch.arange(4)
    together = noise.gaussian(noise.key(1, indices[:, None], paths), 6)
    alone = noise.gaussian(noise.key(1, torch.tensor([17])[:, None], paths[2:3]), 6)
    assert torch.equal(together[1, 2], alone[0, 0])


def test_keys_tell_their_parts_and_their_order_apart():
    grid = noise.key(torch.arange(-50, 50)[:, None], torch.arange(100))
    assert len(grid.unique()) == 10_000
    assert noise.key(1, 2) != noise.key(2, 1)
    assert noise.key(0, 0) != noise.key(0)


def test_draws_are_the_same_in_every_release():
    # Golden: changing them changes every published prediction. SplitMix64 in Python's integers.
    def scramble(z):
        mask = 2**64 - 1
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden, state = 0x9E3779B97F4A7C15, 0
    for part in (3, 41):
        state = scramble(((state ^ scramble((part + golden) % 2**64)) + golden) % 2**64)
    signed = state - 2**64 if state >= 2**63 else state
    assert noise.key(3, 41).item() == signed
    expected = [((scramble((state + k * golden) % 2**64) >> 40) + 0.5) / 2**24 for k in (1, 2)]
    drawn = noise.uniform(noise.key(3, 41), 2)
    torch.testing.assert_close(drawn, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0)
