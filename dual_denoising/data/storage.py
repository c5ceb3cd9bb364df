"""Files that are either whole or not there, and the one fingerprint of what they hold."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from safetensors import SafetensorError

from dual_denoising.errors import InputError, reading


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file or folder to, which takes its place if all went well.

    Raises InputError where the disk refuses; what was there is then as it was.
    """
    own = f"{path.name}.{os.getpid()}"
    temporary, replaced = path.with_name(f"{own}.partial"), path.with_name(f"{own}.replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():  # a folder replaces only an empty one
            os.replace(path, replaced)
        os.replace(temporary, path)
        for left in replaced.iterdir() if replaced.exists() else ():
            if not (path / left.name).exists():  # what others have put there
                os.replace(left, path / left.name)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # each of a full disk
        raise InputError(f"{path}: not written ({error}); free space or write elsewhere") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict:
    """The object in a JSON file of ours, {} where there is none; InputError where it is damaged."""
    with reading(path, "JSON object", "repair or remove it"):
        return dict(json.loads(path.read_text())) if path.exists() else {}


def fingerprint(*parts: Any) -> str:
    """SHA-256 of files (Path, by content), arrays, bytes, and of anything that JSON can hold.

    Of one file it is what sha256sum prints.
    """
    state = hashlib.sha256()
    for number, part in enumerate(parts):
        state.update(b"\0" if number else b"")
        if isinstance(part, Path):
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: state)  # updates it
        elif isinstance(part, np.ndarray):
            state.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, bytes):
            state.update(part)
        else:
            state.update(json.dumps(part, sort_keys=True, ensure_ascii=False).encode())
    return state.hexdigest()


class RowFile:
    """An HDF5 file of rows that are computed batch by batch, and resumed where a run was killed.

    Raises InputError in the constructor where the file is there, but damaged, in use, or begun with
    other settings. done: how many rows an earlier run has left in it.
    """

    file: h5py.File  # while it is open

    def __init__(self, path: Path, settings: Mapping):
        self.path, self.settings, self.done = path, json.dumps(settings, sort_keys=True), 0
        self.check()

    def check(self) -> None:
        """Counts the rows done; raises InputError as the constructor does."""
        path = self.path
        if not path.exists():
            return
        try:
            with h5py.File(path) as file:
                same = file.attrs["settings"] == self.settings
                self.done = int(file["done"][()].sum())
        except BlockingIOError as error:
            raise InputError(f"{path}: in use by another run; choose another name=...") from error
        except (OSError, KeyError, RuntimeError) as error:
            raise InputError(f"{path}: damaged ({error}); remove it to begin anew") from error
        if not same:
            raise InputError(f"{path}: of other settings or data; choose another name=...")

    @contextlib.contextmanager
    def opened(self, n: int, **arrays) -> Iterator[Self]:
        """Opens it to write; a new file has n rows, none of them done, and these arrays."""
        self.check()
        if not self.path.exists():
            with atomic(self.path) as temporary, h5py.File(temporary, "w") as file:
                for name, values in {**arrays, "done": np.zeros(n, bool)}.items():
                    file[name] = values
                file.attrs["settings"] = self.settings
        try:
            with h5py.File(self.path, "r+") as self.file:
                yield self
        except OSError as error:
            words = f"not written ({error}); free space, start again"
            raise InputError(f"{self.path}: {words}") from error

    @classmethod
    @contextlib.contextmanager
    def resumed(
        cls, path: Path, settings: Mapping, marks: Sequence[str], **arrays
    ) -> Iterator[Self]:
        """Like ``opened``, but a file that is damaged or of other settings is begun anew.

        marks: a fingerprint of every row; rows whose mark has changed are computed again.
        """
        try:
            rows = cls(path, settings)
        except InputError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise
            path.unlink()
            rows = cls(path, settings)
        now = np.array(marks, "S")
        with rows.opened(len(now), mark=now, **arrays):
            rows.file["done"][()] &= rows.file["mark"][()] == now
            rows.file["mark"][()] = now
            yield rows

    @property
    def pending(self) -> np.ndarray:
        """The rows that are not done."""
        return np.flatnonzero(~self.file["done"][()])

    def finish(self, rows: np.ndarray, **values) -> None:
        """Writes values of these rows, and only then marks the rows as done."""
        for name, value in values.items():
            self.file[name][rows] = value
        self.file.flush()
        self.file["done"][rows] = True
        self.file.flush()
