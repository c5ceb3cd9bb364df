"""What all attacks share: targets, losses, noise draws, gradients that can be trusted.

An attack sees clouds -> logits and nothing else. A model whose answers are random may offer
``draws(clouds, indices, seeds)`` -> (R, B, C), one draw of its noise per seed. One that draws from
torch's own generators is called once per draw after torch.manual_seed, so that its noise too can be
fixed and repeated, though it depends on the batch. Nothing is re-normalised or clamped. Models run
in evaluation mode and without autocast.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dual_denoising import keyed_random
from dual_denoising.errors import InputError, check, check_choice, check_number
from dual_denoising.keyed_random import PER_SEED, FirstSeed, Stream

log = logging.getLogger(__name__)

Model = Callable[[Tensor], Tensor]  # clouds (B, N, 3) -> logits (B, C)
Clouds = Float[Tensor, "b n 3"]
PerCloud = Int[Tensor, " b"]  # labels, or indices in a dataset
Values = Float[Tensor, " b"]
Logits = Float[Tensor, "*r b c"]


@runtime_checkable
class HasDraws(Protocol):
    """A random model that offers its noise by seed: logits (R, B, C)."""

    def draws(self, clouds: Tensor, indices: Tensor, seeds: Sequence[int]) -> Tensor: ...


class Attack(ABC):
    """Calls as attack(clouds (B, N, 3), labels (B,)) -> adversarial clouds (B, N, 3).

    model: a module or any callable, clouds -> logits (B, C). target: 'second_best', the class of
    the second-highest clean logit (the paper's; for a cloud that is wrong when clean it can be the
    label, and the attack then creates correct answers), 'best_wrong', the best class that is not
    the label, or 'untargeted'. loss: 'ce', 'margin' (unclamped), 'clamped_margin' at kappa, 'dlr'
    (Croce and Hein 2020). noise: of a random model, 'resampled' at every step or 'fixed'. draws: M,
    of which gradients are the mean (EOT). grouping: 'redone', tokens are searched anew in every
    step, or 'frozen', kept from the clean cloud where gradients are taken. seed: of the attack's
    own draws and of the noise it sees, below 2**16.

    After a call ``failed`` (B,) says which clouds were left clean because a gradient or an
    objective was not finite, ``flat`` (B,) which met a gradient that was zero everywhere,
    ``unsuccessful`` (B,) on which C&W found nothing. Raises InputError for labels out of range and
    settings that do not exist.
    """

    kind = "white"  # white box, one step, black box, or noise that knows nothing of the model
    norm = "linf"  # of the ball of radius ε; none: no ball
    eps = 0.0  # radius of that ball
    steps = 0  # gradient steps (of C&W: in each search), or iterations of random search; 0: none
    stages = 0  # how often ``record`` is called
    # forward and backward passes for a cloud; one forward alone is a third, judging is not counted
    passes = 0.0
    loss_words: str | None = None  # names a loss of its own, where it is none of ``loss``

    def __init__(
        self,
        model: Model,
        target: str = "best_wrong",
        loss: str = "ce",
        kappa: float = 0.0,
        noise: str = "resampled",
        draws: int = 1,
        grouping: str = "redone",
        seed: int = 0,
    ):
        check_choice("target", target, ("second_best", "best_wrong", "untargeted"))
        check_choice("loss", loss, ("ce", "margin", "clamped_margin", "dlr"))
        check_choice("noise", noise, ("resampled", "fixed"))
        check_choice("grouping", grouping, ("redone", "frozen"))
        check("model", type(model).__name__, callable(model), "give a module or another callable")
        check_number("kappa", kappa, whole=False)
        check_number("draws", draws, 1)
        check_number("seed", seed, most=2**16 - 1)
        self.model: Any = model
        self.target, self.loss, self.kappa = target, loss, kappa
        self.noise, self.draws, self.grouping, self.seed = noise, draws, grouping, seed

    def __repr__(self) -> str:
        settings = {k: v for k, v in vars(self).items() if isinstance(v, (int, float, str))}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"

    def __call__(
        self,
        clouds: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        record: Callable[[int, Tensor], object] = lambda step, points: None,
    ) -> Tensor:
        """Attacks clouds (B, N, 3) with labels (B,): adversarial clouds of the same shape.

        indices: (B,) of the clouds in their dataset, which key all noise; 0..B−1 if None.

        record: called with (step, adversarial clouds) after every step, for curves from one run.
        """
        for name, value in (("clouds", clouds), ("labels", labels), ("indices", indices)):
            good = isinstance(value, Tensor) or (name == "indices" and value is None)
            check(f"type of {name}", type(value).__name__, good, "give a tensor")
        if indices is None:
            indices = torch.arange(len(clouds), device=clouds.device)
        check_batch(clouds, labels, indices)
        self.clean, self.labels, self.indices = clouds.detach(), labels.long(), indices
        self.record = record
        self.failed = torch.zeros(len(clouds), dtype=torch.bool, device=clouds.device)
        self.flat, self.unsuccessful = self.failed.clone(), self.failed.clone()
        autocast = torch.autocast(clouds.device.type, enabled=False)
        with evaluating(self.model), torch.no_grad(), autocast:
            # gradients go through this model
            frozen = self.grouping == "frozen"
            self.tracked = self.model.frozen(clouds, indices) if frozen else self.model
            logits = draw_logits(self.model, clouds, indices, self.seeds(-1)).mean(0)
            check_logits(logits, labels, self.loss, self.target)
            if self.norm != "l2":  # whose ε is of all coordinates together
                warn_of_scale(self.eps, clouds)
            self.targets = choose_targets(logits, self.labels, self.target)
            adversarial = self.perturb()
        if self.failed.any():
            log.warning(
                "gradients or answers of clouds %s are not finite; they stay clean and count as "
                "failed attacks",
                indices[self.failed].tolist(),
            )
        return torch.where(self.failed[:, None, None], self.clean, adversarial)

    @abstractmethod
    def perturb(self) -> Clouds:
        """Adversarial clouds of ``self.clean``. Gradients are off, except within ``gradient``."""

    def seeds(self, step: int) -> list[int]:
        """Noise seeds of a step's draws, apart from any that evaluations use."""
        first = 0 if self.noise == "fixed" else (step + 1) * self.draws
        first += FirstSeed.ATTACK + self.seed * PER_SEED
        return [first + draw for draw in range(self.draws)]

    def uniform(self, stream: Stream, *key: int) -> Clouds:
        """U(0, 1) in the shape of the clouds, a function of the key and their indices alone."""
        keys = keyed_random.key(stream, self.seed, *key, self.indices)
        return keyed_random.uniform(keys, *self.clean.shape[1:]).to(self.clean)

    def project(self, points: Clouds) -> Clouds:
        """The nearest points in the ball around the clean clouds."""
        if self.norm == "linf":
            low, high = self.clean - self.eps, self.clean + self.eps
            return torch.minimum(torch.maximum(points, low), high)
        moved = points - self.clean
        return self.clean + moved * (self.eps / length(moved, self.norm)).clamp(max=1.0)

    def outputs(self, points: Clouds, step: int) -> Logits:
        """Logits (M, B, C) of a step's draws, from the model that gradients are taken through."""
        return draw_logits(self.tracked, points, self.indices, self.seeds(step))

    def objective(self, logits: Logits) -> Float[Tensor, "*r b"]:
        """The loss of each draw and cloud, which the attack maximises."""
        return objective(logits, self.labels, self.targets, self.loss, self.kappa)

    def margin(self, logits: Float[Tensor, "b c"]) -> Values:
        """Of each cloud: above 0 where the attack has won, so a zero gradient is no fault."""
        return objective(logits, self.labels, self.targets, "margin")

    def gradient(self, points: Clouds, step: int) -> tuple[Clouds, Values, Float[Tensor, "b c"]]:
        """The gradient of ``gain``, its value, and the mean logits.

        The gradient is zero where it is not finite. Those clouds are marked as failed, and those
        of a zero gradient as flat unless the attack has won; it does not wait for the device.
        """
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            outputs, gradient = self.outputs(points, step), None
            value = self.gain(points, outputs)
            if outputs.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), points, allow_unused=True)
        if gradient is None:
            raise InputError(
                "the model's logits have no gradient to the clouds: is there a detach(), a "
                "torch.no_grad() or NumPy in it? Square and SPSA need no gradient"
            )
        logits = outputs.detach().mean(0)
        self.failed |= ~gradient.flatten(1).isfinite().all(1)
        self.flat |= (gradient == 0).flatten(1).all(1) & ~(self.margin(logits) > 0)
        return gradient.nan_to_num(0.0, 0.0, 0.0), value.detach(), logits

    def gain(self, points: Clouds, logits: Float[Tensor, "m b c"]) -> Values:
        """What the attack maximises: the mean objective. Gradients are taken of it."""
        return self.objective(logits).mean(0)

    def value(self, points: Clouds, step: int) -> Values:
        """The mean objective over the step's draws, without a gradient."""
        value = self.objective(self.outputs(points, step)).mean(0)
        self.failed |= ~value.isfinite()
        return value


