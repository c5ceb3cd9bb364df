"""Encoding at every (S, t), beside a pass for every path; memory of long evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dual_denoising import keyed_random as noise
from dual_denoising.benchmarks.timing import Machine, flops, medians, peak_memory, unit_clouds
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.grid import Evaluation
from dual_denoising.model.dual_denoising import DualDenoising


class OnePathAtATime(nn.Module):
    """The same logits from S forward passes, one for each noise path."""

    def __init__(self, classifier: ZeroShotClassifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, clouds: Tensor) -> Tensor:
        indices = torch.arange(len(clouds), device=clouds.device)
        return self.draws(clouds, indices, [self.classifier.seed])[0]

    def draws(self, clouds: Tensor, indices: Tensor, seeds: Sequence[int]) -> Tensor:
        model, timestep = self.classifier.model, self.classifier.timestep
        logits = []
        for seed in seeds:
            keys = noise.path_keys(seed, indices, self.classifier.num_noise)
            paths = [model.encode_keys(clouds, key, timestep) for key in keys.split(1, dim=1)]
            logits.append(self.classifier.logits(torch.cat(paths, 1).mean(1)))
        return torch.stack(logits)


def inference(
    model: DualDenoising,
    machine: Machine,
    device: torch.device,
    repeats: int,
    clouds: int,
    points: int,
    num_noise: Sequence[int],
    timestep: Sequence[int],
) -> list[dict]:
    """Milliseconds per cloud of every (S, t), side by side, and their ratio to the first S; of the
    largest S also path by path, and on a GPU as captured graphs."""
    batch = unit_clouds(clouds, points, device)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(40, model.feature_width, generator=generator)
    weights = nn.functional.normalize(weights, dim=-1)
    make = partial(ZeroShotClassifier, model, weights)
    jobs, costs = {}, {}
    for step in timestep:
        for paths in num_noise:
            job = make(paths, step).eval().to(device)
            jobs[paths, step, "ours"] = job
            if device.type == "cuda":
                graph = make(paths, step, captured=True).eval().to(device)
                jobs[paths, step, "ours, captured graph"] = graph
            if paths == max(num_noise):
                jobs[paths, step, "a pass per path"] = OnePathAtATime(job)
            with torch.inference_mode():
                costs[paths, step] = flops(partial(job, batch))
    with torch.inference_mode():
        times = medians({k: partial(job, batch) for k, job in jobs.items()}, device, repeats)
    first = num_noise[0]
    return [
        {"S": paths, "t": step, "by": how}
        | {f"{name} per cloud": value for name, value in timing.row(clouds).items()}
        | {
            f"ratio to S = {first}": timing.median / times[first, step, "ours"].median,
            "GFLOP": costs[paths, step] / clouds / 1e9,
            "share of peak": machine.floor(costs[paths, step], 0) / timing.median,
            "peak MB": timing.peak / 1e6,
        }
        for (paths, step, how), timing in times.items()
    ]


def memory(
    model: DualDenoising,
    device: torch.device,
    clouds: int,
    points: int,
    num_noise: int,
    timestep: int,
    batch_size: int,
) -> list[dict]:
    """Peak memory (GB) of one evaluation after every tenth of its clouds."""
    source = _Endless(clouds, points, lambda: peak_memory(device))
    weights = nn.functional.normalize(torch.randn(40, model.feature_width), dim=-1)
    classifier = ZeroShotClassifier(model, weights).eval().to(device)
    run = Evaluation([num_noise], [timestep], [0], batch_size)
    run.predict(classifier, CloudDataset(source, points), device)
    rows = [*source.measured, (clouds, peak_memory(device))]
    return [{"clouds": seen, "peak GB": peak} for seen, peak in rows]


class _Endless:
    """Synthetic clouds made when read; ``measure`` is called ten times on the way."""

    name, split, up, class_names = "endless", "test", "y", [str(i) for i in range(40)]

    def __init__(self, count: int, points: int, measure: Callable[[], float]):
        self.labels, self.ids = np.zeros(count, np.int64), range(count)
        self.points, self.measure, self.measured = points, measure, []

    def read(self, index: int) -> np.ndarray:
        if index % max(len(self.ids) // 10, 1) == 0:
            self.measured.append((index, self.measure()))
        return np.random.default_rng(index).normal(size=(self.points, 3)).astype(np.float32)
