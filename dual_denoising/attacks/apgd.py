"""Auto-PGD: PGD whose step halves where it no longer helps (Croce and Hein 2020, Algorithm 1)."""

import math

import torch

from dual_denoising.attacks.base import Clouds, Model
from dual_denoising.attacks.pgd import PGD
from dual_denoising.errors import check

MOMENTUM, RHO = 0.75, 0.75  # its α and ρ


class APGD(PGD):
    """APGD-CE or APGD-DLR (``loss``); returns the iterate of the highest objective.

    Of a random model the best so far is evaluated again on every step's draws before it is given up
    or kept, so that no iterate wins by its luck. Clouds are not clamped to [0, 1].
    """

    def __init__(self, model: Model, eps: float = 0.01, steps: int = 100, **kwargs):
        for name in ("alpha", "momentum"):
            check(name, kwargs.get(name), name not in kwargs, "APGD has its own, leave it out")
        super().__init__(model, eps, steps=steps, **({"target": "untargeted"} | kwargs))
        # of a random model: a gradient and a forward pass a step; one gradient and two passes first
        self.passes = self.restarts * self.draws * (steps * 4 / 3 + 5 / 3)

    def _run(self, restart: int) -> Clouds:
        first = restart * (self.steps + 1)
        points = previous = self.project(self._start(restart))
        gradient, value, _ = self.gradient(points, first)
        random = not torch.equal(*(self.outputs(points, first + step) for step in (0, 1)))
        best, best_value, best_gradient = points, value, gradient
        size = points.new_full((len(points), 1, 1), 2 * self.eps)
        rises = torch.zeros_like(value)
        halved = found = torch.zeros_like(value, dtype=torch.bool)  # since the last checkpoint
        checks, last = checkpoints(self.steps), 0
        for k in range(self.steps):  # makes the paper's x(k+1)
            moved = self.project(points + size * self._unit(gradient))
            share = MOMENTUM if k else 1.0
            moved = points + share * (moved - points) + (1 - share) * (points - previous)
            previous, points, before = points, self.project(moved), value
            gradient, value, _ = self.gradient(points, first + k + 1)
            if random:
                best_value = self.value(best, first + k + 1)
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
