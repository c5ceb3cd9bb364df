"""Point operations with pytorch3d's names, arguments and semantics, and no compiled extension.

Half-precision input is raised to float32 and all arithmetic is elementwise, so autocast cannot
touch it: in bfloat16 four tokens in ten get a wrong neighbour. Indices carry no gradient;
distances and gathered points do. Triton kernels serve GPUs, torch CPUs; both choose the same points
(of equally near neighbours any). ``use_backend``, or the environment's DUAL_DENOISING_OPS for a
whole process, asks for another. To torch.compile each search is one opaque call.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dual_denoising.errors import InputError
from dual_denoising.ops import operators as searches
from dual_denoising.ops.torch_backend import counts, gather, present

BACKENDS = ("auto", "torch", "triton", "pytorch3d")
LARGEST_CLOUD = 16384  # points that the registers of one of Triton's programs hold
LARGEST_SET = 128  # points of a small set: a program holds 128² distances


class KNN(NamedTuple):
    """Squared distances (B, P, K), indices (B, P, K) and, if asked for, neighbours (B, P, K, D)."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"backend is {name!r}: choose one of {', '.join(BACKENDS)}")
    needed = {"auto": "torch"}.get(name, name)
    if not importlib.util.find_spec(needed):
        raise InputError(f"backend is {name!r}, which is not installed; install it, or choose auto")
    return name


_backend = _checked(os.environ.get("DUAL_DENOISING_OPS", "auto"))
_TRITON = importlib.util.find_spec("triton") is not None  # it comes with torch on Linux


@contextlib.contextmanager
def use_backend(name: str):
    """Serves the point operations from ``name``, one of BACKENDS, inside the context."""
    global _backend
    previous, _backend = _backend, _checked(name)
    try:
        yield
    finally:
        _backend = previous


def _triton(most: int, *clouds: Tensor) -> bool:
    """Whether Triton's kernels serve: float32, in space, of at most ``most`` points each."""
    asked = _backend == "triton" or (_backend == "auto" and clouds[0].is_cuda and _TRITON)
    return asked and all(
        cloud.dtype == torch.float32 and cloud.shape[2] == 3 and 0 < cloud.shape[1] <= most
        for cloud in clouds
    )


def _exact(points: Tensor) -> Tensor:
    return points.float() if points.dtype in (torch.float16, torch.bfloat16) else points


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


def _check_pair(p1: Tensor, p2: Tensor) -> None:
    if p1.shape[0] != p2.shape[0] or p1.shape[2] != p2.shape[2]:
        raise ValueError(
            f"clouds have shapes {tuple(p1.shape)} and {tuple(p2.shape)}: they must agree in "
            "number and in dimensions"
        )


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
    _check_pair(p1, p2)
    _check_norm(norm)
    if _backend == "pytorch3d":
        from pytorch3d import ops

        result = ops.knn_points(
            p1, p2, lengths1, lengths2, norm, K, version, return_nn, return_sorted
        )
        return KNN(*result)
    idx = knn_indices(p1, p2, K, lengths1, lengths2, norm, return_sorted)
    exists = present(lengths1, p1.shape[1], p1)[:, :, None] & present(lengths2, K, p2)[:, None]
    exists &= torch.arange(K, device=p1.device) < p2.shape[1]
    neighbours = gather(p2, idx.flatten(1)).view(*idx.shape, p2.shape[2])
    dists = _lengths_of(p1[:, :, None] - neighbours, norm) * exists
    return KNN(dists, idx, knn_gather(p2, idx, lengths2) if return_nn else None)


def knn_indices(
    p1: Float[Tensor, "b p d"],
    p2: Float[Tensor, "b m d"],
    K: int,
    lengths1: Int[Tensor, " b"] | None = None,
    lengths2: Int[Tensor, " b"] | None = None,
    norm: int = 2,
    return_sorted: bool = True,
) -> Int[Tensor, "b p k"]:
    """``idx`` of ``knn_points`` alone: (B, P, D), (B, M, D) -> (B, P, K), without a gradient."""
    if _backend == "pytorch3d":
        return knn_points(p1, p2, lengths1, lengths2, norm, K, return_sorted=return_sorted).idx
    p1, p2 = _exact(p1.detach()), _exact(p2.detach())
    _check_pair(p1, p2)
    found = min(K, p2.shape[1])
    served = _triton(LARGEST_CLOUD, p2) and p1.dtype == p2.dtype
    idx = searches.nearest_indices(p1, p2, lengths2, found, norm, return_sorted, served)
    idx = torch.nn.functional.pad(idx, (0, K - found))
    if lengths1 is not None:
        idx = idx * present(lengths1, p1.shape[1], p1)[:, :, None]
    return idx if lengths2 is None else idx * present(lengths2, K, p2)[:, None]


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
    starts = None
    if random_start_point:
        starts = (torch.rand(batch, device=points.device) * counts(lengths, size, points)).long()
    one = isinstance(K, int)
    most = K if one else int(torch.as_tensor(K).max())  # a tensor on a GPU is waited for
    found = min(most, size)
    served = _triton(LARGEST_CLOUD, points)
    idx = searches.farthest_indices(points.detach(), lengths, starts, found, served)
    if one and found == K and lengths is None:
        return gather(points, idx), idx
    idx = torch.nn.functional.pad(idx, (0, most - found), value=-1)
    wanted = torch.as_tensor(K, device=points.device).expand(batch)
    count = torch.minimum(counts(lengths, size, points), wanted)
    idx = idx.masked_fill(torch.arange(most, device=points.device) >= count[:, None], -1)
    return gather(points, idx.clamp(min=0)) * (idx >= 0)[..., None], idx


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
    _check_pair(x, y)
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
    x_valid, y_valid = present(x_lengths, x.shape[1], x), present(y_lengths, y.shape[1], y)
    served = _triton(LARGEST_SET, x, y)
    x_gap, y_gap, x_to_y, y_to_x = searches.closest(x, y, x_lengths, y_lengths, norm, served)
    # of an empty cloud nothing is near
    ways = [(x_gap, x_valid & y_valid[:, :1]), (y_gap, y_valid & x_valid[:, :1])]
    ways, valid = ways[: 2 - single_directional], (x_valid, y_valid)[: 2 - single_directional]
    gaps = [torch.where(exists, gap, 0) for gap, exists in ways]
    distance = _reduced(gaps, valid, weights, batch_reduction, point_reduction)
    if x_normals is None or y_normals is None:
        return distance, None
    if point_reduction == "max":  # pytorch3d defines no normal distance for it
        return distance, None
    pairs = [(x_normals, y_normals, x_to_y), (y_normals, x_normals, y_to_x)][: len(gaps)]
    cosines = [torch.cosine_similarity(n, gather(m, idx), dim=2) for n, m, idx in pairs]
    cosines = [1 - (c.abs() if abs_cosine else c) for c in cosines]
    return distance, _reduced(cosines, valid, weights, batch_reduction, point_reduction)


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
