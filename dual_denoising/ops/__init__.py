"""Farthest points, neighbours and Chamfer distance; point_ops.py says all about them."""

from dual_denoising.ops.point_ops import (
    chamfer_distance,
    knn_gather,
    knn_indices,
    knn_points,
    sample_farthest_points,
    use_backend,
)
