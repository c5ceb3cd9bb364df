"""What the page shows: names with their spread over noise, and attacks."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dual_denoising.attacks import APGD, PGD
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.files import decide
from dual_denoising.evaluation.systems import System

SEEDS = range(1, 6)  # noise seeds of a spread; 0 gives the answer itself
FRESH = range(100, 110)  # of the scores of an attack, which sees none of them
SHOWN = 8  # names in a table


def answer(
    system: System, cloud: np.ndarray, names: Sequence[str], paths: int, t: int
) -> tuple[str, list[list[str]]]:
    """The answer to a cloud (N, 3), and of each name its probability, least and most over SEEDS."""
    logits = _logits(system.classifier(names, paths, t), cloud, [0, *SEEDS])
    found = [decide(row, names, system.calibration) for row in logits]
    shares, best, _ = found[0]
    rows = []
    for name, share in list(shares.items())[:SHOWN]:
        spread = [others[name] for others, *_ in found[1:]]
        rows.append([name, *(f"{100 * p:.1f}%" for p in (share, min(spread), max(spread)))])
    return best, rows


def _logits(classifier: ZeroShotClassifier, cloud: np.ndarray, seeds: Sequence[int]) -> Tensor:
    """(R, C): of one cloud, a row per noise seed."""
    with torch.inference_mode():
        points = torch.from_numpy(cloud)[None]
        return classifier.draws(points, torch.zeros(1, dtype=torch.long), list(seeds))[:, 0]


def attack(
    system: System,
    cloud: np.ndarray,
    names: Sequence[str],
    setting: tuple[int, int],
    kind: str,
    eps: float,
    steps: int,
    record: Callable[[int, Tensor], None],
) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
    """The adversarial cloud, and {answer: share of fresh noise seeds} before and after.

    kind: PGD (the paper's loss and target) or APGD (M = 4 draws, margin), away from the clean
    answer. record: called with every step and its clouds.
    """
    classifier = system.classifier(names, *setting)
    before = _logits(classifier, cloud, FRESH)
    label = before.mean(0).argmax()[None]
    if kind == "PGD":
        attacker: PGD = PGD(classifier, eps, steps=steps, target="second_best")
    else:
        attacker = APGD(classifier, eps, steps=steps, loss="margin", draws=4)
    moved = attacker(torch.from_numpy(cloud)[None], label, record=record)[0].numpy()
    after = _logits(classifier, moved, FRESH)
    return moved, _votes(system, before, names), _votes(system, after, names)


def _votes(system: System, logits: Tensor, names: Sequence[str]) -> dict[str, float]:
    """{answer: share of the rows}, most first."""
    found = (decide(row, names, system.calibration)[1] for row in logits)
    return {name: count / len(logits) for name, count in Counter(found).most_common()}
