"""Accuracies, their spread and their intervals."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


def label_ranks(
    logits: Float[Tensor, "*m b c"], labels: Int[Tensor, " b"]
) -> tuple[Int[Tensor, "*m b"], Int[Tensor, "*m b"]]:
    """How many classes come before the label, and the first class: each (..., B).

    Equal logits are ordered by class, so that a constant model is right on one class alone. Where
    a logit is not finite the rank is C and the class −1: wrong.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)  # (..., B, C)
    ranks = (order == labels[:, None]).int().argmax(-1)
    finite = logits.isfinite().all(-1)
    return ranks.where(finite, logits.shape[-1]), order[..., 0].where(finite, -1)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts (C, C), a row per true class; predictions of −1 are left out."""
    known = predictions >= 0
    pairs = labels[known] * classes + predictions[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the deviation of one value is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95% interval (Wilson 1927) of the true accuracy, where n drawn clouds gave ``share``."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
