"""How the training loop runs, and what is checked before it does."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch

from dual_denoising.data.datasets import CloudDataset
from dual_denoising.errors import check, check_choice, check_number
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training import checkpoint, ranks
from dual_denoising.training.optimiser import Optimisation

log = logging.getLogger(__name__)

LAST = Path("checkpoints", "last.pt")  # below a run's folder
GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile with CUDA graphs
COMPILE = ("auto", "true", "false", *GRAPHS)


@dataclass
class Loop:
    """How the loop runs; configs/pretrain.yaml has the defaults and says what each is.

    Apart from the seed, nothing here changes what is drawn.
    """

    seed: int
    workers: int
    log_every: int
    checkpoint_every: int
    picture_every: int
    resume: bool
    compile: bool | str
    sharded: bool
    half_file: bool

    def __post_init__(self):
        self.compile = str(self.compile).lower()
        check_choice("compile", self.compile, COMPILE)
        for name in ("sharded", "resume", "half_file"):
            value = getattr(self, name)
            check(name, value, isinstance(value, bool), "choose true or false")
        for name in ("log_every", "checkpoint_every"):
            check_number(name, getattr(self, name), 1)
        for name in ("seed", "workers", "picture_every"):
            check_number(name, getattr(self, name))

    @classmethod
    def of(cls, settings: Mapping) -> Self:
        """The settings of these names, among others."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    def check_start(
        self,
        optim: Optimisation,
        clouds: CloudDataset,
        model: DualDenoising,
        folder: Path,
        config: Mapping,
    ) -> None:
        """Checks settings before any work is done.

        Raises InputError where they exclude each other, do not fit the training set, or differ from
        those of a run in ``folder`` that would be resumed.
        """
        most, parts = clouds.epoch_size(), ranks.world_size() * optim.accumulation
        words = f"an epoch of {clouds.source.name} has {most} clouds; set {most} or less"
        check("optim.batch_size", optim.batch_size, optim.batch_size <= most, words)
        words = f"it must be a multiple of ranks × optim.accumulation = {parts}"
        check("optim.batch_size", optim.batch_size, optim.batch_size % parts == 0, words)
        graphs, split = self.compile in GRAPHS, optim.accumulation > 1 or self.sharded
        words = "its CUDA graphs keep gradients and weights in one place, so neither "
        words += "optim.accumulation nor sharded goes with it; set compile=true"
        check("compile", self.compile, not (graphs and split), words)
        if optim.warmup_epochs >= optim.epochs:
            words = "optim.warmup_epochs is %g of %d epochs: the rate does not reach optim.lr"
            log.warning(words, optim.warmup_epochs, optim.epochs)
        if self.sharded:
            average, started = optim.ema_decay, torch.distributed.is_initialized()
            words = "sharded=true keeps no average; set it to 0"
            check("optim.ema_decay", average, not average, words)
            check("sharded", True, started, "start it with torchrun, on several processes")
        least = max(model.num_groups, model.group_size)
        enough = clouds.num_points >= least
        check("data.num_points", clouds.num_points, enough, f"the tokens need {least} or more")
        check_number("mix_text", config["mix_text"], most=1, whole=False)
        mode = (config["logger"] or {}).get("mode", "disabled")
        check_choice("logger.mode", mode, ("online", "offline", "disabled"))
        words = "image features are of the shapes as they are stored; set it to false, or "
        words += "model.feature_types=[text]"
        fits = not (clouds.fresh and "image" in model.feature_types)
        check("data.fresh", clouds.fresh, fits, words)
        last = folder / LAST
        if self.resume and last.exists():
            checkpoint.check_settings(checkpoint.load_state(last)["settings"], config, last)
