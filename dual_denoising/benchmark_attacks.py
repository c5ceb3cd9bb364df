"""Timings of attacks: one graph for all paths against a loop over them, C&W with and without
compaction."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dual_denoising import noise
from dual_denoising.attacks import CW, PGD
from dual_denoising.benchmark import medians
from dual_denoising.model import DualDenoising
from dual_denoising.zeroshot import ZeroShotClassifier


class OnePathAtATime(nn.Module):
    """The same logits from S forward passes, one for each noise path."""

    def __init__(self, classifier: ZeroShotClassifier):
        super().__init__()
        self.classifier = classifier

    def draws(self, clouds: Tensor, indices: Tensor, seeds: list[int]) -> Tensor:
        model, timestep = self.classifier.model, self.classifier.timestep
        logits = []
        for seed in seeds:
            keys = noise.path_keys(seed, indices, self.classifier.num_noise)
            paths = [model.encode_keys(clouds, key, timestep) for key in keys.split(1, dim=1)]
            logits.append(self.classifier.logits(torch.cat(paths, 1).mean(1)))
        return torch.stack(logits)


def attacks(
    model: DualDenoising,
    device: torch.device,
    repeats: int,
    clouds: int,
    points: int,
    num_noise: int,
    steps: int,
) -> list[dict]:
    """Seconds per cloud, each attack beside its alternative, and how much faster it is."""
    drawn = torch.randn(clouds, points, 3, generator=torch.Generator().manual_seed(0))
    drawn = (drawn / drawn.norm(dim=-1).amax(1)[:, None, None]).to(device)
    labels = torch.zeros(clouds, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(10, model.feature_width, generator=generator)
    weights = nn.functional.normalize(weights, dim=-1)
    rows = []
    for timestep in (0, 500):
        classifier = ZeroShotClassifier(model, weights, num_noise, timestep).eval().to(device)
        jobs = {
            "one graph": PGD(classifier, 0.01, steps=steps),
            "a pass per path": PGD(OnePathAtATime(classifier), 0.01, steps=steps),
        }
        rows += _rows(f"PGD-{steps}, S = {num_noise}, t = {timestep}", jobs, drawn, labels,
                      device, repeats)  # fmt: skip
    classifier = ZeroShotClassifier(model, weights, num_noise, 0).eval().to(device)
    budget = {"searches": 2, "steps": 10 * steps, "abort": steps, "target": "best_wrong"}
    jobs = {
        "compacted": CW(classifier, **budget),
        "whole batch": CW(classifier, compact=False, **budget),
    }
    return rows + _rows(f"C&W, abort {steps}", jobs, drawn, labels, device, repeats)


def _rows(name: str, jobs: dict, clouds: Tensor, labels: Tensor, device, repeats: int):
    calls = {kind: partial(attack, clouds, labels) for kind, attack in jobs.items()}
    times = medians(calls, device, repeats)
    slowest = list(jobs)[1]
    return [
        {
            "attack": name,
            "how": kind,
            "s per cloud": times[kind][0] / len(clouds),
            "min": times[kind][1] / len(clouds),
            "max": times[kind][2] / len(clouds),
            "times as fast": times[slowest][0] / times[kind][0],
        }
        for kind in jobs
    ]
