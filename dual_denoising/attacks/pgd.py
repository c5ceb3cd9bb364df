"""PGD and its family: steps along the gradient within a ball around the clean cloud."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dual_denoising.attacks.base import Attack, Clouds, Model, draw_logits, length, objective
from dual_denoising.errors import check_choice, check_number
from dual_denoising.keyed_random import PER_SEED, FirstSeed, Stream

NORMS = ("linf", "l2", "rms")


class PGD(Attack):
    """Projected gradient steps in a ball of radius eps around the clean cloud (Appendix A).

    norm: 'linf', per coordinate, 'l2', of the whole cloud's perturbation, or 'rms', l2 over √(3N).
    alpha: step, eps/10 if None. start: 'clean', or 'uniform': in the cube for linf, else scaled
    onto the sphere. momentum: decay of the mean gradient (MI-FGSM), 0 for none. restarts: how often
    to start anew; the one with the highest margin over 8 fresh draws is kept.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 0.01,
        alpha: float | None = None,
        steps: int = 50,
        norm: str = "linf",
        start: str = "uniform",
        momentum: float = 0.0,
        restarts: int = 1,
        target: str = "second_best",
        **kwargs,
    ):
        super().__init__(model, target=target, **kwargs)
        check_choice("norm", norm, NORMS)
        check_choice("start", start, ("uniform", "clean"))
        self.eps = check_number("eps", eps, whole=False)
        self.steps = check_number("steps", steps, 1)
        self.restarts = check_number("restarts", restarts, 1)
        self.stages = steps if restarts == 1 else 0  # of several restarts the steps are no curve
        self.alpha = eps / 10 if alpha is None else check_number("alpha", alpha, whole=False)
        self.momentum = check_number("momentum", momentum, whole=False)
        self.start, self.norm = start, norm
        self.passes = steps * restarts * self.draws

    def perturb(self) -> Clouds:
        runs = [self._run(number) for number in range(self.restarts)]
        if len(runs) == 1:
            return runs[0]
        seeds = [FirstSeed.RESTART + self.seed * PER_SEED + draw for draw in range(8)]
        outputs = [draw_logits(self.model, run, self.indices, seeds).mean(0) for run in runs]
        margins = [objective(logits, self.labels, None, "margin") for logits in outputs]
        best = torch.stack(margins).nan_to_num(-torch.inf).argmax(0)  # (B,)
        return torch.stack(runs)[best, torch.arange(len(best), device=best.device)]

    def _run(self, restart: int) -> Clouds:
        points, velocity = self._start(restart), torch.zeros_like(self.clean)
        for step in range(self.steps):
            gradient, *_ = self.gradient(points, restart * self.steps + step)
            if self.momentum:
                mean = gradient.abs().mean((1, 2), keepdim=True).clamp(min=1e-30)
                gradient = velocity = self.momentum * velocity + gradient / mean
            points = self.project(points + self.alpha * self._unit(gradient))
            self.record(step + 1, points)
        return points

    def _start(self, restart: int) -> Clouds:
        if self.start == "clean":
            return self.clean.clone()
        moved = self.uniform(Stream.ATTACK, restart) * 2 - 1
        return self.clean + self.eps * (moved if self.norm == "linf" else self._unit(moved))

    def _unit(self, gradient: Clouds) -> Clouds:
        """The steepest-ascent step of length 1 in the norm."""
        return gradient.sign() if self.norm == "linf" else gradient / length(gradient, self.norm)


class IFGM(PGD):
    """PGD from the clean cloud (Appendix A: it differs in its initialisation)."""

    def __init__(self, model: Model, eps: float = 0.01, steps: int = 50, **kwargs):
        super().__init__(model, eps, steps=steps, **({"start": "clean"} | kwargs))


class IFGML2(IFGM):
    """IF-Defense's: IFGM in an L2 ball of radius ε·√(3N), which L∞'s ball touches from within."""

    def __init__(self, model: Model, eps: float = 0.01, **kwargs):
        super().__init__(model, eps, **({"norm": "rms"} | kwargs))


class FGM(IFGM):
    """One step of IFGM, to the edge of the ball."""

    kind = "one step"

    def __init__(self, model: Model, eps: float = 0.01, **kwargs):
        super().__init__(model, eps, steps=1, **({"alpha": eps} | kwargs))


class EOTPGD(PGD):
    """PGD on a randomised model: mean gradient over draws, momentum, restarts, any loss."""

    def __init__(self, model: Model, eps: float = 0.01, steps: int = 50, draws: int = 8, **kwargs):
        defaults: dict[str, Any] = {"target": "untargeted", "loss": "margin", "momentum": 0.75}
        super().__init__(model, eps, steps=steps, draws=draws, **(defaults | kwargs))


class FeatureAttack(EOTPGD):
    """Turns the averaged feature away from the clean one, without asking the classifier.

    The model offers ``features(clouds, indices, seeds)`` -> (M, B, ...), one draw per seed.
    """

    loss_words = "cosine to the clean feature"

    def perturb(self) -> Clouds:
        self.feature = self.outputs(self.clean, -1).mean(0)
        return super().perturb()

    def outputs(self, points: Clouds, step: int) -> Float[Tensor, "m b e"]:
        return self.tracked.features(points, self.indices, self.seeds(step)).flatten(2)

    def margin(self, logits: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        return logits.new_zeros(len(logits))  # nothing tells whether it has won

    def objective(self, logits: Float[Tensor, "*r b e"]) -> Float[Tensor, "*r b"]:
        return -cosine_similarity(logits, self.feature.expand_as(logits), dim=-1)