def device_of(model: Callable) -> torch.device:
    """Where a model's parameters and buffers are; the CPU for one that has none."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


@contextmanager
def evaluating(model: Callable) -> Iterator[None]:
    """Puts a model into evaluation mode and back afterwards; a plain function is left alone."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def draw_logits(
    model: Callable, clouds: Clouds, indices: PerCloud, seeds: Sequence[int]
) -> Float[Tensor, "r b c"]:
    """Logits, one draw of the model's noise per seed."""
    if isinstance(model, HasDraws):
        return model.draws(clouds, indices, seeds)
    drawn = []
    with torch.random.fork_rng([clouds.device] if clouds.is_cuda else []):
        for seed in seeds:
            torch.manual_seed(int(keyed_random.key(Stream.UNKEYED, seed)))
            drawn.append(model(clouds))
    return torch.stack(drawn)


def length(moved: Clouds, norm: str) -> Float[Tensor, "b 1 1"]:
    """Lengths of perturbations in this norm, above 0."""
    flat = moved.flatten(1)
    size = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    scale = math.sqrt(flat.shape[1]) if norm == "rms" else 1.0
    return (size / scale).clamp(min=1e-30)[:, None, None]


def choose_targets(logits: Float[Tensor, "b c"], labels: PerCloud, target: str) -> PerCloud | None:
    """Target classes from clean logits, None if untargeted."""
    if target == "untargeted":
        return None
    if target == "second_best":
        return logits.topk(2).indices[:, 1]
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def objective(
    logits: Logits, labels: PerCloud, targets: PerCloud | None, loss: str, kappa: float = 0.0
) -> Float[Tensor, "*r b"]:
    """A loss that an attack maximises; positive margins are successes."""
    aim = labels if targets is None else targets
    aim = aim.expand(logits.shape[:-1])[..., None]
    own = logits.gather(-1, aim)[..., 0]
    sign = -1 if targets is None else 1  # away from the label, or towards the target
    if loss == "ce":
        return sign * (own - logits.logsumexp(-1))
    other = logits.scatter(-1, aim, -torch.inf).amax(-1)
    margin = sign * (own - other)
    if loss != "dlr":
        return margin.clamp(max=kappa) if loss == "clamped_margin" else margin
    ranked = logits.sort(-1, descending=True).values  # Croce and Hein 2020, Eqs. 6 and 7
    if targets is None:
        return margin / (ranked[..., 0] - ranked[..., 2] + 1e-12)
    label = logits.gather(-1, labels.expand(logits.shape[:-1])[..., None])[..., 0]
    scale = ranked[..., 0] - (ranked[..., 2] + ranked[..., 3]) / 2
    return (own - label) / (scale + 1e-12)


