"""What all attacks share: targets, losses, noise draws, gradients that can be trusted.

An attack sees clouds -> logits and nothing else. A model whose answers are random may offer
``draws(clouds, indices, seeds)`` -> (M, B, C), one draw of its noise per seed. One that draws from
torch's own generators is called once per draw after torch.manual_seed, so that its noise too can be
fixed and repeated, though it depends on the batch. Nothing is re-normalised or clamped; models run
in evaluation mode and without autocast.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dual_denoising import keyed_random as keyed
from dual_denoising.errors import InputError
from dual_denoising.graphs import Captured
from dual_denoising.memory import kept_for_backward

log = logging.getLogger(__name__)

TARGETS = ("second_best", "best_wrong", "untargeted")
LOSSES = ("ce", "margin", "clamped_margin", "dlr")
NOISES = ("resampled", "fixed")
GROUPINGS = ("redone", "frozen")


class Attack(ABC):
    """Calls as attack(clouds (B, N, 3), labels (B,)) -> adversarial clouds (B, N, 3).

    model: a module or any callable, clouds -> logits (B, C). target: 'second_best', the class of
    the second-highest clean logit (the paper's; for a cloud that is wrong when clean it can be the
    label, and the attack then creates correct answers), 'best_wrong', the best class that is not
    the label, or 'untargeted'. loss: 'ce', 'margin' (unclamped), 'clamped_margin' at kappa, 'dlr'
    (Croce and Hein 2020). noise: of a random model, 'resampled' at every step or 'fixed'. draws: M,
    of which gradients are the mean (EOT). grouping: 'redone', tokens are searched anew in every
    step, or 'frozen', kept from the clean cloud where gradients are taken, which the model must
    offer as frozen(clouds, indices). seed: of the attack's own draws and of the noise it sees,
    below 2**16. captured: gradients are taken by CUDA graphs, which saves launches where batches
    are small; the model must offer draws(...), with seeds as a tensor, and wait for no device.

    After a call ``failed`` (B,) says which clouds were left clean because their gradient was not
    finite, ``flat`` (B,) which met a gradient that was zero everywhere, ``unsuccessful`` (B,) on
    which C&W found nothing. Raises InputError for labels out of range and settings that do not
    exist.
    """

    kind = "white"  # what it knows of the model: white, one step, black, noise
    norm = "linf"
    stages = 0  # how often ``record`` is called

    @property
    def ball_words(self) -> str:
        """Which ball ε is the radius of."""
        return self.norm

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        target: str = "best_wrong",
        loss: str = "ce",
        kappa: float = 0.0,
        noise: str = "resampled",
        draws: int = 1,
        grouping: str = "redone",
        seed: int = 0,
        captured: bool = False,
    ):
        for name, value, known in (
            ("target", target, TARGETS),
            ("loss", loss, LOSSES),
            ("noise", noise, NOISES),
            ("grouping", grouping, GROUPINGS),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}: choose one of {', '.join(known)}")
        if draws < 1:
            raise InputError(f"draws is {draws}: choose at least 1")
        if not 0 <= seed < 2**16:
            raise InputError(f"seed is {seed}: choose one from 0 to {2**16 - 1}")
        if grouping == "frozen" and not hasattr(model, "frozen"):
            raise InputError(f"grouping is frozen: {type(model).__name__} has no frozen(...)")
        if captured and (grouping == "frozen" or not hasattr(model, "draws")):
            raise InputError(
                f"captured is true: {type(model).__name__} must offer draws(...), and grouping "
                "must be redone; set captured=false"
            )
        self.slope, self.captured = Captured(self._slope) if captured else self._slope, captured
        self.model, self.target, self.loss, self.kappa = model, target, loss, kappa
        self.noise, self.draws, self.grouping, self.seed = noise, draws, grouping, seed
        self.failed = self.flat = self.unsuccessful = torch.zeros(0, dtype=torch.bool)

    def __call__(
        self,
        clouds: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        record: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """indices: (B,) of the clouds in their data set, which key all noise; 0..B−1 if None.

        record: called with (step, adversarial clouds) after every step, for curves from one run.
        """
        if indices is None:
            indices = torch.arange(len(clouds), device=clouds.device)
        self.tracked = self.model  # what gradients are taken of
        if self.grouping == "frozen":
            self.tracked = self.model.frozen(clouds, indices)
        self.failed = torch.zeros(len(clouds), dtype=torch.bool, device=clouds.device)
        self.flat, self.unsuccessful = self.failed.clone(), self.failed.clone()

        def keep(step: int, points: Tensor) -> None:
            if record is not None:
                record(step, torch.where(self.failed[:, None, None], clouds, points))

        self.record = keep
        autocast = torch.autocast(clouds.device.type, enabled=False)
        with evaluating(self.model), torch.no_grad(), autocast:
            clean = draw_logits(self.model, clouds, indices, self.seeds(-1)).mean(0)
            _check(clean, labels, self.loss, self.target)
            self.targets = choose_targets(clean, labels, self.target)
            adversarial = self.perturb(clouds.detach(), labels, indices)
        if self.failed.any():
            log.warning(
                "gradients or answers of clouds %s are not finite; they stay clean and count as "
                "failed attacks", indices[self.failed].tolist(),
            )  # fmt: skip
        return torch.where(self.failed[:, None, None], clouds, adversarial).detach()

    def bytes_per_cloud(self, clouds: Tensor, indices: Tensor) -> float:
        """Memory that a gradient step on these clouds keeps for its backward pass, per cloud."""
        points = clouds.detach().requires_grad_()
        with evaluating(self.model):
            kept = kept_for_backward(
                lambda: draw_logits(self.model, points, indices, self.seeds(0)), self.model
            )
        return max(kept, clouds.nbytes) / len(clouds)

    @abstractmethod
    def perturb(self, clouds: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """The attack itself; runs without gradients but where it asks for them."""

    def seeds(self, step: int) -> list[int]:
        """Noise seeds of a step's draws, apart from any that evaluations use."""
        first = 0 if self.noise == "fixed" else (step + 1) * self.draws
        return [2**40 + self.seed * 2**24 + first + draw for draw in range(self.draws)]

    def answers(self, clouds: Tensor, indices: Tensor, seeds) -> Tensor:
        """Logits (M, B, C) of these draws, of what gradients are taken of."""
        return draw_logits(self.tracked, clouds, indices, seeds)

    def objective(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """What the attack raises, (..., B) of logits (..., B, C)."""
        return objective(logits, labels, targets, self.loss, self.kappa)

    def gradient(self, clouds: Tensor, labels: Tensor, indices: Tensor, step: int):
        """Gradient (B, N, 3) of the mean objective over the draws, and that objective (B,)."""
        rows = torch.arange(len(clouds), device=clouds.device)
        gradient, value, logits = self.slope(*self._asked(clouds, labels, indices, rows, step))
        return self.checked(gradient, rows, self.won(logits, labels, self.targets)), value

    def _asked(self, clouds, labels, indices, rows, step: int) -> tuple:
        """What ``slope`` takes, of the batch's ``rows``; tensors alone where it is captured."""
        seeds = self.seeds(step)
        seeds = keyed.on_device(seeds, clouds.device) if self.captured else seeds
        targets = labels if self.targets is None else self.targets[rows]
        return clouds, labels, indices, seeds, targets

    def _slope(self, points, labels, indices, seeds, targets, *more) -> tuple[Tensor, ...]:
        """Gradient (B, N, 3) of ``cost`` for every cloud, its value (B,) and the mean logits."""
        targets = None if self.targets is None else targets
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = self.answers(points, indices, seeds)
            value = self.cost(points, logits, labels, targets, *more)
            (gradient,) = torch.autograd.grad(value.sum(), points)
        return gradient, value.detach(), logits.detach().mean(0)

    def cost(self, points, logits, labels, targets) -> Tensor:
        """What gradients are taken of, (B,) of logits (M, B, C) of points (B, N, 3)."""
        return self.objective(logits, labels, targets).mean(0)

    def value(self, clouds: Tensor, labels: Tensor, indices: Tensor, step: int) -> Tensor:
        """The mean objective (B,) over the step's draws, without a gradient."""
        answers = self.answers(clouds, indices, self.seeds(step))
        value = self.objective(answers, labels, self.targets).mean(0)
        self.failed |= ~value.isfinite()
        return value

    def won(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """Where (B,) the attack stands at its goal: a loss may rightly be flat there."""
        return objective(logits, labels, targets, "margin") > 0

    def checked(
        self, gradient: Tensor, rows: Tensor, won: Tensor, running: Tensor | bool = True
    ) -> Tensor:
        """A gradient (B', N, 3) of the batch's ``rows`` with zeros where it is not finite.

        Marks those clouds as failed, and flat ones, of the ``running`` ones (B',), without waiting
        for the device.
        """
        self.failed[rows] |= ~gradient.flatten(1).isfinite().all(1) & running
        self.flat[rows] |= (gradient == 0).flatten(1).all(1) & ~won & running
        return gradient.nan_to_num(0.0, 0.0, 0.0)


@contextmanager
def evaluating(model: Callable) -> Iterator[None]:
    """Puts a model into evaluation mode and back afterwards; a plain function is left alone."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def draw_logits(model: Callable, clouds: Tensor, indices: Tensor, seeds: list[int]) -> Tensor:
    """Logits (M, B, C), one draw of the model's noise per seed."""
    if hasattr(model, "draws"):
        return model.draws(clouds, indices, seeds)
    drawn = []
    with torch.random.fork_rng([clouds.device] if clouds.is_cuda else []):
        for seed in seeds:
            torch.manual_seed(int(keyed.key(seed)) % 2**32)  # all that the CPU's generator keeps
            drawn.append(model(clouds))
    return torch.stack(drawn)


def choose_targets(logits: Tensor, labels: Tensor, target: str) -> Tensor | None:
    """Target classes (B,) from clean logits (B, C), None if untargeted."""
    if target == "untargeted":
        return None
    if target == "second_best":
        return logits.topk(2).indices[:, 1]
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def objective(
    logits: Tensor, labels: Tensor, targets: Tensor | None, loss: str, kappa: float = 0.0
) -> Tensor:
    """A loss to be raised, (..., B) of logits (..., B, C); positive margins are successes."""
    aim = labels if targets is None else targets
    aim = aim.expand(logits.shape[:-1])[..., None]
    own = logits.gather(-1, aim)[..., 0]
    sign = -1 if targets is None else 1  # away from the label, or towards the target
    if loss == "ce":
        return sign * (own - logits.logsumexp(-1))
    other = logits.scatter(-1, aim, -torch.inf).amax(-1)
    margin = sign * (own - other)
    if loss == "dlr":
        return _dlr(logits, labels, own, margin, targets)
    return margin.clamp(max=kappa) if loss == "clamped_margin" else margin


def _dlr(logits, labels, own, margin, targets) -> Tensor:
    """Difference-of-logits ratio, plain and targeted (Croce and Hein 2020, Eqs. 6 and 7)."""
    ranked = logits.sort(-1, descending=True).values
    if targets is None:
        return margin / (ranked[..., 0] - ranked[..., 2] + 1e-12)
    label = logits.gather(-1, labels.expand(logits.shape[:-1])[..., None])[..., 0]
    scale = ranked[..., 0] - (ranked[..., 2] + ranked[..., 3]) / 2
    return (own - label) / (scale + 1e-12)


def _check(logits: Tensor, labels: Tensor, loss: str, target: str) -> None:
    classes = logits.shape[1]
    needed = 2 if loss != "dlr" else 3 if target == "untargeted" else 4
    if classes < needed:
        raise InputError(f"the model knows {classes} classes: {loss} needs at least {needed}")
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"labels are {tuple(labels.shape)} of {labels.dtype}: give one integer for each of the "
            f"{len(logits)} clouds"
        )
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise InputError(
            f"labels[{first}] is {int(labels[first])}: the model knows 0 to {classes - 1}"
        )
    sums = logits.sum(1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        log.warning(
            "the model seems to return probabilities; attacks need logits, and their gradients "
            "vanish where a probability saturates"
        )


def radius(clouds: Tensor) -> Tensor:
    """Largest distance (B,) of a point from its cloud's mean."""
    return (clouds - clouds.mean(1, keepdim=True)).norm(dim=-1).amax(1)


def check_size(eps: float) -> float:
    """ε itself; raises InputError where it is no radius."""
    if not isinstance(eps, (int, float)) or not 0 <= eps < float("inf"):
        raise InputError(f"eps is {eps}: it must be a number from 0")
    return eps


def warn_of_scale(eps: float, clouds: Tensor) -> None:
    """Warns where ε cannot be meant in the clouds' units."""
    size = float(radius(clouds).median())
    if eps > 0.5 * size or 0 < eps < 1e-5 * size:
        log.warning("eps is %g, the clouds' radius %g: of another scale?", eps, size)
