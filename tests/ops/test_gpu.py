"""What only a GPU can show; everything else is tested on whatever device there is."""

import pytest
import torch

from dual_denoising import ops
from tests.training.test_trainer import build, fitted, logged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_triton_serves_by_itself_and_chooses_what_a_cpu_chooses(clouds):
    here = clouds.cuda()
    chosen, idx = ops.sample_farthest_points(here, K=20)
    assert torch.equal(idx.cpu(), ops.sample_farthest_points(clouds, K=20)[1])
    found = ops.knn_points(chosen, here, K=9)
    assert torch.equal(found.idx.cpu(), ops.knn_points(chosen.cpu(), clouds, K=9).idx)


@pytest.mark.parametrize("fields", [{}, {"compile": "true"}])
def test_steps_are_enqueued_without_waiting(modelnet_h5, tmp_path, fields):
    trainer = build(modelnet_h5(), tmp_path, 3, device="cuda", clip_norm=1.0, **fields)
    batches = trainer.step_parts()
    for _ in range(3):
        trainer.train_step(next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):  # across an epoch's end
            trainer.train_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 7


@pytest.mark.parametrize("compiled", ["true", "reduce-overhead"])
def test_compiled_half_precision_has_the_eager_curve(modelnet_h5, tmp_path, compiled):
    curves, paths = [], modelnet_h5()
    for mode in ("false", compiled):
        fields = {"device": "cuda", "compile": mode, "model": {"drop_path": 0.0}}
        trainer = fitted(build(paths, tmp_path / mode, 8, **fields))
        curves.append(torch.tensor(logged(trainer, "loss")))
    assert (curves[0] - curves[1]).abs().max() < 0.05 * (curves[0].max() - curves[0].min())
