"""What a training step is given: clouds, teacher features and noise keys, on its device."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dual_denoising import keyed_random
from dual_denoising.clip.targets import Targets
from dual_denoising.data.datasets import CloudDataset, loader
from dual_denoising.data.points import Augmentation
from dual_denoising.errors import InputError
from dual_denoising.keyed_random import Stream, on_device
from dual_denoising.training import ranks

log = logging.getLogger(__name__)


class Batches:
    """{'points' (B, N, 3), 'targets' (B, F, E), 'keys' (B,)} on a device, 'index' (B,) on the CPU.

    keep_on_device: whether all clouds are kept, drawn and augmented on the device ('true',
    'false'), or 'auto': on a GPU where they and the features take at most half of its free memory.
    Otherwise ``workers`` processes read them. Features lie on a GPU where they fit.
    """

    def __init__(
        self,
        dataset: CloudDataset,
        targets: Targets,
        device: torch.device,
        seed: int,
        workers: int,
        keep_on_device: str,
    ):
        self.dataset, self.targets, self.device = dataset, targets, device
        self.seed, self.workers, self.asked = seed, workers, keep_on_device
        on_gpu = device.type == "cuda"
        room = torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else 0
        if on_gpu and targets.nbytes <= room:
            targets.to(device)
            room -= targets.nbytes
        if keep_on_device == "true" and dataset.fresh:
            raise InputError("on_device is true: data.fresh draws anew what it keeps; set auto")
        fits = on_gpu and keep_on_device == "auto" and not dataset.fresh
        fits = fits and CloudStore.nbytes(dataset) <= room
        self.kept = keep_on_device == "true" or not ranks.any_rank(not fits, device)
        self.store: CloudStore | None = None  # read when the first batch is asked for

    def __call__(self, batches: Iterable[tuple[int, np.ndarray]]) -> Iterator[dict[str, Tensor]]:
        """One dictionary for each (epoch, indices); processes read ahead of it."""
        if self.kept and self.store is None:
            self._fill_store()
        if self.store is not None:
            for epoch, indices in batches:
                index = torch.from_numpy(indices)
                here = on_device(index, self.device)
                yield self._batch(self.store.batch(here, epoch), index, here, epoch)
            return
        asked, ahead = itertools.tee(batches)
        places = ([(epoch, int(i)) for i in indices] for epoch, indices in ahead)
        read = loader(self.dataset, places, self.workers)
        for (epoch, _), batch in zip(asked, read, strict=True):
            points, here = (
                batch[key].to(self.device, non_blocking=True) for key in ("points", "index")
            )
            yield self._batch(points, batch["index"], here, epoch)

    def _fill_store(self) -> None:
        size = CloudStore.nbytes(self.dataset) / 1e9
        log.info("reading %d clouds, %.1f GB on %s", len(self.dataset), size, self.device)
        try:
            self.store = CloudStore(self.dataset, self.device, self.workers)
        except InputError as error:
            if self.asked == "true":
                raise
            log.warning("%s: clouds are read in every epoch", error)
            self.kept = False

    def _batch(self, points: Tensor, index: Tensor, here: Tensor, epoch: int) -> dict[str, Tensor]:
        keys = keyed_random.key(Stream.TRAINING, self.seed, epoch, here)
        if self.targets.labels.device == self.device:
            targets = self.targets(here, keys)
        else:
            same = keyed_random.key(Stream.TRAINING, self.seed, epoch, index)
            targets = on_device(self.targets(index, same), self.device)
        return {"points": points, "targets": targets, "keys": keys, "index": index}


class CloudStore:
    """All clouds of a dataset on a device, where they are drawn and augmented without waiting.

    Points lie in half precision in the unit sphere, at most 2⁻¹² off; what is drawn is normalised
    anew. Draws are functions of (seed, epoch, index), but not the same draws as CloudDataset's.
    Raises InputError where clouds differ in size.
    """

    at_once = 64  # clouds that are read and copied together

    def __init__(self, dataset: CloudDataset, device: torch.device, workers: int = 0):
        self.dataset = dataset
        source, size = dataset.source, len(dataset.source.read(0))
        self.points = torch.empty(len(dataset), size, 3, dtype=torch.float16, device=device)
        # every stored point
        whole = replace(dataset, num_points=10**9, few="keep", augmentation=Augmentation())
        read = DataLoader(whole, self.at_once, num_workers=workers, collate_fn=_arrays)
        for first, clouds in zip(range(0, len(dataset), self.at_once), read, strict=True):
            odd = next((i for i, cloud in enumerate(clouds) if len(cloud) != size), None)
            if odd is not None:
                raise InputError(
                    f"{source.name}: cloud '{source.ids[first + odd]}' has {len(clouds[odd])} "
                    f"points, the first has {size}; set on_device=false, which reads clouds of any "
                    "size"
                )
            self.points[first : first + len(clouds)] = torch.from_numpy(np.stack(clouds))

    @staticmethod
    def nbytes(dataset: CloudDataset) -> int:
        """Memory it takes, if all clouds are as large as the first."""
        return 2 * 3 * len(dataset) * len(dataset.source.read(0))

    def batch(self, index: Tensor, epoch: int) -> Tensor:
        """Clouds (B, N, 3) at ``index`` (B,), a tensor of the store's device."""
        data, stored = self.dataset, self.points.shape[1]
        points = self.points[index]
        if stored > data.num_points:
            drawn = epoch if data.resample else 0
            keys = keyed_random.key(Stream.POINTS, data.seed, drawn, index)
            order = keyed_random.uniform(keys, stored).topk(data.num_points).indices
            points = points.gather(1, order[..., None].expand(-1, -1, 3))
        points = points.float()
        points = points - points.mean(1, keepdim=True)
        points = points / points.norm(dim=-1).amax(1).clamp(min=1e-6)[:, None, None]
        keys = keyed_random.key(Stream.AUGMENTATION, data.seed, epoch, index)
        return data.augmentation.of_batch(points, keyed_random.uniform(keys, 7))


def _arrays(items: list[dict]) -> list[np.ndarray]:
    """The points of items as arrays: tensors sent between processes are open files."""
    return [item["points"].numpy() for item in items]
