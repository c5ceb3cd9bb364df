"""FPS, kNN and Chamfer as a batch needs them, beside what a user could take instead."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dual_denoising import ops
from dual_denoising.benchmarks.timing import Machine, medians, unit_clouds


def naive_fps(points: Tensor, count: int) -> Tensor:
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


def naive_knn(queries: Tensor, points: Tensor, count: int) -> Tensor:
    """By the expanded form |a|² − 2ab + |b|², which loses close neighbours."""
    return torch.cdist(queries, points).topk(count, largest=False).indices


def naive_chamfer(x: Tensor, y: Tensor) -> Tensor:
    gaps = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    return gaps.amin(2).mean() + gaps.amin(1).mean()


def _tree_neighbours(queries: np.ndarray, points: np.ndarray, count: int) -> None:
    from scipy.spatial import cKDTree

    for query, cloud in zip(queries, points, strict=True):
        cKDTree(cloud).query(query, count)


def point_ops(
    machine: Machine,
    device: torch.device,
    repeats: int,
    clouds: int,
    points: int,
    groups: int,
    group_size: int,
    compiled: bool | None,
) -> list[dict]:
    """One row per operation and who serves it; compiled: torch.compile of the naive forms too,
    None on GPUs alone. Chamfer is of clouds·groups pairs of sets, with its gradient."""
    compiled = device.type == "cuda" if compiled is None else compiled
    calls = _calls(device, clouds, points, groups, group_size, compiled)
    floors = _floors(machine, clouds, points, groups, group_size)
    rows = []
    for operation, rivals in calls.items():
        times = medians(rivals, device, repeats)
        for name, timing in times.items():
            rows.append(
                {"operation": operation, "by": name}
                | timing.row()
                | {
                    "ours / it": times["ours"].median / timing.median,
                    "share of floor": floors[operation] / timing.median,
                    "peak MB": timing.peak / 1e6,
                }
            )
    return rows


def _calls(
    device: torch.device, clouds: int, points: int, groups: int, group_size: int, compiled: bool
) -> dict[str, dict[str, Callable]]:
    """Operation -> who serves it -> the call."""
    cloud = unit_clouds(clouds, points, device)
    centers = ops.sample_farthest_points(cloud, K=groups)[0]
    generator = torch.Generator().manual_seed(1)
    size = (clouds * groups, group_size, 3)
    clean = torch.randn(size, generator=generator).to(device)
    rebuilt = torch.randn(size, generator=generator).to(device).requires_grad_()

    def step(loss: Callable) -> Callable:
        return lambda: torch.autograd.grad(loss(rebuilt, clean), rebuilt)

    make = torch.compile if compiled else lambda function: function
    fps, knn, chamfer = make(naive_fps), make(naive_knn), make(naive_chamfer)
    calls = {
        "FPS": {"naive torch": lambda: naive_fps(cloud, groups)},
        "kNN": {"naive torch (expanded form)": lambda: naive_knn(centers, cloud, group_size)},
        "Chamfer + backward": {"naive torch": step(naive_chamfer)},
    }
    if compiled:
        calls["FPS"]["torch.compile of it"] = lambda: fps(cloud, groups)
        calls["kNN"]["torch.compile of it"] = lambda: knn(centers, cloud, group_size)
        calls["Chamfer + backward"]["torch.compile of it"] = step(chamfer)
    if device.type == "cpu" and importlib.util.find_spec("scipy"):
        arrays = centers.numpy(), cloud.numpy()
        calls["kNN"]["scipy's cKDTree"] = lambda: _tree_neighbours(*arrays, group_size)
    for backend, name in _backends(device):

        def served(call, backend=backend):
            def run():
                with ops.use_backend(backend):
                    return call()

            return run

        calls["FPS"][name] = served(lambda: ops.sample_farthest_points(cloud, K=groups))
        calls["kNN"][name] = served(lambda: ops.knn_points(centers, cloud, K=group_size))
        calls["Chamfer + backward"][name] = served(step(lambda x, y: ops.chamfer_distance(x, y)[0]))
    calls["kNN"]["ours, indices alone, as tokens take them"] = lambda: ops.knn_indices(
        centers, cloud, group_size, return_sorted=False
    )
    return calls


def _backends(device: torch.device) -> list[tuple[str, str]]:
    backends = [("auto", "ours")]
    if device.type == "cuda":
        backends.append(("torch", "ours, without Triton"))
    if importlib.util.find_spec("pytorch3d"):
        backends.append(("pytorch3d", "pytorch3d"))
    return backends


def _floors(machine: Machine, clouds: int, points: int, groups: int, size: int) -> dict[str, float]:
    """Seconds: every distance once (8 operations, FPS 10), every number read and written once."""
    tokens, numbers = clouds * groups, 4 * 3 * clouds * points
    fps = 10 * tokens * points, numbers + 8 * tokens
    knn = 8 * tokens * points, numbers + 4 * 3 * tokens + 8 * tokens * size
    chamfer = tokens * (8 * size**2 + 2 * 9 * size), 4 * 3 * tokens * size * 3
    floors = {"FPS": fps, "kNN": knn, "Chamfer + backward": chamfer}
    return {name: machine.floor(*costs) for name, costs in floors.items()}
