"""The two kinds of transformer block of Fig. 6, on timm's and torch's attention and MLP."""

import math

import torch
from timm.layers import DropPath, Mlp
from timm.layers.attention import Attention
from torch import Tensor, nn


class AdaLNZeroBlock(nn.Module):
    """Pre-norm block conditioned on the timestep: the identity when training begins (DiT)."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.modulation = Modulation(width, 6)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, G, D), or of the V visible tokens; condition: (B, D) -> the shape of x."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition[:, None])
        x = x + self.drop_path(gate1 * self.attention(modulate(self.norm1(x), shift1, scale1)))
        return x + self.drop_path(gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2)))


class CrossAttentionBlock(nn.Module):
    """Feature tokens attend to point tokens, then pass an AdaLN-Zero MLP conditioned on their type.

    The cross-attention has no gate: with a gate of zero the branch would first see no cloud.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_query = nn.LayerNorm(width, eps=1e-6)
        self.norm_points = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.modulation = Modulation(width, 3)

    def forward(self, x: Tensor, points: Tensor, condition: Tensor) -> Tensor:
        """x: (B, S·F, D), points: (B, V, D), condition: (S·F, D) -> (B, S·F, D)."""
        points = self.norm_points(points)
        attended, _ = self.attention(self.norm_query(x), points, points, need_weights=False)
        x = x + attended
        shift, scale, gate = self.modulation(condition)
        return x + gate * self.mlp(modulate(self.norm_mlp(x), shift, scale))


class Modulation(nn.Module):
    """SiLU, then a Linear that starts at zero: condition (..., D) -> ``parts`` × (..., D)."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(nn.functional.silu(condition)).chunk(self.parts, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN's affine map; a shift and a scale of zero leave x as it is."""
    return x * (1 + scale) + shift


class TimestepEmbedder(nn.Module):
    """256 sinusoids, then an MLP, as in DiT: integer timesteps (B,) -> (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        rates = torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
        self.rates = nn.Buffer(rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep[:, None].to(self.rates.dtype) * self.rates
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


def position_mlp(width: int) -> nn.Sequential:
    """Coordinates (..., 3) of the centres -> position embeddings (..., D)."""
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))


def initialise(module: nn.Module) -> None:
    """Xavier for linear layers, zero for biases and modulations, as DiT starts its blocks."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, Modulation):
            nn.init.zeros_(part.linear.weight)
