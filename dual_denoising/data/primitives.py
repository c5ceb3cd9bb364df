"""Procedural clouds of named everyday classes, the data that needs no download."""

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import yaml
from tqdm import tqdm

from dual_denoising.data import ASSETS
from dual_denoising.data.points import normalise
from dual_denoising.data.recipes import Recipe, known_classes
from dual_denoising.data.solids import sample_surface, thin_out, turn
from dual_denoising.data.sources import Source, Surface, read_names
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import InputError, check, check_number
from dual_denoising.keyed_random import Stream, generator

SPLITS = ("train", "test", "scan", "validation")
COLORS = yaml.safe_load((ASSETS / "colors.yaml").read_text())


class Primitives(Source):
    """``per_class`` shapes of every class; y-up, in the unit sphere, (num_points, 3) each.

    A shape is a function of (seed, split, class, number) alone. All are drawn when the first is
    read. classes: a list, or a file with a name a line; None for all. without: classes left out.
    more: {class: number of shapes} for some classes. Splits 'train', 'test' and 'validation' are
    whole surfaces in the recipes' frame, turned by ``yaw`` degrees for the classes it names. 'scan'
    is a harder one: any yaw, only what one viewpoint sees, clutter and sensor noise.
    """

    def __init__(
        self,
        split: str,
        per_class: int,
        seed: int = 0,
        num_points: int = 1024,
        classes: Sequence[str] | str | None = None,
        without: Sequence[str] = (),
        more: Mapping[str, int] | None = None,
        yaw: Mapping[str, float] | None = None,
        name: str = "primitives",
    ):
        check("split", split, split in SPLITS, f"primitives has {', '.join(SPLITS)}")
        known = known_classes()
        classes = read_names(classes) if isinstance(classes, str) else classes
        asked = [*(classes or ()), *without, *(more or ()), *(yaw or ())]
        for kind in asked:
            if kind not in known:
                raise InputError(f"no recipe for '{kind}'; there is {', '.join(known)}")
        for kind, angle in (yaw or {}).items():
            check_number(f"yaw of '{kind}'", angle, -math.inf, whole=False)
        check_number("seed", seed)
        check_number("num_points", num_points, 1)
        self.seed, self.num_points = seed, num_points
        names = [c for c in (classes or known) if c not in without]
        if len(set(names)) < len(names):
            raise InputError(f"classes is {names}: name every class once")
        counts = [(more or {}).get(kind, per_class) for kind in names]
        for count in counts or [0]:
            check_number("per_class", count, 1)
        labels = np.repeat(np.arange(len(counts)), counts)
        self.numbers = [number for count in counts for number in range(count)]  # in their classes
        named = zip(np.repeat(names, counts), self.numbers, strict=True)
        ids = [f"{kind}_{number:04d}" for kind, number in named]
        self.recipes = [Recipe(kind) for kind in names]
        self.yaws = [(yaw or {}).get(kind, 0.0) for kind in names]
        super().__init__(name, split, "y", names, labels, ids, "data/primitives")

    @cached_property
    def clouds(self) -> np.ndarray:
        """All clouds (n, num_points, 3)."""
        shapes = tqdm(self.labels, f"drawing {self.split} shapes", unit="shape", leave=False)
        return np.stack([self._cloud(c, self._random(i)) for i, c in enumerate(shapes)])

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """rng: another shape of the class; its points are area-uniform, not spread evenly."""
        if rng is None:
            return self.clouds[index]
        label = self.labels[index]
        if self.split == "scan":
            return self._cloud(label, rng)
        points = sample_surface(self.recipes[label].build(rng), self.num_points, rng)
        return turn(points, (0, self.yaws[label], 0))

    def fingerprint(self, index: int) -> str:
        """Of all that decides the shape."""
        c = self.labels[index]
        drawn = f"split {self.split}, seed {self.seed}, yaw {self.yaws[c]}"
        return fingerprint(f"{drawn}, {self.recipes[c].digest} {self.ids[index]}", self.up)[:16]

    def drawable(self, index: int) -> Surface:
        """The whole shape as a mesh in the clouds' frame, and its colour."""
        label = self.labels[index]
        vertices, faces = self.recipes[label].build(self._random(index))
        turned = turn(vertices, (0, self.yaws[label], 0))
        return Surface(turned, faces, COLORS[self.color(index)])

    def color(self, index: int) -> str:
        """The name of the shape's colour."""
        return list(COLORS)[generator(Stream.COLOR, *self._key(index)).integers(len(COLORS))]

    def _key(self, index: int) -> tuple[int, int, int, int]:
        name = zlib.crc32(self.class_names[self.labels[index]].encode())
        return self.seed, SPLITS.index(self.split), name, self.numbers[index]

    def _random(self, index: int) -> np.random.Generator:
        return np.random.default_rng(self._key(index))  # four words: no stream has so few

    def _cloud(self, label: int, rng: np.random.Generator) -> np.ndarray:
        mesh = self.recipes[label].build(rng)
        if self.split == "scan":
            dense = normalise(sample_surface(mesh, 6 * self.num_points, rng))
            points = scan(dense, self.num_points, rng)
        else:
            points = sample_surface(mesh, 3 * self.num_points, rng)
        points = thin_out(points, self.num_points, rng)
        return normalise(turn(points, (0, self.yaws[label], 0))).astype(np.float32)


def scan(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """What a depth camera sees of a cloud (N, 3) in the unit sphere: (at least 2·count, 3).

    Any yaw, a viewpoint 0 to 40° above, the nearest surface of every 0.07-wide ray, a floor or
    wall patch as clutter, and noise of σ 0.005 to 0.015.
    """
    points = turn(points, (0, rng.uniform(0, 360), 0))
    elevation = rng.uniform(0, 40)
    camera = turn(points, (elevation, 0, 0))  # the camera looks along −z
    pixel = np.floor((camera[:, :2] + 2) / 0.07) @ [1, 1000]
    order = np.lexsort((-camera[:, 2], pixel))
    starts = np.flatnonzero(np.diff(pixel[order], prepend=-1))
    nearest = np.maximum.reduceat(camera[order, 2], starts)
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
