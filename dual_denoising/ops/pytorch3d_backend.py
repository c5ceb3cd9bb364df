"""pytorch3d's own searches, where it is installed."""

from pytorch3d import ops
from torch import Tensor


def farthest_indices(points: Tensor, wanted: int) -> Tensor:
    """As torch_backend's: (B, N, D) -> indices (B, wanted)."""
    return ops.sample_farthest_points(points, K=wanted)[1]


def nearest_indices(p1: Tensor, p2: Tensor, wanted: int, ordered: bool) -> Tensor:
    """As torch_backend's: (B, P, D), (B, M, D) -> indices (B, P, wanted)."""
    return ops.knn_points(p1, p2, K=wanted, return_sorted=ordered).idx


def closest(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """As torch_backend's."""
    there, back = ops.knn_points(x, y), ops.knn_points(y, x)
    return tuple(way.squeeze(-1) for way in (there.dists, back.dists, there.idx, back.idx))
