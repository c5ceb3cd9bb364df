"""Clouds to tokens: farthest points as centres, their nearest neighbours around them (Fig. 5).

The symbols of the package. B clouds, N points, S noise paths (N in the paper), G tokens, K points
per token, V visible tokens, D width, E CLIP width, F feature types (k in the paper), C classes, L
encoder depth, T noise steps, M draws of an attack (EOT), R noise seeds. t is a timestep, t' = ⌊t/Δ⌋
the merged one, s the scale of the noise, σ_t its standard deviation at t, ℒ a loss, λ_t and α the
weights of Eq. 3; ε₁ is the noise on the points, ε₂ that of the noise tokens, ε the radius of an
attack's ball. Lower-case letters in shapes are the axes of the capitals.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from dual_denoising.ops import knn_gather, knn_indices, sample_farthest_points


class Tokens(NamedTuple):
    """Centres (B, G, 3), and the K points of each token relative to its centre (B, G, K, 3)."""

    centers: Tensor
    points: Tensor


class Grouping(NamedTuple):
    """Indices of the centres (B, G) and of their neighbours (B, G, K).

    Where ``neighbours`` is None, ``group`` finds them by kNN in the cloud that it is given.
    """

    center_indices: Tensor
    neighbours: Tensor | None = None


def choose_centers(clouds: Float[Tensor, "b n 3"], num_groups: int) -> Int[Tensor, "b g"]:
    """Indices of G farthest points of each cloud, starting at point 0."""
    return sample_farthest_points(clouds.detach(), K=num_groups)[1]  # the op's K is G here


def gather(clouds: Float[Tensor, "b n 3"], indices: Int[Tensor, "b g"]) -> Float[Tensor, "b g 3"]:
    """The points at these indices."""
    return knn_gather(clouds, indices[:, None])[:, 0]


def group(clouds: Float[Tensor, "b n 3"], grouping: Grouping, group_size: int) -> Tokens:
    """Tokens around the given centres, differentiable in the clouds.

    Unless given, neighbours are searched in the cloud itself: noisy ones in the noisy cloud, clean
    ones in the clean cloud (Section 3.1).
    """
    centers = gather(clouds, grouping.center_indices)  # (B, G, 3)
    neighbours = grouping.neighbours
    if neighbours is None:
        neighbours = knn_indices(centers, clouds, group_size, return_sorted=False)
    points = knn_gather(clouds, neighbours)  # (B, G, K, 3)
    return Tokens(centers, points - centers[:, :, None])
