"""The model's edge, which is not the paper's: folders, the Hub, NumPy arrays."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from torch import Tensor

from dual_denoising.errors import InputError, brief

Array = Tensor | np.ndarray
FOLDER = "give the folder 'model' of a pre-training run, which holds config.json, model.safetensors"


class Pretrained(PyTorchModelHubMixin):
    """``from_pretrained`` and ``save_pretrained`` of a folder or a repository of the Hub."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> Self:  # type: ignore[override]
        """A model in evaluation mode from ``config.json`` and ``model.safetensors``.

        Raises InputError for a folder that is incomplete, damaged or of another architecture.
        """
        folder = Path(folder)
        if folder.is_dir():
            cls._check_config(folder / "config.json")
        try:
            return super().from_pretrained(str(folder), strict=True, **kwargs)
        except (SafetensorError, RuntimeError, OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{folder}: no {cls.__name__} can be loaded ({brief(error, 600)}); {FOLDER}"
            ) from error

    @classmethod
    def _check_config(cls, path: Path) -> None:
        try:
            config = dict(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing; {FOLDER}") from error
        except (ValueError, TypeError, OSError) as error:
            raise InputError(f"{path}: not a JSON object ({error}); {FOLDER}") from error
        unknown = sorted(config.keys() - inspect.signature(cls).parameters.keys())
        if unknown:
            raise InputError(f"{path}: '{unknown[0]}' is no field of {cls.__name__}; {FOLDER}")


def numpy_in_numpy_out(method: Callable) -> Callable:
    """Lets a method of a module, clouds (B, N, 3) -> tensor, take NumPy and give NumPy back."""

    @wraps(method)
    def convert(self, clouds: Array, *args: Any, **kwargs: Any):
        if clouds.ndim != 3 or clouds.shape[-1] != 3 or 0 in clouds.shape:
            raise InputError(f"clouds have shape {tuple(clouds.shape)}; they must be (B, N, 3)")
        if isinstance(clouds, Tensor):
            return method(self, clouds, *args, **kwargs)
        if clouds.dtype.kind not in "fiu" or not np.isfinite(clouds).all():
            raise InputError(f"clouds of type {clouds.dtype} hold values that are not finite")
        like = next(self.buffers())

        def tensor(value):
            return (
                torch.as_tensor(value, device=like.device)
                if isinstance(value, np.ndarray)
                else value
            )

        with torch.no_grad():
            positional = [tensor(value) for value in args]
            named = {key: tensor(value) for key, value in kwargs.items()}
            clouds = tensor(clouds).to(like.dtype)
            return method(self, clouds, *positional, **named).cpu().numpy()

    return convert
