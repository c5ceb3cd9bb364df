"""What the three depth-map systems share: views, CLIP's towers, classes compared view by view."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from dual_denoising.baselines.base import Baseline
from dual_denoising.clip.towers import OpenClip
from dual_denoising.errors import check


def rotations(views: Sequence[tuple[float, float, float]]) -> Float[Tensor, "views 3 3"]:
    """(Rx·Ry·Rz)ᵀ of each view's angles in radians, for ``points @ matrix``."""
    matrices = []
    for angles in views:
        a, b, c = torch.tensor(angles)
        x = torch.tensor([[1.0, 0, 0], [0, a.cos(), -a.sin()], [0, a.sin(), a.cos()]])
        y = torch.tensor([[b.cos(), 0, b.sin()], [0, 1.0, 0], [-b.sin(), 0, b.cos()]])
        z = torch.tensor([[c.cos(), -c.sin(), 0], [c.sin(), c.cos(), 0], [0, 0, 1.0]])
        matrices.append((x @ y @ z).T)
    return torch.stack(matrices)


def turn(points: Float[Tensor, "*b n 3"], matrices: Float[Tensor, "*b 3 3"]) -> Tensor:
    """``points @ matrices``, summed in one order, so that every device hits the same pixels."""
    products = [points[..., k, None] * matrices[..., None, k, :] for k in range(3)]
    return products[0] + products[1] + products[2]


def quarter_turns(start: float = 0.0) -> list[tuple[float, float, float]]:
    """Four views around the up-axis, as PointCLIP lists them."""
    return [(start + k * math.pi / 2, 0.0, math.pi / 2) for k in range(4)]


class DepthBaseline(Baseline):
    """Depth maps of several views through CLIP's image tower, each compared with a text feature.

    prompts: one template for all names, or {name: text}. view_weights: (views,), what each view's
    unit feature is multiplied with; 1 if None.
    """

    native_points = 1024
    views: int
    scale: float | None = None  # of the logits; None takes CLIP's own
    own_teacher = "/openai"
    class_words = ", the text of every view"

    def __init__(
        self,
        clip: OpenClip,
        prompts: str | Mapping[str, str],
        view_weights: Sequence[float] | None = None,
    ):
        super().__init__()
        weights = [1.0] * self.views if view_weights is None else list(view_weights)
        good = len(weights) == self.views and min(weights) >= 0 and sum(weights) > 0
        fix = f"give {self.views} weights from 0, one > 0"
        check("baseline.model.view_weights", weights, good, fix)
        self.clip, self.tokenize, self.template = clip.tower, clip.tokenize, prompts
        self.teacher = "/".join(clip.names)
        self.origin = f"CLIP's own weights, {self.teacher}"
        self.prompts = [prompts] if isinstance(prompts, str) else ["one text of its own per class"]
        self.view_weights = nn.Buffer(torch.tensor(weights))
        self.image_size, self.feature_width = clip.image_size, self.views * clip.width

    @classmethod
    def from_clip(cls, clip: OpenClip, **settings) -> Self:
        """In evaluation mode, with all weights frozen; what configurations name."""
        return cls(clip, **settings).eval().requires_grad_(False)

    @property
    def logit_scale(self) -> Tensor:
        """Of the cosine: official logits are scale · Σ_v w_v f_v·t / √views."""
        scale = self.clip.logit_scale.exp() if self.scale is None else self.scale
        return scale * self.view_weights.norm()

    @abstractmethod
    def images(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b views h w"]:
        """What the image tower is shown, one channel of it: (B, N, 3) -> (B, views, H, W)."""

    def pixels(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "m 3 h w"]:
        """Three equal channels at the tower's size, not standardised: (B·views, 3, H, W)."""
        images = self.images(clouds).flatten(0, 1)[:, None]
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = interpolate(images, size, mode="bilinear", align_corners=True)
        return images.expand(-1, 3, -1, -1)

    def encode_views(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b views e"]:
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
        fix = "its prompts are searched per class: name another set (baseline.model.prompts=...)"
        check(f"{self.name}: class without a text", name, name in self.template, fix)
        return self.template[name]
