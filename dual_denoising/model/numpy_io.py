"""NumPy in, NumPy out, for functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dual_denoising.errors import InputError

Array = Tensor | np.ndarray


def check_batch(clouds: Array) -> None:
    """Raises InputError unless clouds are (B, N, 3)."""
    if clouds.ndim != 3 or clouds.shape[-1] != 3 or 0 in clouds.shape:
        raise InputError(f"clouds have shape {tuple(clouds.shape)}; they must be (B, N, 3)")


@torch.no_grad()
def on_arrays(
    function: Callable[..., Tensor], like: Tensor, clouds: np.ndarray, *arguments, indices=None
) -> np.ndarray:
    """Calls function(clouds, *arguments, indices=…) with tensors like ``like``: type, device.

    Raises InputError for clouds that are not (B, N, 3) finite numbers.
    """
    check_batch(clouds)
    if clouds.dtype.kind not in "fiu" or not np.isfinite(clouds).all():
        raise InputError(f"clouds of type {clouds.dtype} hold values that are not finite numbers")
    tensor = torch.as_tensor(clouds, dtype=like.dtype, device=like.device)
    if indices is not None:
        indices = torch.as_tensor(indices, dtype=torch.int64, device=like.device)
    return function(tensor, *arguments, indices=indices).cpu().numpy()
