"""The searches as torch operators, served by the torch or the Triton backend.

Each is one opaque call to torch.compile. Indices carry no gradient, distances of ``closest`` do.
"""

from __future__ import annotations

from typing import Any

import torch

from dual_denoising.ops import torch_backend

NAME = "dual_denoising::"


def _backend(triton: bool):
    if not triton:
        return torch_backend
    from dual_denoising.ops import triton_backend  # never asked for where Triton is missing

    return triton_backend


@torch.library.custom_op(
    NAME + "farthest_indices",
    mutates_args=(),
    schema="(Tensor points, int wanted, bool triton) -> Tensor",
)
def farthest_indices(points, wanted, triton):
    """Farthest points from point 0: (B, N, D) -> indices (B, wanted)."""
    if not len(points) or not wanted:
        return torch.empty(len(points), wanted, dtype=torch.long, device=points.device)
    return _backend(triton).farthest_indices(points, wanted)


@farthest_indices.register_fake
def _(points, wanted, triton):
    return points.new_empty((len(points), wanted), dtype=torch.long)


@torch.library.custom_op(
    NAME + "nearest_indices",
    mutates_args=(),
    schema="(Tensor p1, Tensor p2, int wanted, bool ordered, bool triton) -> Tensor",
)
def nearest_indices(p1, p2, wanted, ordered, triton):
    """Neighbours of the first cloud's points in the second: -> indices (B, P, wanted)."""
    if not p1.shape[0] * p1.shape[1] * wanted:
        return torch.empty(*p1.shape[:2], wanted, dtype=torch.long, device=p1.device)
    return _backend(triton).nearest_indices(p1, p2, wanted, ordered)


@nearest_indices.register_fake
def _(p1, p2, wanted, ordered, triton):
    return p1.new_empty((*p1.shape[:2], wanted), dtype=torch.long)


@torch.library.custom_op(
    NAME + "closest",
    mutates_args=(),
    schema="(Tensor x, Tensor y, bool triton) -> (Tensor, Tensor, Tensor, Tensor)",
)
def closest(x, y, triton):
    """Squared distances (B, N), (B, M) to the nearest point of the other cloud, and its index."""
    return _backend(triton).closest(x, y)


@closest.register_fake
def _(x, y, triton):
    gaps = x.new_empty(x.shape[:2]), y.new_empty(y.shape[:2])
    return *gaps, *(torch.empty_like(gap, dtype=torch.long) for gap in gaps)


def _keep_for_backward(ctx, inputs, output) -> None:
    x, y, ctx.triton = inputs
    ctx.save_for_backward(x, y, output[2], output[3])
    ctx.mark_non_differentiable(output[2], output[3])


def _closest_backward(ctx, x_slope, y_slope, *_):
    twice = torch.is_grad_enabled()  # create_graph: torch's operations have gradients of their own
    make: Any = closest_gradients if ctx.triton and not twice else torch_backend.closest_backward
    return *make(*ctx.saved_tensors, x_slope, y_slope), None


closest.register_autograd(_closest_backward, setup_context=_keep_for_backward)


@torch.library.custom_op(
    NAME + "closest_gradients",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor x_to_y, Tensor y_to_x, Tensor x_slope, Tensor y_slope) "
    "-> (Tensor, Tensor)",
)
def closest_gradients(x, y, x_to_y, y_to_x, x_slope, y_slope):
    """Gradients (B, N, 3), (B, M, 3) of Triton's distances."""
    return _backend(True).closest_backward(x, y, x_to_y, y_to_x, x_slope, y_slope)


@closest_gradients.register_fake
def _(x, y, x_to_y, y_to_x, x_slope, y_slope):
    return x.new_empty(x.shape), y.new_empty(y.shape)
