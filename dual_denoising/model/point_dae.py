"""PointDAE, the upper branch: noisy tokens -> features of every layer -> clean tokens (Fig. 5)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dual_denoising.model.blocks import AdaLNZeroBlock, TimestepEmbedder, initialise, position_mlp
from dual_denoising.model.tokens import Tokens


class PointDAE(nn.Module):
    """Point denoising autoencoder: a ViT-like encoder and decoder of AdaLN-Zero blocks."""

    def __init__(
        self,
        width: int,
        heads: int,
        encoder_depth: int,
        decoder_depth: int,
        group_size: int,
        token_widths: Sequence[int],
        token_norm: str,
        drop_path: float,
    ):
        super().__init__()
        self.group_size = group_size
        self.timestep = TimestepEmbedder(width)
        self.tokenizer = MiniPointNet(width, token_widths, token_norm)
        self.encoder_position = position_mlp(width)
        rates = torch.linspace(0, drop_path, encoder_depth).tolist()
        self.encoder = nn.ModuleList(AdaLNZeroBlock(width, heads, rate) for rate in rates)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder_position = position_mlp(width)
        self.decoder = nn.ModuleList(
            AdaLNZeroBlock(width, heads, drop_path) for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3 * group_size)
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(self, noisy: Tokens, merged: Tensor) -> list[Tensor]:
        """Noisy tokens and merged timesteps t' (B,) -> features (B, V, D) after each of L blocks.

        Positions are those of the noisy centres: clean ones would give the answer away.
        """
        condition = self.timestep(merged)  # (B, D)
        position = self.encoder_position(noisy.centers)  # (B, V, D)
        x, layers = self.tokenizer(noisy.points), []
        for block in self.encoder:
            x = block(x + position, condition)
            layers.append(x)
        return layers

    def decode(self, latent: Tensor, centers: Tensor, merged: Tensor) -> Tensor:
        """Features (B, V, D) of the first V tokens, all noisy centres (B, G, 3) -> (B, G, K, 3).

        The rebuilt points are relative to the clean centres. V = G except in masked training, where
        mask tokens stand for the hidden ones.
        """
        condition = self.timestep(merged)  # (B, D)
        position = self.decoder_position(centers)  # (B, G, D)
        hidden = self.mask_token.expand(len(latent), centers.shape[1] - latent.shape[1], -1)
        x = torch.cat([latent, hidden.to(latent.dtype)], dim=1)  # (B, G, D)
        for block in self.decoder:
            x = block(x + position, condition)
        return self.head(self.norm(x)).unflatten(-1, (self.group_size, 3))  # (B, G, K, 3)


class MiniPointNet(nn.Module):
    """Points of each token (B, G, K, 3) -> its embedding (B, G, D), invariant to their order.

    3→w0→w1, maximum, [maximum, point]→w2→D, maximum (Point-BERT). The layer after the concatenation
    is computed as the sum of two, so that the maximum's half runs once per token, not per point.
    """

    def __init__(self, width: int, widths: Sequence[int], norm: str):
        super().__init__()
        w0, w1, w2 = widths
        self.local = nn.Sequential(
            nn.Linear(3, w0), point_norm(norm, w0), nn.ReLU(inplace=True), nn.Linear(w0, w1)
        )
        self.mix_point = nn.Linear(w1, w2)
        self.mix_token = nn.Linear(w1, w2, bias=False)
        self.head = nn.Sequential(point_norm(norm, w2), nn.ReLU(inplace=True), nn.Linear(w2, width))

    def forward(self, points: Tensor) -> Tensor:
        shape = points.shape[:3]  # (B, G, K)
        local = self.local(points.flatten(0, 2))  # (B·G·K, w1)
        token = largest(local.unflatten(0, shape))  # (B, G, w1)
        mixed = self.mix_point(local).unflatten(0, shape) + self.mix_token(token)[:, :, None]
        return largest(self.head(mixed.flatten(0, 2)).unflatten(0, shape))  # (B, G, D)


def largest(x: Tensor) -> Tensor:
    """Maximum over the points of each token: (B, G, K, channels) -> (B, G, channels).

    On a CPU by pooling, whose gradient is four times as fast as that of ``amax``. Where points tie
    it goes to the first of them.
    """
    if x.is_cuda:
        return x.amax(2)
    pooled = nn.functional.max_pool2d(x.permute(0, 3, 1, 2), (1, x.shape[2]))  # (B, ·, G, 1)
    return pooled.permute(0, 2, 3, 1).flatten(2)


def point_norm(kind: str, channels: int) -> nn.Module:
    """BatchNorm or LayerNorm of rows (points, channels), under the name that checkpoints have."""
    norm = nn.BatchNorm1d(channels) if kind == "batch" else nn.LayerNorm(channels)
    return nn.Sequential(OrderedDict(norm=norm))
