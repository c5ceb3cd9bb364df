"""Point operations with pytorch3d's names, arguments and semantics, and no compiled extension.

Half-precision input is raised to float32 and all arithmetic is elementwise, so autocast cannot
touch it: in bfloat16 four tokens in ten get a wrong neighbour. Indices carry no gradient;
distances and gathered points do. Where pytorch3d can be imported it does the work; ``use_backend``
overrides that.
"""

from __future__ import annotations

import contextlib
import importlib.util
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BACKENDS = ("torch", "pytorch3d")
_backend = "pytorch3d" if importlib.util.find_spec("pytorch3d") else "torch"


class KNN(NamedTuple):
    """Squared distances (B, P, K), indices (B, P, K) and, if asked for, neighbours (B, P, K, D)."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


@contextlib.contextmanager
def use_backend(name: str):
    """Serves the point operations from ``name``, one of BACKENDS, inside the context."""
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}: choose one of {', '.join(BACKENDS)}")
    previous, _backend = _backend, name
    try:
        yield
    finally:
        _backend = previous


def _exact(points: Tensor) -> Tensor:
    return points.float() if points.dtype in (torch.float16, torch.bfloat16) else points


def _valid(lengths: Tensor | None, size: int, like: Tensor) -> Tensor:
    """(B, size) mask of the points that exist, from pytorch3d's ``lengths`` (B,)."""
    if lengths is None:
        return torch.ones(like.shape[0], size, dtype=torch.bool, device=like.device)
    return torch.arange(size, device=like.device) < lengths[:, None]


def knn_gather(
    x: Float[Tensor, "b m d"], idx: Int[Tensor, "b p k"], lengths: Int[Tensor, " b"] | None = None
) -> Float[Tensor, "b p k d"]:
    """Points of ``x`` at ``idx``; neighbours that do not exist (K > lengths or M) are 0.

    x: (B, M, D), idx: (B, P, K) -> (B, P, K, D), differentiable in x.
    """
    gathered = x[torch.arange(x.shape[0], device=x.device)[:, None, None], idx]
    if lengths is None:
        if idx.shape[2] <= x.shape[1]:
            return gathered
        lengths = torch.full((len(x),), x.shape[1], device=x.device)
    exists = torch.arange(idx.shape[2], device=x.device) < lengths[:, None]
    return gathered * exists[:, None, :, None]


def _distances(p1: Tensor, p2: Tensor, norm: int) -> Tensor:
    """(B, P1, P2) squared Euclidean (norm 2) or Manhattan (norm 1) distances, coordinate-wise.

    The expanded form |a|² − 2ab + |b|² is faster and loses the neighbours of close points.
    """
    total = None
    for axis in range(p1.shape[-1]):
        difference = p1[:, :, None, axis] - p2[:, None, :, axis]
        difference = difference.square_() if norm == 2 else difference.abs_()
        total = difference if total is None else total.add_(difference)
    return total


def _check_norm(norm: int) -> None:
    if norm not in (1, 2):
        raise ValueError(f"norm is {norm}: only 1 and 2 are defined")


def _lengths_of(difference: Tensor, norm: int) -> Tensor:
    return (difference.square() if norm == 2 else difference.abs()).sum(-1)


