"""The paper's losses, one function each."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dual_denoising.ops import chamfer_distance


def point_loss(
    rebuilt: Float[Tensor, "b g k 3"], clean: Float[Tensor, "b g k 3"]
) -> Float[Tensor, " b"]:
    """L_p^t: Chamfer-L2 of each token, mean over a cloud's tokens: (B, G, K, 3) twice -> (B,)."""
    distance, _ = chamfer_distance(rebuilt.flatten(0, 1), clean.flatten(0, 1), batch_reduction=None)
    return distance.view(rebuilt.shape[:2]).mean(1)


def point_weight(sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """λ_t = 1/(1 + σ_t²), Section 3.1."""
    return 1 / (1 + sigma.square())


def feature_loss(
    predicted: Float[Tensor, "b f e"], teacher: Float[Tensor, "b f e"]
) -> Float[Tensor, ""]:
    """L_f: Smooth-L1 (β = 1) to the positive pair only, mean over clouds and feature types."""
    return functional.smooth_l1_loss(predicted.float(), teacher.float())
