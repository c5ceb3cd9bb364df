"""ReCon (Qi et al. 2023), zero-shot: 'Contrast with Reconstruct', arXiv 2302.02318.

Official code: github.com/qizekun/ReCon (models/transformer.py, PointTransformerZeroShot); the
shapes and the order of operations are its own, the lines are ours.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from timm.layers import Mlp
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dual_denoising.baselines import official
from dual_denoising.baselines.base import PointBaseline, check_sizes
from dual_denoising.baselines.point_transformer import PointTransformer
from dual_denoising.errors import check_choice

SPECIAL = ("cls", "img", "text")
HEADS = {"full": ("text_proj", "img_proj"), "text": ("text_proj",), "image": ("img_proj",)}

RULES: list[official.Rule] = [
    (r"MAE_decoder\.|decoder_pos_embed\.|increase_dim\.|mask_token$", None),  # of pre-training
    (r"(img|text)_encoder\.", None),  # CLIP's towers, where a file kept them
    (r"(?:MAE_encoder\.|base_model\.)?(cls|img|text)_token$", r"transformer.tokens.\1"),
    (r"(?:MAE_encoder\.|base_model\.)?(cls|img|text)_pos$", r"transformer.positions.\1"),
    (r"(?:MAE_encoder\.|base_model\.)?blocks\.blocks\.", "transformer.blocks."),
    (r"(?:MAE_encoder\.|base_model\.)?(encoder|pos_embed|norm)\.", r"transformer.\1."),
    (r"(?:MAE_encoder\.|base_model\.)?(text_proj|img_proj)\.", r"\1."),
]


class CrossAttention(nn.Module):
    """Queries (B, queries, D) read from (B, G, D); keys come first in the joint projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        k, v = self.kv(source).chunk(2, -1)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q(queries), k, v)
        )
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ContrastBlock(nn.Module):
    """Special tokens read the patches, which never see them: (B, 3 + G, D) -> the same.

    Every residual starts from the normalised tensor, not from the stream, as in the official code.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm1_contrast, self.norm2_contrast = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias=False)
        self.attn_contrast = CrossAttention(width, heads)
        self.mlp, self.mlp_contrast = Mlp(width, 4 * width), Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        special, patches = x[:, : len(SPECIAL)], x[:, len(SPECIAL) :]
        special, patches = self.norm1_contrast(special), self.norm1(patches)
        special = special + self.attn_contrast(special, patches)
        patches = patches + self.attn(patches)
        special, patches = self.norm2_contrast(special), self.norm2(patches)
        special = special + self.mlp_contrast(special)
        patches = patches + self.mlp(patches)
        return torch.cat([special, patches], 1)


class ReCon(PointBaseline):
    """Image and text token of ReCon's encoder, projected to CLIP's space and added.

    ratio: weight of the text token. type: full, text or image. text: text features of CLIP ViT-B/32
    (an OpenClipText or a TextBank); class weights are the raw sum over its prompts, underscores
    kept.
    """

    name, title, native_points = "recon", "ReCon", 1024
    outer, rules = ("base_model",), RULES
    optional = ("text_proj.", "img_proj.")
    own_teacher, own_prompts = "ViT-B-32/openai", "recon60"
    own_sizes = (("width", 384), ("depth", 12), ("feature_width", 512))
    raw_sum, class_words = True, ", raw sum over the prompts"
    img_proj: nn.Linear
    text_proj: nn.Linear

    def __init__(
        self,
        text=None,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        feature_width: int = 512,
        ratio: float = 0.2,
        type: str = "full",
    ):
        super().__init__(feature_width, text)
        check_choice("baseline.model.type", type, HEADS)
        check_sizes(self.name, width, heads, num_groups=num_groups, group_size=group_size)
        self.ratio, self.kind, self.width, self.depth = ratio, type, width, depth
        blocks = [ContrastBlock(width, heads) for _ in range(depth)]
        self.transformer = PointTransformer(
            blocks, nn.LayerNorm(width), width, SPECIAL, num_groups, group_size, encoder_width=None
        )
        for head in HEADS[type]:
            self.add_module(head, nn.Linear(width, feature_width))

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict:
        head = "img_proj" if "img_proj.weight" in state else "text_proj"
        return {
            "width": state["transformer.tokens.cls"].shape[-1],
            "depth": official.count_blocks(state, "transformer.blocks"),
            "feature_width": len(state[f"{head}.weight"]),
        }

    def encode(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b e"]:
        _, image, text = self.transformer(clouds)[:, : len(SPECIAL)].unbind(1)
        if self.kind == "full":
            return self.ratio * self.text_proj(text) + self.img_proj(image)
        return self.text_proj(text) if self.kind == "text" else self.img_proj(image)
