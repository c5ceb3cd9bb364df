"""Timings: point ops against rivals, a training step by parts, inference, shapes; memory."""

from __future__ import annotations

import importlib.util
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from timm.optim import create_optimizer_v2

from dual_denoising import noise, ops
from dual_denoising.data.clouds import Augmentation, CloudDataset, loader, normalise
from dual_denoising.data.primitives import SPLITS, Primitives
from dual_denoising.data.recipes import known_classes
from dual_denoising.evaluation import Evaluation
from dual_denoising.model import DualDenoising
from dual_denoising.zeroshot import ZeroShotClassifier


def medians(
    jobs: Mapping[str, Callable], device: torch.device, repeats: int
) -> dict[str, tuple[float, float, float]]:
    """Median, minimum and maximum seconds of each job, all jobs in turn in every round."""
    times = {name: [] for name in jobs}
    for round_number in range(repeats + 2):
        for name, job in jobs.items():
            _wait(device)
            started = time.perf_counter()
            job()
            _wait(device)
            if round_number >= 2:  # two rounds of warm-up
                times[name].append(time.perf_counter() - started)
    return {name: (float(np.median(t)), min(t), max(t)) for name, t in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def naive_fps(points: torch.Tensor, count: int) -> torch.Tensor:
    """The loop of the lineage's PyTorch code: (B, N, 3) -> indices (B, count)."""
    rows = torch.arange(len(points), device=points.device)
    nearest = torch.full(points.shape[:2], torch.inf, device=points.device)
    farthest = torch.zeros(len(points), dtype=torch.long, device=points.device)
    chosen = []
    for _ in range(count):
        chosen.append(farthest)
        gaps = ((points - points[rows, farthest][:, None]) ** 2).sum(-1)
        nearest = torch.minimum(nearest, gaps)
        farthest = nearest.argmax(1)
    return torch.stack(chosen, 1)


def naive_chamfer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    gaps = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    return gaps.amin(2).mean() + gaps.amin(1).mean()


def _tree_neighbours(queries: np.ndarray, points: np.ndarray, count: int) -> None:
    from scipy.spatial import cKDTree

    for query, cloud in zip(queries, points, strict=True):
        cKDTree(cloud).query(query, count)


def point_ops(
    device: torch.device, repeats: int, clouds: int, points: int, groups: int, group_size: int
) -> list[dict]:
    """FPS, kNN and Chamfer of tokenising and scoring a batch; one row per operation and rival."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(clouds, points, 3, generator=generator).to(device)
    centers = cloud[:, :groups].contiguous()
    size = (clouds * groups, group_size, 3)
    clean = torch.randn(size, generator=generator).to(device)
    rebuilt = torch.randn(size, generator=generator).to(device).requires_grad_()

    def step(loss: Callable) -> Callable:
        return lambda: torch.autograd.grad(loss(rebuilt, clean), rebuilt)

    calls = {
        "FPS": {"naive torch": lambda: naive_fps(cloud, groups)},
        "kNN": {"naive torch": lambda: torch.cdist(centers, cloud).topk(group_size, largest=False)},
        "Chamfer + backward": {"naive torch": step(naive_chamfer)},
    }
    if device.type == "cpu" and importlib.util.find_spec("scipy"):
        arrays = centers.numpy(), cloud.numpy()
        calls["kNN"]["scipy cKDTree"] = lambda: _tree_neighbours(*arrays, group_size)
    for backend in ops.BACKENDS if importlib.util.find_spec("pytorch3d") else ("torch",):
        name = "ours" if backend == "torch" else backend

        def served(call, backend=backend):
            def run():
                with ops.use_backend(backend):
                    return call()

            return run

        calls["FPS"][name] = served(lambda: ops.sample_farthest_points(cloud, K=groups))
        calls["kNN"][name] = served(lambda: ops.knn_points(centers, cloud, K=group_size))
        calls["Chamfer + backward"][name] = served(step(lambda x, y: ops.chamfer_distance(x, y)[0]))
    rows = []
    for operation, rivals in calls.items():
        times = medians(rivals, device, repeats)
        for name, (median, low, high) in times.items():
            rows.append({
                "operation": operation, "by": name, "ms": 1e3 * median, "min": 1e3 * low,
                "max": 1e3 * high, "ours / it": times["ours"][0] / median,
            })  # fmt: skip
    return rows


def shapes(device: torch.device, repeats: int, per_class: int) -> list[dict]:
    """Making procedural clouds, on one core whatever the device; one row per split."""
    count = per_class * len(known_classes())
    jobs = {split: partial(Primitives, split, per_class) for split in SPLITS}
    return [
        {
            "split": split, "clouds": count, "s": median, "min": low, "max": high,
            "s per 10,000": 1e4 * median / count,
        }
        for split, (median, low, high) in medians(jobs, device, repeats).items()
    ]  # fmt: skip


def train_step(
    model: DualDenoising,
    device: torch.device,
    repeats: int,
    batch_size: int,
    points: int,
    samples: int,
) -> list[dict]:
    """One optimiser step, bf16 autocast on GPUs, and the forward parts it is made of."""
    parts = _step_parts(model, device, batch_size, points)
    dataset = CloudDataset(_Stored(batch_size), points, Augmentation(180), resample=True)
    parts["data: draw, augment, batch"] = lambda: next(loader(dataset, [range(batch_size)]))
    times = medians(parts, device, repeats)
    total = times["whole step"][0]
    rows = [
        {
            "part": name, "ms": 1e3 * median, "min": 1e3 * low, "max": 1e3 * high,
            "share of step": median / total,
        }
        for name, (median, low, high) in times.items()
    ]  # fmt: skip
    backward = total - times["forward"][0]
    rows.append({
        "part": "backward and optimiser (the difference)", "ms": 1e3 * backward,
        "min": None, "max": None, "share of step": backward / total,
    })  # fmt: skip
    rows[0] |= {
        "samples/s": batch_size / total,
        "hours for all samples": samples * total / batch_size / 3600,
        "peak memory GB": _peak_memory(device),
        "parameters": {
            name: sum(p.numel() for p in part.parameters()) for name, part in _parts(model).items()
        },
    }
    return rows


def _step_parts(
    model: DualDenoising, device: torch.device, batch_size: int, points: int
) -> dict[str, Callable]:
    model.to(device).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05)
    clouds = torch.randn(batch_size, points, 3).to(device)
    clouds = clouds / clouds.norm(dim=-1).amax(1)[:, None, None]
    shape = (batch_size, len(model.feature_types), model.feature_width)
    targets, keys = torch.randn(shape).to(device), torch.arange(batch_size, device=device)
    timestep = noise.timesteps(keys, model.noise_steps)
    sigma = noise.noise_scale(timestep, model.noise_scale, model.noise_steps)

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    with autocast():
        noisy, clean = model.noisy_and_clean_tokens(clouds, sigma, keys)
        layers = [layer.detach() for layer in model.encode_points(noisy, timestep)]

    def forward(call: Callable) -> Callable:
        def run():
            with torch.no_grad(), autocast():
                call()

        return run

    def whole():
        with autocast():
            loss = model(clouds, targets, keys)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {
        "whole step": whole,
        "forward": forward(lambda: model(clouds, targets, keys)),
        "noise, FPS, kNN": forward(lambda: model.noisy_and_clean_tokens(clouds, sigma, keys)),
        "embed tokens, encode": forward(lambda: model.encode_points(noisy, timestep)),
        "decode, point loss": forward(
            lambda: model.loss_point(layers[-1], noisy, clean, timestep, sigma)
        ),
        "feature branch, its loss": forward(lambda: model.loss_feature(layers, targets, keys)),
    }


def inference(
    model: DualDenoising,
    device: torch.device,
    repeats: int,
    clouds: int,
    points: int,
    num_noise: Sequence[int],
    timestep: Sequence[int],
) -> list[dict]:
    """Milliseconds per cloud of every (S, t), side by side, and their ratio to the first S."""
    batch = torch.from_numpy(_Endless(clouds, points).batch(range(clouds))).to(device)
    weights = torch.nn.functional.normalize(torch.randn(40, model.feature_width), dim=-1)
    jobs = {
        (paths, step): ZeroShotClassifier(model, weights, paths, step).eval().to(device)
        for step in timestep
        for paths in num_noise
    }
    with torch.inference_mode():
        times = medians({k: partial(job, batch) for k, job in jobs.items()}, device, repeats)
    return [
        {
            "S": paths,
            "t": step,
            "ms per cloud": 1000 * times[paths, step][0] / clouds,
            "min": 1000 * times[paths, step][1] / clouds,
            "max": 1000 * times[paths, step][2] / clouds,
            f"ratio to S = {num_noise[0]}": times[paths, step][0] / times[num_noise[0], step][0],
        }
        for paths, step in jobs
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
    source = _Endless(clouds, points, lambda: _peak_memory(device))
    weights = torch.nn.functional.normalize(torch.randn(40, model.feature_width), dim=-1)
    classifier = ZeroShotClassifier(model, weights).eval().to(device)
    run = Evaluation([num_noise], [timestep], [0], batch_size)
    run.predict(classifier, CloudDataset(source, points), device)
    rows = [*source.measured, (clouds, _peak_memory(device))]
    return [{"clouds": seen, "peak GB": peak} for seen, peak in rows]


class _Endless:
    """Synthetic clouds made when read; ``measure`` is called ten times on the way."""

    name, split, up, class_names = "endless", "test", "y", [str(i) for i in range(40)]

    def __init__(self, count: int, points: int, measure: Callable[[], float] | None = None):
        self.labels, self.ids = np.zeros(count, np.int64), range(count)
        self.points, self.measure, self.measured = points, measure, []

    def read(self, index: int) -> np.ndarray:
        if self.measure and index % max(len(self.ids) // 10, 1) == 0:
            self.measured.append((index, self.measure()))
        return np.random.default_rng(index).normal(size=(self.points, 3)).astype(np.float32)

    def batch(self, indices: range) -> np.ndarray:
        return np.stack([normalise(self.read(i)) for i in indices]).astype(np.float32)


class _Stored:
    """Clouds of ShapeNet55's size, in memory."""

    name, split, up, class_names = "stored", "train", "y", ("thing",)

    def __init__(self, count: int):
        self.clouds = np.random.default_rng(0).normal(size=(count, 8192, 3)).astype(np.float32)
        self.labels, self.ids = np.zeros(count, np.int64), [str(i) for i in range(count)]

    def read(self, index: int) -> np.ndarray:
        return self.clouds[index]


def _parts(model: DualDenoising) -> dict[str, torch.nn.Module]:
    dae = model.point_dae
    return {
        "tokenizer": dae.tokenizer, "encoder": dae.encoder, "decoder": dae.decoder,
        "feature denoiser": model.feature_denoiser, "whole": model,
    }  # fmt: skip


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux
