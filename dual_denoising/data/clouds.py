"""One way from any source of clouds to batches: y-up, unit sphere, seeded draws."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dual_denoising.errors import InputError, input_error

log = logging.getLogger(__name__)

UP_AXES = ("y", "z")


@runtime_checkable
class Source(Protocol):
    """What a reader gives: raw clouds in its own frame, and who they are."""

    name: str
    split: str
    up: str  # the axis that points up in the source, 'y' or 'z'
    class_names: Sequence[str]
    labels: np.ndarray  # (n,) int64, into class_names
    ids: Sequence[str]  # (n,) one name per cloud

    def read(self, index: int) -> np.ndarray:
        """Points (M, 3) of one cloud, any M."""


def y_up(points: np.ndarray, up: str) -> np.ndarray:
    """Turns points (N, 3) of a frame with this up-axis to y-up: (x, y, z) -> (x, z, −y) for 'z'."""
    if up not in UP_AXES:
        raise InputError(f"up is '{up}': the axis that points up must be one of {UP_AXES}")
    return points if up == "y" else points[:, [0, 2, 1]] * np.array([1, 1, -1], points.dtype)


def normalise(points: np.ndarray) -> np.ndarray:
    """Mean-centred and divided by the largest radius: (N, 3) -> the unit sphere, float64."""
    points = points.astype(np.float64)
    _, exponent = np.frexp(np.abs(points).max())
    points = np.ldexp(points, -exponent)  # exact; squares of huge coordinates would overflow
    points -= points.mean(0)
    radius = np.sqrt((points**2).sum(1).max())
    return points / radius if radius > 0 else points


def check_points(points: np.ndarray, where: str) -> np.ndarray:
    """Raises InputError unless ``points`` is (N, 3), N > 0, of finite numbers; returns floats.

    float64 stays: a scan in map coordinates would lose its shape in float32.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise InputError(f"{where}: points have shape {points.shape}; they must be (N, 3), N > 0")
    if points.dtype.kind not in "fiu":
        raise InputError(f"{where}: points are of type {points.dtype}; they must be numbers")
    points = np.asarray(points, np.float64 if points.dtype.itemsize > 4 else np.float32)
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        raise InputError(
            f"{where}: point {bad[0]} is {points[bad[0]].tolist()} ({len(bad)} of {len(points)} "
            "points are not finite); remove or repair them"
        )
    return points


def check_shape(points: np.ndarray, where: str) -> np.ndarray:
    """``check_points``, and not all of them equal."""
    points = check_points(points, where)
    if (points == points[0]).all():
        raise InputError(
            f"{where}: {len(points)} point{'s, all equal' * (len(points) > 1)}: no shape; give at "
            "least two different points"
        )
    return points


