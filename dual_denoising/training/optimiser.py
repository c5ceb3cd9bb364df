"""How a run is optimised: AdamW, cosine, warm-up, all of it timm's."""

from dataclasses import dataclass

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from dual_denoising.errors import check, check_number


@dataclass
class Optimisation:
    """How to optimise. The defaults are ReCon's, which the paper follows."""

    epochs: int = 300
    batch_size: int = 128  # clouds of an optimiser step, over all ranks and accumulated parts
    accumulation: int = 1  # parts that a batch is computed in, for less memory
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.05
    clip_norm: float = 0.0  # 0: no clipping
    ema_decay: float = 0.0  # 0: no moving average
    fused: bool = True  # AdamW in one kernel

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulation"):
            check_number(f"optim.{name}", getattr(self, name), 1)
        check_number("optim.lr", self.lr, whole=False, above=True)
        for name in ("min_lr", "warmup_epochs", "weight_decay", "clip_norm", "ema_decay"):
            check_number(f"optim.{name}", getattr(self, name), whole=False)
        check("optim.min_lr", self.min_lr, self.min_lr <= self.lr, f"optim.lr is {self.lr}")
        check("optim.ema_decay", self.ema_decay, self.ema_decay < 1, "choose one below 1")
        check("optim.fused", self.fused, self.fused in (True, False), "choose true or false")

    def build(
        self, model: nn.Module, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
        """AdamW without decay on one-dimensional parameters, and its schedule in steps."""
        optimizer = create_optimizer_v2(
            model, "adamw", lr=self.lr, weight_decay=self.weight_decay, fused=self.fused or None
        )
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=self.epochs * steps_per_epoch,
            lr_min=self.min_lr,
            warmup_t=int(self.warmup_epochs * steps_per_epoch),
            warmup_lr_init=self.min_lr,
            t_in_epochs=False,
        )
        return optimizer, scheduler
