"""Feature denoising, the lower branch: Gaussian tokens -> CLIP features (Section 3.2)."""

import torch
from torch import Tensor, nn

from dual_denoising import keyed_random
from dual_denoising.model.blocks import CrossAttentionBlock, initialise


class FeatureDenoiser(nn.Module):
    """One noise token per feature type, led to CLIP's features by the encoder's layers.

    noise_std: standard deviation of the initial weights of a learned projection of ε₂; None: a
    fixed projection, whose tokens stay N(0, 1). read_gain: factor on the initial output weights of
    the cross-attention, through which the tokens read the cloud. learned_tokens: parameters in
    place of the noise (the paper's ablation).
    """

    def __init__(
        self,
        width: int,
        attention_heads: int,
        depth: int,
        num_types: int,
        feature_width: int,
        noise_std: float | None,
        read_gain: float,
        learned_tokens: bool,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, attention_heads) for _ in range(depth)
        )
        self.types = nn.Embedding(num_types, width)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, feature_width) for _ in range(num_types))
        self.feature_width = feature_width
        initialise(self)
        for block in self.blocks:
            block.get_parameter("attention.out_proj.weight").data *= read_gain
        self.learned_tokens, self.fixed = learned_tokens, noise_std is None
        if learned_tokens:
            self.learned = nn.Parameter(torch.randn(num_types, width) * 0.02)
        elif noise_std is None:
            rows = nn.init.orthogonal_(torch.empty(width, feature_width))  # (D, E)
            self.held_projection = nn.Buffer(nn.functional.normalize(rows, dim=1))
        else:
            self.noise_projection = nn.Linear(feature_width, width)
            nn.init.normal_(self.noise_projection.weight, std=noise_std)
            nn.init.zeros_(self.noise_projection.bias)

    def forward(self, epsilon: Tensor, layers: list[Tensor]) -> Tensor:
        """ε₂ (B, S, F, E) and the encoder's L layers (B, V, D) -> features (B, S, F, E).

        All S·F tokens of a cloud attend to the same point tokens, and not to one another.
        """
        _, s, f, _ = epsilon.shape
        x = self.tokens(epsilon).flatten(1, 2)  # (B, S·F, D)
        condition = self.types.weight.repeat(s, 1)  # (S·F, D)
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, layer, condition)
        x = self.norm(x).unflatten(1, (s, f))  # (B, S, F, D)
        return torch.stack([head(x[:, :, i]) for i, head in enumerate(self.heads)], dim=2)

    @torch.no_grad()
    def token_std(self) -> float:
        """Standard deviation of the first tokens over 1000 draws of ε₂, types and channels."""
        clouds = torch.arange(1000, device=self.types.weight.device)
        keys = keyed_random.path_keys(0, clouds, 1)  # (1000, 1)
        epsilon = keyed_random.gaussian(keys, len(self.heads), self.feature_width)
        return float(self.tokens(epsilon).std())

    def tokens(self, epsilon: Tensor) -> Tensor:
        """ε₂ (B, S, F, E) -> the tokens that the blocks start from (B, S, F, D)."""
        if self.learned_tokens:
            return self.learned.expand(*epsilon.shape[:2], -1, -1)
        if self.fixed:
            return epsilon @ self.held_projection.T
        return self.noise_projection(epsilon)
