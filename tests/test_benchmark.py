from itertools import pairwise

import pytest
import torch

from dual_denoising import benchmark, benchmark_attacks, ops
from dual_denoising.zeroshot import ZeroShotClassifier

CPU = torch.device("cpu")


def test_rivals_compute_the_same(clouds):
    assert torch.equal(benchmark.naive_fps(clouds, 9), ops.sample_farthest_points(clouds, K=9)[1])
    ours, _ = ops.chamfer_distance(clouds, clouds * 0.9)
    torch.testing.assert_close(benchmark.naive_chamfer(clouds, clouds * 0.9), ours)


def test_medians_leave_warm_up_out_and_run_rivals_in_turn(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])

    def job(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds + (100 if len(order) <= 4 else 0)

        return run

    times = benchmark.medians({"a": job("a", 1.0), "b": job("b", 2.0)}, CPU, 3)
    assert order == ["a", "b"] * 5
    assert times == {"a": (1.0, 1.0, 1.0), "b": (2.0, 2.0, 2.0)}


def test_a_steps_parts_are_reported(toy):
    rows = benchmark.train_step(toy(), CPU, 1, batch_size=2, points=64, samples=3600)
    whole, last = rows[0], rows[-1]
    assert whole["share of step"] == 1
    assert whole["hours for all samples"] == pytest.approx(1 / whole["samples/s"])
    assert whole["parameters"]["whole"] == sum(p.numel() for p in toy().parameters())
    assert 0 < last["share of step"] < 1


def test_inference_is_compared_with_one_path_at_the_same_timestep(toy):
    rows = benchmark.inference(toy(), CPU, 2, 3, 64, [1, 4], [0, 500])
    assert [(row["S"], row["t"]) for row in rows] == [(1, 0), (4, 0), (1, 500), (4, 500)]
    for one, four in (rows[:2], rows[2:]):
        ratio = four["ms per cloud"] / one["ms per cloud"]
        assert four["ratio to S = 1"] == pytest.approx(ratio)


def test_memory_is_measured_over_the_whole_evaluation(toy):
    rows = benchmark.memory(toy(), CPU, 40, 64, 2, 500, 5)
    assert [row["clouds"] for row in rows] == [*range(0, 40, 4), 40]
    assert all(later["peak GB"] >= row["peak GB"] for row, later in pairwise(rows))


def test_one_path_at_a_time_is_the_same_defence(toy, wake, clouds):
    model = wake(toy()).eval()
    for timestep in (0, 500):
        classifier = ZeroShotClassifier(model, torch.eye(4, 12), 3, timestep)
        loop = benchmark_attacks.OnePathAtATime(classifier)
        indices = torch.arange(5)
        torch.testing.assert_close(
            loop.draws(clouds, indices, [4, 9]), classifier.draws(clouds, indices, [4, 9])
        )


def test_attacks_are_compared_with_their_alternative(toy):
    rows = benchmark_attacks.attacks(toy(), CPU, 1, 2, 64, 2, 3)
    assert [row["how"] for row in rows] == ["one graph", "a pass per path"] * 2 + [
        "compacted", "whole batch",
    ]  # fmt: skip
    for fast, slow in zip(rows[::2], rows[1::2], strict=True):
        assert fast["times as fast"] == pytest.approx(slow["s per cloud"] / fast["s per cloud"])
        assert slow["times as fast"] == 1
