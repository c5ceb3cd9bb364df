"""Attacks: one graph for all paths beside a loop over them, C&W with and without compaction."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dual_denoising.attacks import CW, PGD
from dual_denoising.attacks.base import Attack
from dual_denoising.benchmarks.inference import OnePathAtATime
from dual_denoising.benchmarks.timing import Machine, flops, medians, unit_clouds
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.model.dual_denoising import DualDenoising


def attacks(
    model: DualDenoising,
    machine: Machine,
    device: torch.device,
    repeats: int,
    clouds: int,
    points: int,
    num_noise: int,
    steps: int,
    searches: int,
    search_steps: int,
    abort: int | None,
    total: int,
    warm_up: int = 2,
    rivals: bool = True,
) -> list[dict]:
    """Seconds of each attack beside its alternative, unless ``rivals`` is false.

    steps: of PGD, at t = 0 and t = 500; 0 leaves it out. searches, search_steps, abort: of C&W, at
    t = 0. total: clouds that the hours are computed for, from the seconds per cloud.
    """
    drawn = unit_clouds(clouds, points, device)
    labels = torch.zeros(clouds, dtype=torch.long, device=device)
    weights = torch.randn(10, model.feature_width, generator=torch.Generator().manual_seed(1))
    weights = nn.functional.normalize(weights, dim=-1)
    rows, on_gpu = [], device.type == "cuda"
    for timestep in (0, 500) if steps else ():
        classifier = ZeroShotClassifier(model, weights, num_noise, timestep).eval().to(device)
        jobs = {"ours": PGD(classifier, 0.01, steps=steps)}
        if on_gpu:
            jobs["ours, captured graph"] = PGD(classifier, 0.01, steps=steps, captured=True)
        if rivals:
            jobs["a pass per path"] = PGD(OnePathAtATime(classifier), 0.01, steps=steps)
        floor = machine.floor(steps * _step_flops(jobs["ours"], drawn, labels), 0)
        name = f"PGD-{steps}, S = {num_noise}, t = {timestep}"
        rows += _rows(name, jobs, drawn, labels, device, repeats, warm_up, total, floor)
    classifier = ZeroShotClassifier(model, weights, num_noise, 0).eval().to(device)
    budget = {"searches": searches, "steps": search_steps, "abort": abort, "target": "best_wrong"}
    jobs = {"ours, compacted": CW(classifier, **budget)}
    if rivals:
        jobs["whole batch"] = CW(classifier, compact=False, **budget)
    name = f"C&W, {searches} × {search_steps}, abort {abort}, t = 0"
    return rows + _rows(name, jobs, drawn, labels, device, repeats, warm_up, total, None)


def _step_flops(attack: Attack, clouds: Tensor, labels: Tensor) -> int:
    """Of one gradient for the whole batch."""
    attack.targets, attack.tracked = labels, attack.model
    indices = torch.arange(len(clouds), device=clouds.device)
    return flops(lambda: attack._slope(clouds, labels, indices, attack.seeds(0), labels))


def _rows(name, jobs: dict, clouds: Tensor, labels: Tensor, device, repeats, warm_up, total, floor):
    calls = {kind: partial(attack, clouds, labels) for kind, attack in jobs.items()}
    times = medians(calls, device, repeats, warm_up)
    slowest = list(jobs)[-1]
    return [
        {
            "attack": name,
            "by": kind,
            "s per cloud": timing.median / len(clouds),
            "min": timing.low / len(clouds),
            "max": timing.high / len(clouds),
            "times as fast": times[slowest].median / timing.median,
            "share of peak": floor / timing.median if floor else None,
            f"hours for {total}": total * timing.median / len(clouds) / 3600,
            "peak GB": timing.peak / 1e9,
        }
        for kind, timing in times.items()
    ]
