"""Farthest points, nearest neighbours and Chamfer in plain torch, on any device.

Distances are summed coordinate by coordinate, in pieces that a CPU's cache holds: the expanded form
|a|² − 2ab + |b|² loses the neighbours of close points.
"""

import torch
from torch import Tensor

AT_ONCE = {False: 2**19, True: 2**28}  # distances in one piece: CPU (cache), GPU (memory)


def farthest_indices(points: Tensor, wanted: int) -> Tensor:
    """Farthest points, starting at point 0: (B, N, D) -> indices (B, wanted)."""
    pieces = _pieces(points, 8 * points.shape[1])
    return torch.cat([_farthest(points[piece], wanted) for piece in pieces])


def _farthest(points: Tensor, wanted: int) -> Tensor:
    planes = _planes(points)
    nearest = points.new_full(points.shape[:2], torch.inf)
    offsets = torch.empty_like(planes)
    rows = torch.arange(len(points), device=points.device)
    chosen = [torch.zeros_like(rows)]
    for _ in range(wanted - 1):
        torch.sub(planes, planes[:, rows, chosen[-1]][:, :, None], out=offsets).square_()
        gap = offsets[0]
        for offset in offsets[1:]:
            gap += offset
        torch.minimum(nearest, gap, out=nearest)
        chosen.append(nearest.max(1).indices)
    return torch.stack(chosen, dim=1)


def nearest_indices(p1: Tensor, p2: Tensor, wanted: int, ordered: bool) -> Tensor:
    """Neighbours of (B, P, D) in (B, M, D) -> indices (B, P, wanted)."""
    idx = torch.empty(*p1.shape[:2], wanted, dtype=torch.long, device=p1.device)
    for piece in _pieces(p1, p1.shape[1] * p2.shape[1]):
        idx[piece] = _smallest(_distances(p1[piece], p2[piece]), wanted, ordered)
    return idx


def closest(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Squared distances (B, N), (B, M) to the nearest point of the other cloud, and its index."""
    ways = [x.new_empty(x.shape[:2]), y.new_empty(y.shape[:2])]
    ways += [torch.empty_like(gap, dtype=torch.long) for gap in ways]
    for piece in _pieces(x, x.shape[1] * y.shape[1]):
        gaps = _distances(x[piece], y[piece])  # serves both directions
        torch.min(gaps, 2, out=(ways[0][piece], ways[2][piece]))
        torch.min(gaps, 1, out=(ways[1][piece], ways[3][piece]))
    return tuple(ways)


def closest_backward(
    x: Tensor, y: Tensor, x_to_y: Tensor, y_to_x: Tensor, x_slope: Tensor, y_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients (B, N, D), (B, M, D) of the points, from those (B, N), (B, M) of the distances."""
    to_y, to_x = x_to_y[..., None].expand_as(x), y_to_x[..., None].expand_as(y)
    x_way = 2 * (x - y.gather(1, to_y)) * x_slope[..., None]
    y_way = 2 * (y - x.gather(1, to_x)) * y_slope[..., None]
    return x_way.scatter_add(1, to_x, -y_way), y_way.scatter_add(1, to_y, -x_way)


def _pieces(clouds: Tensor, each: int) -> list[slice]:
    """Slices of the batch with about AT_ONCE distances each; a cloud has ``each``."""
    step = max(1, AT_ONCE[clouds.is_cuda] // max(each, 1))
    return [slice(i, i + step) for i in range(0, len(clouds), step)]


def _planes(points: Tensor) -> Tensor:
    """(B, N, D) -> (D, B, N): rows that a CPU vectorises."""
    return points.permute(2, 0, 1).contiguous()


def _distances(p1: Tensor, p2: Tensor) -> Tensor:
    """Squared distances (B, P, M)."""
    first, *others = zip(_planes(p1), _planes(p2), strict=True)
    total = (first[0][:, :, None] - first[1][:, None]).square_()
    offset = torch.empty_like(total)
    for a, b in others:
        torch.sub(a[:, :, None], b[:, None], out=offset)
        total += offset.square_()
    return total


def _smallest(values: Tensor, count: int, ordered: bool) -> Tensor:
    """Indices (B, P, count) of the smallest of (B, P, M).

    The values are laid out in M/n columns of n. The ``count`` columns with the smallest minima hold
    all that is looked for, so two short searches (M/n and n·count values) replace one of M.
    """
    size = values.shape[2]
    even = (n for n in (4, 8, 16) if size % n == 0)
    rows = min(even, default=0, key=lambda n: size / n + n * count)
    if not rows or size / rows + rows * count > 0.8 * size:
        return values.topk(count, largest=False, sorted=ordered).indices
    table = values.unflatten(2, (rows, -1))  # (B, P, n, M/n)
    columns = table.amin(2).topk(count, largest=False, sorted=False).indices  # (B, P, count)
    left = table.gather(3, columns[:, :, None].expand(-1, -1, rows, -1)).flatten(2)
    place = left.topk(count, largest=False, sorted=ordered).indices
    row, column = place // count, place % count
    return row * table.shape[3] + columns.gather(2, column)
