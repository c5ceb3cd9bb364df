import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file

from dual_denoising.errors import InputError
from dual_denoising.model import DualDenoising

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(p.stem for p in (ROOT / "configs" / "experiment").glob("*.yaml"))
QUICK = [
    "experiment=quickstart", "data.train.classes=[bowl,mug,bed,rocket]", "data.train.per_class=8",
    "+data.tests.0.classes=[bowl,mug,bed,rocket]", "+data.tests.1.classes=[bowl,mug,bed,rocket]",
    "data.tests.0.per_class=3", "data.tests.1.per_class=3", "data.num_points=64",
    "data.train.num_points=128", "+data.tests.0.num_points=128", "+data.tests.1.num_points=128",
    "model.num_groups=8", "model.group_size=8", "optim.batch_size=8", "optim.epochs=2",
    "optim.warmup_epochs=0", "eval.seeds=[0]", "eval.num_noise=[1]", "eval.timestep=[0]",
    "checkpoint_every=1", "threads=1",
]  # fmt: skip


def script(name, *arguments, cwd, check=True, start=False, **environment):
    """Runs a script as a user would, in a folder of its own."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    if start:
        return subprocess.Popen(command, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def last_line(done):
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_builds(experiment):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("pretrain", [f"experiment={experiment}"])
    assert cfg.name == experiment
    assert isinstance(instantiate(cfg.model), DualDenoising)
    assert instantiate(cfg.optim).batch_size > 0
    assert instantiate(cfg.data.augmentation).yaw_degrees >= 0


def test_pretraining_leaves_what_others_rely_on_and_zeroshot_reads_it(tmp_path):
    done = script("pretrain", *QUICK, "name=quick", cwd=tmp_path)
    run = tmp_path / "runs" / "quick"
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "summary.json", "metrics.jsonl", "checkpoints", "model", "pictures",
        "zeroshot.md",
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert {"command", "seconds", "device", "versions"} <= summary.keys()
    assert (summary["steps"], summary["samples"]) == (8, 64)
    assert summary["parameters"] == sum(
        p.numel() for p in DualDenoising.from_pretrained(run / "model").parameters()
    )
    first = summary["evaluation"][0]
    assert {"dataset", "split", "n", "num_noise", "timestep", "seeds", "top1_mean", "top1_sd",
            "top5_mean", "seconds_per_cloud", "seen"} <= first.keys()  # fmt: skip
    assert (first["dataset"], first["split"], first["n"]) == ("primitives", "test", 12)
    assert "primitives scan" in done.stdout

    arguments = [a for a in QUICK if a.startswith(("+data", "data.tests", "eval", "threads"))]
    script(
        "zeroshot", "checkpoint=runs/quick/model", "data=primitives",
        "teacher=standin", *arguments, cwd=tmp_path,
    )  # fmt: skip
    again = json.loads((tmp_path / "runs" / "zeroshot" / "summary.json").read_text())
    assert [r["top1_mean"] for r in again["results"]] == [
        r["top1_mean"] for r in summary["evaluation"]
    ]
    for wrong, message in (
        (["checkpoint=runs/quick/model", "teacher.text.seed=3"], "learned from stand-in"),
        (["checkpoint=runs/quick/checkpoints/last.pt"], "give a run's folder 'model'"),
        (["checkpoint=runs/quick/model", "data.tests=[]"], "has no test split"),
    ):
        refused = script(
            "zeroshot", "data=primitives", "teacher=standin", *wrong, cwd=tmp_path, check=False
        )
        assert refused.returncode == 1
        assert message in last_line(refused)


def test_a_run_killed_in_an_epoch_ends_with_the_same_weights(tmp_path):
    script("pretrain", *QUICK, "name=whole", "optim.epochs=6", cwd=tmp_path)
    arguments = [*QUICK, "name=killed", "optim.epochs=6"]
    process = script("pretrain", *arguments, cwd=tmp_path, start=True)
    last = tmp_path / "runs" / "killed" / "checkpoints" / "last.pt"
    metrics = tmp_path / "runs" / "killed" / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.time() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = torch.load(last, weights_only=True)["step"]
    assert 0 < stopped < 24
    script("pretrain", *arguments, cwd=tmp_path)
    whole, resumed = (
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors")
        for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_torchrun_trains_the_same_script(tmp_path):
    arguments = [*QUICK, "name=ranks", "model.token_norm=layer"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29544",
        str(ROOT / "scripts" / "pretrain.py"), *arguments,
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    script("pretrain", *arguments[:-2], "name=alone", arguments[-1], cwd=tmp_path)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").open()]
        for name in ("ranks", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "put ShapeNet55 (ShapeNet55-34 layout) into nowhere/shapenet55, or run "
             "experiment=quickstart"),
        (["experiment=modelnet10"], "nowhere/modelnet10: no modelnet10 train in any known layout"),
        ([*QUICK, "data.num_points=9999"], "has 128 points, num_points=9999"),
        ([*QUICK, "optim.batch_size=33"], "set optim.batch_size=32 or less"),
        ([*QUICK, "model.token_norm=instance"], "token_norm"),
        ([*QUICK, "model.heads=5"], "width must be a multiple of heads"),
        ([*QUICK, "eval.num_noise=8"], "eval.num_noise is 8"),
        ([*QUICK, "device=gpu"], "device is 'gpu'"),
        ([*QUICK, "optim.epochs=0"], "optim.epochs is 0"),
        ([*QUICK, "model.feature_types=[image]"], "set teacher.images"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line(tmp_path, arguments, message):
    done = script("pretrain", *arguments, cwd=tmp_path, check=False, DUAL_DENOISING_DATA="nowhere")
    assert done.returncode == 1
    assert message in last_line(done)
    assert last_line(done).startswith("error: ")


def test_a_bad_cloud_in_a_loaders_worker_ends_in_one_line(tmp_path):
    root = tmp_path / "shapenet55"
    (root / "shapenet_pc").mkdir(parents=True)
    (root / "ShapeNet-55").mkdir()
    rows = [f"02691156-{i}.npy" for i in range(4)]
    (root / "ShapeNet-55" / "train.txt").write_text("\n".join(rows))
    for row in rows:
        (root / "shapenet_pc" / row).write_bytes(b"\x93NUMPY, cut")
    done = script(
        "pretrain", "model=tiny", "data.train.lists=[train]", "teacher=standin", "workers=1",
        "optim.batch_size=4", cwd=tmp_path, check=False, DUAL_DENOISING_DATA=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "not a whole .npy array" in last_line(done)
    assert last_line(done).startswith(f"error: {root}/shapenet_pc/02691156-")


def test_an_ablation_reuses_its_own_runs_and_refuses_foreign_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("ablate", ROOT / "scripts" / "ablate.py")
    ablate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ablate)
    summary = tmp_path / "runs" / "a" / "s_0_1" / "summary.json"
    summary.parent.mkdir(parents=True)
    command = "scripts/pretrain.py name=a/s_0_1 threads=1 optim.epochs=2 seed=1"
    summary.write_text(json.dumps({"command": command, "steps": 3}))
    assert ablate.train("a/s_0_1", ["optim.epochs=2", "seed=1"])["steps"] == 3
    with pytest.raises(InputError, match="a run with other settings"):
        ablate.train("a/s_0_1", ["optim.epochs=9", "seed=1"])


def test_a_misspelt_override_is_named(tmp_path):
    done = script("pretrain", "optim.learning_rate=1", cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "optim.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
