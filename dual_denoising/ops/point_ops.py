"""Point operations with pytorch3d's names and results, and no compiled extension.

Half-precision points are raised to float32, and all arithmetic is elementwise, so that autocast
cannot touch it: in bfloat16 four tokens in ten get a wrong neighbour. Indices carry no gradient;
distances and gathered points do. Triton serves GPUs, torch everything else. Both choose the same
points, but for neighbours at equal distance. The letters here are pytorch3d's: P and M points of
two sets, D coordinates of a point, K how many are asked for.
"""

import contextlib
import importlib.util
import os
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dual_denoising.errors import check, check_choice
from dual_denoising.ops import operators

BACKENDS = ("auto", "torch", "triton", "pytorch3d")
LARGEST_CLOUD = 16384  # points that one Triton program holds in registers
LARGEST_SET = 128  # points of a small set, of which one program holds all pairs


class KNN(NamedTuple):
    """Squared distances (B, P, K), indices (B, P, K), neighbours (B, P, K, D) if asked for."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


def sample_farthest_points(
    points: Float[Tensor, "b n d"], *, K: int = 50
) -> tuple[Float[Tensor, "b k d"], Int[Tensor, "b k"]]:
    """K ≤ N farthest points of each cloud (B, K, D), point 0 first, and their indices (B, K)."""
    points = _exact(points)
    check("num_points", points.shape[1], points.shape[1] >= K, f"{K} centres need {K} or more")
    idx = operators.farthest_indices(points.detach(), K, _served_by(LARGEST_CLOUD, points))
    return knn_gather(points, idx[:, None])[:, 0], idx


def knn_points(
    p1: Float[Tensor, "b p d"],
    p2: Float[Tensor, "b m d"],
    *,
    K: int = 1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> KNN:
    """The K ≤ M nearest neighbours in ``p2`` (B, M, D) of every point of ``p1`` (B, P, D).

    dists: squared distances (B, P, K), nearest first if ``return_sorted``. idx: their indices in
    ``p2`` (B, P, K). knn: the neighbours (B, P, K, D), or None unless ``return_nn``.
    """
    p1, p2 = _exact(p1), _exact(p2)
    idx = knn_indices(p1, p2, K, return_sorted)
    neighbours = knn_gather(p2, idx)
    dists = (p1[:, :, None] - neighbours).square().sum(-1)
    return KNN(dists, idx, neighbours if return_nn else None)


def knn_indices(
    p1: Float[Tensor, "b p d"], p2: Float[Tensor, "b m d"], K: int, return_sorted: bool = True
) -> Int[Tensor, "b p k"]:
    """``idx`` of ``knn_points`` alone."""
    _check_pair(p1, p2)
    check("num_points", p2.shape[1], p2.shape[1] >= K, f"{K} neighbours need {K} or more")
    p1, p2 = _exact(p1.detach()), _exact(p2.detach())
    backend = _served_by(LARGEST_CLOUD, p2) if p1.dtype == p2.dtype else "torch"
    return operators.nearest_indices(p1, p2, K, return_sorted, backend)


def knn_gather(x: Float[Tensor, "b m d"], idx: Int[Tensor, "b p k"]) -> Float[Tensor, "b p k d"]:
    """Points (B, P, K, D) of ``x`` (B, M, D) at indices (B, P, K), differentiable in ``x``."""
    return x[torch.arange(len(x), device=x.device)[:, None, None], idx]


def chamfer_distance(
    x: Float[Tensor, "b n d"], y: Float[Tensor, "b m d"], *, batch_reduction: str | None = "mean"
) -> tuple[Tensor, None]:
    """Mean squared distance to the nearest point of the other cloud, both ways added.

    batch_reduction: 'mean', 'sum', or None for one distance per cloud. The second result is
    pytorch3d's distance of normals, of which there are none.
    """
    x, y = _exact(x), _exact(y)
    _check_pair(x, y)
    check_choice("batch_reduction", batch_reduction, ("mean", "sum", None))
    x_gap, y_gap, *_ = operators.closest(x, y, _served_by(LARGEST_SET, x, y))
    per_cloud = x_gap.sum(1) / x.shape[1] + y_gap.sum(1) / y.shape[1]
    if batch_reduction is None:
        return per_cloud, None
    return per_cloud.sum() / (len(per_cloud) if batch_reduction == "mean" else 1), None


@contextlib.contextmanager
def use_backend(name: str):
    """Serves the point operations from ``name``, one of BACKENDS, inside the context.

    The environment's DUAL_DENOISING_OPS does the same for a whole process.
    """
    global _backend
    previous, _backend = _backend, _checked(name)
    try:
        yield
    finally:
        _backend = previous


def _checked(name: str) -> str:
    check_choice("backend (DUAL_DENOISING_OPS)", name, BACKENDS)
    there = name == "auto" or importlib.util.find_spec(name)
    check("backend (DUAL_DENOISING_OPS)", name, there, "it is not installed; choose auto")
    return name


_backend = _checked(os.environ.get("DUAL_DENOISING_OPS", "auto"))
_TRITON = importlib.util.find_spec("triton") is not None  # it comes with torch on Linux


def _served_by(most: int, *clouds: Tensor) -> str:
    """The backend: Triton's kernels take float32 points in space, ``most`` of a cloud at most."""
    if _backend == "pytorch3d":
        return _backend
    asked = _backend == "triton" or (_backend == "auto" and clouds[0].is_cuda and _TRITON)
    fits = all(
        cloud.dtype == torch.float32 and cloud.shape[2] == 3 and 0 < cloud.shape[1] <= most
        for cloud in clouds
    )
    return "triton" if asked and fits else "torch"


def _exact(points: Tensor) -> Tensor:
    return points.float() if points.dtype in (torch.float16, torch.bfloat16) else points


def _check_pair(p1: Tensor, p2: Tensor) -> None:
    shapes, agree = (tuple(p1.shape), tuple(p2.shape)), p1.shape[::2] == p2.shape[::2]
    check("shapes of clouds", shapes, agree, "they must agree in number and in dimensions")
