"""Feature denoising, the lower branch: Gaussian tokens -> CLIP features (Section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dual_denoising.model.blocks import CrossAttentionBlock, initialise


class FeatureDenoiser(nn.Module):
    """One noise token per feature type, led to CLIP's features by the encoder's layers.

    noise_std: initial standard deviation of the weights through which the noise enters; training
    changes it. learned_tokens: parameters in place of the noise (the paper's ablation).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        feature_types: int,
        feature_width: int,
        noise_std: float,
        learned_tokens: bool,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, heads) for _ in range(depth))
        self.types = nn.Embedding(feature_types, width)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, feature_width) for _ in range(feature_types))
        initialise(self)
        self.learned_tokens = learned_tokens
        if learned_tokens:
            self.learned = nn.Parameter(torch.randn(feature_types, width) * 0.02)
        else:
            self.noise_projection = nn.Linear(feature_width, width)
            nn.init.normal_(self.noise_projection.weight, std=noise_std)
            nn.init.zeros_(self.noise_projection.bias)

    def forward(self, noise: Tensor, layers: list[Tensor]) -> Tensor:
        """ε₂ (B, S, F, E) and the encoder's L layers (B, G, D) -> features (B, S, F, E).

        All S·F tokens of a cloud share its keys and values. They do not see one another.
        """
        b, s, f, _ = noise.shape
        if self.learned_tokens:
            x = self.learned.expand(b, s, -1, -1)  # (B, S, F, D)
        else:
            x = self.noise_projection(noise)  # (B, S, F, D)
        x = x.flatten(1, 2)  # (B, S·F, D)
        condition = self.types.weight.repeat(s, 1)  # (S·F, D)
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, layer, condition)
        x = self.norm(x).unflatten(1, (s, f))  # (B, S, F, D)
        return torch.stack([head(x[:, :, i]) for i, head in enumerate(self.heads)], dim=2)
