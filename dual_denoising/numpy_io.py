"""NumPy in, NumPy out, for functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


@torch.no_grad()
def on_arrays(function: Callable[..., Tensor], like: Tensor, *arguments) -> np.ndarray:
    """Calls a function with arrays as tensors; floats get the type of ``like``, all its device."""
    tensors = [
        torch.as_tensor(a, dtype=like.dtype if a.dtype.kind == "f" else None, device=like.device)
        if isinstance(a, np.ndarray)
        else a
        for a in arguments
    ]
    return function(*tensors).cpu().numpy()
