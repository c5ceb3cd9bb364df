"""Clouds to tokens: farthest points as centres, nearest neighbours around them.

Legend, used everywhere: B clouds, N points, S noise paths, G tokens, K points per token, D width,
E CLIP width, F feature types, C classes, L encoder depth.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from dual_denoising.errors import InputError
from dual_denoising.ops import knn_gather, knn_indices, sample_farthest_points


class Tokens(NamedTuple):
    """Centres (B, G, 3) and the K nearest points of each, relative to it, (B, G, K, 3)."""

    centers: Tensor
    points: Tensor


def center_indices(clouds: Float[Tensor, "b n 3"], num_groups: int) -> Int[Tensor, "b g"]:
    """Indices of G farthest points, starting at index 0: (B, N, 3) -> (B, G)."""
    return sample_farthest_points(clouds.detach(), K=num_groups)[1]


def group(
    clouds: Float[Tensor, "b n 3"],
    indices: Int[Tensor, "b g"],
    group_size: int,
    neighbours: Int[Tensor, "b g k"] | None = None,
) -> Tokens:
    """Tokens around the points at ``indices``: (B, N, 3), (B, G) -> Tokens, differentiable.

    The neighbours are searched in the given cloud, noisy ones in the noisy cloud (Section 3.1),
    unless their indices are given.
    """
    if clouds.shape[1] < max(group_size, indices.shape[1]):
        raise InputError(
            f"clouds have {clouds.shape[1]} points: tokens of {indices.shape[1]} centres × "
            f"{group_size} neighbours need at least {max(group_size, indices.shape[1])}"
        )
    centers = knn_gather(clouds, indices[:, None])[:, 0]  # (B, G, 3)
    if neighbours is None:
        neighbours = knn_indices(centers, clouds, group_size, return_sorted=False)
    points = knn_gather(clouds, neighbours)  # (B, G, K, 3)
    return Tokens(centers, points - centers[:, :, None])
