"""Several ranks: what they send per step, and what that costs where there are several."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from dual_denoising.benchmarks.timing import medians
from dual_denoising.benchmarks.training import parameters, step_of, training_batch
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training import ranks as distributed


def volume(model: DualDenoising, ranks: Sequence[int], batch_size: int) -> list[dict]:
    """MB that every rank sends per step in a ring, computed from the parameters; a batch of
    ``batch_size`` clouds per rank."""
    buffers = sum(2 * m.num_features for m in model.modules() if hasattr(m, "running_mean"))
    return [
        {
            "ranks": count,
            "clouds per step": count * batch_size,
            "DDP, MB sent per rank": distributed.gradient_bytes(model, count) / 1e6,
            "FSDP2, MB sent per rank": distributed.gradient_bytes(model, count, True) / 1e6,
            "weights, gradients, moments: DDP, GB": 16 * parameters(model) / 1e9,
            "FSDP2, GB": 16 * parameters(model) / 1e9 / count,
            "batch statistics, kB": 4 * 2 * buffers / 1e3,
        }
        for count in ranks
    ]


def efficiency(
    model: DualDenoising, device: torch.device, repeats: int, batch_size: int, points: int
) -> list[dict]:
    """Under torchrun: a step that sums gradients over the ranks beside one that does not, both as
    training runs them on this device."""
    model = model.to(device).train()
    batch = training_batch(model, device, batch_size, points)
    copies, on_gpu = [copy.deepcopy(model), copy.deepcopy(model)], device.type == "cuda"
    if on_gpu:
        for one in copies:
            one.compile(dynamic=False)
    steps = [copies[0], distributed.wrap(copies[1], device)]
    alone, together = (step_of(step, batch, on_gpu, on_gpu or None) for step in steps)
    times = medians({"each rank alone": alone, "summing gradients": together}, device, repeats)
    ranks = distributed.world_size()
    return [
        {"step": name}
        | timing.row()
        | {
            "ranks": ranks,
            "samples/s of all": ranks * batch_size / timing.median,
            "efficiency": times["each rank alone"].median / timing.median,
        }
        for name, timing in times.items()
    ]
