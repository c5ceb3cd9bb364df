"""PGD and its family: steps along the gradient within a ball around the clean cloud."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.attacks.base import (
    Attack,
    Clouds,
    HasFeatures,
    Model,
    PerCloud,
    draw_logits,
    objective,
)
from dual_denoising.errors import InputError, check_choice, check_number
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
        check_number("steps", steps, 1)
        check_number("restarts", restarts, 1)
        self.eps = check_number("eps", eps, whole=False)
        self.steps, self.start, self.norm = steps, start, norm
        self.stages = steps if restarts == 1 else 0  # of several restarts the steps are no curve
        self.alpha = eps / 10 if alpha is None else check_number("alpha", alpha, whole=False)
        self.momentum = check_number("momentum", momentum, whole=False)
        self.restarts = restarts
        self.passes = steps * restarts * self.draws

    def perturb(self, clouds: Clouds, labels: PerCloud, indices: PerCloud) -> Clouds:
        runs = [self._run(clouds, labels, indices, number) for number in range(self.restarts)]
        if len(runs) == 1:
            return runs[0]
        seeds = [FirstSeed.RESTART + self.seed * PER_SEED + draw for draw in range(8)]
        outputs = [draw_logits(self.model, run, indices, seeds).mean(0) for run in runs]
        margins = torch.stack([objective(logits, labels, None, "margin") for logits in outputs])
        best = margins.nan_to_num(-torch.inf).argmax(0)  # (B,)
        return torch.stack(runs)[best, torch.arange(len(clouds), device=clouds.device)]

    def _run(self, clouds: Clouds, labels: PerCloud, indices: PerCloud, restart: int) -> Clouds:
        points = self._start(clouds, indices, restart)
        velocity = torch.zeros_like(clouds)
        for step in range(self.steps):
            gradient, *_ = self.gradient(points, labels, indices, restart * self.steps + step)
            if self.momentum:
                mean = gradient.abs().mean((1, 2), keepdim=True).clamp(min=1e-30)
                velocity = self.momentum * velocity + gradient / mean
                gradient = velocity
            moved = points + self.alpha * unit(gradient, self.norm)
            points = project(moved, clouds, self.eps, self.norm)
            self.record(step + 1, points)
        return points

    def _start(self, clouds: Clouds, indices: PerCloud, restart: int) -> Clouds:
        if self.start == "clean":
            return clouds.clone()
        moved = keyed_uniform(clouds, indices, Stream.ATTACK, self.seed, restart) * 2 - 1
        return clouds + self.eps * (moved if self.norm == "linf" else unit(moved, self.norm))


def unit(gradient: Clouds, norm: str) -> Clouds:
    """The steepest-ascent step of length 1 in the norm."""
    return gradient.sign() if norm == "linf" else gradient / length(gradient, norm)


def project(points: Clouds, clouds: Clouds, radius: float, norm: str) -> Clouds:
    """The nearest points in the ball around the clean clouds."""
    if norm == "linf":
        return torch.minimum(torch.maximum(points, clouds - radius), clouds + radius)
    moved = points - clouds
    return clouds + moved * (radius / length(moved, norm)).clamp(max=1.0)


def length(moved: Clouds, norm: str) -> Float[Tensor, "b 1 1"]:
    """Lengths of perturbations in this norm, above 0."""
    flat = moved.flatten(1)
    size = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    scale = math.sqrt(flat.shape[1]) if norm == "rms" else 1.0
    return (size / scale).clamp(min=1e-30)[:, None, None]


def keyed_uniform(clouds: Clouds, indices: PerCloud, stream: Stream, *key: int) -> Clouds:
    """U(0, 1) in the shape of the clouds, a function of the key and each cloud's index alone."""
    keys = keyed_random.key(stream, *key, indices)
    return keyed_random.uniform(keys, *clouds.shape[1:]).to(clouds)


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
    """Turns the averaged feature away from the clean one, without asking the classifier."""

    loss_words = "cosine to the clean feature"

    def __init__(self, model: Model, eps: float = 0.01, **kwargs):
        super().__init__(model, eps, **kwargs)
        if not isinstance(model, HasFeatures):
            name = type(model).__name__
            raise InputError(f"model is a {name}: give it features(clouds, indices, seeds)")

    def perturb(self, clouds: Clouds, labels: PerCloud, indices: PerCloud) -> Clouds:
        self.clean = self.tracked.features(clouds, indices, self.seeds(-1)).mean(0).flatten(1)
        return super().perturb(clouds, labels, indices)

    def outputs(
        self, clouds: Clouds, indices: PerCloud, seeds: Sequence[int]
    ) -> Float[Tensor, "r b e"]:
        return self.tracked.features(clouds, indices, seeds).flatten(2)

    def won(self, logits: Float[Tensor, "b e"], labels: PerCloud) -> Bool[Tensor, " b"]:
        return torch.zeros_like(labels, dtype=torch.bool)

    def objective(self, logits: Float[Tensor, "*r b e"], labels: PerCloud) -> Float[Tensor, "*r b"]:
        return -torch.nn.functional.cosine_similarity(logits, self.clean.expand_as(logits), dim=-1)
