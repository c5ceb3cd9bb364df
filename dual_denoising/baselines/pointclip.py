"""PointCLIP (Zhang et al. 2021), arXiv 2112.02413: sparse depth maps of six views.

Official code: github.com/ZrrSkywalker/PointCLIP (trainers/mv_utils_zs.py, zeroshot.py).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dual_denoising.baselines.depth import DepthBaseline, quarter_turns, rotations, turn
from dual_denoising.clip.towers import OpenClip

PROMPT = "point cloud depth map of a {}."
ZERO_SHOT_VIEWS = [
    *quarter_turns(),
    (0.0, -math.pi / 2, math.pi / 2),
    (0.0, math.pi / 2, math.pi / 2),
]
TINY = 1e-12


def depth_maps(
    clouds: Float[Tensor, "b n 3"], rotation: Float[Tensor, "views 3 3"], distance: float, size: int
) -> Float[Tensor, "b views h w"]:
    """Perspective depth maps, a pixel per point; points that share one take their harmonic mean.

    Pixels without a point are 0. The gradient reaches the depths alone: pixels are chosen by
    rounding.
    """
    x, y, z = turn(clouds[:, None], rotation).unbind(-1)  # (B, views, N)
    z = z + distance
    rows, columns = (
        ((side / (z + TINY) + 1) * size / 2 - 0.5).ceil().detach() for side in (x, y)
    )  # x is the row: the views stand upright so
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size) & (z >= 0)
    pixel = torch.where(inside, rows * size + columns, size * size).long()  # the last: thrown away
    weight = 1 / (z + TINY)
    blank = z.new_zeros(*z.shape[:2], size * size + 1)
    total = blank.scatter_add(-1, pixel, weight)
    depth = blank.scatter_add(-1, pixel, weight * z) / (total + (total == 0))
    return depth[..., :-1].unflatten(-1, (size, size))


class PointCLIP(DepthBaseline):
    """Zero-shot PointCLIP: raw depth as a picture, no standardisation."""

    name, title, views = "pointclip", "PointCLIP", len(ZERO_SHOT_VIEWS)
    distance, resolution = 1.6, 128

    def __init__(self, clip: OpenClip, prompts: str = PROMPT, **settings):
        super().__init__(clip, prompts, **settings)
        self.rotation = nn.Buffer(rotations(ZERO_SHOT_VIEWS))

    def images(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b views h w"]:
        return depth_maps(clouds, self.rotation, self.distance, self.resolution)
