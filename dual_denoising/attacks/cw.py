"""C&W perturbation: the smallest L2 perturbation that succeeds (Eq. 5; Xiang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dual_denoising.attacks.base import Attack, draw_logits, objective
from dual_denoising.attacks.pgd import keyed_uniform
from dual_denoising.errors import InputError
from dual_denoising.keyed_random import Stream

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam's
LOOK_EVERY = 10  # steps after which done clouds leave the batch: looking waits for the device


@dataclass
class _Search:
    """State of every cloud's binary search over λ, and its closest success."""

    weight: Tensor
    lower: Tensor
    upper: Tensor
    best: Tensor
    distance: Tensor


class CW(Attack):
    """Adam on hinge + λ·‖X − X'‖₂, binary search over λ: up on success, down on failure.

    Eq. 5's hinge is the clamped margin at kappa. The paper says "λ from
    [10, 80]". As in IF-Defense, λ starts at 10 between 0 and 80; ``bounds=(10, 80)`` is literal.
    abort: end a search step after that many iterations without a better objective; None: never. On
    a random model one lucky draw is hard to beat, so the step ends sooner. ``record`` is
    called after each search, with its number. Clouds that are done, by ``abort`` or a broken
    gradient, stay as they are and every LOOK_EVERY steps leave the batch (``compact``). A cloud on
    which no step succeeded gets the last iterate, and is marked in ``unsuccessful``.
    """

    norm = "none"

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        searches: int = 10,
        steps: int = 500,
        weight: float = 10.0,
        bounds: tuple[float, float] = (0.0, 80.0),
        abort: int | None = None,
        compact: bool = True,
        target: str = "second_best",
        **kwargs,
    ):
        super().__init__(model, target=target, **({"loss": "clamped_margin"} | kwargs))
        if not bounds[0] <= weight <= bounds[1]:
            raise InputError(f"weight is {weight}: it must lie in bounds {bounds}")
        self.lr, self.searches, self.steps, self.weight = lr, searches, steps, weight
        self.bounds, self.abort, self.compact = bounds, abort, compact
        self.stages = searches

    @property
    def passes(self) -> float:
        return super().passes * self.searches

    def perturb(self, clouds: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        ones = clouds.new_ones(len(clouds))
        search = _Search(
            self.weight * ones, self.bounds[0] * ones, self.bounds[1] * ones,
            clouds.clone(), torch.inf * ones,
        )  # fmt: skip
        last = clouds
        for number in range(self.searches):
            last, succeeded = self._descend(clouds, labels, indices, search, number)
            search.lower = torch.where(succeeded, search.weight, search.lower)
            search.upper = torch.where(succeeded, search.upper, search.weight)
            search.weight = (search.lower + search.upper) / 2
            self.record(number + 1, search.best)
        self.unsuccessful = search.distance.isinf()
        return torch.where(self.unsuccessful[:, None, None], last, search.best)

    def _descend(self, clouds, labels, indices, search: _Search, number: int):
        """One search step: the last iterates (B, N, 3), and on which clouds any succeeded."""
        start = keyed_uniform(clouds, indices, Stream.SEARCH, self.seed, number) - 0.5
        points = clouds + 2e-7 * start  # the norm has no gradient at 0
        first, second = torch.zeros_like(points), torch.zeros_like(points)
        succeeded = torch.zeros(len(clouds), dtype=torch.bool, device=clouds.device)
        lowest = clouds.new_full((len(clouds),), torch.inf)
        waited = torch.zeros(len(clouds), device=clouds.device)
        rows, running = torch.arange(len(clouds), device=clouds.device), ~self.failed
        for step in range(self.steps):
            if step % LOOK_EVERY == 0:
                left = running.nonzero()[:, 0]
                rows = left if self.compact else rows
                if not len(left):
                    break
            moment = number * self.steps + step
            here, on, own, place = (x[rows] for x in (points, running, labels, indices))
            clean, weight = clouds[rows], search.weight[rows]
            gradient, cost, logits = self.slope(here, own, place, rows, moment, clean, weight)
            targets = None if self.targets is None else self.targets[rows]
            margin = objective(logits, own, targets, "margin")
            gradient = self.checked(gradient, rows, margin > 0, on)
            distance = (here - clean).flatten(1).norm(dim=1)
            hit = margin > 0 if self.kappa == 0 else margin >= self.kappa
            hit &= distance < search.distance[rows]  # no success else counts, as in IF-Defense
            hit = self._believe(here, own, place, rows, hit & on, moment)
            succeeded[rows] |= hit
            search.best[rows] = torch.where(hit[:, None, None], here, search.best[rows])
            search.distance[rows] = torch.where(hit, distance, search.distance[rows])
            improved = cost < lowest[rows] - 1e-6
            waited[rows] = torch.where(improved, 0.0, waited[rows] + 1)
            lowest[rows] = torch.minimum(lowest[rows], cost)
            first[rows] = BETA1 * first[rows] + (1 - BETA1) * gradient
            second[rows] = BETA2 * second[rows] + (1 - BETA2) * gradient.square()
            scale = (second[rows] / (1 - BETA2 ** (step + 1))).sqrt() + TINY
            moved = here - self.lr * first[rows] / (1 - BETA1 ** (step + 1)) / scale
            points[rows] = torch.where(on[:, None, None], moved, here)
            running &= ~self.failed
            if self.abort is not None:
                running &= waited < self.abort
        return points, succeeded

    def cost(self, points: Tensor, logits, labels, targets, *extra: Tensor) -> Tensor:
        """Hinge and weighted distance to the clean clouds, to be lowered: Eq. 5."""
        clouds, weight = extra
        distance = (points - clouds).flatten(1).norm(dim=1)
        return weight * distance - super().cost(points, logits, labels, targets)

    def _believe(self, points, labels, indices, rows, hit: Tensor, step: int) -> Tensor:
        """Which of the hits count: every one, as in IF-Defense."""
        return hit


class CWEOT(CW):
    """C&W that believes a success only if ``judges`` fresh draws, twice, have mean margin kappa.

    CW takes one lucky draw for a success, and reports perturbations of almost no size
    that leave the accuracy untouched.
    """

    def __init__(self, model: nn.Module, judges: int = 20, kappa: float = 1.0, **kwargs):
        defaults: dict[str, Any] = {"target": "best_wrong", "draws": 4}
        super().__init__(model, kappa=kappa, **(defaults | kwargs))
        self.judges = judges

    def _believe(self, points, labels, indices, rows, hit: Tensor, step: int) -> Tensor:
        """Two panels must agree: the luckiest of thousands of candidates would pass one."""
        believed = hit.clone()
        for panel in range(2):
            if not believed.any():
                break
            first = 2**42 + (2 * (self.seed * 2**16 + step) + panel) * self.judges
            seeds = [first + judge for judge in range(self.judges)]
            targets = None if self.targets is None else self.targets[rows[believed]]
            logits = draw_logits(self.model, points[believed], indices[believed], seeds).mean(0)
            margin = objective(logits, labels[believed], targets, "margin")
            believed[believed.clone()] = margin >= self.kappa
        return believed
