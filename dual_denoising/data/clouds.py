"""One way from any source of clouds to batches: y-up, unit sphere, seeded draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dual_denoising.errors import InputError

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
    """Mean-centred and divided by the largest radius: (N, 3) -> the unit sphere."""
    points = points - points.mean(0, dtype=np.float64)  # float32 overflows on huge coordinates
    radius = np.sqrt((points**2).sum(1).max())
    return points / radius if radius > 0 else points


def check_points(points: np.ndarray, where: str) -> np.ndarray:
    """Raises InputError unless ``points`` is (N, 3), N > 0 and finite; returns float32."""
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise InputError(f"{where}: points have shape {points.shape}; they must be (N, 3), N > 0")
    points = np.asarray(points, np.float32)
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        raise InputError(
            f"{where}: point {bad[0]} is {points[bad[0]].tolist()} ({len(bad)} of {len(points)} "
            "points are not finite); remove or repair them"
        )
    return points


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


@dataclass
class CloudDataset(Dataset):
    """Items of a source: {'points' (N, 3) float32, 'label', 'index'}, all torch.

    Points are drawn at random from the source's, afresh in every epoch if ``resample``; every draw
    is a function of (seed, epoch, index). Normalised after drawing, augmented after normalising.
    """

    source: Source
    num_points: int = 1024
    augmentation: Augmentation = field(default_factory=Augmentation)
    resample: bool = False
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        where = f"{self.source.name} {self.source.split}, cloud '{self.source.ids[index]}'"
        points = check_points(self.source.read(index), where)
        if len(points) < self.num_points:
            raise InputError(
                f"{where}: has {len(points)} points, num_points={self.num_points} were asked for; "
                f"set num_points (data.num_points in pre-training) to {len(points)} or less"
            )
        draw = np.random.default_rng((self.seed, self.epoch if self.resample else 0, index))
        if len(points) > self.num_points:
            points = points[draw.permutation(len(points))[: self.num_points]]
        points = normalise(y_up(points, self.source.up))
        augment = np.random.default_rng((self.seed, self.epoch, index, 1))
        points = self.augmentation(points, augment).astype(np.float32)
        label = int(self.source.labels[index])
        return {"points": torch.from_numpy(points), "label": label, "index": index}


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Shuffled indices of an epoch in full batches, the same on every rank; the rest is dropped."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return np.split(order[: count - count % batch_size], count // batch_size)


def loader(
    dataset: CloudDataset, batches: Sequence[Sequence[int]], workers: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of a data set: {'points' (B, N, 3), 'label' (B,), 'index' (B,)}."""
    return iter(
        DataLoader(
            dataset,
            batch_sampler=[list(map(int, b)) for b in batches],
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )
    )


def in_order(count: int, batch_size: int) -> list[range]:
    """Indices 0..count−1 in batches, the last one short."""
    return [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
