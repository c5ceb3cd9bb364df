"""Seconds of a training sample, of a path and of a gradient: measured here, computed for GPUs."""

from collections.abc import Callable
from functools import partial

import torch

from dual_denoising import keyed_random
from dual_denoising.benchmarks.timing import flops, medians, unit_clouds
from dual_denoising.model.dual_denoising import DualDenoising

BATCH = 32  # clouds
# dense FLOP/s at the most, as NVIDIA states them: bfloat16 with float32 sums, and float32
PEAKS = {"RTX 3090": (71e12, 35.6e12), "H100 SXM": (989e12, 67e12)}
Costs = tuple[float, float, float]


def measured(model: DualDenoising, points: int, device: torch.device) -> Costs:
    """Seconds on this machine, of BATCH clouds at once."""
    calls = _calls(model.to(device), points)
    one, two, three = (timing.median / BATCH for timing in medians(calls, device, 1, 1).values())
    return one, two, three


def computed(model: DualDenoising, points: int) -> dict[str, Costs]:
    """{GPU: seconds} at its peak, from the FLOPs of all matrix products: no GPU is as fast."""
    step, path, gradient = (flops(call) / BATCH for call in _calls(model, points).values())
    return {
        name: (step / half, path / full, gradient / full) for name, (half, full) in PEAKS.items()
    }


def paths_cost(model: DualDenoising, points: int, paths: int) -> float:
    """How many times the FLOPs of one noise path S = ``paths`` take, at t = 0."""
    clouds = unit_clouds(1, points, torch.device("cpu"))
    many, one = (flops(partial(model.eval().encode, clouds, s, 0)) for s in (paths, 1))
    return many / one


def _calls(model: DualDenoising, points: int) -> dict[str, Callable]:
    device = model.target_mean.device
    clouds = unit_clouds(BATCH, points, device)
    keys = torch.arange(BATCH, device=device)
    targets = clouds.new_zeros(BATCH, len(model.feature_types), model.feature_width)
    paths = keyed_random.path_keys(0, keys, 1)

    def step() -> None:
        model.train()(clouds, targets, keys)["loss"].backward()

    def path() -> None:
        with torch.inference_mode():
            model.eval().encode_paths(clouds, paths, 500)

    def gradient() -> None:
        moved = clouds.clone().requires_grad_()
        model.eval().encode_paths(moved, paths, 500).sum().backward()

    return {"sample": step, "path": path, "gradient": gradient}
