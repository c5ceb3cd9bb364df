"""A folder of files, one folder per class."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.sources import FileSource, need
from dual_denoising.errors import InputError, MissingError, check_number

log = logging.getLogger(__name__)


class MeshFiles(FileSource):
    """Files of any format; meshes are sampled at points_per_mesh points, by (seed, id)."""

    def __init__(
        self,
        name: str,
        split: str,
        up: str,
        class_names: Sequence[str],
        files: Sequence[Path],
        labels: np.ndarray,
        ids: Sequence[str],
        origin: str,
        points_per_mesh: int,
        seed: int,
    ):
        check_number("points_per_mesh", points_per_mesh, 1)
        self.points_per_mesh, self.seed = points_per_mesh, seed
        self.sampling = [points_per_mesh, seed]
        super().__init__(name, split, up, class_names, files, labels, ids, origin, self._sample)

    def draw(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Other points of a mesh's surface."""
        return read_cloud(self.files[index], self.points_per_mesh, int(rng.integers(2**32)))

    def _sample(self, path: Path, index: int) -> np.ndarray:
        return read_cloud(
            path, self.points_per_mesh, zlib.crc32(f"{self.seed} {self.ids[index]}".encode())
        )


class Folder(MeshFiles):
    """``root/<class>/…/<file>`` or, with a split, ``root/<class>/<split>/…/<file>``, any format.

    flat: ``root/<file>`` instead, every file a class whose name its own spells (bedBunk.glb: "bed
    bunk"). class_names: the folders to read and their order; None takes all, sorted. A mesh is
    sampled at points_per_mesh points, a function of (seed, path below root). up: the files'
    up-axis. Files of other formats are left out with a warning. Raises MissingError that names
    every class without a folder, unless not ``strict``.
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
        strict: bool = True,
        flat: bool = False,
    ):
        folder, self.missing = need(Path(root)), []
        if flat:
            files, others = _readable(folder, "*")
            class_names = list(dict.fromkeys(spelled(path.stem) for path in files))
            labels = [class_names.index(spelled(path.stem)) for path in files]
        else:
            if class_names is None:
                class_names = sorted(p.name for p in _visible(folder) if p.is_dir())
            if not class_names:
                raise InputError(
                    f"{root}: holds no folder; put each class's files into one of its own"
                )
            places = [folder / kind / split if split else folder / kind for kind in class_names]
            self.missing = [str(place) for place in places if not place.is_dir()]
            if self.missing and strict:
                raise MissingError(f"{', '.join(self.missing)}: missing; unpack the data set again")
            files, labels, others = [], [], []
            for label, place in enumerate(places):
                found, rest = _readable(place, "**/*")
                files, others = files + found, others + rest
                labels += [label] * len(found)
        if others:
            log.warning("%s: left out %d files, the first is %s", root, len(others), others[0])
        ids = [path.relative_to(folder).as_posix() for path in files]
        super().__init__(
            name, split or "all", up, list(class_names), files, np.array(labels, np.int64), ids,
            str(root), points_per_mesh, seed,
        )  # fmt: skip


def spelled(stem: str) -> str:
    """A file's name as words: chairDesk, chair_desk, Chair-Desk 2 -> chair desk."""
    parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", stem)
    return " ".join(re.sub(r"[\W\d_]+", " ", parts).lower().split()) or stem


def _readable(folder: Path, pattern: str) -> tuple[list[Path], list[Path]]:
    """The files that a reader knows, and the others, each in order."""
    files = sorted(p for p in _visible(folder, pattern) if p.is_file())
    known = [path for path in files if path.suffix.lower() in READERS]
    return known, [path for path in files if path.suffix.lower() not in READERS]


def _visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder, without what begins with a dot; nothing if there is none."""
    found = folder.glob(pattern)
    return [p for p in found if not any(w.startswith(".") for w in p.relative_to(folder).parts)]
