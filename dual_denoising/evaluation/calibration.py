"""Probabilities that mean something, and an answer for what has no name among those offered."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from dual_denoising.keyed_random import Stream, key

SETTING = (8, 500)  # (S, t) that a calibration is made at
ACCEPTED = 0.95  # of the shapes whose name is offered: what fpr95 and most thresholds let through


@dataclass
class Calibration:
    """How logits become probabilities, and when none of the names offered is the answer.

    temperature: divides the logits before the softmax. score: 'max_logit', the largest logit, or
    'energy', temperature · log Σ exp(logit / temperature) (Liu et al. 2020). threshold: below it
    the answer is none of the names. validation: the data it was fitted on, and its quality there.
    """

    temperature: float
    score: str
    threshold: float
    validation: dict

    def probabilities(self, logits: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return (logits / self.temperature).softmax(-1)

    def known(self, logits: Float[Tensor, "*b c"]) -> Float[Tensor, "*b"]:
        """The score of "the right name is offered"; names left out have a logit of −∞."""
        if self.score == "max_logit":
            return logits.amax(-1)
        return self.temperature * (logits / self.temperature).logsumexp(-1)


def fit_temperature(logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"]) -> float:
    """The temperature with the least cross-entropy (Guo et al. 2017).

    Logits of names that are not offered are −∞.
    """
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(logits / math.exp(log_temperature), labels))

    return math.exp(minimize_scalar(loss, bounds=(-7, 7), method="bounded").x)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: mean |confidence − accuracy| over 15 bins of equal width."""
    bins = 15
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(float((confidence - right)[place == b].sum())) for b in range(bins)]
    return sum(gaps) / len(confidence)


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Share of the pairs in which ``known`` is above ``unknown``; a tie is half a pair."""
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, "left") + np.searchsorted(ordered, known, "right")
    return float(below.mean() / 2 / len(unknown))


def offered(
    labels: Int[Tensor, " b"], classes: int
) -> tuple[Bool[Tensor, "b c"], Bool[Tensor, "b c"]]:
    """Two random sets of names for each shape, of one size: with its own name, and without it.

    The size is drawn log-uniformly from 2 to all but one: users offer few names or many.
    """
    generator = torch.Generator().manual_seed(int(key(Stream.OFFERED, 0)))
    drawn = torch.rand(len(labels), classes, generator=generator)
    span = math.log(max(classes - 1, 2)) - math.log(2)
    share = torch.rand(len(labels), 1, generator=generator)
    count = (math.log(2) + span * share).exp().round().clamp(max=classes - 1)
    own = torch.nn.functional.one_hot(labels, classes).bool()
    place = drawn.masked_fill(own, -1.0).argsort(-1, descending=True).argsort(-1)  # the own: last
    return own | (place < count - 1), place < count


def fit(
    logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], words: str, accepted: float
) -> Calibration:
    """Fits the temperature, the score and its threshold on shapes that nothing was trained on.

    Each shape is offered some of the C names, once with its own among them and once without. Of the
    two scores the one of larger AUROC is taken; its threshold accepts the share ``accepted`` of the
    shapes that have a right answer. words: what the data is.
    """
    own, strange = offered(labels, logits.shape[1])
    with_own, without = (logits.masked_fill(~rows, -torch.inf) for rows in (own, strange))
    temperature = fit_temperature(with_own, labels)
    scores = {}
    for kind in ("max_logit", "energy"):
        known_of = Calibration(temperature, kind, 0.0, {}).known
        scores[kind] = [known_of(x).numpy() for x in (with_own, without)]
    areas = {kind: auroc(*both) for kind, both in scores.items()}
    best = max(areas, key=lambda kind: areas[kind])
    threshold = float(np.quantile(scores[best][0], 1 - accepted))
    right = (with_own.argmax(-1) == labels).numpy()
    sure = [(with_own / t).softmax(-1).amax(-1).numpy() for t in (1.0, temperature)]
    validation = {
        "data": words,
        "n": len(labels),
        "names_offered": [int(own.sum(1).min()), int(own.sum(1).max())],
        "setting": list(SETTING),
        "accuracy": float(right.mean()),
        **figures(np.stack([*sure, right, *scores[best]]), threshold),
        "auroc": areas,
        "accepted": accepted,
    }
    return Calibration(temperature, best, threshold, validation)


def confidence(
    logits: Float[Tensor, "*m b c"], labels: Int[Tensor, " b"], calibration: Calibration
) -> Float[Tensor, "5 *m b"]:
    """Of each cloud: its confidence without and with the temperature, whether it is right (1, 0),
    its score with its own name offered, and with that left out.

    The energy grows with the number of names, so its two sets are of one size: the first lacks the
    next name.
    """
    labels = labels.expand(logits.shape[:-1])
    left = logits.scatter(-1, labels[..., None], -torch.inf)
    there = logits
    if calibration.score == "energy":
        there = logits.scatter(-1, (labels[..., None] + 1) % logits.shape[-1], -torch.inf)
    return torch.stack(
        [
            logits.softmax(-1).amax(-1),
            calibration.probabilities(logits).amax(-1),
            (logits.argmax(-1) == labels).float(),
            calibration.known(there),
            calibration.known(left),
        ]
    )


def figures(values: Float[np.ndarray, "5 n"], threshold: float) -> dict[str, Any]:
    """What a Result says of calibration and of 'none of these', from ``confidence``."""
    plain, calibrated, right, known, unknown = values
    return {
        "ece_uncalibrated": calibration_error(plain, right),
        "ece": calibration_error(calibrated, right),
        "auroc": auroc(known, unknown),
        "fpr95": float((unknown >= np.quantile(known, 1 - ACCEPTED)).mean()),  # at 95% TPR
        "false_accept": float((unknown >= threshold).mean()),
        "false_reject": float((known < threshold).mean()),
    }
