"""Triton kernels of the point operations, for float32 points in space.

They choose what the torch backend chooses, but for ties: of equal distances the first point is
taken. Without fused multiply-add distances round as torch's do, bit for bit. One program serves a
cloud (farthest points), a query (neighbours) or a pair of small sets (Chamfer) from registers. With
TRITON_INTERPRET=1 set before this module is imported, the kernels run on CPU tensors, slowly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dual_denoising.errors import InputError


@triton.jit
def farthest_kernel(points, chosen, size, wanted, BLOCK: tl.constexpr):
    """Farthest points of cloud ``program_id(0)``."""
    cloud = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK)
    exists = row < size
    points += cloud * size * 3
    x = tl.load(points + 3 * row, mask=exists, other=0.0)
    y = tl.load(points + 3 * row + 1, mask=exists, other=0.0)
    z = tl.load(points + 3 * row + 2, mask=exists, other=0.0)
    nearest = tl.where(exists, float("inf"), -1.0)
    last = tl.zeros((), tl.int32)
    tl.store(chosen + cloud * wanted, last)
    for k in range(1, wanted):
        dx = x - tl.load(points + 3 * last)
        dy = y - tl.load(points + 3 * last + 1)
        dz = z - tl.load(points + 3 * last + 2)
        nearest = tl.minimum(nearest, dx * dx + dy * dy + dz * dz)
        last = tl.argmax(nearest, 0)
        tl.store(chosen + cloud * wanted + k, last)


@triton.jit
def nearest_kernel(queries, points, found, per_cloud, size, wanted, BLOCK: tl.constexpr):
    """Neighbours of query ``program_id(0)``, nearest first."""
    query = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK)
    exists = row < size
    points += query // per_cloud * size * 3
    dx = tl.load(points + 3 * row, mask=exists, other=0.0) - tl.load(queries + 3 * query)
    dy = tl.load(points + 3 * row + 1, mask=exists, other=0.0) - tl.load(queries + 3 * query + 1)
    dz = tl.load(points + 3 * row + 2, mask=exists, other=0.0) - tl.load(queries + 3 * query + 2)
    gap = dx * dx + dy * dy + dz * dz
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
def closest_kernel(x, y, x_gap, y_gap, x_to_y, y_to_x, n, m, N: tl.constexpr, M: tl.constexpr):
    """Squared distance to the nearest point of the other cloud, and its index, of one pair."""
    pair = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, N), tl.arange(0, M)
    x += pair * n * 3
    y += pair * m * 3
    dx = _pair_offsets(x, y, row, column, n, m, 0)
    dy = _pair_offsets(x, y, row, column, n, m, 1)
    dz = _pair_offsets(x, y, row, column, n, m, 2)
    gap = dx * dx + dy * dy + dz * dz
    exists = (row < n)[:, None] & (column < m)[None, :]
    gap = tl.where(exists & (gap == gap), gap, float("inf"))  # a NaN would win against any row
    tl.store(x_gap + pair * n + row, tl.min(gap, 1), mask=row < n)
    tl.store(y_gap + pair * m + column, tl.min(gap, 0), mask=column < m)
    tl.store(x_to_y + pair * n + row, tl.argmin(gap, 1), mask=row < n)
    tl.store(y_to_x + pair * m + column, tl.argmin(gap, 0), mask=column < m)


@triton.jit
def closest_backward_kernel(
    x, y, x_to_y, y_to_x, x_slope, y_slope, x_grad, y_grad, n, m, N: tl.constexpr, M: tl.constexpr
):
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
    x_grad += pair * n * 3
    y_grad += pair * m * 3
    for axis in tl.static_range(3):
        offset = _pair_offsets(x, y, row, column, n, m, axis)
        slope = tl.where(weight != 0, 2.0 * offset * weight, 0.0)
        tl.store(x_grad + 3 * row + axis, tl.sum(slope, 1), mask=row < n)
        tl.store(y_grad + 3 * column + axis, -tl.sum(slope, 0), mask=column < m)


INTERPRETED = not isinstance(farthest_kernel, triton.JITFunction)


def farthest_indices(points: Tensor, wanted: int) -> Tensor:
    """As torch_backend's: (B, N, 3) -> indices (B, wanted)."""
    chosen = torch.empty(len(points), wanted, dtype=torch.long, device=points.device)
    size, block = points.shape[1], _block(points.shape[1])
    args = points.contiguous(), chosen, size, wanted
    _launch(farthest_kernel, len(points), 4 * block, *args, BLOCK=block)
    return chosen


def nearest_indices(p1: Tensor, p2: Tensor, wanted: int, ordered: bool = True) -> Tensor:
    """As torch_backend's, always nearest first: (B, P, 3), (B, M, 3) -> indices (B, P, wanted)."""
    found = torch.empty(*p1.shape[:2], wanted, dtype=torch.long, device=p1.device)
    queries, size, block = p1.shape[0] * p1.shape[1], p2.shape[1], _block(p2.shape[1])
    args = p1.contiguous(), p2.contiguous(), found, p1.shape[1], size, wanted
    _launch(nearest_kernel, queries, block, *args, BLOCK=block)
    return found


def closest(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """As torch_backend's, of sets of at most LARGEST_SET points."""
    ways = [points.new_empty(points.shape[:2]) for points in (x, y)]
    ways += [torch.empty_like(gap, dtype=torch.long) for gap in ways]
    n, m = _block(x.shape[1]), _block(y.shape[1])
    args = x.contiguous(), y.contiguous(), *ways, x.shape[1], y.shape[1]
    _launch(closest_kernel, len(x), n * m, *args, N=n, M=m)
    return tuple(ways)


def closest_backward(
    x: Tensor, y: Tensor, x_to_y: Tensor, y_to_x: Tensor, x_slope: Tensor, y_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """As torch_backend's."""
    gradients = torch.empty(x.shape, device=x.device), torch.empty(y.shape, device=y.device)
    tensors = [t.contiguous() for t in (x, y, x_to_y, y_to_x, x_slope, y_slope)]
    n, m = _block(x.shape[1]), _block(y.shape[1])
    args = *tensors, *gradients, x.shape[1], y.shape[1]
    _launch(closest_backward_kernel, len(x), n * m, *args, N=n, M=m)
    return gradients


def _block(size: int) -> int:
    return max(triton.next_power_of_2(size), 16)


def _launch(kernel, programs: int, elements: int, *args, **sizes) -> None:
    """Starts the programs, each with a warp for 1024 elements, and without fused multiply-add."""
    if not (args[0].is_cuda or INTERPRETED):
        raise InputError("backend is 'triton', but the points are on a CPU; choose torch or auto")
    warps = min(max(elements // 1024, 1), 16)
    with torch.cuda.device_of(args[0]):
        kernel[(programs,)](*args, **sizes, num_warps=warps, enable_fp_fusion=False)
