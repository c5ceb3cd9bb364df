"""The model's interface, which is not the paper's: folders, the Hub, NumPy arrays."""

import difflib
import json
import logging
import math
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from dual_denoising.errors import InputError, brief, check, reading

Array = Tensor | np.ndarray
log = logging.getLogger(__name__)

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "models"
FILES = ["*.json", "*.safetensors", "README.md"]  # of a model's folder
FOLDER = "give the folder 'model' of a pre-training run, which holds config.json, model.safetensors"


def locate(name: str | Path) -> Path:
    """The folder of a model: itself, one of data/models by its name, or user/name of the Hub.

    What is on the Hub is downloaded once. Raises InputError where there is no such model.
    """
    for folder in (Path(name).expanduser(), SHIPPED / name):
        if folder.is_dir():
            return folder
    known = sorted(path.name for path in SHIPPED.glob("*/"))
    near = difflib.get_close_matches(str(name), known, n=1)
    words = f"{name}: no folder; the repository has {', '.join(known)}"
    words += f"; nearest: {near[0]}; {FOLDER}" if near else f"; {FOLDER}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or str(name).startswith("runs/"):
        raise InputError(words)
    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES))
    except Exception as error:  # the network, the Hub and the disk each have their own
        raise InputError(f"{words}; and no model of the Hub ({brief(error)})") from error


class Pretrained(PyTorchModelHubMixin):
    """``from_pretrained`` and ``save_pretrained`` of a folder or a repository of the Hub."""

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:  # type: ignore[override]
        """A model in evaluation mode: of a folder, of data/models by its name, or of the Hub.

        Raises InputError for a folder that is incomplete, damaged or of another architecture.
        """
        folder = locate(name)
        with reading(folder, cls.__name__, FOLDER, 600):
            model: Any = cls(**json.loads((folder / "config.json").read_text()))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


def numpy_in_numpy_out(method: Callable) -> Callable:
    """Lets a method of a module, clouds (B, N, 3) -> tensor, take NumPy and give NumPy back."""

    @wraps(method)
    def convert(self, clouds: Any, *args: Any, **kwargs: Any):
        given, fix = type(clouds).__name__, "give an array or a tensor (B, N, 3)"
        check("type of clouds", given, isinstance(clouds, np.ndarray | Tensor), fix)
        good = clouds.ndim == 3 and clouds.shape[-1] == 3 and 0 not in clouds.shape
        check("shape of clouds", tuple(clouds.shape), good, "it must be (B, N, 3)")
        ours = isinstance(clouds, Tensor)
        numbers = ours or clouds.dtype.kind in "fiu"
        check("type of clouds", str(clouds.dtype), numbers, "give numbers")
        if not ours or not (clouds.requires_grad or clouds.is_cuda):
            largest = max(float(clouds.max()), -float(clouds.min()))
            finite = math.isfinite(largest)
            check("a coordinate of clouds", largest, finite, "leave out what is not finite")
            if largest > 2:
                words = "models learn in the unit sphere: dual_denoising.data.points.normalise"
                log.warning("clouds have coordinates up to %.3g, %s", largest, words)
        if ours:
            return method(self, clouds, *args, **kwargs)
        like = next(self.buffers())
        with torch.no_grad():
            clouds = torch.as_tensor(clouds.astype(float)).to(like)  # torch lacks some NumPy types
            return method(self, clouds, *args, **kwargs).cpu().numpy()

    return convert
