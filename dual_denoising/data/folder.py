"""Clouds in files that are read one by one, and a folder of them, one folder per class."""

import logging
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.sources import Source, need
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import InputError, check_number

log = logging.getLogger(__name__)

WHOLE = 2**16  # bytes up to which a file's whole content is its fingerprint


@dataclass(eq=False)
class FileSource(Source):
    """Clouds in files of any format. A mesh is sampled anew when read; its id decides where."""

    files: Sequence[Path]
    points_per_mesh: int = 2048

    def __post_init__(self):
        super().__post_init__()
        check_number("points_per_mesh", self.points_per_mesh, 1)

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        seed = int(rng.integers(2**32)) if rng else zlib.crc32(f"0 {self.ids[index]}".encode())
        return read_cloud(self.files[index], self.points_per_mesh, seed)

    def drawable(self, index: int) -> Path:
        return self.files[index]

    def fingerprint(self, index: int) -> str:
        """Of the file's name, size and content; above 64 kB of its start, middle and end."""
        path, content = self.files[index], b""
        if not os.access(path, os.R_OK):  # whoever reads it will say why
            return fingerprint([path.name, "cannot be read"], self.up)[:16]
        with path.open("rb") as file:
            size = file.seek(0, 2)
            for start in [0] if size <= WHOLE else [0, size // 2, size - 2**12]:
                file.seek(start)
                content += file.read(WHOLE if size <= WHOLE else 2**12)
        return fingerprint(f"{path.name} {size} ".encode() + content, self.up)[:16]


class Folder(FileSource):
    """``root/<class>/…/<file>`` or, with a split, ``root/<class>/<split>/…/<file>``, any format.

    flat: the files lie in ``root`` itself; each is of the class that its name spells (bedBunk.glb:
    "bed bunk"). class_names: the folders to read and their order; None takes all, sorted. Files of
    other formats are left out with a warning; a class without a folder is an error if ``strict``.
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
        places, pattern = [folder], "*"
        if not flat:
            class_names = class_names or sorted(p.name for p in _visible(folder) if p.is_dir())
            if not class_names:
                raise InputError(f"{root}: holds no folder; put the files of each class into one")
            places, pattern = [folder / kind / (split or "") for kind in class_names], "**/*"
            self.missing = [str(place) for place in places if not place.is_dir()]
            if self.missing and strict:
                raise InputError(f"{', '.join(self.missing)}: missing; unpack the dataset again")
        found = [p for at in places for p in sorted(_visible(at, pattern)) if p.is_file()]
        files = [path for path in found if path.suffix.lower() in READERS]
        if others := [path for path in found if path.suffix.lower() not in READERS]:
            log.warning("%s: left out %d files, the first is %s", root, len(others), others[0])
        ids = [path.relative_to(folder).as_posix() for path in files]
        kinds = [spelled(p.stem) if flat else p.relative_to(folder).parts[0] for p in files]
        names = list(dict.fromkeys(kinds) if flat else class_names or ())
        labels = np.array([names.index(kind) for kind in kinds], np.int64)
        part, origin = split or "all", str(root)
        super().__init__(name, part, up, names, labels, ids, origin, files, points_per_mesh)


def spelled(stem: str) -> str:
    """A file's name as words: chairDesk, chair_desk, Chair-Desk 2 -> chair desk."""
    parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", stem)
    return " ".join(re.sub(r"[\W\d_]+", " ", parts).lower().split()) or stem


def _visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder, without what begins with a dot; nothing if there is none."""
    found = folder.glob(pattern)
    return [p for p in found if not any(w.startswith(".") for w in p.relative_to(folder).parts)]
