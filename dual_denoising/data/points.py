"""Points of one cloud: frame, scale, checks, draws, augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dual_denoising.errors import InputError, NoShapeError, check, check_number


def y_up(points: np.ndarray, up: str) -> np.ndarray:
    """Turns points (N, 3) of a frame with this up-axis to y-up: (x, y, z) -> (x, z, −y) for 'z'."""
    check("up", up, up in ("y", "z"), "the axis that points up is y or z")
    return points if up == "y" else points[:, [0, 2, 1]] * np.array([1, 1, -1], points.dtype)


def normalise(points: np.ndarray) -> np.ndarray:
    """Mean-centred and divided by the largest radius: (N, 3) -> the unit sphere, float64."""
    points = points.astype(np.float64)
    _, exponent = np.frexp(np.abs(points).max())
    points = np.ldexp(points, -exponent)  # exact; squares of huge coordinates would overflow
    points -= points.mean(0)
    radius = np.sqrt((points**2).sum(1).max())
    return points / radius if radius > 0 else points


def check_shape(points: np.ndarray, where: str) -> np.ndarray:
    """Raises InputError unless ``points`` is (N, 3), finite and not all equal; returns floats.

    float64 stays: a scan in map coordinates would lose its shape in float32.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise NoShapeError(f"{where}: points have shape {points.shape}; they must be (N, 3), N > 0")
    if points.dtype.kind not in "fiu":
        raise InputError(f"{where}: points are of type {points.dtype}; they must be numbers")
    points = np.asarray(points, np.float64 if points.dtype.itemsize > 4 else np.float32)
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        count, first = f"{len(bad)} of {len(points)} points are not finite", points[bad[0]].tolist()
        raise InputError(f"{where}: point {bad[0]} is {first} ({count}); remove or repair them")
    if (points == points[0]).all():
        found = f"{len(points)} points, all equal" if len(points) > 1 else "1 point"
        raise NoShapeError(f"{where}: {found}: no shape; give at least two different points")
    return points


def draw_points(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the points (N, 3), each at most once, or all equally often where N < count.

    Of exactly ``count`` points all are kept, in their order.
    """
    whole, rest = divmod(count, len(points))
    if not rest:
        return np.tile(points, (whole, 1))
    return np.concatenate([points] * whole + [points[rng.permutation(len(points))[:rest]]])


@dataclass
class Augmentation:
    """Rotation about y by up to ±yaw_degrees; scale per axis and shift drawn from their ranges."""

    yaw_degrees: float = 0.0
    scale: Sequence[float] = (1.0, 1.0)
    shift: float = 0.0

    def __post_init__(self):
        check_number("data.augmentation.yaw_degrees", self.yaw_degrees, whole=False)
        check_number("data.augmentation.shift", self.shift, whole=False)
        field, found = "data.augmentation.scale", self.scale
        check(field, found, np.shape(found) == (2,), "give [low, high]")
        check_number(f"{field}[0]", found[0], whole=False, above=True)
        check_number(f"{field}[1]", found[1], found[0], whole=False)

    def __call__(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An augmented copy of points (N, 3)."""
        angle = np.deg2rad(rng.uniform(-self.yaw_degrees, self.yaw_degrees))
        cos, sin = np.cos(angle), np.sin(angle)
        points = points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        points = points * rng.uniform(self.scale[0], self.scale[1], size=3)
        return points + rng.uniform(-self.shift, self.shift, size=3)
