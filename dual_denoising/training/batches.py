"""The batches of a run: which clouds a step takes, their targets, and the keys of their noise."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.clip.targets import Targets
from dual_denoising.data.datasets import CloudDataset, epoch_batches, loader
from dual_denoising.keyed_random import Stream
from dual_denoising.training import ranks
from dual_denoising.training.optimiser import Optimisation
from dual_denoising.training.settings import Loop


def batches(
    dataset: CloudDataset,
    targets: Targets,
    optim: Optimisation,
    loop: Loop,
    device: torch.device,
    step: int,
) -> Iterator[dict[str, Tensor]]:
    """This rank's parts of every batch from ``step`` to the end of the run, on the device.

    points (B, N, 3), targets (B, F, E), keys (B,); index (B,) stays on the CPU.
    """
    world = ranks.world_size()
    parts = world * optim.accumulation
    first_epoch, first = divmod(step, dataset.epoch_size() // optim.batch_size)

    def places() -> Iterator[list[tuple[int, int]]]:
        for epoch in range(first_epoch, optim.epochs):
            order = epoch_batches(dataset, optim.batch_size, loop.seed, epoch)
            for batch in order[first if epoch == first_epoch else 0 :]:
                for part in range(ranks.rank(), parts, world):
                    yield [(epoch, int(i)) for i in batch[part::parts]]

    for batch in loader(dataset, places(), loop.workers):
        points, epoch, index = (
            batch[key].to(device, non_blocking=True) for key in ("points", "epoch", "index")
        )
        keys = keyed_random.key(Stream.TRAINING, loop.seed, epoch, index)
        own = {"points": points, "targets": targets(index, keys), "keys": keys}
        yield own | {"index": batch["index"]}
