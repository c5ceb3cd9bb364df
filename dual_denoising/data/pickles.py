"""Pickles of arrays, without running what else a pickle may hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from dual_denoising.data.sources import need
from dual_denoising.errors import InputError

_NUMPY = {"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"}
_MODULES = {f"{core}.{sub}" for core in ("numpy.core", "numpy._core") for sub in
            ("multiarray", "numeric")} | {"numpy"}  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _NUMPY:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1  # how protocol 2 writes an array's bytes
        raise InputError(
            f"asks for {module}.{name}; only lists and numpy arrays of numbers are read, nothing "
            "was run; do not trust this file"
        )


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


def load_arrays(path: Path) -> Any:
    """Lists, tuples, dicts, numbers and numpy arrays of a pickle.

    Raises InputError where the file is damaged or asks for anything else, which is not run.
    """
    try:
        with open(need(path), "rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except InputError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise type(error)(f"{prefix}{error}") from error
    except Exception as error:  # a damaged pickle raises anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: not a whole pickle of arrays ({reason})") from error
