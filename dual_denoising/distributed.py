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


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself, or with DDP around it and batch statistics shared between GPUs."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
    return nn.parallel.DistributedDataParallel(model)


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
