"""Making procedural clouds, on one core whatever the device."""

from __future__ import annotations

from functools import partial

import torch

from dual_denoising.benchmarks.timing import medians
from dual_denoising.data.primitives import SPLITS, Primitives
from dual_denoising.data.recipes import known_classes


def shapes(device: torch.device, repeats: int, per_class: int) -> list[dict]:
    """Seconds for ``per_class`` clouds of every known class; one row per split."""
    count = per_class * len(known_classes())
    jobs = {split: partial(Primitives, split, per_class) for split in SPLITS}
    return [
        {
            "split": split, "clouds": count, "s": timing.median, "min": timing.low,
            "max": timing.high, "s per 10,000": 1e4 * timing.median / count,
        }
        for split, timing in medians(jobs, device, repeats).items()
    ]  # fmt: skip
