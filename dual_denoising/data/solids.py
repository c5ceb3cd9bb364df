"""Three parametric solids as triangle meshes, and points spread evenly over their surface.

A mesh is (vertices (n, 3), faces (n, 3)); y is up, lengths are in the recipe's own unit.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray]


def box(size, taper=(1, 1), shear=(0, 0)) -> Mesh:
    """Box (width x, height y, depth z) standing on the origin.

    ``taper`` scales its top in x and z, ``shear`` shifts it.
    """
    width, height, depth = size
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, depth / 2]
    top = corners * taper + shear
    vertices = np.zeros((8, 3))
    vertices[:4, [0, 2]], vertices[4:, [0, 2]] = corners, top
    vertices[4:, 1] = height
    ends = [[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7]]
    return vertices, np.concatenate([ends, _grid_faces(2, 4, False)])


def loft(rings, exponent=2, caps=True, segments=24) -> Mesh:
    """Skin over superellipses stacked along y; rings that turn back make a shell.

    rings: rows (y, radius x, radius z[, offset x, offset z]); exponent 2 is an ellipse, large a
    box.
    """
    rings = np.array([(*ring, 0, 0)[:5] for ring in rings], float)
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    around = np.sign(around) * np.abs(around) ** (2 / exponent)
    vertices = np.empty((len(rings), segments, 3))
    vertices[..., 0] = rings[:, 1:2] * around[:, 0] + rings[:, 3:4]
    vertices[..., 1] = rings[:, :1]
    vertices[..., 2] = rings[:, 2:3] * around[:, 1] + rings[:, 4:5]
    return vertices.reshape(-1, 3), _grid_faces(len(rings), segments, bool(caps))


def tube(path, radius, segments=8) -> Mesh:
    """Round bar along ``path`` (n, 3); ``radius`` is a number or one per point of the path."""
    path = np.asarray(path, float)
    radius = np.broadcast_to(np.asarray(radius, float).reshape(-1, 1, 1), (len(path), 1, 1))
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-12
    helper = np.eye(3)[np.abs(along).sum(0).argmin()]  # the axis the bar runs along least
    side = np.cross(along, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-12
    other = np.cross(along, side)
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)[:, None]
    circle = np.cos(angle) * side[:, None] + np.sin(angle) * other[:, None]  # (P, segments, 3)
    vertices = path[:, None] + radius * circle
    return vertices.reshape(-1, 3), _grid_faces(len(path), segments, True)


@cache
def _grid_faces(rings: int, segments: int, caps: bool) -> np.ndarray:
    start = np.arange(rings - 1)[:, None] * segments
    now, after = np.arange(segments), (np.arange(segments) + 1) % segments
    a, b = start + now, start + after
    sides = np.stack([a, b, b + segments, a, b + segments, a + segments], -1).reshape(-1, 3)
    if not caps:
        return sides
    fan = np.stack([np.zeros(segments - 2, int), now[1:-1], after[1:-1]], 1)
    return np.concatenate([sides, fan, fan + (rings - 1) * segments])


def bend(points, steps=4) -> np.ndarray:
    """Catmull-Rom curve through the points (n, 3), ``steps`` pieces between each two."""
    points = np.asarray(points, float)
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = np.arange(steps)[None, :, None] / steps
    curve = p1 + 0.5 * t * (
        p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0))
    )
    return np.concatenate([curve.reshape(-1, 3), points[-1:]])


def turn(points: np.ndarray, degrees: Sequence[float]) -> np.ndarray:
    """Rotation about x, then y, then z, counter-clockwise, of points (N, 3)."""
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, float))):
        if angle:
            i, j = (axis + 1) % 3, (axis + 2) % 3
            cos, sin = np.cos(angle), np.sin(angle)
            points = points.copy()
            points[:, i], points[:, j] = (
                cos * points[:, i] - sin * points[:, j],
                sin * points[:, i] + cos * points[:, j],
            )
    return points


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 3) on the surface, stratified by area."""
    triangles = mesh[0][mesh[1]]
    first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    normal = np.stack(
        [  # np.cross rounds otherwise, and a shape drawn again would differ in its last bits
            first[:, 1] * second[:, 2] - first[:, 2] * second[:, 1],
            first[:, 2] * second[:, 0] - first[:, 0] * second[:, 2],
            first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0],
        ]
    )
    area = np.sqrt((normal**2).sum(0)).cumsum()
    at = (np.arange(count) + rng.random(count)) * (area[-1] / count)
    face = np.minimum(area.searchsorted(at), len(area) - 1)
    u, v = rng.random((2, count))
    flip = u + v > 1
    u[flip], v[flip] = 1 - u[flip], 1 - v[flip]
    return triangles[face, 0] + u[:, None] * first[face] + v[:, None] * second[face]


def thin_out(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """About evenly spaced choice of ``count`` of the points (N, 3), N > count: -> (count, 3).

    One point per cell of a randomly turned grid whose cell size is bisected to the count: roughly
    what farthest point sampling does to real clouds, at a fraction of its cost.
    """
    turned = points @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turned -= turned.min(0)
    best, low, high = np.arange(len(points)), 0.0, turned.max() * 4 / np.sqrt(count)
    for _ in range(6):
        cell = (low + high) / 2
        chosen = _one_per_cell(turned / cell)
        if len(chosen) >= count:
            best, low = chosen, cell
        else:
            high = cell
    return points[rng.permutation(best)[:count]]


def _one_per_cell(points: np.ndarray) -> np.ndarray:
    """Indices of the point nearest to the centre of every occupied unit cell."""
    whole = np.floor(points)
    distance = ((points - whole - 0.5) ** 2).sum(1)  # at most 0.75
    order = np.argsort(whole @ [1, 4096, 4096**2] + distance)
    cell = whole[order] @ [1, 4096, 4096**2]
    return order[np.diff(cell, prepend=-1) != 0]
