"""Auto-PGD: PGD whose step halves where it no longer helps (Croce and Hein 2020, Algorithm 1)."""

import math

import torch

from dual_denoising.attacks.base import Clouds, Model, PerCloud
from dual_denoising.attacks.pgd import PGD, project, unit
from dual_denoising.errors import InputError

MOMENTUM, RHO = 0.75, 0.75  # its α and ρ


class APGD(PGD):
    """APGD-CE or APGD-DLR (``loss``); returns the iterate of the highest objective.

    Of a random model the best so far is evaluated again on every step's draws before it is given up
    or kept, so that no iterate wins by its luck. Clouds are not clamped to [0, 1].
    """

    def __init__(
        self, model: Model, eps: float = 0.01, steps: int = 100, loss: str = "ce", **kwargs
    ):
        own = [name for name in ("alpha", "momentum") if name in kwargs]
        if own:
            raise InputError(f"{own[0]} is {kwargs[own[0]]}: APGD has its own, leave it out")
        super().__init__(
            model, eps, steps=steps, **({"target": "untargeted", "loss": loss} | kwargs)
        )

    def _run(self, clouds: Clouds, labels: PerCloud, indices: PerCloud, restart: int) -> Clouds:
        first = restart * (self.steps + 1)
        points = self._start(clouds, indices, restart)
        points = previous = project(points, clouds, self.eps, self.norm)
        gradient, value, _ = self.gradient(points, labels, indices, first)
        seeds = [self.seeds(first + step) for step in (0, 1)]
        random = not torch.equal(*(self.outputs(points, indices, seed) for seed in seeds))
        best, best_value, best_gradient = points, value, gradient
        size = clouds.new_full((len(clouds), 1, 1), 2 * self.eps)
        rises = torch.zeros_like(value)
        halved = found = torch.zeros_like(value, dtype=torch.bool)  # since the last checkpoint
        checks, last = checkpoints(self.steps), 0
        for k in range(self.steps):  # makes the paper's x(k+1)
            moved = project(points + size * unit(gradient, self.norm), clouds, self.eps, self.norm)
            share = MOMENTUM if k else 1.0
            moved = points + share * (moved - points) + (1 - share) * (points - previous)
            previous, points = points, project(moved, clouds, self.eps, self.norm)
            before = value
            gradient, value, _ = self.gradient(points, labels, indices, first + k + 1)
            if random:
                best_value = self.value(best, labels, indices, first + k + 1)
            better = value > best_value
            found = found | better if k else torch.zeros_like(better)
            best = torch.where(better[:, None, None], points, best)
            best_gradient = torch.where(better[:, None, None], gradient, best_gradient)
            best_value = torch.where(better, value, best_value)
            self.record(k + 1, best)
            if k in checks:
                stuck = (rises < RHO * (k - last)) | (~halved & ~found)
                size = torch.where(stuck[:, None, None], size / 2, size)
                points = torch.where(stuck[:, None, None], best, points)
                gradient = torch.where(stuck[:, None, None], best_gradient, gradient)
                value = torch.where(stuck, best_value, value)
                halved, found, last = stuck, torch.zeros_like(found), k
                rises = torch.zeros_like(rises)
            rises = rises + (value > before)  # of x(k+1) as it is now, jumped back or not
        return best


def checkpoints(steps: int) -> list[int]:
    """w_j = ⌈p_j·N⌉ of Section 3.3: p = 0, 0.22, each gap 0.03 shorter but at least 0.06."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(round(share * steps, 9)) for share in shares[1:]]
