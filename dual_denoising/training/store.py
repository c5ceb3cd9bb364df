"""All clouds of a training set on the training device, where they are drawn and augmented."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dual_denoising import keyed_random as noise
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.errors import InputError

AT_ONCE = 64  # clouds that are read and copied together


class CloudStore:
    """Batches as a CloudDataset gives them, made on a device and without waiting for it.

    Points lie in half precision in the unit sphere, at most 2⁻¹² off; what is drawn of them is
    normalised anew. Draws are functions of (seed, epoch, index), as the data set's, but not the
    same ones. Raises InputError where clouds differ in size, or have too few points.
    """

    def __init__(self, dataset: CloudDataset, device: torch.device, workers: int = 0):
        self.dataset = dataset
        source, size = dataset.source, len(dataset.source.read(0))
        if size < dataset.num_points:
            raise InputError(
                f"{source.name}: clouds have {size} points, {dataset.num_points} were asked for; "
                f"set data.num_points to {size} or less"
            )
        self.points = torch.empty(len(dataset), size, 3, dtype=torch.float16, device=device)
        read = DataLoader(_Whole(dataset), AT_ONCE, num_workers=workers, collate_fn=list)
        for first, clouds in zip(range(0, len(dataset), AT_ONCE), read, strict=True):
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
            drawn = noise.key(data.seed, epoch if data.resample else 0, index, noise.DRAW)
            order = noise.uniform(drawn, stored).topk(data.num_points).indices  # a random order
            points = points.gather(1, order[..., None].expand(-1, -1, 3))
        points = points.float()
        points = points - points.mean(1, keepdim=True)
        points = points / points.norm(dim=-1).amax(1).clamp(min=1e-6)[:, None, None]
        uniform = noise.uniform(noise.key(data.seed, epoch, index, noise.AUGMENT), 7)
        return data.augmentation.of_batch(points, uniform)


class _Whole(Dataset):
    """Every point of every cloud, y-up in the unit sphere."""

    def __init__(self, dataset: CloudDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.dataset.whole(index)  # as an array: tensors between processes are open files
