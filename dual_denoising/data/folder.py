"""Clouds in files that are read one by one, and a folder of them, one folder per class."""

import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.sources import Source, need
from dual_denoising.errors import InputError, check_number

log = logging.getLogger(__name__)


WHOLE = 2**16  # bytes up to which a file's whole content is its fingerprint


@dataclass
class FileSource(Source):
    """Clouds in files of any format, read when asked for.

    A mesh is sampled at points_per_mesh points; the id decides which.
    """

    name: str
    split: str
    up: str
    class_names: Sequence[str]
    files: Sequence[Path]
    labels: np.ndarray
    ids: Sequence[str]
    origin: str
    points_per_mesh: int = 2048

    def __post_init__(self):
        check_number("points_per_mesh", self.points_per_mesh, 1)
        self.check_labels()

    def read(self, index: int) -> np.ndarray:
        own = zlib.crc32(f"0 {self.ids[index]}".encode())
        return read_cloud(self.files[index], self.points_per_mesh, own)

    def draw(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Other points of a mesh's surface."""
        return read_cloud(self.files[index], self.points_per_mesh, int(rng.integers(2**32)))

    def drawable(self, index: int) -> Path:
        return self.files[index]

    def made_of(self, index: int) -> Any:
        """Name, size and content of the file; of one above 64 kB its start, middle and end."""
        path = self.files[index]
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                starts = [0] if size <= WHOLE else [0, size // 2, size - 2**12]
                content = f"{path.name} {size} ".encode()
                for start in starts:
                    file.seek(start)
                    content += file.read(WHOLE if len(starts) == 1 else 2**12)
        except OSError:  # whoever reads it will say why
            return [path.name, "cannot be read"]
        return content


class Folder(FileSource):
    """``root/<class>/…/<file>`` or, with a split, ``root/<class>/<split>/…/<file>``, any format.

    flat: the files lie in ``root`` itself; each is of the class that its name spells (bedBunk.glb:
    "bed bunk"). class_names: the folders to read and their order; None takes all, sorted. A mesh is
    sampled at points_per_mesh points, a function of the path below root. up: the files'
    up-axis. Files of other formats are left out with a warning. Raises InputError that names
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
                raise InputError(f"{', '.join(self.missing)}: missing; unpack the data set again")
            files, labels, others = [], [], []
            for label, place in enumerate(places):
                found, rest = _readable(place, "**/*")
                files, others = files + found, others + rest
                labels += [label] * len(found)
        if others:
            log.warning("%s: left out %d files, the first is %s", root, len(others), others[0])
        ids = [path.relative_to(folder).as_posix() for path in files]
        names, part = list(class_names), split or "all"
        rows = np.array(labels, np.int64)
        super().__init__(name, part, up, names, files, rows, ids, str(root), points_per_mesh)


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
