"""Memory that a backward pass will need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def kept_for_backward(job: Callable, model: Callable) -> int:
    """Bytes that ``job``'s graph keeps for its backward pass, the model's own tensors left out."""
    own = model.state_dict().values() if isinstance(model, nn.Module) else ()
    own = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = job()  # alive until counted, so that no two tensors share an address
    total = sum(size for place, size in kept.items() if place not in own)
    del graph
    return total
