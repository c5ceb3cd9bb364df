"""One process or many: the few things that differ under ``torchrun``."""

from __future__ import annotations

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn

from dual_denoising.errors import InputError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``name``; 'auto' is this rank's GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is '{name}': choose auto, cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is '{name}', but torch finds no GPU; choose cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


@contextlib.contextmanager
def process_group(device: torch.device):
    """Joins torchrun's processes for the duration of the context; alone it does nothing."""
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


def running() -> bool:
    """Whether this is one of torchrun's processes that have found each other."""
    return dist.is_initialized()


def wrap(model: nn.Module, device: torch.device, sharded: bool = False) -> nn.Module:
    """The model itself, or what shares its gradients and batch statistics between the ranks.

    DDP copies the model and sums gradients in buckets while the backward pass goes on. ``sharded``
    splits each of ``model.blocks``, and the rest as one, over the ranks (FSDP2).
    """
    if world_size() == 1 and not sharded:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (world_size(),))
        for part in (*model.blocks, model):
            fully_shard(part, mesh=mesh)
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def summing(wrapped: nn.Module, last: bool):
    """Around one accumulated part: gradients are summed over the ranks with the last one alone."""
    if hasattr(wrapped, "set_requires_gradient_sync"):  # FSDP2's
        wrapped.set_requires_gradient_sync(last)
    if last or not isinstance(wrapped, nn.parallel.DistributedDataParallel):
        yield
    else:
        with wrapped.no_sync():
            yield


def whole_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, sharded: bool
) -> tuple[dict, dict]:
    """State of model and optimiser; sharded ones are gathered, whole on the first rank alone."""
    if not sharded:
        return model.state_dict(), optimizer.state_dict() if optimizer else {}
    from torch.distributed.checkpoint import state_dict

    whole = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    moments = {}
    if optimizer:
        moments = state_dict.get_optimizer_state_dict(model, optimizer, options=whole)
    return state_dict.get_model_state_dict(model, options=whole), moments


def load_whole_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict, moments: dict, sharded: bool
) -> None:
    """Loads what ``whole_state`` gave and every rank has read."""
    if not sharded:
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        return
    from torch.distributed.checkpoint import state_dict

    whole = state_dict.StateDictOptions(full_state_dict=True)
    state_dict.set_model_state_dict(model, weights, options=whole)
    state_dict.set_optimizer_state_dict(model, optimizer, moments, options=whole)


def gradient_bytes(model: nn.Module, ranks: int, sharded: bool = False) -> int:
    """Bytes that each rank sends per step in a ring: 2(W−1)/W of all gradients, which DDP sums; of
    FSDP2 3(W−1)/W: parameters gathered twice, gradients scattered once."""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return (3 if sharded else 2) * (ranks - 1) * size // ranks


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, 0 for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all ranks."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def sum_over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum of a tensor over all ranks, on the CPU."""
    if world_size() == 1:
        return values
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu()


def first_said(message: str | None) -> str | None:
    """The message of the first rank that has one, on every rank."""
    if world_size() == 1:
        return message
    said: list[str | None] = [None] * world_size()
    dist.all_gather_object(said, message)
    return next((words for words in said if words is not None), None)
