import torch

from dual_denoising import benchmark, ops

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
    assert whole["hours for all samples"] == 3600 / whole["samples/s"] / 3600
    assert whole["parameters"]["whole"] == sum(p.numel() for p in toy().parameters())
    assert 0 < last["share of step"] < 1
