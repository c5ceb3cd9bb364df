"""What a training step is given: clouds, teacher features and noise keys, on its device."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from dual_denoising import keyed_random as noise
from dual_denoising.clip.features import Targets
from dual_denoising.data.clouds import CloudDataset, Epochs, loader
from dual_denoising.errors import InputError
from dual_denoising.training import ranks as distributed
from dual_denoising.training.store import CloudStore

log = logging.getLogger(__name__)


class Feed:
    """Batches {'points' (B, N, 3), 'targets' (B, F, E), 'keys' (B,)} on a device, and the clouds'
    'index' (B,) on the CPU.

    on_device: whether all clouds are kept, drawn and augmented on the device ('true', 'false'), or
    'auto', on a GPU where they and the features take at most half of its free memory; otherwise
    ``workers`` processes read them. Features lie on a GPU where they fit.
    """

    def __init__(
        self,
        dataset: CloudDataset,
        targets: Targets,
        device: torch.device,
        seed: int,
        workers: int,
        on_device: bool | str = "auto",
    ):
        self.dataset, self.targets, self.device = dataset, targets, device
        self.seed, self.workers = seed, workers
        self.asked = str(on_device).lower()
        if self.asked not in ("auto", "true", "false"):
            raise InputError(f"on_device is '{on_device}': choose auto, true or false")
        room = distributed.free_memory(device) // 2
        if device.type == "cuda" and targets.nbytes <= room:
            targets.to(device)
            room -= targets.nbytes
        fits = device.type == "cuda" and CloudStore.nbytes(dataset) <= room
        fits = not distributed.any_rank(not fits, device)
        self.kept = self.asked == "true" or (self.asked == "auto" and fits)
        self.store: CloudStore | None = None  # read when the first batch is asked for

    def _open(self) -> None:
        size = CloudStore.nbytes(self.dataset) / 1e9
        log.info("reading %d clouds, %.1f GB on %s", len(self.dataset), size, self.device)
        try:
            self.store = CloudStore(self.dataset, self.device, self.workers)
        except InputError as error:
            if self.asked == "true":
                raise
            log.warning("%s: clouds are read in every epoch", error)
            self.kept = False

    def __call__(self, batches: Iterable[tuple[int, np.ndarray]]) -> Iterator[dict[str, Tensor]]:
        """One dictionary for each (epoch, indices), read ahead where processes read."""
        if self.kept and self.store is None:
            self._open()
        if self.store is not None:
            for epoch, indices in batches:
                index = torch.from_numpy(indices)
                here = noise.on_device(index, self.device)
                yield self._given(self.store.batch(here, epoch), index, here, epoch)
            return
        asked, ahead = itertools.tee(batches)
        places = ([(epoch, int(i)) for i in indices] for epoch, indices in ahead)
        read = loader(Epochs(self.dataset), places, self.workers)
        for (epoch, _), batch in zip(asked, read, strict=True):
            points, here = (
                batch[key].to(self.device, non_blocking=True) for key in ("points", "index")
            )
            yield self._given(points, batch["index"], here, epoch)

    def _given(self, points: Tensor, index: Tensor, here: Tensor, epoch: int) -> dict[str, Tensor]:
        keys = noise.key(self.seed, epoch, here)
        if self.targets.device == self.device:
            targets = self.targets(here, keys)
        else:
            targets = self.targets(index, noise.key(self.seed, epoch, index))
            targets = noise.on_device(targets, self.device)
        return {"points": points, "targets": targets, "keys": keys, "index": index}
