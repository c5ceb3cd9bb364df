"""PointCLIP V2 (Zhu et al. 2022), arXiv 2211.11682: smooth depth maps of ten views, searched texts.

Official code: github.com/yangyangyang127/PointCLIP_V2 (zeroshot_cls/trainers/mv_utils_zs.py). The
searched texts are data/prompts/pointclip_v2.yaml.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from dual_denoising.baselines.depth import DepthBaseline, quarter_turns, rotations, turn
from dual_denoising.baselines.pointclip import ZERO_SHOT_VIEWS
from dual_denoising.clip.towers import OpenClip
from dual_denoising.data import ASSETS
from dual_denoising.errors import check_choice

VIEWS = quarter_turns(math.pi / 4) + ZERO_SHOT_VIEWS
AHEAD = (0.5, 0.5, 1.5)  # without effect, were it not for the rounding that picks a cell
TILTS = [math.pi / 9] * 8 + [math.pi / 15] * 2
SIZE, DEPTH, OBJECT, NEAR = 112, 8, 0.8, 0.2  # grid, share of it that the object fills, its front


def texts(name: str) -> tuple[dict[str, str], list[float]]:
    """Searched texts and view weights, 'modelnet40/ViT-B-16' and the like; found on test labels."""
    known = yaml.safe_load((ASSETS / "prompts" / "pointclip_v2.yaml").read_text())
    check_choice("baseline.model.prompts", name, known)
    return known[name]["texts"], known[name]["view_weights"]


def depth_grid(points: Float[Tensor, "m n 3"]) -> Float[Tensor, "m z h w"]:
    """Points as their depths in a grid, the largest of a cell; 0 where there is none.

    Centred on the box, divided by its largest side. Cells are chosen by rounding up, which has no
    gradient. Gradients reach the depths and the box; where several points share an extreme of the
    box, one of them gets it.
    """
    low, high = points.min(1, keepdim=True).values, points.max(1, keepdim=True).values
    side = (high - low).max(-1, keepdim=True).values.clamp(min=1e-9)  # all points in one place
    points = (points - (high + low) / 2) / side * 2  # the box's largest side from −1 to 1
    x, y = ((points[..., k] * OBJECT + 1) / 2 * SIZE for k in (0, 1))
    z = ((points[..., 2] + 1) / 2 + NEAR) / (1 + NEAR) * (DEPTH - 2)
    column, row = (c.detach().ceil().clamp(1, SIZE - 2) for c in (y, x))
    cell = ((z.detach().ceil() * SIZE + row) * SIZE + column).long()
    depth = z.clamp(1, DEPTH - 2)
    empty = depth.new_zeros(len(points), DEPTH * SIZE * SIZE)
    return empty.scatter_reduce(1, cell, depth, "amax").unflatten(1, (DEPTH, SIZE, SIZE))


class PointCLIPV2(DepthBaseline):
    """Zero-shot PointCLIP V2. prompts: a searched set by name, {name: text}, or one template.

    view_weights: those of the searched set if not given, otherwise 1. The factor of the logits is
    the official 100, not CLIP's own.
    """

    name, title, views, scale = "pointclip_v2", "PointCLIP V2", len(VIEWS), 100.0

    def __init__(
        self,
        clip: OpenClip,
        prompts: str | Mapping[str, str] = "modelnet40/ViT-B-16",
        view_weights: Sequence[float] | None = None,
    ):
        if isinstance(prompts, str) and "{}" not in prompts:
            prompts, searched = texts(prompts)
            view_weights = searched if view_weights is None else view_weights
        super().__init__(clip, prompts, view_weights)
        self.rotation = nn.Buffer(rotations(VIEWS))
        self.tilt = nn.Buffer(rotations([(0.0, angle, 0.0) for angle in TILTS]))
        bell = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / 18)  # a Gaussian of σ = 3 cells
        kernel = bell[:, None] * bell
        self.kernel = nn.Buffer((kernel / kernel.sum())[None, None])

    def place(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "m n 3"]:
        """Clouds in the frames of the views: (B·views, N, 3)."""
        points = turn(turn(clouds[:, None], self.rotation), self.tilt)
        return (points + points.new_tensor(AHEAD)).flatten(0, 1)

    def images(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b views h w"]:
        points = self.place(clouds)
        grid = depth_grid(points).flatten(0, 1)[:, None]  # (B·views·Z, 1, H, W)
        spread = max_pool2d(grid, 7, stride=1, padding=2)
        smooth = conv2d(spread, self.kernel, padding=1)
        image = smooth.unflatten(0, (len(points), DEPTH))[:, :, 0].amax(1)
        image = 1 - image / image.amax((1, 2), keepdim=True)
        return image.unflatten(0, (len(clouds), self.views))
