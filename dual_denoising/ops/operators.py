"""The searches behind the point operations as torch operators, served by torch or by Triton.

Each is one opaque call to torch.compile; indices carry no gradient, distances of ``closest`` do.
"""

from __future__ import annotations

import torch

from dual_denoising.ops import torch_backend as torch_ops


@torch.library.custom_op(
    "dual_denoising::farthest_indices",
    mutates_args=(),
    schema="(Tensor points, Tensor? lengths, Tensor? starts, int wanted, bool triton) -> Tensor",
)
def farthest_indices(points, lengths, starts, wanted, triton):
    """Farthest points from ``starts`` (B,), 0 if None: (B, N, D) -> indices (B, wanted)."""
    if not len(points) or not wanted:
        return torch.empty(len(points), wanted, dtype=torch.long, device=points.device)
    if starts is None:
        starts = torch.zeros(len(points), dtype=torch.long, device=points.device)
    return _served(triton).farthest_indices(points, lengths, starts, wanted)


@farthest_indices.register_fake
def _(points, lengths, starts, wanted, triton):
    return points.new_empty((len(points), wanted), dtype=torch.long)


@torch.library.custom_op(
    "dual_denoising::nearest_indices",
    mutates_args=(),
    schema="(Tensor p1, Tensor p2, Tensor? lengths, int wanted, int norm, bool ordered, "
    "bool triton) -> Tensor",
)
def nearest_indices(p1, p2, lengths, wanted, norm, ordered, triton):
    """(B, P, D), (B, M, D), lengths of the second -> indices (B, P, wanted)."""
    if not p1.shape[0] * p1.shape[1] * wanted:
        return torch.empty(*p1.shape[:2], wanted, dtype=torch.long, device=p1.device)
    return _served(triton).nearest_indices(p1, p2, lengths, wanted, norm, ordered)


@nearest_indices.register_fake
def _(p1, p2, lengths, wanted, norm, ordered, triton):
    return p1.new_empty((*p1.shape[:2], wanted), dtype=torch.long)


@torch.library.custom_op(
    "dual_denoising::closest",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor? x_lengths, Tensor? y_lengths, int norm, bool triton) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def closest(x, y, x_lengths, y_lengths, norm, triton):
    """(B, N, D), (B, M, D) -> distances (B, N), (B, M) to the nearest and indices, both ways."""
    return _served(triton).closest(x, y, x_lengths, y_lengths, norm)


@closest.register_fake
def _(x, y, x_lengths, y_lengths, norm, triton):
    gaps = x.new_empty(x.shape[:2]), y.new_empty(y.shape[:2])
    return *gaps, *(torch.empty_like(gap, dtype=torch.long) for gap in gaps)


def _keep_for_backward(ctx, inputs, output) -> None:
    x, y, _, _, ctx.norm, ctx.triton = inputs
    ctx.save_for_backward(x, y, output[2], output[3])
    ctx.mark_non_differentiable(output[2], output[3])


def _closest_backward(ctx, x_slope, y_slope, *_):
    again = torch.is_grad_enabled()  # create_graph: torch's operations have gradients of their own
    make = closest_gradients if ctx.triton and not again else torch_ops.closest_backward
    return *make(*ctx.saved_tensors, x_slope, y_slope, ctx.norm), None, None, None, None


closest.register_autograd(_closest_backward, setup_context=_keep_for_backward)


@torch.library.custom_op(
    "dual_denoising::closest_gradients",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor x_to_y, Tensor y_to_x, Tensor x_slope, Tensor y_slope, "
    "int norm) -> (Tensor, Tensor)",
)
def closest_gradients(x, y, x_to_y, y_to_x, x_slope, y_slope, norm):
    """Gradients (B, N, 3), (B, M, 3) of Triton's distances; torch's are torch's operations."""
    return _served(True).closest_backward(x, y, x_to_y, y_to_x, x_slope, y_slope, norm)


@closest_gradients.register_fake
def _(x, y, x_to_y, y_to_x, x_slope, y_slope, norm):
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _served(triton: bool):
    if not triton:
        return torch_ops
    from dual_denoising import triton_ops  # where triton is not installed nobody asks for it

    return triton_ops