def draw_points(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the points (M, 3), without repetition; each as often as can be where M < count.

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

    def __call__(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        angle = np.deg2rad(rng.uniform(-self.yaw_degrees, self.yaw_degrees))
        cos, sin = np.cos(angle), np.sin(angle)
        points = points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        points = points * rng.uniform(*self.scale, size=3)
        return points + rng.uniform(-self.shift, self.shift, size=3)

    def of_batch(self, points: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """The same of clouds (B, N, 3) on any device, by seven numbers (B, 7) of U(0, 1) each."""
        angle = np.deg2rad(self.yaw_degrees) * (2 * uniform[:, 0] - 1)
        cos, sin, no, one = (
            angle.cos(),
            angle.sin(),
            torch.zeros_like(angle),
            torch.ones_like(angle),
        )
        turn = torch.stack([cos, no, -sin, no, one, no, sin, no, cos], dim=1).view(-1, 3, 3)
        low, high = self.scale
        points = torch.einsum("bni,bij->bnj", points, turn)
        points = points * (low + (high - low) * uniform[:, None, 1:4])
        return points + self.shift * (2 * uniform[:, None, 4:] - 1)


FEW = ("refuse", "repeat", "keep")


@dataclass
class CloudDataset(Dataset):
    """Items of a source: {'points' (N, 3) float32, 'label', 'index'}, all torch.

    Points are drawn at random from the source's, afresh in every epoch if ``resample``; every draw
    is a function of (seed, epoch, index). Normalised after drawing (unless told not to), augmented
    after normalising. few: what becomes of a cloud of less than num_points: 'refuse' it, 'repeat'
    its points, or 'keep' it as it is (then all clouds must have one size).
    """

    source: Source
    num_points: int = 1024
    augmentation: Augmentation = field(default_factory=Augmentation)
    resample: bool = False
    seed: int = 0
    epoch: int = 0
    few: str = "refuse"
    unit_sphere: bool = True

    def __post_init__(self):
        if self.few not in FEW:
            raise InputError(f"data.few is '{self.few}': choose one of {', '.join(FEW)}")

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        where = self._where(index)
        points = check_shape(self.source.read(index), where)
        if len(points) < self.num_points and self.few == "refuse":
            raise InputError(
                f"{where}: has {len(points)} points, num_points={self.num_points} were asked for; "
                f"set num_points (data.num_points in pre-training) to {len(points)} or less"
            )
        draw = np.random.default_rng((self.seed, self.epoch if self.resample else 0, index))
        if len(points) > self.num_points or self.few == "repeat":
            points = draw_points(points, self.num_points, draw)
        points = y_up(points, self.source.up)
        points = normalise(points) if self.unit_sphere else points
        augment = np.random.default_rng((self.seed, self.epoch, index, 1))
        points = self.augmentation(points, augment).astype(np.float32)
        label = int(self.source.labels[index])
        return {"points": torch.from_numpy(points), "label": label, "index": index}

    def whole(self, index: int) -> np.ndarray:
        """Every stored point of a cloud (M, 3) float32, y-up in the unit sphere."""
        points = check_shape(self.source.read(index), self._where(index))
        return normalise(y_up(points, self.source.up)).astype(np.float32)

    def _where(self, index: int) -> str:
        return f"{self.source.name} {self.source.split}, cloud '{self.source.ids[index]}'"

    def describe(self) -> str:
        """One line of what is read, from where, and what is done with it."""
        source, stored = self.source, len(self.source.read(0))
        frame = "y-up" if source.up == "y" else f"{source.up}-up turned to y-up"
        return (
            f"{source.name} {source.split}: {len(self)} clouds of {len(source.class_names)} "
            f"classes, {self.num_points} of {stored} points, {frame}, "
            f"{'unit sphere' if self.unit_sphere else 'scale as stored'}, "
            f"from {getattr(source, 'origin', 'recipes')}"
        )


@dataclass
class TestSet:
    """A source to be evaluated on, or several, and how its clouds are read.

    points_ratio: points per cloud as a multiple of those the model was trained on.
    """

    __test__ = False  # pytest takes the name for a test

    source: Source | Sequence[Source]
    points_ratio: float = 1.0
    few: str = "refuse"
    unit_sphere: bool = True

    def open(self, num_points: int) -> list[CloudDataset]:
        """Data sets of ``num_points``·points_ratio points."""
        sources = self.source if isinstance(self.source, Sequence) else [self.source]
        points = round(num_points * self.points_ratio)
        return [
            CloudDataset(source, points, few=self.few, unit_sphere=self.unit_sphere)
            for source in sources
        ]


def open_tests(
    configs: Mapping | Sequence, make: Callable, num_points: int, optional: bool = False
) -> tuple[list[CloudDataset], dict[str, str]]:
    """Test sets that ``make`` makes of each config, and the names and reasons of those it cannot.

    Bad or missing data is raised unless ``optional``: then it is a reason.
    """
    tests, absent = [], {}
    configs = configs if isinstance(configs, Mapping) else dict(enumerate(configs))
    for name, config in configs.items():
        try:
            made = make(config)
            made = made if isinstance(made, TestSet) else TestSet(made)
            opened = made.open(num_points)
            for test in opened:
                log.info(test.describe())
                test[0]
            tests += opened
        except Exception as error:
            reason = input_error(error)
            if reason is None or not optional:
                raise
            absent[str(name)] = str(reason)
            log.warning("%s is left out: %s", name, reason)
    return tests, absent


def one_test(tests: Sequence[CloudDataset], name: str | None = None) -> CloudDataset:
    """The only test set, or the one of several whose name or split is ``name``."""
    chosen = [t for t in tests if name is None or name in (t.source.name, t.source.split)]
    if len(chosen) != 1:
        known = ", ".join(f"{t.source.name} {t.source.split}" for t in tests)
        raise InputError(
            f"test_set is {name or 'null'}: choose one, by its name or split, of {known}"
        )
    return chosen[0]


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Shuffled indices of an epoch in full batches, the same on every rank; the rest is dropped."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return np.split(order[: count - count % batch_size], count // batch_size)


def loader(
    dataset: Dataset, batches: Iterable[Sequence], workers: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of a data set: {'points' (B, N, 3), 'label' (B,), 'index' (B,)}."""
    return iter(
        DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )
    )


class Epochs(Dataset):
    """Items of a data set by (epoch, index), so that one loader serves a run: processes that read
    need not start anew in every epoch."""

    def __init__(self, dataset: CloudDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, torch.Tensor | int]:
        self.dataset.epoch, index = place
        return self.dataset[index]


def in_order(count: int, batch_size: int) -> list[range]:
    """Indices 0..count−1 in batches, the last one short."""
    return [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
