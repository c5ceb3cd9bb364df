"""A folder of files, one folder per class."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.sources import FileSource, need
from dual_denoising.errors import InputError, MissingError


class Folder(FileSource):
    """``root/<class>/<file>`` or, with a split, ``root/<class>/<split>/<file>``, any format.

    class_names: the folders to read and their order; None takes all, sorted. A mesh is sampled at
    points_per_mesh points, a function of (seed, path below root). up: the files' up-axis.
    """

    def __init__(
        self,
        root: str,
        split: str | None = None,
        name: str = "folder",
        up: str = "y",
        class_names: Sequence[str] | None = None,
        points_per_mesh: int = 2048,
        seed: int = 0,
    ):
        folder = need(Path(root))
        if class_names is None:
            class_names = sorted(p.name for p in folder.iterdir() if p.is_dir())
        if not class_names:
            raise InputError(f"{root}: holds no folder; put each class's files into one of its own")
        files, labels = [], []
        for label, kind in enumerate(class_names):
            place = folder / kind / split if split else folder / kind
            if not place.is_dir():
                raise MissingError(f"{place}: missing; unpack the data set again")
            found = sorted(p for p in place.iterdir() if p.suffix.lower() in READERS)
            files += found
            labels += [label] * len(found)
        self.points_per_mesh, self.seed = points_per_mesh, seed
        ids = [str(path.relative_to(folder)) for path in files]
        super().__init__(
            name, split or "all", up, list(class_names), files, np.array(labels, np.int64), ids,
            str(root), self._sample,
        )  # fmt: skip

    def _sample(self, path: Path, index: int) -> np.ndarray:
        return read_cloud(
            path, self.points_per_mesh, zlib.crc32(f"{self.seed} {self.ids[index]}".encode())
        )
