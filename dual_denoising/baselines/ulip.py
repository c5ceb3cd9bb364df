"""ULIP and ULIP-2 (Xue et al. 2022, 2023) with Point-BERT, arXiv 2212.05171 and 2305.08275.

Official code: github.com/salesforce/ULIP (models/ULIP_models.py, models/pointbert). ULIP's files
hold a SLIP text and image tower, of which zero-shot classification needs the text tower alone;
ULIP-2's hold the point side, its text tower is OpenCLIP's bigG.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from open_clip import tokenize
from open_clip.transformer import QuickGELU, TextTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dual_denoising.baselines import official
from dual_denoising.baselines.base import GREY, PointBaseline, check_sizes
from dual_denoising.baselines.point_transformer import PointTransformer
from dual_denoising.clip.features import class_weights, read_prompts
from dual_denoising.errors import check

POINT_RULES: list[official.Rule] = [
    (r"point_encoder\.cls_token$", "transformer.tokens.cls"),
    (r"point_encoder\.cls_pos$", "transformer.positions.cls"),
    (r"point_encoder\.blocks\.blocks\.", "transformer.blocks."),
    (r"point_encoder\.reduce_dim\.", "transformer.reduce."),
    (r"point_encoder\.(encoder|pos_embed|norm)\.", r"transformer.\1."),
    (r"logit_scale$", "log_scale"),
]
TOWER_RULES: list[official.Rule] = [
    (r"(token_embedding|positional_embedding|text_projection|ln_final)", r"text_tower.\1"),
    (r"transformer\.resblocks\.", "text_tower.transformer.resblocks."),
    (r"visual\.|image_projection$", None),  # ULIP's image tower
    (r"open_clip_model\.", None),  # ULIP-2's text tower, where a file kept it
]


class PointBert(PointBaseline):
    """The point side: class token and the patches' maximum, projected: (B, N, 3) -> (B, E).

    channels: 3, or 6 where every point also has a colour, then GREY: the clouds here have none.
    """

    native_points = 8192
    outer, rules = ("state_dict",), POINT_RULES + TOWER_RULES

    def __init__(
        self,
        feature_width: int,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        num_groups: int = 512,
        group_size: int = 32,
        encoder_width: int = 256,
        channels: int = 3,
        text=None,
    ):
        super().__init__(feature_width, text)
        fix = "choose 3 (xyz) or 6 (xyz and colours)"
        check("baseline.model.channels", channels, channels in (3, 6), fix)
        check_sizes(self.name, width, heads, num_groups=num_groups, group_size=group_size)
        self.width, self.depth, self.channels = width, depth, channels
        blocks = [
            Block(width, heads, norm_layer=nn.LayerNorm, proj_bias=True) for _ in range(depth)
        ]
        sizes = num_groups, group_size, encoder_width, channels
        self.transformer = PointTransformer(blocks, nn.LayerNorm(width), width, ("cls",), *sizes)
        self.pc_projection = nn.Parameter(torch.randn(2 * width, feature_width) * 0.02)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict:
        width, encoder = state["transformer.reduce.weight"].shape
        return {
            "width": width,
            "encoder_width": encoder,
            "channels": state["transformer.encoder.first_conv.0.weight"].shape[1],
            "depth": official.count_blocks(state, "transformer.blocks"),
            "feature_width": state["pc_projection"].shape[1],
        }

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    def encode(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b e"]:
        return self.encode_coloured(nn.functional.pad(clouds, (0, self.channels - 3), value=GREY))

    def encode_coloured(self, clouds: Float[Tensor, "b n c"]) -> Float[Tensor, "b e"]:
        """Features of clouds that have all the model's channels."""
        x = self.transformer(clouds)
        return torch.cat([x[:, 0], x[:, 1:].amax(1)], -1) @ self.pc_projection


class ULIP(PointBert):
    """ULIP with its own SLIP text tower.

    text_width, text_layers, text_heads, vocabulary, context: of the text tower. prompts: as
    OpenClipText's. sizes: of the point side.
    """

    name, title, teacher = "ulip", "ULIP", "ULIP's text tower"
    own_teacher, own_prompts = teacher, "ulip64"
    own_sizes = (("width", 384), ("depth", 12), ("feature_width", 512))

    def __init__(
        self,
        feature_width: int = 512,
        text_width: int = 512,
        text_layers: int = 12,
        text_heads: int = 8,
        vocabulary: int = 49408,
        context: int = 77,
        prompts: str = "ulip64",
        **sizes: int,
    ):
        super().__init__(feature_width, **sizes)
        tower = context, vocabulary, text_width, text_heads, text_layers
        self.text_tower = TextTransformer(
            *tower, output_dim=feature_width, act_layer=QuickGELU, pool_type="argmax"
        )
        self.prompts = read_prompts(prompts)

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict:
        vocabulary, text_width = state["text_tower.token_embedding.weight"].shape
        return super().sizes(state) | {
            "vocabulary": vocabulary,
            "text_width": text_width,
            "text_heads": max(1, text_width // 64),
            "text_layers": official.count_blocks(state, "text_tower.transformer.resblocks"),
            "context": len(state["text_tower.positional_embedding"]),
        }

    @torch.no_grad()
    def own_weights(self, names: Sequence[str]) -> Float[Tensor, "c e"]:
        """Prompts normalised, averaged, normalised."""
        device = self.pc_projection.device
        rows = [
            self.text_tower(tokenize([p.replace("{}", name) for p in self.prompts]).to(device))
            for name in (name.replace("_", " ") for name in names)
        ]
        return class_weights(torch.stack(rows))


class ULIP2(PointBert):
    """ULIP-2's point side, xyz or coloured, for text features of OpenCLIP's ViT-bigG-14.

    text: those features (an OpenClipText or a TextBank). sizes: of the point side.
    """

    name, title = "ulip2", "ULIP-2"
    own_teacher, own_prompts = "ViT-bigG-14/laion2b_s39b_b160k", "ulip64"
    own_sizes = (("width", 384), ("feature_width", 1280), ("channels", 3))

    def __init__(self, text=None, feature_width: int = 1280, **sizes: int):
        super().__init__(feature_width, text=text, **sizes)
