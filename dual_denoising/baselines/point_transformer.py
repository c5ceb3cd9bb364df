"""The Point-BERT encoder that ReCon, ULIP and Uni3D share, and what each does in its own way."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dual_denoising.model.blocks import position_mlp
from dual_denoising.ops import knn_gather, knn_indices, sample_farthest_points

NEAR_ORIGIN = 1e-3  # squared length up to which pointnet2_ops' sampling passes a point over


class MiniPointNet(nn.Module):
    """Features of groups by two shared perceptrons and maxima: (B, G, K, channels) -> (B, G, D)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(channels, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, width, 1)
        )

    def forward(self, groups: Float[Tensor, "b g k c"]) -> Float[Tensor, "b g d"]:
        x = self.first_conv(groups.flatten(0, 1).transpose(1, 2))  # (B·G, 256, K)
        whole = x.amax(2, keepdim=True).expand_as(x)
        x = self.second_conv(torch.cat([whole, x], 1))  # the group's own half comes first
        return x.amax(2).unflatten(0, groups.shape[:2])


def group(
    clouds: Float[Tensor, "b n c"], num_groups: int, group_size: int
) -> tuple[Float[Tensor, "b g 3"], Float[Tensor, "b g k c"]]:
    """Centres, and their nearest points relative to them with further channels as they are.

    Farthest points and neighbours are searched in xyz and carry gradients. As in the compiled op of
    these models, the sampling starts at index 0 and takes no point within NEAR_ORIGIN of the
    origin. Here such points are moved onto the first one, so that their distance stays 0.
    """
    xyz = clouds[..., :3].detach()
    near = xyz.square().sum(-1, keepdim=True) <= NEAR_ORIGIN
    _, indices = sample_farthest_points(torch.where(near, xyz[:, :1], xyz), K=num_groups)
    centers = knn_gather(clouds[..., :3], indices[:, None])[:, 0]  # (B, G, 3)
    neighbours = knn_indices(centers, xyz, group_size, return_sorted=False)
    groups = knn_gather(clouds, neighbours)  # (B, G, K, channels)
    offset = nn.functional.pad(centers, (0, clouds.shape[-1] - 3))  # colours are left as they are
    return centers, groups - offset[:, :, None]


class PointTransformer(nn.Module):
    """Special tokens and groups through a transformer: clouds (B, N, channels) -> normed features
    (B, special + G, D).

    blocks: of the system's own kind. special: names of the tokens in front, each with a position.
    encoder_width: of the group features where a linear layer follows them, None where none does.
    readd_positions: positions join the stream again before every block (Point-BERT), or once (ViT).
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        width: int,
        special: Sequence[str],
        num_groups: int,
        group_size: int,
        encoder_width: int | None,
        channels: int = 3,
        readd_positions: bool = True,
    ):
        super().__init__()
        self.num_groups, self.group_size = num_groups, group_size
        self.readd_positions = readd_positions
        self.encoder = MiniPointNet(channels, encoder_width or width)
        self.reduce = nn.Linear(encoder_width, width) if encoder_width else nn.Identity()
        self.pos_embed = position_mlp(width)
        start = {name: torch.randn(2, 1, 1, width) * 0.02 for name in special}
        self.tokens = nn.ParameterDict({name: x[0] for name, x in start.items()})
        self.positions = nn.ParameterDict({name: x[1] for name, x in start.items()})
        self.blocks, self.norm = nn.ModuleList(blocks), norm

    def forward(self, clouds: Float[Tensor, "b n c"]) -> Float[Tensor, "b t d"]:
        centers, groups = group(clouds, self.num_groups, self.group_size)
        tokens = self.reduce(self.encoder(groups))  # (B, G, D)
        x = self._with_special(self.tokens, tokens)  # (B, special + G, D)
        positions = self._with_special(self.positions, self.pos_embed(centers))
        if not self.readd_positions:
            x = x + positions
        for block in self.blocks:
            x = block(x + positions if self.readd_positions else x)
        return self.norm(x)

    def _with_special(self, special: nn.ParameterDict, rest: Tensor) -> Tensor:
        return torch.cat([x.expand(len(rest), -1, -1) for x in special.values()] + [rest], 1)
