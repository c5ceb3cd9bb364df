import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dual_denoising import ops
from dual_denoising.benchmarks import timing
from dual_denoising.benchmarks.attacks import attacks
from dual_denoising.benchmarks.imports import imports
from dual_denoising.benchmarks.inference import OnePathAtATime, inference, memory
from dual_denoising.benchmarks.point_ops import naive_chamfer, naive_fps, naive_knn, point_ops
from dual_denoising.benchmarks.scaling import volume
from dual_denoising.benchmarks.training import train_step
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.memory import kept_for_backward
from dual_denoising.training import ranks as distributed

CPU = torch.device("cpu")
MACHINE = timing.Machine({"float32": 1e9}, 1e8)  # 1 GFLOP/s, 100 MB/s


def test_rivals_compute_the_same(clouds):
    chosen, idx = ops.sample_farthest_points(clouds, K=9)
    assert torch.equal(naive_fps(clouds, 9), idx)
    assert torch.equal(naive_knn(chosen, clouds, 3), ops.knn_points(chosen, clouds, K=3).idx)
    ours, _ = ops.chamfer_distance(clouds, clouds * 0.9)
    torch.testing.assert_close(naive_chamfer(clouds, clouds * 0.9), ours)


def test_medians_leave_warm_up_out_and_run_rivals_in_turn(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def job(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds + (100 if len(order) <= 4 else 0)

        return run

    times = timing.medians({"a": job("a", 1.0), "b": job("b", 2.0)}, CPU, 3)
    assert order == ["a", "b"] * 5
    assert times == {"a": timing.Timing(1.0, 1.0, 1.0), "b": timing.Timing(2.0, 2.0, 2.0)}
    assert times["b"].row(per=4) == {"ms": 500, "min": 500, "max": 500}


def test_the_floor_is_the_slower_of_arithmetic_and_traffic():
    assert MACHINE.floor(2e9, 1e8) == 2
    assert MACHINE.floor(1e9, 3e8) == 3


def test_products_and_attention_are_counted():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert timing.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.randn(2, 4, 6, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert timing.flops(lambda: attention(q, q, q)) == 2 * 2 * (2 * 4 * 6 * 6 * 8)


def test_the_machine_is_measured_by_a_product_and_a_copy(monkeypatch):
    monkeypatch.setattr(timing, "medians", lambda jobs, *_: {
        name: timing.Timing(seconds, seconds, seconds)
        for name, seconds in zip(jobs, (0.5, 2.0), strict=True)
    })  # fmt: skip
    machine = timing.measure(CPU)
    assert machine.matmul == {"float32": 2 * 2048**3 / 0.5}
    assert machine.copy == 2 * 4 * 2**26 / 2.0


def test_operations_are_compared_with_their_rivals_and_their_floor():
    machine = timing.Machine({"float32": 1e9}, 1e15)  # arithmetic is the floor
    rows = point_ops(machine, CPU, 1, 2, 64, 4, 8, compiled=False)
    by_operation = {row["operation"]: [] for row in rows}
    for row in rows:
        by_operation[row["operation"]].append(row)
    assert list(by_operation) == ["FPS", "kNN", "Chamfer + backward"]
    distances = 2 * 4 * 64  # of both searches: clouds × centres × points
    floors = [10 * distances / 1e9, 8 * distances / 1e9, 2 * 4 * (8 * 64 + 18 * 8) / 1e9]
    for group, floor in zip(by_operation.values(), floors, strict=True):
        ours = next(row for row in group if row["by"] == "ours")
        assert ours["ours / it"] == 1
        for row in group:
            assert row["share of floor"] == pytest.approx(1e3 * floor / row["ms"])
            assert row["ours / it"] == pytest.approx(ours["ms"] / row["ms"])


def test_a_steps_variants_and_parts_are_reported(toy):
    model, variants = toy(), ["eager", "fused optimiser"]
    tables = train_step(model, MACHINE, CPU, 1, 2, 64, 3600, variants)
    first, second = tables["train"]
    assert [first["step"], second["step"]] == variants
    assert first["samples/s"] == pytest.approx(2e3 / first["ms"])
    assert first["hours for 0.0036 M"] == pytest.approx(1 / first["samples/s"])
    costs = {row["of one sample"]: row for row in tables["costs"]}
    flops = 1e9 * costs["step"]["GFLOP"]
    assert first["share of peak"] == pytest.approx(2 * flops / (first["ms"] / 1e3) / 1e9)
    assert costs["forward"]["parameters"] == sum(p.numel() for p in model.parameters())
    parts = sum(costs[n]["GFLOP"] for n in ("tokenizer", "encoder", "decoder", "feature denoiser"))
    assert parts == pytest.approx(costs["forward"]["GFLOP"])
    assert 2 < costs["step"]["GFLOP"] / costs["forward"]["GFLOP"] < 3
    part = {row["part"]: row for row in tables["parts"]}["forward"]
    assert part["share of step"] == pytest.approx(part["ms"] / first["ms"])


def test_the_models_operations_are_those_counted_by_hand(toy):
    """Encoder and decoder blocks: 24·G·D² for the layers, 4·G²·D for attention, 12·D² for AdaLN."""
    model = toy()
    costs = train_step(model, MACHINE, CPU, 1, 2, 64, 1, ["eager"])["costs"]
    tokens, width = 8, 16
    block = 24 * tokens * width**2 + 4 * tokens**2 * width + 12 * width**2
    embed = 2 * 256 * width + 2 * width**2  # timestep
    position = tokens * 2 * (3 * 128 + 128 * width)
    head = tokens * 2 * width * 3 * 6
    found = {row["of one sample"]: 1e9 * row["GFLOP"] for row in costs}
    assert found["encoder"] == pytest.approx(2 * block + embed + position)
    assert found["decoder"] == pytest.approx(block + embed + position + head)
    points = tokens * 6
    pointnet = points * 2 * (3 * 8 + 8 * 16 + 16 * 16 + 16 * width) + tokens * 2 * 16 * 16
    assert found["tokenizer"] == pytest.approx(pointnet)


def test_what_a_backward_pass_keeps_is_counted():
    weight, x = torch.randn(5, 7, requires_grad=True), torch.randn(3, 5)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(weight)
    # the product keeps x and the weight, which is the model's own; exp keeps its result
    job = lambda: (x @ model.weight).exp()  # noqa: E731
    assert kept_for_backward(job, model) == 4 * (3 * 5 + 3 * 7)


def test_unknown_variants_are_named(toy):
    for variants in (["fast"], "fast"):
        with pytest.raises(InputError, match="variants has 'fast'; choose from eager, compiled"):
            train_step(toy(), MACHINE, CPU, 1, 2, 64, 1, variants)
    with pytest.raises(InputError, match="variants has ''; choose from eager"):
        train_step(toy(), MACHINE, CPU, 1, 2, 64, 1, [])


def test_a_profile_is_left(toy, tmp_path):
    train_step(toy(), MACHINE, CPU, 1, 2, 64, 1, None, tmp_path / "a" / "profile.txt")
    text = (tmp_path / "a" / "profile.txt").read_text()
    assert text.startswith("three eager steps")
    assert "aten::addmm" in text


def test_inference_is_compared_with_one_path_at_the_same_timestep(toy):
    rows = inference(toy(), MACHINE, CPU, 2, 3, 64, [1, 4], [0, 500])
    assert [(row["S"], row["t"], row["by"]) for row in rows] == [
        (paths, step, how)
        for step in (0, 500)
        for paths, how in ((1, "ours"), (4, "ours"), (4, "a pass per path"))
    ]
    for one, four, _ in (rows[:3], rows[3:]):
        ratio = four["ms per cloud"] / one["ms per cloud"]
        assert four["ratio to S = 1"] == pytest.approx(ratio)
        flops = 1e9 * four["GFLOP"] / (four["ms per cloud"] / 1e3)
        assert four["share of peak"] == pytest.approx(flops / 1e9)
    assert rows[4]["GFLOP"] > 3 * rows[3]["GFLOP"]  # at t = 500 every path is encoded
    assert rows[1]["GFLOP"] < 2 * rows[0]["GFLOP"]  # at t = 0 one


def test_memory_is_measured_over_the_whole_evaluation(toy):
    rows = memory(toy(), CPU, 40, 64, 2, 500, 5)
    assert [row["clouds"] for row in rows] == [*range(0, 40, 4), 40]
    assert all(later["peak GB"] >= row["peak GB"] for row, later in pairwise(rows))


def test_one_path_at_a_time_is_the_same_defence(toy, wake, clouds):
    model = wake(toy()).eval()
    for timestep in (0, 500):
        classifier = ZeroShotClassifier(model, torch.eye(4, 12), 3, timestep)
        loop = OnePathAtATime(classifier)
        torch.testing.assert_close(loop(clouds), classifier(clouds))
        indices = torch.arange(5)
        torch.testing.assert_close(
            loop.draws(clouds, indices, [4, 9]), classifier.draws(clouds, indices, [4, 9])
        )


def test_attacks_are_compared_with_their_alternative(toy):
    rows = attacks(toy(), MACHINE, CPU, 1, 2, 64, 2, 3, 2, 8, 4, total=7200)
    assert [row["by"] for row in rows] == ["ours", "a pass per path"] * 2 + [
        "ours, compacted", "whole batch",
    ]  # fmt: skip
    for fast, slow in zip(rows[::2], rows[1::2], strict=True):
        assert fast["times as fast"] == pytest.approx(slow["s per cloud"] / fast["s per cloud"])
        assert slow["times as fast"] == 1
        assert fast["hours for 7200"] == pytest.approx(2 * fast["s per cloud"])


def test_the_volume_between_ranks_is_computed(toy):
    model = toy()
    rows = volume(model, [1, 2], 128)
    assert [row["DDP, MB sent per rank"] for row in rows] == [
        0, distributed.gradient_bytes(model, 2) / 1e6,
    ]  # fmt: skip
    weights = sum(p.numel() for p in model.parameters())
    assert rows[1]["FSDP2, GB"] == pytest.approx(16 * weights / 2 / 1e9)


def test_scaling_is_measured_under_torchrun(tmp_path, free_port):
    root = Path(__file__).parents[1]
    toy = ["width=16", "heads=2", "encoder_depth=1", "decoder_depth=1", "num_groups=8"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
        f"--master-port={free_port}", str(root / "scripts" / "benchmark.py"), "part=scaling",
        "repeats=1", "threads=1", "scaling.batch_size=2", "scaling.points=64",
        *(f"model.{field}" for field in toy),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("summing gradients") == 1
    assert (tmp_path / "runs" / "benchmark" / "summary.json").exists()


def test_processes_are_timed_as_a_whole(tmp_path):
    (tmp_path / "quick.py").write_text("import sys; assert sys.argv[1] == '--help'")
    rows = imports(tmp_path, 1)
    assert [row["process"] for row in rows[:2]] == ["import torch", "import dual_denoising"]
    assert rows[-1]["process"].endswith("quick.py --help")
