"""CLIP2Point (Huang et al. 2022), arXiv 2210.01055: rendered discs, an image tower of its own.

Official code: github.com/tyhuang0428/CLIP2Point (render/, models/). Its renderer is pytorch3d's
point rasteriser; here the same picture is made by scattering each point's disc.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.transforms.functional import normalize as standardise

from dual_denoising.baselines import official
from dual_denoising.baselines.depth import DepthBaseline
from dual_denoising.clip.towers import OpenClip
from dual_denoising.errors import check

VIEWS = ((0, 0), (0, 90), (0, 180), (0, 270), (90, 0), (-90, 180))  # elevation, azimuth, degrees
SIZE, RADIUS = 224, 0.02
# What the official code does to the z-up clouds of ModelNet before it looks at them
FROM_Z_UP = ((0.0, 0.0, -1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
Y_TO_Z_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))  # (x, y, z) -> (x, −z, y)


def cameras(views: Sequence[tuple[float, float]]) -> Float[Tensor, "views 3 3"]:
    """Axes of cameras at distance 1 that look at the origin, y up: ``points @ R + (0, 0, 1)``.

    In float32 on purpose: for the camera straight above, the sideways axis comes from cos 90°,
    which is not 0 there.
    """
    elevation, azimuth = (torch.tensor(views, dtype=torch.float32) * math.pi / 180).unbind(1)
    place = torch.stack(
        [elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], 1
    )
    z = normalize(-place, dim=1)
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(z)
    x = normalize(torch.linalg.cross(up, z), dim=1)
    y = normalize(torch.linalg.cross(z, x), dim=1)
    return torch.stack([x, y, z], 2)


def rasterise(points: Float[Tensor, "m n 3"]) -> Float[Tensor, "m h w"]:
    """Depth of the nearest point whose disc covers a pixel, −1 where there is none.

    x points left, y up, both from −1 to 1 over the picture. Which point it is carries no gradient,
    its depth does.
    """
    x, y, z = points.unbind(-1)
    first = [((1 - side.detach()) * SIZE / 2 - RADIUS * SIZE / 2 - 0.5).ceil() for side in (y, x)]
    reach = torch.arange(math.ceil(RADIUS * SIZE) + 1, device=points.device)
    rows, columns = (start[..., None] + reach for start in first)  # (maps, N, reach)
    centers = [1 - (2 * pixel + 1) / SIZE for pixel in (rows, columns)]
    down, across = (
        (center - side.detach()[..., None]).square()
        for center, side in zip(centers, (y, x), strict=True)
    )
    inside = [(pixel >= 0) & (pixel < SIZE) for pixel in (rows, columns)]
    covered = (down[..., None] + across[..., None, :] < RADIUS**2) & (z >= 0)[..., None, None]
    covered &= inside[0][..., None] & inside[1][..., None, :]
    pixel = rows[..., None] * SIZE + columns[..., None, :]
    pixel = torch.where(covered, pixel, SIZE * SIZE).long().flatten(1)  # the last is thrown away
    depth = z.detach()[..., None, None].expand_as(covered).flatten(1)
    blank = depth.new_full((len(points), SIZE * SIZE + 1), torch.inf)
    nearest = blank.scatter_reduce(1, pixel, depth, "amin")
    ids = torch.arange(points.shape[1], device=points.device)[:, None, None].expand_as(covered[0])
    ids = torch.where(depth == nearest.gather(1, pixel), ids.flatten(), points.shape[1])
    point = torch.full_like(blank, points.shape[1], dtype=torch.long)
    point = point.scatter_reduce(1, pixel, ids, "amin")[:, :-1]
    shown = torch.where(
        point < points.shape[1], z.gather(1, point.clamp(max=points.shape[1] - 1)), -1.0
    )
    return shown.unflatten(1, (SIZE, SIZE))


def shade(depth: Float[Tensor, "m h w"]) -> Float[Tensor, "m h w"]:
    """Grey values of a depth buffer: near is dark, far reaches 200/255, nothing is white.

    The official code takes no gradient of the smallest and the largest depth; an attack needs it.
    """
    covered = depth > 0
    largest = depth.amax((1, 2), keepdim=True)
    smallest = torch.where(covered, depth, 1.0).amin((1, 2), keepdim=True)
    return torch.where(covered, (depth - smallest) / largest * 200 / 255, 1.0)


def pretrained_tower(path: str) -> VisionTransformer:
    """The image tower for depth of an official pre-training file, which holds other things too."""
    state = official.read(path, [(r"point_model\.", ""), ("", None)])
    with official.fitting(path):
        return image_tower(state)


def image_tower(state: Mapping[str, Tensor]) -> VisionTransformer:
    """CLIP's image transformer of OpenAI's keys alone; sizes are read off the shapes."""
    width, _, patch, _ = state["conv1.weight"].shape
    tower = VisionTransformer(
        image_size=round((len(state["positional_embedding"]) - 1) ** 0.5) * patch,
        patch_size=patch,
        width=width,
        layers=official.count_blocks(state, "transformer.resblocks"),
        heads=max(1, width // 64),
        mlp_ratio=4.0,
        output_dim=state["proj"].shape[1],
        act_layer=QuickGELU,
        norm_layer=LayerNorm,
    )
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)


class CLIP2Point(DepthBaseline):
    """Zero-shot CLIP2Point: logits of six views added up.

    path: an official pre-training file, whose image tower is taken; without one this is CLIP itself
    on CLIP2Point's pictures. The text is CLIP's. turn: the official treatment of ModelNet (whose
    clouds it reads z-up); false is ScanObjectNN's.
    """

    name, title, views = "clip2point", "CLIP2Point", len(VIEWS)
    own_teacher = "ViT-B-32/openai"

    def __init__(
        self,
        clip: OpenClip,
        path: str | None = None,
        prompts: str = "image of a {}",
        turn: bool = True,
        **settings,
    ):
        super().__init__(clip, prompts, **settings)
        self.tower = pretrained_tower(path) if path else None
        if self.tower:
            width, fix = self.tower.output_dim, "name the CLIP of its training"
            fix = f"the text has {clip.width}: {fix} (baseline.model.clip.model=...)"
            check(f"{path}: width of features", width, width == clip.width, fix)
            self.image_size, self.origin = self.tower.image_size[0], f"weights of {path}"
        turned = torch.tensor(Y_TO_Z_UP) @ torch.tensor(FROM_Z_UP)
        self.frame = nn.Buffer(turned if turn else torch.eye(3))
        self.camera = nn.Buffer(cameras(VIEWS))

    def deviations(self) -> list[str]:
        missing = [] if self.tower else ["CLIP's own image tower instead of CLIP2Point's"]
        return missing + super().deviations()

    def encode_pixels(self, pixels: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m e"]:
        return self.tower(pixels) if self.tower else super().encode_pixels(pixels)

    @property
    def logit_scale(self) -> Tensor:
        return super().logit_scale * math.sqrt(self.views)  # added up, not averaged

    def images(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b views h w"]:
        return shade(rasterise(look(clouds @ self.frame, self.camera))).unflatten(
            0, (len(clouds), self.views)
        )

    def pixels(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "m 3 h w"]:
        return standardise(super().pixels(clouds), OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def look(
    clouds: Float[Tensor, "b n 3"], camera: Float[Tensor, "views 3 3"]
) -> Float[Tensor, "m n 3"]:
    """Clouds in the frames of cameras at distance 1: (B·views, N, 3)."""
    ahead = clouds.new_tensor([0.0, 0.0, 1.0])
    return (clouds[:, None] @ camera + ahead).flatten(0, 1)
