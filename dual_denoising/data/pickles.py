"""Pickles of arrays, without trusting anything that a pickle may ask for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from dual_denoising.errors import reading


class _Dtype:
    """A dtype of plain numbers, from the code and the byte order that a pickle states."""

    def __init__(self, code: str | bytes, *_: Any):
        self.dtype = np.dtype(code.decode() if isinstance(code, bytes) else str(code))
        if self.dtype.kind not in "fiub" or self.dtype.subdtype is not None:
            raise TypeError(f"holds an array of type {self.dtype}, not of numbers")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, from the shape, type and bytes that a pickle states."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _from_bytes(data, dtype, shape, "F" if fortran else "C")


def _from_bytes(data: Any, dtype: _Dtype, shape: tuple, order: Any = "C") -> np.ndarray:
    data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy()


STANDINS: dict[str, Any] = {  # numpy's own would read memory where a pickle points
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,  # named as what _reconstruct is to make
    "_codecs.encode": lambda text, _: text.encode("latin-1"),  # how protocol 2 writes bytes
}
for _core in ("numpy.core", "numpy._core"):
    STANDINS |= {
        f"{_core}.multiarray._reconstruct": lambda *_: _Array(),
        f"{_core}.multiarray.scalar": lambda dtype, data: _from_bytes(data, dtype, ())[()],
        f"{_core}.numeric._frombuffer": _from_bytes,
    }


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in STANDINS:
            raise pickle.UnpicklingError(
                f"asks for {module}.{name}; only lists and numpy arrays of numbers are read, "
                "nothing was run; do not trust this file"
            )
        return STANDINS[f"{module}.{name}"]


def _unwrap(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_unwrap(item) for item in value]
    return value.array if isinstance(value, _Array) else value


def load_arrays(path: Path) -> Any:
    """Lists (tuples become lists), numbers and numpy arrays of a pickle.

    Raises InputError where the file is damaged or asks for anything else, which is not run.
    """
    with reading(path, "pickle of arrays", "get it from its publisher"), open(path, "rb") as file:
        return _unwrap(_ArraysOnly(file, encoding="latin1").load())
