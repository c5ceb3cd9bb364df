"""What the three depth-map systems share: views, CLIP's towers, classes compared view by view."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from dual_denoising.baselines import official
from dual_denoising.baselines.base import Baseline
from dual_denoising.clip.towers import OpenClip
from dual_denoising.errors import InputError, check


def euler(angles: Sequence[float]) -> Float[Tensor, "3 3"]:
    """Rx·Ry·Rz of angles in radians; points (N, 3) turn by ``points @ euler(angles).T``."""
    a, b, c = (torch.tensor(float(angle)) for angle in angles)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    rows = (
        (one, zero, zero, zero, a.cos(), -a.sin(), zero, a.sin(), a.cos()),
        (b.cos(), zero, b.sin(), zero, one, zero, -b.sin(), zero, b.cos()),
        (c.cos(), -c.sin(), zero, c.sin(), c.cos(), zero, zero, zero, one),
    )
    x, y, z = (torch.stack(row).view(3, 3) for row in rows)
    return x @ y @ z


def turn(points: Float[Tensor, "*b n 3"], matrices: Float[Tensor, "*b 3 3"]) -> Tensor:
    """``points @ matrices``, summed in one order, so that every device hits the same pixels."""
    products = [points[..., k, None] * matrices[..., None, k, :] for k in range(3)]
    return products[0] + products[1] + products[2]


def quarter_turns(start: float = 0.0) -> list[tuple[float, float, float]]:
    """Four views around the up-axis, as PointCLIP lists them."""
    return [(start + k * math.pi / 2, 0.0, math.pi / 2) for k in range(4)]


def image_tower(state: Mapping[str, Tensor], where: str) -> VisionTransformer:
    """CLIP's image transformer of OpenAI's keys alone; sizes are read off the shapes."""
    width, _, patch, _ = official.shape(state, "conv1.weight", where, 4)
    positions = official.shape(state, "positional_embedding", where, 2)[0]
    tower = VisionTransformer(
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        width=width,
        layers=official.count_blocks(state, r"transformer\.resblocks\.(\d+)\."),
        heads=max(1, width // 64),
        mlp_ratio=4.0,
        output_dim=official.shape(state, "proj", where, 2)[1],
        act_layer=QuickGELU,
        norm_layer=LayerNorm,
    )
    official.load(tower, state, where)
    return tower.eval().requires_grad_(False)


class DepthBaseline(Baseline):
    """Depth maps of several views through CLIP's image tower, each compared with a text feature.

    clip: a CLIP of open_clip, with ``visual``, ``encode_image`` and ``encode_text``. tokenize: text
    to its ids. prompts: one template for all names, or {name: text}. view_weights: (views,), what
    each view's unit feature is multiplied with. width: of CLIP's features, if ``visual`` does not
    say.
    """

    native_points = 1024
    views: int
    scale: float | None = None  # of the logits; None takes CLIP's own
    own_teacher = "/openai"
    class_words = ", the text of every view"

    def __init__(
        self,
        clip: Any,
        tokenize: Callable,
        prompts: str | Mapping[str, str],
        view_weights: Sequence[float] | None = None,
        teacher: str = "CLIP",
        width: int | None = None,
    ):
        super().__init__()
        weights = [1.0] * self.views if view_weights is None else list(view_weights)
        good = len(weights) == self.views and min(weights) >= 0 and sum(weights) > 0
        fix = f"give {self.views} weights from 0, one > 0"
        check("baseline.model.view_weights", weights, good, fix)
        self.clip, self.tokenize, self.template = clip, tokenize, prompts
        self.teacher = teacher
        self.prompts = [prompts] if isinstance(prompts, str) else ["one text of its own per class"]
        self.view_weights = nn.Buffer(torch.tensor(weights))
        size = clip.visual.image_size
        self.image_size = size if isinstance(size, int) else size[0]
        self.feature_width = self.views * (width or clip.visual.output_dim)

    @classmethod
    def from_clip(cls, clip: OpenClip, **settings) -> Self:
        """On a CLIP of open_clip's, with its weights."""
        teacher = "/".join(clip.names)
        model = cls(clip.tower, clip.tokenize, teacher=teacher, width=clip.width, **settings)
        model.origin = f"CLIP's own weights, {teacher}"
        return model.eval().requires_grad_(False)

    @property
    def logit_scale(self) -> Tensor:
        """Of the cosine: official logits are scale · Σ_v w_v f_v·t / √V."""
        scale = self.clip.logit_scale.exp() if self.scale is None else self.scale
        return scale * self.view_weights.norm()

    @abstractmethod
    def images(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b v h w"]:
        """What the image tower is shown, one channel of it: (B, N, 3) -> (B, V, H, W)."""

    def pixels(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "m 3 h w"]:
        """Three equal channels at the tower's size, not standardised: (B·V, 3, H, W)."""
        images = self.images(clouds).flatten(0, 1)[:, None]
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = interpolate(images, size, mode="bilinear", align_corners=True)
        return images.expand(-1, 3, -1, -1)

    def encode_views(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b v e"]:
        """Unit features of every view."""
        features = self.encode_pixels(self.pixels(clouds))
        return normalize(features, dim=-1).unflatten(0, (len(clouds), self.views))

    def encode_pixels(self, pixels: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m e"]:
        return self.clip.encode_image(pixels)

    def encode(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b e"]:
        whole = clouds.isfinite().flatten(1).all(1)  # a picture hides what is not finite
        shown = torch.where(whole[:, None, None], clouds, 0.0)
        features = (self.encode_views(shown) * self.view_weights[:, None]).flatten(1)
        return torch.where(whole[:, None], features, torch.nan)

    @torch.no_grad()
    def own_weights(self, names: Sequence[str]) -> Float[Tensor, "c e"]:
        """The text's feature once per view, normalised over all of them."""
        device = self.view_weights.device
        texts = [self.text_of(name) for name in names]
        return self.repeat(self.clip.encode_text(self.tokenize(texts).to(device)))

    def repeat(self, features: Float[Tensor, "c e"]) -> Float[Tensor, "c w"]:
        """Text features (C, E) to class weights (C, views·E)."""
        return normalize(normalize(features, dim=-1).repeat(1, self.views), dim=-1)

    def text_of(self, name: str) -> str:
        if isinstance(self.template, str):
            return self.template.replace("{}", name.replace("_", " "))
        if name not in self.template:
            known = ", ".join(list(self.template)[:5])
            raise InputError(
                f"{self.name}: has no text for '{name}' (it has {known}, ...); its prompts were "
                "searched per class: name another set (baseline.model.prompts=...), or one template"
            )
        return self.template[name]
