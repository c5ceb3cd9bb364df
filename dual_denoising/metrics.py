"""Accuracies and their spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def topk_correct(
    logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], k: int
) -> Bool[Tensor, " b"]:
    """Whether the label is among the k largest logits; k is cut to the number of classes."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1)


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> np.ndarray:
    """Counts (C, C), a row per true class."""
    counts = torch.bincount(labels * classes + predictions, minlength=classes**2)
    return counts.view(classes, classes).cpu().numpy()


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the deviation of one value is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
