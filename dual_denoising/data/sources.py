"""What readers give: clouds held in memory or read from files one by one, and who they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dual_denoising.data.clouds import check_shape
from dual_denoising.errors import InputError, MissingError


@dataclass
class ArraySource:
    """Clouds in memory: ``clouds[i]`` is (M, 3) in the source's own frame.

    up: the axis that points up in the source. origin: the file or folder, for messages.
    Raises InputError for labels that ``class_names`` does not have and for unequal counts.
    """

    name: str
    split: str
    up: str
    class_names: Sequence[str]
    clouds: Sequence[np.ndarray]
    labels: np.ndarray
    ids: Sequence[str]
    origin: str

    def __post_init__(self):
        check_labels(self)

    def read(self, index: int) -> np.ndarray:
        return self.clouds[index]


@dataclass
class FileSource:
    """Clouds in files of their own, read when asked for; ``read_file(path, index)`` -> (M, 3)."""

    name: str
    split: str
    up: str
    class_names: Sequence[str]
    files: Sequence[Path]
    labels: np.ndarray
    ids: Sequence[str]
    origin: str
    read_file: Callable[[Path, int], np.ndarray]

    def __post_init__(self):
        check_labels(self)

    def read(self, index: int) -> np.ndarray:
        return self.read_file(self.files[index], index)


class Joined:
    """Several sources of one up-axis as one; classes of one name are one class."""

    def __init__(self, sources: Sequence, name: str | None = None):
        ups = {source.up for source in sources}
        if len(ups) != 1:
            raise InputError(f"{len(ups)} up-axes, {', '.join(sorted(ups))}: join sources of one")
        self.sources, self.up = list(sources), ups.pop()
        self.name = name or "+".join(source.name for source in sources)
        self.split = "+".join(dict.fromkeys(source.split for source in sources))
        self.origin = ", ".join(source.origin for source in sources)
        self.class_names = list(dict.fromkeys(k for s in sources for k in s.class_names))
        self.ids = [key for source in sources for key in source.ids]
        self.labels = np.concatenate(
            [
                np.array([self.class_names.index(k) for k in source.class_names])[source.labels]
                for source in sources
            ]
        )
        self.places = [(source, i) for source in sources for i in range(len(source.ids))]
        check_labels(self)

    def read(self, index: int) -> np.ndarray:
        source, place = self.places[index]
        return source.read(place)


class Without:
    """A source without the clouds and the names of some of its classes."""

    def __init__(self, source, classes: Sequence[str]):
        unknown = [name for name in classes if name not in source.class_names]
        if unknown:
            raise InputError(
                f"{source.origin}: has no class '{unknown[0]}' to leave out; it has "
                f"{', '.join(source.class_names)}"
            )
        self.up, self.origin = source.up, source.origin
        self.name, self.split = source.name, source.split
        self.class_names = [name for name in source.class_names if name not in classes]
        names = np.array(source.class_names)[source.labels]
        rows = np.flatnonzero(~np.isin(names, list(classes)))
        self.labels = np.array([self.class_names.index(name) for name in names[rows]], int)
        self.ids = [source.ids[row] for row in rows]
        self.places = [(source, int(row)) for row in rows]
        check_labels(self)

    def read(self, index: int) -> np.ndarray:
        source, place = self.places[index]
        return source.read(place)


def check_labels(source) -> None:
    """Raises InputError unless every cloud has an id and a label that is a row of class_names."""
    if len(source.labels) == 0:
        raise InputError(f"{source.origin}: holds no cloud of split '{source.split}'")
    if len(source.labels) != len(source.ids):
        raise InputError(f"{source.origin}: {len(source.labels)} labels, {len(source.ids)} ids")
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.class_names)))
    if len(wrong):
        raise InputError(
            f"{source.origin}: label[{wrong[0]}] is {source.labels[wrong[0]]}, but there are "
            f"{len(source.class_names)} class names (0 to {len(source.class_names) - 1}); give "
            "the list that belongs to the file"
        )


def need(path: Path) -> Path:
    """The path itself; raises MissingError where nothing is."""
    if not path.exists():
        raise MissingError(
            f"{path}: missing; put the data there, or set DUAL_DENOISING_DATA (data_root=...) to "
            "the folder that holds it"
        )
    return path


def read_names(path: str | Path) -> list[str]:
    """Class names, one a line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise MissingError(f"{path}: class names are missing; write one name a line") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: class names cannot be read ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: holds no class name; write one a line")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{path}: names '{twice.pop()}' twice; write every class once")
    return names


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], str | None]:
    """``data`` (n, N, 3), ``label`` (n,), ids and the attribute ``up`` of an HDF5 file.

    Ids are ``name`` where the file has it, else row numbers. Raises InputError for a file that is
    missing, damaged, empty, misshapen or not finite.
    """
    try:
        with h5py.File(need(path)) as file:
            data, labels = file["data"][()], file["label"][()].reshape(-1)
            names = file["name"].asstr()[()] if "name" in file else None
            up = file.attrs.get("up")
    except KeyError as error:
        raise InputError(f"{path}: holds no 'data' and 'label' ({error.args[0]})") from error
    except (OSError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: not a whole HDF5 file of clouds ({error})") from error
    labels = check_clouds(data, labels, path)
    ids = [str(i) for i in range(len(data))] if names is None else list(np.atleast_1d(names))
    if len(ids) != len(data):
        raise InputError(f"{path}: {len(data)} clouds in 'data' but {len(ids)} in 'name'")
    return data, labels, ids, None if up is None else str(up)


def check_clouds(data: np.ndarray, labels: np.ndarray, path: Path) -> np.ndarray:
    """Raises InputError unless data is (n, N, 3), finite, with n whole labels; returns int64."""
    if data.dtype.kind not in "fiu" or labels.dtype.kind not in "iuf" or (labels % 1).any():
        raise InputError(
            f"{path}: 'data' is of type {data.dtype}, 'label' of {labels.dtype}; they must be "
            "numbers, labels whole ones"
        )
    if data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
        raise InputError(f"{path}: 'data' has shape {data.shape}; it must be (n, N, 3), n > 0")
    if len(labels) != len(data):
        raise InputError(f"{path}: {len(data)} clouds in 'data' but {len(labels)} in 'label'")
    bad = []
    for index, cloud in enumerate(data):  # one at a time: a second copy of a data set is large
        try:
            check_shape(cloud, f"cloud {index}")
        except InputError as error:
            bad.append(str(error))
    if bad:
        raise InputError(f"{path}: {len(bad)} of {len(data)} clouds: {'; '.join(bad[:20])}")
    return labels.astype(np.int64)


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()
