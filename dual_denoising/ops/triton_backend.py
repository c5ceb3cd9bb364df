"""Triton kernels of the point operations: float32, with the torch backend's choices but for ties.

Without fused multiply-add distances round as torch's do, bit for bit; of equals the first is taken,
where torch takes any neighbour. One
program serves a cloud (farthest points), a query (neighbours) or a pair of small sets (Chamfer)
from registers. On CPU tensors they run through Triton's interpreter, where TRITON_INTERPRET=1 was
set before this module is imported.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dual_denoising.errors import InputError
from dual_denoising.ops.torch_backend import counts


@triton.jit
def _length(dx, dy, dz, NORM: tl.constexpr):
    return dx * dx + dy * dy + dz * dz if NORM == 2 else tl.abs(dx) + tl.abs(dy) + tl.abs(dz)


@triton.jit
def farthest_kernel(points, counts, starts, chosen, size, wanted, BLOCK: tl.constexpr):
    """Farthest points of cloud ``program_id(0)``."""
    cloud = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK)
    exists = row < tl.load(counts + cloud)
    points += cloud * size * 3
    x = tl.load(points + 3 * row, mask=exists, other=0.0)
    y = tl.load(points + 3 * row + 1, mask=exists, other=0.0)
    z = tl.load(points + 3 * row + 2, mask=exists, other=0.0)
    nearest = tl.where(exists, float("inf"), -1.0)
    last = tl.load(starts + cloud).to(tl.int32)
    tl.store(chosen + cloud * wanted, last)
    for k in range(1, wanted):
        dx = x - tl.load(points + 3 * last)
        dy = y - tl.load(points + 3 * last + 1)
        dz = z - tl.load(points + 3 * last + 2)
        nearest = tl.minimum(nearest, _length(dx, dy, dz, 2))
        last = tl.argmax(nearest, 0)
        tl.store(chosen + cloud * wanted + k, last)


@triton.jit
def nearest_kernel(
    queries, points, counts, found, per_cloud, size, wanted, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    """Neighbours of query ``program_id(0)``, nearest first."""
    query = tl.program_id(0).to(tl.int64)
    cloud = query // per_cloud
    row = tl.arange(0, BLOCK)
    exists = row < tl.load(counts + cloud)
    points += cloud * size * 3
    dx = tl.load(points + 3 * row, mask=exists, other=0.0) - tl.load(queries + 3 * query)
    dy = tl.load(points + 3 * row + 1, mask=exists, other=0.0) - tl.load(queries + 3 * query + 1)
    dz = tl.load(points + 3 * row + 2, mask=exists, other=0.0) - tl.load(queries + 3 * query + 2)
    gap = _length(dx, dy, dz, NORM)
    gap = tl.where(exists & (gap == gap), gap, float("inf"))  # a NaN would win against any row
    for k in range(wanted):
        at = tl.argmin(gap, 0)
        tl.store(found + query * wanted + k, at)
        gap = tl.where(row == at, float("inf"), gap)


@triton.jit
def _pair_offsets(x, y, row, column, n, m, axis: tl.constexpr):
    """x_i − y_j of one coordinate, (N, M), 0 outside both sets."""
    a = tl.load(x + 3 * row + axis, mask=row < n, other=0.0)
    b = tl.load(y + 3 * column + axis, mask=column < m, other=0.0)
    return a[:, None] - b[None, :]


@triton.jit
def closest_kernel(
    x, y, x_counts, y_counts, x_gap, y_gap, x_to_y, y_to_x, n, m,
    NORM: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Distance and index of the nearest point of the other set, both ways, of one pair of sets."""
    pair = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, N), tl.arange(0, M)
    x += pair * n * 3
    y += pair * m * 3
    dx = _pair_offsets(x, y, row, column, n, m, 0)
    dy = _pair_offsets(x, y, row, column, n, m, 1)
    dz = _pair_offsets(x, y, row, column, n, m, 2)
    gap = _length(dx, dy, dz, NORM)
    x_exists, y_exists = row < tl.load(x_counts + pair), column < tl.load(y_counts + pair)
    exists = x_exists[:, None] & y_exists[None, :]
    gap = tl.where(exists & (gap == gap), gap, float("inf"))  # a NaN would win against any row
    tl.store(x_gap + pair * n + row, tl.min(gap, 1), mask=row < n)
    tl.store(y_gap + pair * m + column, tl.min(gap, 0), mask=column < m)
    tl.store(x_to_y + pair * n + row, tl.argmin(gap, 1), mask=row < n)
    tl.store(y_to_x + pair * m + column, tl.argmin(gap, 0), mask=column < m)