def check_batch(clouds: Tensor, labels: Tensor, indices: Tensor) -> None:
    """Raises InputError unless these are (B, N, 3), finite, and integers (B,) and (B,)."""
    shape = tuple(clouds.shape)
    check("shape of clouds", shape, shape[2:] == (3,) and 0 not in shape, "give (B, N, 3), B > 0")
    if not clouds.isfinite().all():
        raise InputError("clouds hold values that are not finite: leave those clouds out")
    for name, value in (("labels", labels), ("indices", indices)):
        kind, size = value.dtype, tuple(value.shape)
        good = not kind.is_floating_point and kind != torch.bool and size == shape[:1]
        check(name, f"{kind} {size}", good, "give one integer for each cloud")


def check_logits(logits: Tensor, labels: Tensor, loss: str, target: str) -> None:
    shape = tuple(logits.shape)
    needed = 2 if loss != "dlr" else 3 if target == "untargeted" else 4
    good = len(shape) == 2 and shape[0] == len(labels) and shape[1] >= needed
    check("shape of logits", shape, good, f"{loss} needs ({len(labels)}, C), C >= {needed}")
    low, high = int(labels.min()), int(labels.max())
    good = low >= 0 and high < shape[1]
    if not good:
        raise InputError(f"labels are {low} to {high}: the model knows 0 to {shape[1] - 1}")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-4):
        log.warning(
            "the model seems to return probabilities; attacks need logits, and their gradients "
            "vanish where a probability saturates"
        )


def warn_of_scale(eps: float, clouds: Clouds) -> None:
    """Warns where ε cannot be meant in the clouds' units."""
    size = float((clouds - clouds.mean(1, keepdim=True)).norm(dim=-1).amax(1).median())
    if eps > 0.5 * size or 0 < eps < 1e-5 * size:
        log.warning("eps is %g, the clouds' radius %g: of another scale?", eps, size)
