"""A training step: as it is run, as it could be run, and what it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dual_denoising import keyed_random as noise
from dual_denoising.benchmarks.timing import Machine, flops, medians, peak_memory, unit_clouds
from dual_denoising.data.clouds import Augmentation, CloudDataset, loader
from dual_denoising.errors import InputError
from dual_denoising.memory import kept_for_backward
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training.optimiser import Optimisation
from dual_denoising.training.store import CloudStore

# on a GPU the first is bf16 with a fused optimiser, on a CPU float32 with torch's loop
VARIANTS = ("eager", "compiled", "graphs", "float32", "unfused optimiser", "fused optimiser")


def train_step(
    model: DualDenoising,
    machine: Machine,
    device: torch.device,
    repeats: int,
    batch_size: int,
    points: int,
    samples: int,
    variants: Sequence[str] | None,
    trace: Path | None = None,
) -> dict[str, list[dict]]:
    """Tables 'train', an optimiser step in every variant, 'parts' of the first, and 'costs'.

    variants: of VARIANTS; None for all that make sense on a GPU, and the first on a CPU.
    The floor is that of its matrix products at the machine's peak and of AdamW's traffic. trace:
    where a profile of three steps of every variant is written.
    """
    on_gpu = device.type == "cuda"
    variants = VARIANTS[: 5 if on_gpu else 1] if variants is None else variants
    variants = [variants] if isinstance(variants, str) else list(variants)
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown or not variants:
        raise InputError(
            f"train.variants has '{unknown[0] if unknown else ''}'; choose from "
            f"{', '.join(VARIANTS)}"
        )
    model = model.to(device).train()
    batch = training_batch(model, device, batch_size, points)
    steps = {name: _variant(model, name, batch, on_gpu) for name in variants}
    costs = _costs(model, [tensor[:8] for tensor in batch], on_gpu)
    counted = 1e9 * costs[1]["GFLOP"]
    times = medians(steps, device, repeats)
    kinds = {n: "bfloat16" if on_gpu and n != "float32" else "float32" for n in variants}
    adamw = machine.floor(0, 28 * parameters(model))
    rows = [
        {"step": name}
        | timing.row()
        | {
            "samples/s": batch_size / timing.median,
            "share of peak": counted * batch_size / timing.median / machine.matmul[kinds[name]],
            "share of floor": (machine.floor(counted * batch_size, 0, kinds[name]) + adamw)
            / timing.median,
            f"hours for {samples / 1e6:g} M": samples * timing.median / batch_size / 3600,
            "peak GB": timing.peak / 1e9 if on_gpu else peak_memory(device),
        }
        for name, timing in times.items()
    ]
    if not on_gpu:
        for row in rows:
            row["samples/s per core"] = row["samples/s"] / torch.get_num_threads()
    if trace:
        _profile(steps, on_gpu, trace)
    first = times[variants[0]].median
    return {"train": rows, "parts": _parts(model, batch, device, repeats, first), "costs": costs}


def training_batch(model: DualDenoising, device: torch.device, size: int, points: int) -> tuple:
    """Seeded clouds, targets and keys, as the model's forward takes them."""
    shape = (size, len(model.feature_types), model.feature_width)
    targets = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    return unit_clouds(size, points, device), targets, torch.arange(size, device=device)


def _autocast(on_gpu: bool):
    return torch.autocast("cuda", torch.bfloat16, enabled=on_gpu)


def _variant(model: DualDenoising, variant: str, batch: tuple, on_gpu: bool) -> Callable:
    """A step of a copy of the model, so that every variant starts from the same weights."""
    model = copy.deepcopy(model)
    if variant == "compiled":
        model.compile(dynamic=False)
    if variant == "graphs":
        model.compile(dynamic=False, mode="reduce-overhead")
    fused = variant == "fused optimiser" or (on_gpu and variant != "unfused optimiser")
    return step_of(model, batch, on_gpu and variant != "float32", fused)


