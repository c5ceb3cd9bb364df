"""Procedural clouds of named everyday classes, the data that needs no download."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from dual_denoising.data import solids
from dual_denoising.data.clouds import normalise
from dual_denoising.data.recipes import Recipe, known_classes
from dual_denoising.data.solids import sample_surface, spread, turn
from dual_denoising.errors import InputError

SPLITS = ("train", "test", "scan")
COLORS = {
    "red": (190, 50, 45), "orange": (225, 130, 45), "yellow": (225, 195, 65),
    "green": (75, 140, 70), "blue": (55, 95, 170), "purple": (120, 75, 150),
    "pink": (225, 150, 170), "brown": (125, 85, 55), "black": (45, 45, 48),
    "grey": (145, 145, 150), "white": (232, 230, 225), "beige": (205, 185, 150),
}  # fmt: skip


class Primitives:
    """``per_class`` shapes of every class; y-up, in the unit sphere, (N, 3) each.

    A function of (seed, split, class, number) alone. classes: None for all; ``without`` leaves some
    out; ``more`` has numbers of its own for some. Splits 'train' and 'test' are whole surfaces in
    the recipes' frame, turned by ``yaw`` degrees for the classes it names. 'scan' is a harder one:
    any yaw, only what one viewpoint sees, clutter and sensor noise.
    """

    up, origin = "y", "data/primitives"

    def __init__(
        self,
        split: str,
        per_class: int,
        seed: int = 0,
        num_points: int = 1024,
        classes: Sequence[str] | None = None,
        without: Sequence[str] = (),
        more: Mapping[str, int] | None = None,
        yaw: Mapping[str, float] | None = None,
        progress: bool = False,
        name: str = "primitives",
    ):
        if split not in SPLITS:
            raise InputError(f"split is '{split}': primitives has {', '.join(SPLITS)}")
        known = known_classes()
        unknown = [
            c for c in (*(classes or ()), *without, *(more or ()), *(yaw or ())) if c not in known
        ]
        if unknown:
            raise InputError(f"no recipe for '{unknown[0]}'; there is {', '.join(known)}")
        self.name, self.split, self.seed, self.num_points = name, split, seed, num_points
        self.class_names = [c for c in (classes or known) if c not in without]
        for key, value, low in (("seed", seed, 0), ("per_class", per_class, 1),
                                ("num_points", num_points, 1)):  # fmt: skip
            if type(value) is not int or value < low:
                raise InputError(f"{key} is {value}: choose a whole number from {low}")
        if len(set(self.class_names)) < len(self.class_names):
            raise InputError(f"classes is {list(classes)}: name every class once")
        counts = [(more or {}).get(name, per_class) for name in self.class_names]
        if not counts or min(counts) < 1:
            raise InputError(
                f"classes is {classes}, per_class is {per_class}, more is {more}: every class "
                "needs at least one shape"
            )
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self.numbers = [number for count in counts for number in range(count)]  # in their classes
        named = zip(self.labels, self.numbers, strict=True)
        self.ids = [f"{self.class_names[c]}_{number:04d}" for c, number in named]
        self.recipes = [Recipe(name) for name in self.class_names]
        self.yaws = [(yaw or {}).get(name, 0.0) for name in self.class_names]
        self.colors = [self._color(index) for index in range(len(self.labels))]
        shapes = tqdm(self.labels, f"{split} shapes", disable=not progress, leave=False)
        self.clouds = np.stack([self._cloud(index) for index, _ in enumerate(shapes)])

    def read(self, index: int) -> np.ndarray:
        return self.clouds[index]

    def content(self, index: int) -> str:
        """What a shape is drawn from, in words that differ where it does."""
        c = self.labels[index]
        return f"split {self.split}, seed {self.seed}, yaw {self.yaws[c]}, {self.recipes[c].digest}"

    def surface(self, index: int) -> tuple[solids.Mesh, tuple[int, int, int]]:
        """The whole shape as a mesh in the clouds' frame, and its colour."""
        vertices, faces = self._mesh(index)[0]
        yaw = self.yaws[self.labels[index]]
        return (turn(vertices, (0, yaw, 0)), faces), COLORS[self.colors[index]]

    def _key(self, index: int) -> tuple[int, int, int, int]:
        name = zlib.crc32(self.class_names[self.labels[index]].encode())
        return self.seed, SPLITS.index(self.split), name, self.numbers[index]

    def _color(self, index: int) -> str:
        return list(COLORS)[np.random.default_rng((*self._key(index), 1)).integers(len(COLORS))]

    def _mesh(self, index: int) -> tuple[solids.Mesh, np.random.Generator]:
        rng = np.random.default_rng(self._key(index))
        return self.recipes[self.labels[index]].build(rng), rng

    def _cloud(self, index: int) -> np.ndarray:
        mesh, rng = self._mesh(index)
        yaw = self.yaws[self.labels[index]]
        if self.split == "scan":
            dense = normalise(sample_surface(mesh, 6 * self.num_points, rng))
            points = scan(dense, self.num_points, rng)
        else:
            points = sample_surface(mesh, 3 * self.num_points, rng)
        points = spread(points, self.num_points, rng)
        return normalise(turn(points, (0, yaw, 0))).astype(np.float32)


def scan(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """What a depth camera sees of a cloud (M, 3) in the unit sphere: (at least 2·count, 3).

    Any yaw, a viewpoint 0 to 40° above, the nearest surface of every 0.07-wide ray, a floor or
    wall patch as clutter, and noise of σ 0.005 to 0.015.
    """
    points = turn(points, (0, rng.uniform(0, 360), 0))
    elevation = rng.uniform(0, 40)
    camera = turn(points, (elevation, 0, 0))  # the camera looks along −z
    pixel = np.floor((camera[:, :2] + 2) / 0.07) @ [1, 1000]
    order = np.lexsort((-camera[:, 2], pixel))
    nearest = np.maximum.reduceat(
        camera[order, 2], np.flatnonzero(np.diff(pixel[order], prepend=-1))
    )
    _, ray = np.unique(pixel, return_inverse=True)
    seen = points[camera[:, 2] > nearest[ray] - 0.08]
    size = rng.uniform(0.2, 0.6, 2)
    patch = rng.uniform(-size, size, (int(len(seen) * rng.uniform(0.05, 0.2)), 2))
    at = turn(rng.uniform([[0.3, 0, 0]], [[0.7, 0, 0]]), (0, rng.uniform(0, 360), 0))
    clutter = np.insert(patch, 1, 0, axis=1)
    if rng.random() < 0.5:
        clutter = turn(clutter, (90, rng.uniform(0, 360), 0))
    clutter = clutter + at + [0, points[:, 1].min(), 0]
    seen = np.concatenate([seen, clutter])
    seen = seen[rng.integers(len(seen), size=max(2 * count, len(seen)))]
    return seen + rng.normal(0, rng.uniform(0.005, 0.015), seen.shape)
