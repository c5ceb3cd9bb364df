import pytest
import torch

from dual_denoising.clip.features import StandInBank
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.evaluation.feature_noise import measure
from dual_denoising.evaluation.systems import System
from dual_denoising.training.record import TrainingRecord


def build(toy, wake, **fields):
    torch.manual_seed(0)
    model = wake(toy(feature_types=["text"], **fields)).eval()
    record = TrainingRecord("toy", "train", [], 20, "stand-in")
    return System(model, StandInBank(12), record, "here")


def test_held_tokens_are_standard_normal_and_nothing_trains_them(toy):
    for feature_width in (12, 64):  # narrower and wider than the stream of 16
        model = toy(feature_types=["text"], feature_noise_std=None, feature_width=feature_width)
        assert model.feature_denoiser.token_std() == pytest.approx(1, abs=0.03)
        assert not any("projection" in n for n, _ in model.feature_denoiser.named_parameters())
        assert "feature_denoiser.held_projection" in model.state_dict()


def test_the_initial_std_of_a_trained_projection_is_that_of_its_tokens(toy):
    model = toy(feature_types=["text"], feature_noise_std=0.5)
    assert model.feature_denoiser.token_std() == pytest.approx(0.5 * 12**0.5, rel=0.15)


def test_reads_start_as_much_larger_as_asked(toy):
    weights = []
    for gain in (1.0, 8.0):
        torch.manual_seed(0)
        model = toy(feature_types=["text"], feature_read_gain=gain)
        weights.append(model.feature_denoiser.blocks[0].attention.out_proj.weight)
    torch.testing.assert_close(8 * weights[0], weights[1])


def test_learned_tokens_decide_nothing_by_chance(toy, wake, source):
    found = measure(build(toy, wake, learned_tokens=True), CloudDataset(source, 20))
    assert found["output_share"] == pytest.approx(0, abs=1e-9)
    assert found["agreement"] == 1
    assert found["top1_s1"] == found["top1_s16"] == found["top1_without"]


def test_more_noise_has_the_larger_share_and_agrees_less(toy, wake, source):
    models = [build(toy, wake, feature_noise_std=std) for std in (1e-4, 1.0)]
    found = [measure(model, CloudDataset(source, 20)) for model in models]
    assert found[0]["output_share"] < 0.01 < found[1]["output_share"] <= 1
    assert found[0]["agreement"] >= found[1]["agreement"]
    assert found[0]["token_std"] < found[1]["token_std"]
    assert found[0]["top1_s1"] == found[0]["top1_without"]
