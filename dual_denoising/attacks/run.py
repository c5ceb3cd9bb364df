"""Attacks on many clouds: streamed to disk, resumed where a run was killed."""

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dual_denoising.attacks.base import Attack, device_of
from dual_denoising.data.datasets import Sample
from dual_denoising.data.storage import RowFile
from dual_denoising.errors import check_number

log = logging.getLogger(__name__)

AT_ONCE = {"cuda": 512, "cpu": 25}  # clouds in a batch; a killed run loses as many
CHOOSING = 10**6  # first fresh noise seed by which the worst of several attacks is chosen
FLAGS = ("failed", "flat", "unsuccessful")


def run(
    attack: Attack,
    sample: Sample,
    file: RowFile,
    batch_size: int | None = None,
    record: Sequence[int] = (),
    title: str = "attack",
) -> None:
    """Attacks the clouds that the HDF5 file lacks, and writes them to it batch by batch.

    The file then holds clean, adversarial, label, index, failed, flat, unsuccessful, done, seconds
    and, for the steps of ``record``, the clouds of each (steps, n, N, 3). Out of memory, the batch
    is halved.
    """
    device = device_of(attack.model)
    size = batch_size or AT_ONCE[device.type]
    clouds, n = sample.clouds, len(sample.clouds)
    arrays = {
        "clean": clouds.numpy(),
        "label": sample.labels.numpy(),
        "index": sample.indices.numpy(),
        "adversarial": clouds.numpy(),
        "seconds": np.zeros(n, np.float32),
    } | {flag: np.zeros(n, bool) for flag in FLAGS}
    if record:
        arrays["recorded"] = np.zeros((len(record), *clouds.shape), np.float32)
    steps: dict[int, Tensor] = {}

    def keep(step: int, points: Tensor) -> None:
        if attack.stages:
            progress.update(len(points) / attack.stages)
        if step in record:
            steps[step] = points

    with file.opened(n, **arrays):
        pending = file.pending
        done = n - len(pending)
        progress = tqdm(None, title, n, initial=done, unit="cloud", unit_scale=True)
        while len(pending):
            rows = pending[:size]
            batch, labels, indices = (x[rows].to(device) for x in sample)
            started = time.perf_counter()
            try:
                found = attack(batch, labels, indices, keep)
            except (MemoryError, RuntimeError) as error:
                full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
                full |= "can't allocate memory" in str(error)  # the CPU's has no type of its own
                if not full or len(rows) == 1:
                    raise
                size = len(rows) // 2
                log.warning("%s: out of memory, going on with batches of %d", title, size)
                progress.update(n - len(pending) - progress.n)
                continue
            values = {flag: getattr(attack, flag).cpu().numpy() for flag in FLAGS}
            if record:
                kept = torch.stack([steps[step] for step in record]).cpu()
                left = attack.failed.cpu()[:, None, None]
                file.file["recorded"][:, rows] = torch.where(left, clouds[rows], kept).numpy()
            seconds = (time.perf_counter() - started) / len(rows)
            file.finish(rows, adversarial=found.cpu().numpy(), seconds=seconds, **values)
            pending = pending[len(rows) :]
            progress.update(n - len(pending) - progress.n)
        progress.close()


def check_seeds(count: int, first: int, prefix: str = "") -> range:
    """Noise seeds of a scoring: ``count`` from ``first``. prefix: of the two settings' names."""
    check_number(f"{prefix}seeds", count, 1)
    check_number(f"{prefix}seed", first, most=CHOOSING - count)
    return range(first, first + count)
