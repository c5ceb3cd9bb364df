"""Uni3D (Zhou et al. 2023), arXiv 2310.06773: groups of points through a timm EVA transformer.

Official code: github.com/baaivision/Uni3D (models/uni3d.py, models/point_encoder.py).
"""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dual_denoising.baselines.base import GREY, PointBaseline, check_sizes
from dual_denoising.baselines.official import Rule
from dual_denoising.baselines.point_transformer import PointTransformer
from dual_denoising.errors import InputError, brief, check

RULES: list[Rule] = [
    (r"point_encoder\.cls_token$", "transformer.tokens.cls"),
    (r"point_encoder\.cls_pos$", "transformer.positions.cls"),
    (r"point_encoder\.(encoder|pos_embed)\.", r"transformer.\1."),
    (r"point_encoder\.encoder2trans\.", "transformer.reduce."),
    (r"point_encoder\.trans2embed\.", "trans2embed."),
    (r"point_encoder\.visual\.blocks\.", "transformer.blocks."),
    (r"point_encoder\.visual\.norm\.", "transformer.norm."),
    (r"point_encoder\.visual\.fc_norm\.", "fc_norm."),
    # EVA's own picture input and classifier, which the official forward pass never calls
    (r"point_encoder\.visual\.(cls_token|pos_embed|patch_embed\.|head\.)", None),
    (r"logit_scale$", "log_scale"),
]


EVA = {
    192: "eva02_tiny_patch14_224",
    384: "eva02_small_patch14_224",
    768: "eva02_base_patch14_448",
    1024: "eva02_large_patch14_448",
    1408: "eva_giant_patch14_560",
}  # width -> the timm model of Uni3D-Ti, S, B, L and g


class Uni3D(PointBaseline):
    """The class token of an EVA transformer over groups of coloured points, projected.

    eva: timm's name of the transformer; eva_sizes: its arguments, where they are not its own. text:
    text features of EVA02-E-14-plus (an OpenClipText or a TextBank).

    flip_z: the official data swaps the y and z of a z-up frame, which mirrors it; a proper turn to
    y-up, as here, has the other sign of z.
    """

    name, title, native_points = "uni3d", "Uni3D", 10000
    outer, rules = ("module", "state_dict"), RULES
    own_teacher, own_prompts = "EVA02-E-14-plus/laion2b_s9b_b144k", "ulip64"
    own_sizes = (("feature_width", 1024), ("width", 1024))  # of Uni3D-L

    def __init__(
        self,
        text=None,
        eva: str = "eva02_base_patch14_448",
        eva_sizes: Mapping | None = None,
        num_groups: int = 512,
        group_size: int = 64,
        encoder_width: int = 512,
        feature_width: int = 1024,
        flip_z: bool = True,
    ):
        super().__init__(feature_width, text)
        check_sizes(self.name, encoder_width, 1, num_groups=num_groups, group_size=group_size)
        words = f"timm has no such EVA; Uni3D's are {', '.join(EVA.values())}"
        check("baseline.model.eva", eva, timm.is_model(eva) and eva.startswith("eva"), words)
        try:
            visual: Any = timm.create_model(eva, pretrained=False, **(eva_sizes or {}))
        except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
            field = f"baseline.model.eva_sizes is {eva_sizes}"
            raise InputError(f"{field}: it does not fit {eva} ({brief(error)})") from error
        self.flip_z = flip_z
        self.width = width = visual.embed_dim
        sizes = num_groups, group_size, encoder_width, 6  # xyz and rgb
        self.transformer = PointTransformer(
            list(visual.blocks), visual.norm, width, ("cls",), *sizes, readd_positions=False
        )
        self.fc_norm = visual.fc_norm
        self.trans2embed = nn.Linear(width, feature_width)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict:
        width, encoder = state["transformer.reduce.weight"].shape
        known = {"eva": EVA[width]} if width in EVA else {}
        return known | {"encoder_width": encoder, "feature_width": len(state["trans2embed.weight"])}

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    def encode(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b e"]:
        if self.flip_z:
            clouds = clouds * clouds.new_tensor([1.0, 1.0, -1.0])
        return self.encode_coloured(nn.functional.pad(clouds, (0, 3), value=GREY))

    def encode_coloured(self, clouds: Float[Tensor, "b n 6"]) -> Float[Tensor, "b e"]:
        """Features of clouds of xyz in the model's own frame, and rgb from 0 to 1."""
        return self.trans2embed(self.fc_norm(self.transformer(clouds)[:, 0]))