@triton.jit
def closest_backward_kernel(
    x, y, x_to_y, y_to_x, x_slope, y_slope, x_gradient, y_gradient, n, m,
    NORM: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Gradients of both sets of one pair, without atomics: the same sum in every run."""
    pair = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, N), tl.arange(0, M)
    nearest_y = tl.load(x_to_y + pair * n + row, mask=row < n, other=-1)
    nearest_x = tl.load(y_to_x + pair * m + column, mask=column < m, other=-1)
    x_slopes = tl.load(x_slope + pair * n + row, mask=row < n, other=0.0)
    y_slopes = tl.load(y_slope + pair * m + column, mask=column < m, other=0.0)
    weight = tl.where(nearest_y[:, None] == column[None, :], x_slopes[:, None], 0.0)
    weight += tl.where(nearest_x[None, :] == row[:, None], y_slopes[None, :], 0.0)
    x += pair * n * 3
    y += pair * m * 3
    x_gradient += pair * n * 3
    y_gradient += pair * m * 3
    for axis in tl.static_range(3):
        offset = _pair_offsets(x, y, row, column, n, m, axis)
        if NORM == 2:
            slope = tl.where(weight != 0, 2.0 * offset * weight, 0.0)  # padding may hold anything
        else:
            slope = tl.where(offset > 0, weight, tl.where(offset < 0, -weight, 0.0))
        tl.store(x_gradient + 3 * row + axis, tl.sum(slope, 1), mask=row < n)
        tl.store(y_gradient + 3 * column + axis, -tl.sum(slope, 0), mask=column < m)


INTERPRETED = not isinstance(farthest_kernel, triton.JITFunction)


def _block(size: int) -> int:
    return max(triton.next_power_of_2(size), 16)


def _launch(kernel, programs: int, elements: int, *args, **sizes) -> None:
    """One program per grid point, a warp for every 1024 of its elements; no fused multiply-add."""
    if not (args[0].is_cuda or INTERPRETED):
        raise InputError("backend is 'triton', but the points are on a CPU; choose torch or auto")
    warps = min(max(elements // 1024, 1), 16)
    with torch.cuda.device_of(args[0]):
        kernel[(programs,)](*args, **sizes, num_warps=warps, enable_fp_fusion=False)


def farthest_indices(points: Tensor, lengths: Tensor | None, starts: Tensor, wanted: int) -> Tensor:
    """Farthest points from ``starts`` (B,): (B, N, 3) -> indices (B, wanted)."""
    chosen = torch.empty(len(points), wanted, dtype=torch.long, device=points.device)
    block = _block(points.shape[1])
    _launch(
        farthest_kernel, len(points), 4 * block, points.contiguous(),
        counts(lengths, points.shape[1], points), starts, chosen, points.shape[1], wanted,
        BLOCK=block,
    )  # fmt: skip
    return chosen


def nearest_indices(
    p1: Tensor, p2: Tensor, lengths: Tensor | None, wanted: int, norm: int, ordered: bool = True
) -> Tensor:
    """(B, P, 3), (B, M, 3), lengths of the second -> indices (B, P, wanted), nearest first."""
    found = torch.empty(*p1.shape[:2], wanted, dtype=torch.long, device=p1.device)
    block = _block(p2.shape[1])
    _launch(
        nearest_kernel, p1.shape[0] * p1.shape[1], block, p1.contiguous(), p2.contiguous(),
        counts(lengths, p2.shape[1], p2), found, p1.shape[1], p2.shape[1], wanted, NORM=norm,
        BLOCK=block,
    )  # fmt: skip
    return found


def closest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, N, 3), (B, M, 3) -> distances (B, N), (B, M) to the nearest and indices, both ways."""
    ways = [x.new_empty(points.shape[:2]) for points in (x, y)]
    ways += [torch.empty(gap.shape, dtype=torch.long, device=x.device) for gap in ways]
    sizes = [_block(points.shape[1]) for points in (x, y)]
    _launch(
        closest_kernel, len(x), sizes[0] * sizes[1], x.contiguous(), y.contiguous(),
        counts(x_lengths, x.shape[1], x), counts(y_lengths, y.shape[1], y), *ways, x.shape[1],
        y.shape[1], NORM=norm, N=sizes[0], M=sizes[1],
    )  # fmt: skip
    return tuple(ways)


def closest_backward(
    x: Tensor,
    y: Tensor,
    x_to_y: Tensor,
    y_to_x: Tensor,
    x_slope: Tensor,
    y_slope: Tensor,
    norm: int,
) -> tuple[Tensor, Tensor]:
    """Gradients (B, N, 3), (B, M, 3) of the distances times their slopes (B, N), (B, M)."""
    gradients = torch.empty(x.shape, device=x.device), torch.empty(y.shape, device=y.device)
    sizes = [_block(points.shape[1]) for points in (x, y)]
    tensors = (x, y, x_to_y, y_to_x, x_slope, y_slope)
    _launch(
        closest_backward_kernel, len(x), sizes[0] * sizes[1], *(t.contiguous() for t in tensors),
        *gradients, x.shape[1], y.shape[1], NORM=norm, N=sizes[0], M=sizes[1],
    )  # fmt: skip
    return gradients
