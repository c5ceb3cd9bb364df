"""Attacks without gradients: what a white-box attack must beat."""

import torch

from dual_denoising import keyed_random
from dual_denoising.attacks.base import Attack, Clouds, Model
from dual_denoising.errors import check_number
from dual_denoising.keyed_random import Stream

SHARE = 0.3  # of the points that Square's first step moves
DELTA = 0.005  # how far from a cloud SPSA evaluates
UNTARGETED: dict = {"target": "untargeted", "loss": "margin"}


class RandomNoise(Attack):
    """Uniform noise in the L∞ ball: the floor under every attack."""

    kind = "noise"

    def __init__(self, model: Model, eps: float = 0.01, **kwargs):
        super().__init__(model, **kwargs)
        self.eps = check_number("eps", eps, whole=False)

    def perturb(self) -> Clouds:
        return self.clean + self.eps * (2 * self.uniform(Stream.RANDOM_NOISE) - 1)


class Square(Attack):
    """Random search in the L∞ ball, after Square Attack (Andriushchenko et al. 2020).

    A neighbourhood of points takes the place of the square: each step moves the points nearest to
    a random one to a corner of the ball, and keeps that where the margin rises. The share of points
    begins at SHARE and shrinks with the steps.
    """

    kind = "black"

    def __init__(self, model: Model, eps: float = 0.01, steps: int = 500, **kwargs):
        super().__init__(model, **(UNTARGETED | kwargs))
        self.eps = check_number("eps", eps, whole=False)
        self.steps = self.stages = check_number("steps", steps, 1)
        self.passes = steps * self.draws * 2 / 3  # two forward passes a step

    def perturb(self) -> Clouds:
        clouds = self.clean
        corner = (self.uniform(Stream.SQUARE, 0) > 0.5).to(clouds) * 2 - 1
        points = clouds + self.eps * corner
        rows = torch.arange(len(clouds), device=clouds.device)
        for step in range(1, self.steps + 1):
            count = max(1, round(SHARE * clouds.shape[1] * (1 - step / self.steps) ** 2))
            keys = keyed_random.key(Stream.SQUARE, self.seed, step, self.indices)
            drawn = keyed_random.uniform(keys, 4)
            middle = clouds[rows, (drawn[:, 0] * clouds.shape[1]).long()][:, None]
            corner = (drawn[:, None, 1:] > 0.5).to(clouds) * 2 - 1
            near = (clouds - middle).square().sum(-1).topk(count, largest=False).indices
            near = near[..., None].expand(-1, -1, 3)
            tried = points.scatter(1, near, clouds.gather(1, near) + self.eps * corner)
            # both on this step's draws: an old value may have been a lucky one
            better = self.value(tried, step) > self.value(points, step)
            points = torch.where(better[:, None, None], tried, points)
            self.record(step, points)
        return points


class SPSA(Attack):
    """Signed steps along gradients estimated from pairs of evaluations (Uesato et al. 2018)."""

    kind = "black"

    def __init__(self, model: Model, eps: float = 0.01, steps: int = 50, pairs: int = 16, **kwargs):
        super().__init__(model, **(UNTARGETED | kwargs))
        self.eps = check_number("eps", eps, whole=False)
        self.steps = self.stages = check_number("steps", steps, 1)
        self.pairs = check_number("pairs", pairs, 1)
        self.passes = steps * self.draws * 2 * pairs / 3

    def perturb(self) -> Clouds:
        points = self.clean.clone()
        for step in range(self.steps):
            estimate = torch.zeros_like(points)
            for pair in range(self.pairs):
                sign = (self.uniform(Stream.SPSA, step, pair) > 0.5).to(points) * 2 - 1
                ahead, behind = (self.value(points + s * DELTA * sign, step) for s in (1, -1))
                estimate += (ahead - behind)[:, None, None] * sign
            points = self.project(points + self.eps / 10 * estimate.sign())
            self.record(step + 1, points)
        return points
