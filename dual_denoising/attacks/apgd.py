"""Auto-PGD: PGD whose step halves where it no longer helps (Croce and Hein 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dual_denoising.attacks.gradient import PGD, project, unit

MOMENTUM, RHO = 0.75, 0.75  # α and ρ of the paper


class APGD(PGD):
    """APGD-CE or APGD-DLR (``loss``); returns the iterate of the highest objective.

    Of a random model that objective is the mean of the step's draws, itself a random number: give
    it enough of them. Clouds are not clamped to [0, 1].
    """

    def __init__(
        self, model: nn.Module, eps: float = 0.01, steps: int = 100, loss: str = "ce", **kwargs
    ):
        super().__init__(
            model, eps, steps=steps, **({"target": "untargeted", "loss": loss} | kwargs)
        )

    def _run(self, clouds: Tensor, labels: Tensor, indices: Tensor, restart: int) -> Tensor:
        radius, first = self.ball(clouds), restart * (self.steps + 1)
        points = self._start(clouds, indices, radius, restart)
        points = project(points, clouds, radius, self.norm)
        gradient, value = self.gradient(points, labels, indices, first)
        best, best_value, best_gradient = points.clone(), value.clone(), gradient.clone()
        size = clouds.new_full((len(clouds), 1, 1), 2 * radius)
        previous, before = points.clone(), value
        window, shortest, shrink = _windows(self.steps)
        since, rises = 0, torch.zeros_like(value)
        halved = torch.ones_like(value, dtype=torch.bool)  # at the last checkpoint
        last_best = best_value.clone()
        for step in range(1, self.steps + 1):
            moved = project(points + size * unit(gradient, self.norm), clouds, radius, self.norm)
            share = MOMENTUM if step > 1 else 1.0
            moved = points + share * (moved - points) + (1 - share) * (points - previous)
            previous, points = points, project(moved, clouds, radius, self.norm)
            gradient, value = self.gradient(points, labels, indices, first + step)
            rises, before = rises + (value > before), value
            better = value > best_value
            best = torch.where(better[:, None, None], points, best)
            best_gradient = torch.where(better[:, None, None], gradient, best_gradient)
            best_value = torch.where(better, value, best_value)
            self.record(step, best)
            since += 1
            if since < window:
                continue
            stuck = (rises <= RHO * since) | (~halved & (best_value <= last_best))
            size = torch.where(stuck[:, None, None], size / 2, size)
            points = torch.where(stuck[:, None, None], best, points)
            gradient = torch.where(stuck[:, None, None], best_gradient, gradient)
            halved, last_best, rises, since = stuck, best_value.clone(), torch.zeros_like(rises), 0
            window = max(window - shrink, shortest)
        return best


def _windows(steps: int) -> tuple[int, int, int]:
    """Steps to the first checkpoint, the fewest between two, and by how many they shrink."""
    return max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
