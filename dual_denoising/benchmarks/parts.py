"""Which tables a part of the benchmark is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from dual_denoising.benchmarks.attacks import attacks
from dual_denoising.benchmarks.imports import imports
from dual_denoising.benchmarks.inference import inference, memory
from dual_denoising.benchmarks.point_ops import point_ops
from dual_denoising.benchmarks.scaling import efficiency, volume
from dual_denoising.benchmarks.shapes import shapes
from dual_denoising.benchmarks.timing import measure, peak_memory
from dual_denoising.benchmarks.training import train_step
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training import ranks as distributed
from dual_denoising.training.optimiser import positive


def measured(
    names: Sequence[str],
    settings: Mapping,
    make_model: Callable[[], DualDenoising],
    device: torch.device,
    folder: Path,
    make_teacher: Callable[..., object],
) -> dict[str, list[dict]]:
    """Tables of the parts called ``names``, and of the machine where a floor is asked for."""
    repeats, tables = settings["repeats"], {}
    positive("repeats", repeats)
    machine = measure(device) if {"ops", "train", "infer", "attack"} & set(names) else None
    if machine:
        tables["machine"] = machine.rows()
    for name in names:
        options = dict(settings.get(name) or {})
        if name == "ops":
            tables[name] = point_ops(machine, device, repeats, **options)
        elif name == "train":
            trace = folder / "profile.txt" if options.pop("profile") else None
            tables |= train_step(make_model(), machine, device, repeats, **options, trace=trace)
        elif name == "infer":
            tables[name] = inference(make_model(), machine, device, repeats, **options)
        elif name == "attack":
            model = make_model().requires_grad_(False)
            tables[name] = attacks(model, machine, device, repeats, **options)
        elif name == "scaling":
            ranks, size = options.pop("ranks"), options["batch_size"]
            tables[name] = volume(make_model(), ranks, size)
            if distributed.world_size() > 1:
                tables["efficiency"] = efficiency(make_model(), device, repeats, **options)
        elif name == "imports":
            tables[name] = imports(Path("scripts"), repeats)
        elif name == "shapes":
            tables[name] = shapes(device, **options)
        elif name == "memory":  # minutes to hours
            tables[name] = memory(make_model(), device, **options)
        elif name == "teacher":
            from dual_denoising.benchmarks.teacher import teacher

            clip = make_teacher("clip", device=str(device))
            renderer = make_teacher("renderer")
            tables[name] = teacher(clip, renderer, device, repeats, options["shapes"])
        elif name == "baselines":
            from dual_denoising.benchmarks.baselines import baselines

            tables[name] = baselines(make_model(), device, repeats, **options)
    if machine:
        peak = {"measured": "peak memory of this run", "value": peak_memory(device), "unit": "GB"}
        tables["machine"].append(peak)
    return tables
