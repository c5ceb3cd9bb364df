"""Medians of jobs run in turn, and what the machine can do at most."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Timing:
    """Seconds of one job over the rounds, and its peak GPU memory in bytes (0 on a CPU)."""

    median: float
    low: float
    high: float
    peak: int = 0

    def row(self, floor: float, per: float = 1e-3, unit: str = "ms") -> dict:
        """In units of ``per`` seconds, and what share of it the floor is."""
        row = {unit: self.median / per, "min": self.low / per, "max": self.high / per}
        row |= {"peak GB": self.peak / 1e9} if self.peak else {}
        return row | {"share of floor": floor / self.median}


def medians(
    jobs: Mapping[Any, Callable], device: torch.device, repeats: int, warm_up: int = 2
) -> dict[Any, Timing]:
    """Times all jobs in turn in every round, after rounds that do not count."""
    times: dict[Any, list[float]] = {name: [] for name in jobs}
    peaks = dict.fromkeys(jobs, 0)
    for round_number in range(repeats + warm_up):
        for name, job in jobs.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device))
            if round_number >= warm_up:
                times[name].append(time.perf_counter() - started)
    return {n: Timing(float(np.median(t)), min(t), max(t), peaks[n]) for n, t in times.items()}


@dataclass
class Machine:
    """What a device reaches: FLOP/s of a matrix product, by type, and bytes/s of a copy."""

    device: torch.device
    matmul: dict[str, float]
    copy: float

    def floor(self, flops: float, moved: float = 0, kind: str = "float32") -> float:
        """Seconds that arithmetic or traffic take at the least, whichever is more."""
        return max(flops / self.matmul[kind], moved / self.copy)

    def rows(self) -> list[dict]:
        rows = [
            {"measured": f"matrix product, {kind}", "value": rate / 1e12, "unit": "TFLOP/s"}
            for kind, rate in self.matmul.items()
        ]
        return [*rows, {"measured": "copy", "value": self.copy / 1e9, "unit": "GB/s"}]


def measure(device: torch.device) -> Machine:
    """Matrix products of the types that training uses here, and a copy far beyond the caches."""
    on_gpu = device.type == "cuda"
    size, numbers = (8192, 2**29) if on_gpu else (2048, 2**26)
    products = {}
    for kind in ("float32", "bfloat16") if on_gpu else ("float32",):
        a = torch.randn(size, size, device=device, dtype=getattr(torch, kind))
        products[kind] = partial(torch.mm, a, a, out=torch.empty_like(a))
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    times = medians(products | {"copy": lambda: target.copy_(source)}, device, 7)
    rates = {kind: 2 * size**3 / times[kind].median for kind in products}
    return Machine(device, rates, 2 * source.nbytes / times["copy"].median)


def flops(job: Callable) -> int:
    """Floating-point operations of the matrix products in a job, by torch's counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        job()  # as plain products attention is counted on every device
    return counter.get_total_flops()


def unit_clouds(count: int, points: int, device: torch.device) -> Tensor:
    """Seeded Gaussian clouds (B, N, 3) in the unit sphere."""
    clouds = torch.randn(count, points, 3, generator=torch.Generator().manual_seed(0))
    return (clouds / clouds.norm(dim=-1).amax(1)[:, None, None]).to(device)