def step_of(
    model: nn.Module, batch: tuple, half: bool = False, fused: bool | None = None
) -> Callable:
    """An optimiser step as a call; half: under bf16 autocast."""
    optimizer, _ = Optimisation(lr=1e-4, fused=fused).build(model, 1)

    def step() -> None:
        with _autocast(half):
            loss = model(*batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _parts(model: DualDenoising, batch: tuple, device, repeats: int, whole: float) -> list[dict]:
    """The forward parts and the data, each alone, as shares of the whole step."""
    clouds, targets, keys = batch
    on_gpu, size = device.type == "cuda", len(clouds)
    timestep = noise.timesteps(keys, model.noise_steps)
    sigma = noise.noise_scale(timestep, model.noise_scale, model.noise_steps)
    with _autocast(on_gpu):
        noisy, clean = model.noisy_and_clean_tokens(clouds, sigma, keys)
        layers = [layer.detach() for layer in model.encode_points(noisy, timestep)]

    def forward(call: Callable) -> Callable:
        def run():
            with torch.no_grad(), _autocast(on_gpu):
                call()

        return run

    stored = CloudDataset(_Stored(size), clouds.shape[1], Augmentation(180), resample=True)
    store = CloudStore(stored, device)
    indices = torch.arange(size, device=device)
    jobs = {
        "forward": forward(lambda: model(*batch)),
        "noise, FPS, kNN": forward(lambda: model.noisy_and_clean_tokens(clouds, sigma, keys)),
        "embed tokens, encode": forward(lambda: model.encode_points(noisy, timestep)),
        "decode, point loss": forward(
            lambda: model.loss_point(layers[-1], noisy, clean, timestep, sigma)
        ),
        "feature branch, its loss": forward(lambda: model.loss_feature(layers, targets, keys)),
        "data by the loader, one process": lambda: next(loader(stored, [range(size)])),
        "data on the device": lambda: store.batch(indices, 0),
    }
    times = medians(jobs, device, repeats)
    return [
        {"part": name} | timing.row() | {"share of step": timing.median / whole}
        for name, timing in times.items()
    ]


def _costs(model: DualDenoising, batch: list[torch.Tensor], on_gpu: bool) -> list[dict]:
    """Of one sample: 'forward', 'step', and the forward pass of every part."""
    clouds, targets, keys = batch
    dae, size = model.point_dae, len(clouds)
    timestep = noise.timesteps(keys, model.noise_steps)
    sigma = noise.noise_scale(timestep, model.noise_scale, model.noise_steps)
    with torch.no_grad():
        forward = flops(lambda: model(*batch))
        noisy, clean = model.noisy_and_clean_tokens(clouds, sigma, keys)
        layers = model.encode_points(noisy, timestep)
        embed = flops(lambda: dae.tokenizer(noisy.points))
        encode = flops(lambda: model.encode_points(noisy, timestep)) - embed
        decode = flops(lambda: model.loss_point(layers[-1], noisy, clean, timestep, sigma))
        lower = flops(lambda: model.loss_feature(layers, targets, keys))
    with _autocast(on_gpu):
        kept = kept_for_backward(lambda: model(*batch), model)
    step = {
        "of one sample": "step",
        "GFLOP": flops(_variant(model, "eager", batch, on_gpu)) / size / 1e9,
        "kept for backward, MB": kept / size / 1e6,
    }
    parts = [
        ("forward", forward, model),
        ("tokenizer", embed, dae.tokenizer),
        ("encoder", encode, dae.encoder),
        ("decoder", decode, dae.decoder),
        ("feature denoiser", lower, model.feature_denoiser),
    ]
    whole, *others = (
        {"of one sample": name, "GFLOP": count / size / 1e9, "parameters": parameters(part)}
        for name, count, part in parts
    )
    return [whole, step, *others]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _profile(steps: dict[str, Callable], on_gpu: bool, path: Path) -> None:
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ""
    for name, step in steps.items():
        with profile(activities=kinds) as measured:
            for _ in range(3):
                step()
        table = measured.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60)
        text += f"three {name} steps\n{table}\n"
    path.write_text(text)


class _Stored:
    """Clouds of ShapeNet55's size, in memory."""

    name, split, up, class_names = "stored", "train", "y", ("thing",)

    def __init__(self, count: int):
        self.clouds = np.random.default_rng(0).normal(size=(count, 8192, 3)).astype(np.float32)
        self.labels, self.ids = np.zeros(count, np.int64), [str(i) for i in range(count)]

    def read(self, index: int) -> np.ndarray:
        return self.clouds[index]
