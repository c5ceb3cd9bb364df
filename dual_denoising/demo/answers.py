"""What the page shows: names with their spread over noise, rebuilt clouds, attacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dual_denoising.attacks import APGD, PGD
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.files import named
from dual_denoising.evaluation.systems import System
from dual_denoising.model.dual_denoising import DualDenoising

SEEDS = range(1, 6)  # noise seeds of a spread; 0 gives the answer itself
FRESH = range(100, 110)  # of the scores of an attack, which sees none of them
SHOWN = 8  # names in a table


@dataclass
class Answer:
    """The answer to a cloud, and {name: (probability, least and most over noise seeds)}."""

    name: str
    shares: dict[str, tuple[float, float, float]]


def answer(system: System, cloud: np.ndarray, names: Sequence[str], paths: int, t: int) -> Answer:
    """Names for one cloud (N, 3); the spread is over SEEDS."""
    classifier = system.classifier(names, paths, t)
    logits = _logits(classifier, cloud, [0, *SEEDS])
    found = [named("", cloud, row, names, system.calibration) for row in logits]
    spread = {name: [one.probabilities[name] for one in found[1:]] for name in names}
    best = list(found[0].probabilities.items())[:SHOWN]
    return Answer(
        found[0].answer, {name: (p, min(spread[name]), max(spread[name])) for name, p in best}
    )


def _logits(
    classifier: ZeroShotClassifier, cloud: np.ndarray, seeds: Sequence[int]
) -> torch.Tensor:
    """(R, C): of one cloud, a row per noise seed."""
    with torch.inference_mode():
        points = torch.from_numpy(cloud)[None]
        return classifier.draws(points, torch.zeros(1, dtype=torch.long), list(seeds))[:, 0]


def rebuilt(model: DualDenoising, cloud: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """The cloud noised at t, and what PointDAE makes of it."""
    noisy, clean = model.rebuild(torch.from_numpy(cloud)[None], t)
    return noisy[0].numpy(), clean[0].numpy()


@dataclass
class Attacked:
    """An adversarial cloud, and {answer: share of fresh noise seeds} before and after."""

    cloud: np.ndarray
    before: dict[str, float]
    after: dict[str, float]


def attack(
    system: System,
    cloud: np.ndarray,
    names: Sequence[str],
    setting: tuple[int, int],
    kind: str,
    eps: float,
    steps: int,
    progress: Callable[[int], None],
) -> Attacked:
    """PGD (the paper's loss and target) or APGD (M = 4 draws, margin) away from the clean answer.

    progress: called with every step.
    """
    classifier = system.classifier(names, *setting)
    before = _logits(classifier, cloud, FRESH)
    label = before.mean(0).argmax()[None]
    if kind == "PGD":
        attacker: PGD = PGD(classifier, eps, steps=steps, target="second_best")
    else:
        attacker = APGD(classifier, eps, steps=steps, loss="margin", draws=4)
    points = torch.from_numpy(cloud)[None]
    found = attacker(points, label, record=lambda step, _: progress(step))[0].numpy()
    after = _logits(classifier, found, FRESH)
    return Attacked(found, *(_votes(system, logits, names) for logits in (before, after)))


def _votes(system: System, logits: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """{answer: share of the rows}, most first."""
    found = (named("", np.empty(0), row, names, system.calibration).answer for row in logits)
    return {name: count / len(logits) for name, count in Counter(found).most_common()}
