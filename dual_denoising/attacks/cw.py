"""C&W perturbation: the smallest L2 perturbation that succeeds (Eq. 5; Xiang et al. 2019)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dual_denoising.attacks.base import Attack, Clouds, Model, Values, draw_logits, objective
from dual_denoising.errors import check, check_number
from dual_denoising.keyed_random import FirstSeed, Stream

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam's


class CW(Attack):
    """Adam on hinge + λ·‖X − X'‖₂, binary search over λ: up on success, down on failure.

    Eq. 5's hinge is the clamped margin at kappa. The paper says "λ from [10, 80]". Here λ starts at
    10 between 0 and 80, as in IF-Defense; ``bounds=(10, 80)`` is literal. ``record`` is called
    after each search, with its number. A cloud on which no step succeeded gets the last iterate,
    and is marked in ``unsuccessful``. judges: fresh draws, twice, whose mean margin must reach
    kappa before a success is believed; 0 believes every one, as IF-Defense does.
    """

    norm = "none"

    def __init__(
        self,
        model: Model,
        lr: float = 0.01,
        searches: int = 10,
        steps: int = 500,
        weight: float = 10.0,
        bounds: Sequence[float] = (0.0, 80.0),
        target: str = "second_best",
        judges: int = 0,
        **kwargs,
    ):
        super().__init__(model, target=target, **({"loss": "clamped_margin"} | kwargs))
        pair = isinstance(bounds, Sequence) and len(bounds) == 2
        check("bounds", bounds, pair, "give [low, high]")
        low = check_number("bounds[0]", bounds[0], whole=False)
        high = check_number("bounds[1]", bounds[1], low, whole=False)
        self.searches = self.stages = check_number("searches", searches, 1)
        self.steps = check_number("steps", steps, 1)
        self.lr = check_number("lr", lr, whole=False, above=True)
        self.weight = check_number("weight", weight, low, whole=False, most=high)
        self.bounds, self.judges = (low, high), check_number("judges", judges)
        self.passes = searches * steps * self.draws

    def perturb(self) -> Clouds:
        last = best = clouds = self.clean
        ones = clouds.new_ones(len(clouds))
        weight, lower, upper, closest = (x * ones for x in (self.weight, *self.bounds, torch.inf))
        for search in range(self.searches):
            start = self.uniform(Stream.SEARCH, search) - 0.5
            last = clouds + 2e-7 * start  # the norm has no gradient at 0
            first, second = torch.zeros_like(last), torch.zeros_like(last)
            succeeded = torch.zeros_like(self.failed)
            self.balance = weight
            for step in range(self.steps):
                count = search * self.steps + step
                gradient, _, logits = self.gradient(last, count)
                margin, distance = self.margin(logits), self._distance(last)
                hit = margin > 0 if self.kappa == 0 else margin >= self.kappa
                hit &= (distance < closest) & ~self.failed  # nearer alone counts: IF-Defense
                if self.judges:
                    hit = self._judged(last, hit, count)
                succeeded |= hit
                best = torch.where(hit[:, None, None], last, best)
                closest = torch.where(hit, distance, closest)
                first = BETA1 * first + (1 - BETA1) * gradient
                second = BETA2 * second + (1 - BETA2) * gradient.square()
                scale = (second / (1 - BETA2 ** (step + 1))).sqrt() + TINY
                last = last + self.lr * first / (1 - BETA1 ** (step + 1)) / scale
            lower = torch.where(succeeded, weight, lower)
            upper = torch.where(succeeded, upper, weight)
            weight = (lower + upper) / 2
            self.record(search + 1, best)
        self.unsuccessful = closest.isinf()
        return torch.where(self.unsuccessful[:, None, None], last, best)

    def _distance(self, points: Clouds) -> Values:
        return (points - self.clean).flatten(1).norm(dim=1)

    def gain(self, points: Clouds, logits: Float[Tensor, "m b c"]) -> Values:
        """Eq. 5 with its sign turned: the hinge less λ times the distance to the clean clouds."""
        return super().gain(points, logits) - self.balance * self._distance(points)

    def _judged(self, points: Clouds, hit: Bool[Tensor, " b"], step: int) -> Bool[Tensor, " b"]:
        """Which hits two panels of ``judges`` fresh draws confirm.

        The luckiest of thousands of candidates would pass one.
        """
        believed = hit.clone()
        for panel in range(2):
            if not believed.any():
                break
            first = (2 * (self.seed * 2**16 + step) + panel) * self.judges
            seeds = [FirstSeed.JUDGE + first + judge for judge in range(self.judges)]
            targets = None if self.targets is None else self.targets[believed]
            here = points[believed], self.indices[believed]
            logits = draw_logits(self.model, *here, seeds).mean(0)
            margin = objective(logits, self.labels[believed], targets, "margin")
            believed[believed.clone()] = margin >= self.kappa
        return believed


class CWEOT(CW):
    """C&W of a random model: gradients are means over draws, and successes are judged.

    CW takes one lucky draw for a success, and reports perturbations of almost no size that leave
    the accuracy untouched.
    """

    def __init__(self, model: Model, judges: int = 20, kappa: float = 1.0, **kwargs):
        defaults: dict[str, Any] = {"target": "best_wrong", "draws": 4}
        super().__init__(model, kappa=kappa, judges=judges, **(defaults | kwargs))
