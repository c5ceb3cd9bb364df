"""ModelNet-style HDF5: ``data`` (n, N, 3), ``label`` (n,), optional ``name`` (n,)."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from dual_denoising.data.clouds import check_points
from dual_denoising.errors import InputError


class ModelNetH5:
    """One split in one file, held in memory. ``up`` is the up-axis of the file's own frame.

    Raises InputError for a file that is missing, damaged, empty, misshapen or not finite, and for
    labels that the list of class names does not have.
    """

    def __init__(self, path: str, shape_names: str, split: str, name: str, up: str):
        self.name, self.split, self.up = name, split, up
        self.class_names = read_names(shape_names)
        self.clouds, self.labels, self.ids = _read(Path(path))
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(wrong):
            raise InputError(
                f"{path}: label[{wrong[0]}] is {self.labels[wrong[0]]}, but {shape_names} lists "
                f"{len(self.class_names)} classes (0 to {len(self.class_names) - 1}); give the "
                "list that belongs to the file"
            )

    def read(self, index: int) -> np.ndarray:
        return self.clouds[index]


def read_names(path: str) -> list[str]:
    """Class names, one a line."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: class names cannot be read ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: holds no class name; write one a line")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{path}: names '{twice.pop()}' twice; write every class once")
    return names


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    if not path.exists():
        raise InputError(
            f"{path}: missing; put the data there, or set DUAL_DENOISING_DATA (data_root=...) to "
            "the folder that holds it"
        )
    try:
        with h5py.File(path) as file:
            data, labels = file["data"][()], file["label"][()].reshape(-1)
            names = file["name"].asstr()[()] if "name" in file else None
    except KeyError as error:
        raise InputError(f"{path}: holds no 'data' and 'label' ({error.args[0]})") from error
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a whole HDF5 file of clouds ({error})") from error
    if data.dtype.kind not in "fiu" or labels.dtype.kind not in "iuf" or (labels % 1).any():
        raise InputError(
            f"{path}: 'data' is of type {data.dtype}, 'label' of {labels.dtype}; they must be "
            "numbers, labels whole ones"
        )
    if data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
        raise InputError(f"{path}: 'data' has shape {data.shape}; it must be (n, N, 3), n > 0")
    if len(labels) != len(data):
        raise InputError(f"{path}: {len(data)} clouds in 'data' but {len(labels)} in 'label'")
    broken = np.flatnonzero(~np.isfinite(data).all((1, 2)))
    if len(broken):
        check_points(data[broken[0]], f"{path}, cloud {broken[0]}")
    ids = [str(i) for i in range(len(data))] if names is None else list(names)
    if len(ids) != len(data):
        raise InputError(f"{path}: {len(data)} clouds in 'data' but {len(ids)} in 'name'")
    return data, labels.astype(np.int64), ids
