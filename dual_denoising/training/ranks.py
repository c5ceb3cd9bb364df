"""One process or many: the few things that differ under ``torchrun``."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dual_denoising.errors import InputError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins torchrun's processes inside the context; alone it does nothing."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank."""
    return bool(sum_over_ranks(torch.tensor(float(flag)), device))


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """Sum of a tensor over all ranks, on the tensor's own device."""
    if world_size() == 1:
        return values
    summed = values.to(device, copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


def fail_together(message: str | None) -> None:
    """Raises InputError on every rank where any has a message: that of the lowest of them."""
    messages = [message] * world_size()
    if world_size() > 1:
        dist.all_gather_object(messages, message)
    for words in messages:
        if words is not None:
            raise InputError(words)


class OnRanks:
    """A model on one process, copied to several (DDP), or sharded block by block (FSDP2).

    module: what the ranks call in place of the model.
    """

    def __init__(self, model: Any, device: torch.device, sharded: bool):
        if device.type == "cuda" and world_size() > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model, self.module, self.sharded = model, model, sharded
        if sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (world_size(),))
            for part in (*model.blocks, model):
                fully_shard(part, mesh=mesh)
        elif world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.module = DistributedDataParallel(model, ids, gradient_as_bucket_view=True)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager:
        """Wraps each part of an accumulated batch; ranks exchange gradients in the last only."""
        if self.sharded:
            self.model.set_requires_gradient_sync(last)
        elif world_size() > 1 and not last:
            return self.module.no_sync()
        return contextlib.nullcontext()

    def state(self, optimizer: torch.optim.Optimizer | None = None) -> tuple[dict, dict]:
        """States of model and optimiser. If sharded, all ranks call it, the first gets them."""
        if not self.sharded:
            return self.model.state_dict(), optimizer.state_dict() if optimizer else {}
        from torch.distributed.checkpoint import state_dict

        whole, moments = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True), {}
        if optimizer:
            moments = state_dict.get_optimizer_state_dict(self.model, optimizer, options=whole)
        return state_dict.get_model_state_dict(self.model, options=whole), moments

    def load(self, optimizer: torch.optim.Optimizer, weights: dict, moments: dict) -> None:
        """Loads whole states; every rank must pass them."""
        if not self.sharded:
            self.model.load_state_dict(weights)
            optimizer.load_state_dict(moments)
            return
        from torch.distributed.checkpoint import state_dict

        whole = state_dict.StateDictOptions(full_state_dict=True)
        state_dict.set_model_state_dict(self.model, weights, options=whole)
        state_dict.set_optimizer_state_dict(self.model, optimizer, moments, options=whole)
