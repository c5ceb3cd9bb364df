"""The searches behind the point operations in plain torch: what triton_ops does, on any device.

Distances are made in pieces that a CPU's cache holds, coordinate by coordinate: the expanded form
|a|² − 2ab + |b|² loses the neighbours of close points. ``lengths`` (B,) say how many points of each
cloud exist, None for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = {False: 2**19, True: 2**28}  # distances in one piece: CPU (cache), GPU (memory)


def present(lengths: Tensor | None, size: int, like: Tensor) -> Tensor:
    """(B, size) mask of the points that exist."""
    return torch.arange(size, device=like.device) < counts(lengths, size, like)[:, None]


def counts(lengths: Tensor | None, size: int, like: Tensor) -> Tensor:
    """How many points of each cloud exist, (B,)."""
    if lengths is None:
        return torch.full((len(like),), size, dtype=torch.long, device=like.device)
    return lengths.long().clamp(max=size)


def gather(points: Tensor, idx: Tensor) -> Tensor:
    """Points (B, N, D) at idx (B, K): (B, K, D)."""
    return points[torch.arange(len(points), device=points.device)[:, None], idx]


def _pieces(clouds: Tensor, each: int) -> list[slice]:
    """The clouds in slices of which each makes about AT_ONCE numbers, ``each`` per cloud."""
    step = max(1, AT_ONCE[clouds.is_cuda] // max(each, 1))
    return [slice(i, i + step) for i in range(0, len(clouds), step)]


def _distances(p1: Tensor, p2: Tensor, norm: int) -> Tensor:
    """(B, P1, P2) squared Euclidean (norm 2) or Manhattan (norm 1) distances."""
    first, *others = zip(_planes(p1), _planes(p2), strict=True)
    total = first[0][:, :, None] - first[1][:, None]
    total = total.square_() if norm == 2 else total.abs_()
    offset = torch.empty_like(total)
    for a, b in others:
        torch.sub(a[:, :, None], b[:, None], out=offset)
        total += offset.square_() if norm == 2 else offset.abs_()
    return total


def _planes(points: Tensor) -> Tensor:
    """(B, N, D) -> (D, B, N): rows that a CPU vectorises."""
    return points.permute(2, 0, 1).contiguous()


def nearest_indices(
    p1: Tensor, p2: Tensor, lengths: Tensor | None, wanted: int, norm: int, ordered: bool
) -> Tensor:
    """(B, P, D), (B, M, D), lengths of the second -> indices (B, P, wanted)."""
    idx = torch.empty(*p1.shape[:2], wanted, dtype=torch.long, device=p1.device)
    for piece in _pieces(p1, p1.shape[1] * p2.shape[1]):
        gaps = _distances(p1[piece], p2[piece], norm)
        if lengths is not None:
            gaps.masked_fill_(~present(lengths[piece], p2.shape[1], gaps)[:, None], torch.inf)
        idx[piece] = smallest(gaps, wanted, ordered)
    return idx


def smallest(values: Tensor, count: int, ordered: bool) -> Tensor:
    """Indices (B, P, count) of the smallest of (B, P, M).

    They lie in the ``count`` of M/n columns whose smallest of n values are the smallest, so that
    M/n and n·count values are looked through instead of M.
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


def farthest_indices(points: Tensor, lengths: Tensor | None, starts: Tensor, wanted: int) -> Tensor:
    """Farthest points from ``starts`` (B,): (B, N, D) -> indices (B, wanted)."""
    exists = present(lengths, points.shape[1], points)
    pieces = _pieces(points, 8 * points.shape[1])
    return torch.cat([_farthest(points[at], exists[at], starts[at], wanted) for at in pieces])


def _farthest(points: Tensor, exists: Tensor, starts: Tensor, wanted: int) -> Tensor:
    planes = _planes(points)
    nearest = torch.where(exists, torch.inf, -1.0).to(points.dtype)
    offsets = torch.empty_like(planes)
    rows, chosen = torch.arange(len(points), device=points.device), [starts]
    for _ in range(wanted - 1):
        torch.sub(planes, planes[:, rows, chosen[-1]][:, :, None], out=offsets).square_()
        gap = offsets[0]
        for offset in offsets[1:]:
            gap += offset
        torch.minimum(nearest, gap, out=nearest)
        chosen.append(nearest.max(1).indices)
    return torch.stack(chosen, dim=1)


def closest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, N, D), (B, M, D) -> distances (B, N), (B, M) to the nearest and indices, both ways."""
    ways = [x.new_empty(x.shape[:2]), y.new_empty(y.shape[:2])]
    ways += [torch.empty_like(gap, dtype=torch.long) for gap in ways]
    for piece in _pieces(x, x.shape[1] * y.shape[1]):
        gaps = _distances(x[piece], y[piece], norm)  # serves both directions
        if y_lengths is not None:
            gaps.masked_fill_(~present(y_lengths[piece], y.shape[1], gaps)[:, None], torch.inf)
        if x_lengths is not None:
            gaps.masked_fill_(~present(x_lengths[piece], x.shape[1], gaps)[:, :, None], torch.inf)
        torch.min(gaps, 2, out=(ways[0][piece], ways[2][piece]))
        torch.min(gaps, 1, out=(ways[1][piece], ways[3][piece]))
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
    """Gradients (B, N, D), (B, M, D) of the distances times their slopes (B, N), (B, M)."""
    ways = []
    for a, b, idx, slope in ((x, y, x_to_y, x_slope), (y, x, y_to_x, y_slope)):
        offset = a - gather(b, idx)
        way = (2 * offset if norm == 2 else offset.sign()) * slope[..., None]
        ways.append(torch.where(slope[..., None] == 0, 0, way))  # padding may hold anything
    x_place, y_place = (
        idx[..., None].expand_as(way) for idx, way in zip((y_to_x, x_to_y), ways[::-1], strict=True)
    )
    return ways[0].scatter_add(1, x_place, -ways[1]), ways[1].scatter_add(1, y_place, -ways[0])
