import itertools

import numpy as np
import torch
from scipy import stats

from dual_denoising.attacks import CWEOT, PGD
from dual_denoising.attacks.run import CHOOSING
from dual_denoising.evaluation.grid import Evaluation
from dual_denoising.keyed_random import FirstSeed, Stream, gaussian, generator, key, uniform
from tests.conftest import assert_refuses


def test_normals_are_standard_and_uncorrelated():
    draws = gaussian(key(7, torch.arange(200)), 1024, 3).double()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    between_clouds = np.corrcoef(draws.flatten(1).numpy())
    between_axes = np.corrcoef(draws.flatten(0, 1).T.numpy())
    assert abs(between_clouds - np.eye(200)).max() < 6 / np.sqrt(3072)
    assert abs(between_axes - np.eye(3)).max() < 5 / np.sqrt(200 * 1024)
    halves = draws.flatten(1)[:, :1536].flatten(), draws.flatten(1)[:, 1536:].flatten()
    assert abs(np.corrcoef(*halves)[0, 1]) < 5 / np.sqrt(200 * 1536)  # Box–Muller's two outputs


def test_uniforms_are_uniform_and_never_reach_0_or_1():
    draws = uniform(key(3, torch.arange(50_000)), 1)
    assert draws.min() > 0
    assert draws.max() < 1
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    assert uniform(key(0, 171, 34663), 1).item() == 1 - 2**-24  # its 24 bits are all ones


def test_streams_never_meet():
    """All of them, over the same small parts: keys of tensors, states of NumPy's generators."""
    parts = torch.arange(6)
    grid = parts[:, None, None], parts[:, None], parts
    keys = torch.stack([key(stream, *grid) for stream in Stream])
    assert len(keys.unique()) == len(Stream) * 6**3
    pads = [(), (0,), (0, 0), (3,), (3, 0), (3, 5), (3, 5, 0, 1)]
    states = [
        {
            generator(stream, *pad).bit_generator.state["state"]["state"]
            for pad in [*pads, *itertools.product(range(4), repeat=3)]
        }
        for stream in Stream
    ]
    assert len(set.union(*states)) == sum(map(len, states))


class Asked:
    """A random model that keeps the seeds it was asked for."""

    def __init__(self):
        self.seeds: list[int] = []

    def __call__(self, clouds):
        return clouds.sum((1, 2))[:, None] * torch.tensor([1.0, -1.0])

    def draws(self, clouds, indices, seeds):
        self.seeds += seeds
        return torch.stack([self(clouds)] * len(seeds))


def test_seeds_of_evaluations_attacks_scores_and_votes_never_meet(clouds):
    """All draw from INFERENCE, and ranges of seeds keep them apart, those of attacks too."""
    asked = {}
    for seed, attack in itertools.product((0, 1, 2**16 - 1), (PGD, CWEOT)):
        model = Asked()
        budget = {"eps": 0.1, "restarts": 2} if attack is PGD else {"searches": 1, "judges": 3}
        attack(model, steps=3, draws=2, seed=seed, **budget)(clouds, torch.zeros(5).long())
        twice = 8 if attack is PGD else 0  # both its runs are compared on the same eight draws
        assert len(set(model.seeds)) == len(model.seeds) - twice
        asked.setdefault(seed, set()).update(model.seeds)
    found = set.union(*asked.values())
    assert len(found) == sum(map(len, asked.values()))
    assert min(found) >= FirstSeed.ATTACK
    assert max(found) < FirstSeed.SCORE
    assert FirstSeed.SCORE + 2 * CHOOSING < FirstSeed.VOTE
    assert_refuses(r"eval\.seeds", Evaluation, seeds=[2**40])


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
    assert key(3, 41).item() == signed
    expected = [((scramble((state + k * golden) % 2**64) >> 40) + 0.5) / 2**24 for k in (1, 2)]
    drawn = uniform(key(3, 41), 2)
    torch.testing.assert_close(drawn, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0)