def knn_points(
    p1: Float[Tensor, "b p d"],
    p2: Float[Tensor, "b m d"],
    lengths1: Int[Tensor, " b"] | None = None,
    lengths2: Int[Tensor, " b"] | None = None,
    norm: int = 2,
    K: int = 1,
    version: int = -1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> KNN:
    """The K nearest neighbours in ``p2`` of every point of ``p1``.

    p1: (B, P, D), p2: (B, M, D), lengths: (B,) how many points of each cloud exist -> KNN.
    ``dists`` are squared for norm 2, differentiable in both clouds; where fewer than K neighbours
    exist, dists and idx are 0, as in pytorch3d. ``version`` is pytorch3d's kernel choice and has
    no effect on the torch backend.
    """
    p1, p2 = _exact(p1), _exact(p2)
    _check_norm(norm)
    if _backend == "pytorch3d":
        from pytorch3d import ops

        result = ops.knn_points(
            p1, p2, lengths1, lengths2, norm, K, version, return_nn, return_sorted
        )
        return KNN(*result)
    found = min(K, p2.shape[1])
    with torch.no_grad():
        exists = _valid(lengths2, p2.shape[1], p2)
        distances = _distances(p1, p2, norm)
        if lengths2 is not None:
            distances.masked_fill_(~exists[:, None], torch.inf)
        idx = distances.topk(found, largest=False, sorted=return_sorted).indices
        idx = torch.nn.functional.pad(idx, (0, K - found))
        exists = exists.sum(1)[:, None, None] > torch.arange(K, device=p1.device)
        exists = exists & _valid(lengths1, p1.shape[1], p1)[:, :, None]
        idx = idx * exists
    neighbours = _at(p2, idx.flatten(1)).view(*idx.shape, -1)
    dists = _lengths_of(p1[:, :, None] - neighbours, norm) * exists
    return KNN(dists, idx, knn_gather(p2, idx, lengths2) if return_nn else None)


def sample_farthest_points(
    points: Float[Tensor, "b n d"],
    lengths: Int[Tensor, " b"] | None = None,
    K: int | list[int] | Int[Tensor, " b"] = 50,
    random_start_point: bool = False,
) -> tuple[Float[Tensor, "b k d"], Int[Tensor, "b k"]]:
    """Iterative farthest point sampling, from index 0 unless ``random_start_point``.

    points: (B, N, D), lengths: (B,) how many points of each cloud exist, K: one number or one
    per cloud -> selected points (B, max K, D), differentiable in ``points``, and indices
    (B, max K). What a cloud does not have or was not asked for is 0 with index -1.
    """
    points = _exact(points)
    if _backend == "pytorch3d":
        from pytorch3d import ops

        return ops.sample_farthest_points(points, lengths, K, random_start_point)
    batch, size, _ = points.shape
    with torch.no_grad():
        exists = _valid(lengths, size, points)
        count = exists.sum(1)
        start = torch.zeros(batch, dtype=torch.long, device=points.device)
        if random_start_point:
            start = (torch.rand(batch, device=points.device) * count).long()
        wanted = torch.as_tensor(K, device=points.device).expand(batch)
        most = int(wanted.max())
        idx = _farthest_indices(points, exists, start, min(most, size))
        idx = torch.nn.functional.pad(idx, (0, most - min(most, size)), value=-1)
        absent = torch.arange(most, device=points.device) >= torch.minimum(count, wanted)[:, None]
        idx = idx.masked_fill(absent, -1)
    chosen = _at(points, idx.clamp(min=0))
    return chosen * (idx >= 0)[..., None], idx


def _farthest_indices(points: Tensor, exists: Tensor, start: Tensor, count: int) -> Tensor:
    planes = points.detach().transpose(1, 2).contiguous()  # (B, D, N): rows a CPU vectorises
    nearest = torch.where(exists, torch.inf, -1.0).to(points.dtype)
    rows, chosen = torch.arange(len(points), device=points.device), [start]
    for _ in range(count - 1):
        offset = planes - planes[rows, :, chosen[-1]][:, :, None]
        nearest = torch.minimum(nearest, offset.square_().sum(1))
        chosen.append(nearest.argmax(1))
    return torch.stack(chosen, dim=1)


def chamfer_distance(
    x: Float[Tensor, "b n d"],
    y: Float[Tensor, "b m d"],
    x_lengths: Int[Tensor, " b"] | None = None,
    y_lengths: Int[Tensor, " b"] | None = None,
    x_normals: Float[Tensor, "b n d"] | None = None,
    y_normals: Float[Tensor, "b m d"] | None = None,
    weights: Float[Tensor, " b"] | None = None,
    batch_reduction: str | None = "mean",
    point_reduction: str | None = "mean",
    norm: int = 2,
    single_directional: bool = False,
    abs_cosine: bool = True,
) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | tuple[Tensor, Tensor] | None]:
    """Chamfer distance: squared distance to the nearest point of the other cloud, both ways.

    x: (B, N, D), y: (B, M, D), lengths and weights: (B,) -> (distance, normal distance or None).
    point_reduction 'mean' | 'sum' | 'max' | None (per point; a pair of tensors unless
    single_directional) and batch_reduction 'mean' | 'sum' | None are applied in that order.
    """
    x, y = _exact(x), _exact(y)
    _check_norm(norm)
    if batch_reduction not in ("mean", "sum", None):
        raise ValueError(f"batch_reduction is {batch_reduction!r}: choose mean, sum or None")
    if point_reduction not in ("mean", "sum", "max", None):
        raise ValueError(f"point_reduction is {point_reduction!r}: choose mean, sum, max or None")
    if _backend == "pytorch3d":
        from pytorch3d.loss import chamfer_distance as chamfer

        return chamfer(
            x, y, x_lengths, y_lengths, x_normals, y_normals, weights, batch_reduction,
            point_reduction, norm, single_directional, abs_cosine,
        )  # fmt: skip
    x_valid, y_valid = _valid(x_lengths, x.shape[1], x), _valid(y_lengths, y.shape[1], y)
    with torch.no_grad():
        distances = _distances(x, y, norm)  # serves both directions
        if y_lengths is not None:
            distances.masked_fill_(~y_valid[:, None], torch.inf)
        if x_lengths is not None:
            distances.masked_fill_(~x_valid[:, :, None], torch.inf)
        x_to_y, y_to_x = distances.argmin(2), distances.argmin(1)
    ways = [(x, y, x_to_y, x_valid, x_normals, y_normals)]
    if not single_directional:
        ways.append((y, x, y_to_x, y_valid, y_normals, x_normals))
    valid = [exists for _, _, _, exists, _, _ in ways]
    gaps = [_lengths_of(a - _at(b, idx), norm) for a, b, idx, *_ in ways]
    distance = _reduced(gaps, valid, weights, batch_reduction, point_reduction)
    if x_normals is None or y_normals is None:
        return distance, None
    if point_reduction == "max":  # pytorch3d defines no normal distance for it
        return distance, None
    cosines = [torch.cosine_similarity(n, _at(m, idx), dim=2) for _, _, idx, _, n, m in ways]
    cosines = [1 - (c.abs() if abs_cosine else c) for c in cosines]
    return distance, _reduced(cosines, valid, weights, batch_reduction, point_reduction)


def _at(points: Tensor, idx: Tensor) -> Tensor:
    return points[torch.arange(len(points), device=points.device)[:, None], idx]


def _reduced(ways, valid, weights, batch_reduction, point_reduction):
    """pytorch3d's reductions: over points per direction, directions together, then over clouds."""
    ways = [w * v for w, v in zip(ways, valid, strict=True)]
    if weights is not None:
        ways = [w * weights[:, None] for w in ways]
    if point_reduction is None:
        return ways[0] if len(ways) == 1 else tuple(ways)
    if point_reduction == "max":
        per_cloud = torch.stack([w.max(1).values for w in ways]).amax(0)
    else:
        counts = [v.sum(1).clamp(min=1) if point_reduction == "mean" else 1 for v in valid]
        per_cloud = sum(w.sum(1) / n for w, n in zip(ways, counts, strict=True))
    if batch_reduction == "sum":
        return per_cloud.sum()
    if batch_reduction == "mean":
        total = len(per_cloud) if weights is None else weights.sum().clamp(min=1e-12)
        return per_cloud.sum() / total  # all weights 0: 0
    return per_cloud
