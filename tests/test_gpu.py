"""What only a GPU can show; everything else is tested on whatever device there is."""

import pytest
import torch

from dual_denoising import attacks, ops
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from tests.test_engine import build, engine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_triton_serves_by_itself_and_chooses_what_a_cpu_chooses(clouds):
    here = clouds.cuda()
    assert ops._triton(1024, here)
    assert not ops._triton(1024, clouds)
    chosen, idx = ops.sample_farthest_points(here, K=20)
    assert torch.equal(idx.cpu(), ops.sample_farthest_points(clouds, K=20)[1])
    found = ops.knn_points(chosen, here, K=9)
    assert torch.equal(found.idx.cpu(), ops.knn_points(chosen.cpu(), clouds, K=9).idx)


@pytest.mark.parametrize("fields", [{}, {"compile": True}, {"on_device": False}])
def test_steps_are_enqueued_without_waiting(modelnet_h5, tmp_path, fields):
    trainer = build(modelnet_h5(), tmp_path, device="cuda", clip_norm=1.0, **fields)
    batches = trainer._batches()
    for _ in range(3):
        trainer._step(next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):  # across an epoch's end
            trainer._step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 7


@pytest.mark.parametrize("compiled", ["true", "reduce-overhead"])
def test_compiled_half_precision_has_the_eager_curve(modelnet_h5, tmp_path, compiled):
    curves, paths = [], modelnet_h5()
    for mode in ("false", compiled):
        model = {"drop_path": 0.0}
        trainer = build(paths, tmp_path / mode, 8, device="cuda", compile=mode, model=model)
        trainer.fit()
        metrics = engine.read_metrics(trainer.folder / "metrics.jsonl")
        curves.append(torch.tensor([line["loss"] for line in metrics]))
    assert (curves[0] - curves[1]).abs().max() < 0.05 * (curves[0].max() - curves[0].min())


@pytest.mark.parametrize("timestep", [0, 500])
def test_captured_graphs_answer_as_plain_calls(toy, wake, clouds, timestep):
    model, here = wake(toy()).eval().cuda(), clouds.cuda()
    plain, captured = (
        ZeroShotClassifier(model, torch.eye(4, 12), 3, timestep, captured=c).cuda()
        for c in (False, True)
    )
    with torch.inference_mode():
        for shift in (0.0, 0.1, 0.2):  # as it is, captured, replayed
            torch.testing.assert_close(plain(here + shift), captured(here + shift))
    labels = torch.tensor([0, 1, 2, 3, 0], device="cuda")
    for kind in (attacks.PGD, attacks.CW):
        found = [kind(plain, steps=12, captured=c)(here, labels) for c in (False, True)]
        apart = (found[0] - found[1]).abs() > 1e-4  # a gradient near 0 may round to either sign
        assert apart.float().mean() < 0.02
