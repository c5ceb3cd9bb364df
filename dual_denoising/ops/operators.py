"""Farthest points, neighbours and Chamfer as torch operators, each served by a backend.

Each is one opaque call to torch.compile. Indices carry no gradient, distances of ``closest`` do.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from dual_denoising.ops import torch_backend


def _module(backend: str) -> Any:
    """torch, triton or pytorch3d; a module is imported where its backend is asked for."""
    return importlib.import_module(f"dual_denoising.ops.{backend}_backend")


@torch.library.custom_op("dual_denoising::farthest_indices", mutates_args=())
def farthest_indices(points: Tensor, wanted: int, backend: str) -> Tensor:
    """Farthest points, starting at point 0: (B, N, D) -> indices (B, wanted)."""
    if not len(points) or not wanted:
        return torch.empty(len(points), wanted, dtype=torch.long, device=points.device)
    return _module(backend).farthest_indices(points, wanted)


@farthest_indices.register_fake
def _(points, wanted, backend):
    return points.new_empty((len(points), wanted), dtype=torch.long)


@torch.library.custom_op("dual_denoising::nearest_indices", mutates_args=())
def nearest_indices(p1: Tensor, p2: Tensor, wanted: int, ordered: bool, backend: str) -> Tensor:
    """Neighbours of the first cloud's points in the second: -> indices (B, P, wanted)."""
    if not p1.shape[0] * p1.shape[1] * wanted:
        return torch.empty(*p1.shape[:2], wanted, dtype=torch.long, device=p1.device)
    return _module(backend).nearest_indices(p1, p2, wanted, ordered)


@nearest_indices.register_fake
def _(p1, p2, wanted, ordered, backend):
    return p1.new_empty((*p1.shape[:2], wanted), dtype=torch.long)


@torch.library.custom_op("dual_denoising::closest", mutates_args=())
def closest(x: Tensor, y: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distances (B, N), (B, M) to the nearest point of the other cloud, and its index."""
    return _module(backend).closest(x, y)


@closest.register_fake
def _(x, y, backend):
    gaps = x.new_empty(x.shape[:2]), y.new_empty(y.shape[:2])
    return *gaps, *(torch.empty_like(gap, dtype=torch.long) for gap in gaps)


def _keep_for_backward(ctx, inputs, output) -> None:
    x, y, ctx.backend = inputs
    ctx.save_for_backward(x, y, output[2], output[3])
    ctx.mark_non_differentiable(output[2], output[3])


def _closest_backward(ctx, x_slope, y_slope, *_):
    twice = torch.is_grad_enabled()  # create_graph: torch's operations have gradients of their own
    by_triton = ctx.backend == "triton" and not twice
    make: Any = closest_gradients if by_triton else torch_backend.closest_backward
    return *make(*ctx.saved_tensors, x_slope, y_slope), None


closest.register_autograd(_closest_backward, setup_context=_keep_for_backward)


@torch.library.custom_op("dual_denoising::closest_gradients", mutates_args=())
def closest_gradients(
    x: Tensor, y: Tensor, x_to_y: Tensor, y_to_x: Tensor, x_slope: Tensor, y_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients (B, N, 3), (B, M, 3) of Triton's distances."""
    return _module("triton").closest_backward(x, y, x_to_y, y_to_x, x_slope, y_slope)


@closest_gradients.register_fake
def _(x, y, x_to_y, y_to_x, x_slope, y_slope):
    return x.new_empty(x.shape), y.new_empty(y.shape)
