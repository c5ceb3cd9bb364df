from dataclasses import replace

import numpy as np
import pytest
import torch

from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.points import Augmentation
from dual_denoising.errors import InputError
from dual_denoising.training.batches import CloudStore

CPU = torch.device("cpu")


def test_whole_clouds_are_those_of_the_data_set(source):
    source.up = "z"
    clouds = CloudDataset(source, 40)
    batch = CloudStore(clouds, CPU).batch(torch.tensor([7, 2]), epoch=0)
    expected = torch.stack([clouds[7]["points"], clouds[2]["points"]])
    torch.testing.assert_close(batch, expected, atol=1e-3, rtol=0)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch.norm(dim=-1).amax(1), torch.ones(2))


def test_drawn_points_are_the_clouds_own_normalised_anew(source):
    store = CloudStore(CloudDataset(source, 15, resample=True), CPU)
    for index in range(4):
        drawn = store.batch(torch.tensor([index]), epoch=0)[0].double()
        torch.testing.assert_close(drawn.mean(0), torch.zeros(3).double(), atol=1e-6, rtol=0)
        placed = _placed(drawn, store.points[index].double())
        gaps = torch.cdist(placed, store.points[index].double())
        assert gaps.min(1).values.max() < 5e-3
        assert len(gaps.argmin(1).unique()) == 15  # none twice


def _placed(drawn: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """The drawn points in the stored cloud's scale and place, by the pair like the first two."""
    edges = stored[:, None] - stored[None]  # (M, M, 3)
    edge = drawn[0] - drawn[1]
    radii = edges.norm(dim=-1) / edge.norm()
    off = (edges - radii[..., None] * edge).norm(dim=-1).fill_diagonal_(torch.inf)
    first, second = divmod(int(off.argmin()), len(stored))
    return stored[first] + radii[first, second] * (drawn - drawn[0])


def test_draws_depend_on_seed_epoch_and_index_alone(source):
    clouds = CloudDataset(source, 15, Augmentation(180), resample=True, seed=4)
    store = CloudStore(clouds, CPU)
    both = store.batch(torch.tensor([3, 5]), epoch=1)
    assert torch.equal(both[1:], store.batch(torch.tensor([5]), epoch=1))
    for other in (
        store.batch(torch.tensor([5]), epoch=2),
        CloudStore(replace(clouds, seed=5), CPU).batch(torch.tensor([5]), epoch=1),
    ):
        assert not torch.allclose(both[1:], other, atol=1e-2)
    fixed = CloudStore(CloudDataset(source, 15), CPU)
    first, second = (fixed.batch(torch.tensor([5]), epoch=epoch) for epoch in (0, 1))
    assert torch.equal(first, second)


def test_augmentation_on_the_device_is_numpys():
    uniform = torch.rand(3, 7, dtype=torch.float64)
    points = torch.randn(3, 9, 3, dtype=torch.float64)
    augment = Augmentation(70, (0.6, 1.5), 0.2)

    class Given:
        """Gives the numbers that were drawn, mapped as NumPy's generator maps them."""

        def __init__(self, row):
            self.row = list(row)

        def uniform(self, low, high, size=None):
            drawn = np.array([self.row.pop(0) for _ in range(size or 1)])
            return low + (high - low) * (drawn if size else drawn[0])

    expected = [
        augment(cloud.numpy(), Given(row))
        for cloud, row in zip(points, uniform.numpy(), strict=True)
    ]
    np.testing.assert_allclose(augment.of_batch(points, uniform).numpy(), np.stack(expected))


def test_clouds_that_do_not_fit_are_named(source):
    clouds, read = CloudDataset(source, 15), source.read
    source.read = lambda index: read(index)[: 39 if index == 3 else None]
    with pytest.raises(InputError, match=r"'\S*3' has 39 points.*on_device=false"):
        CloudStore(clouds, CPU)
    assert CloudStore.nbytes(clouds) == 12 * 40 * 3 * 2
