import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

from dual_denoising.errors import InputError
from dual_denoising.model.dual_denoising import DualDenoising

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(
    p.stem
    for p in (ROOT / "configs" / "experiment").glob("*.yaml")
    if not p.stem.endswith("_all")  # of zeroshot.py and attack.py
)
FOUR = "classes=[bowl,mug,bed,rocket]"
QUICK = [
    "experiment=quickstart", "teacher=standin", "model.feature_types=[text]", f"data.train.{FOUR}",
    "data.train.without=[]", "data.train.per_class=8", "data.train.num_points=128",
    *(f"++data.tests.{i}.{setting}" for i in range(3)
      for setting in (FOUR, "per_class=3", "num_points=128")),
    "data.num_points=64", "model.num_groups=8", "model.group_size=8", "optim.batch_size=8",
    "optim.epochs=2", "optim.warmup_epochs=0", "eval.seeds=[0]", "eval.num_noise=[1]",
    "eval.timestep=[0]", "checkpoint_every=1", "threads=1",
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


HELP = """
import runpy, sys

sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda p: p.stem)
def test_help_does_not_wait_for_torch(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HELP, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    text, _, torch_is_in = done.stdout.strip().rpartition("\n")
    assert torch_is_in == "False"
    assert path.stem == "classify" or "name:" in text
    assert not list(tmp_path.iterdir())


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

    arguments = [a for a in QUICK if a.startswith(("++data.tests.0", "++data.tests.1", "eval"))]
    script(
        "zeroshot", "checkpoint=runs/quick/model", "data=primitives",
        "teacher=standin", "threads=1", "data.num_points=64", *arguments, cwd=tmp_path,
    )  # fmt: skip
    again = json.loads((tmp_path / "runs" / "zeroshot" / "summary.json").read_text())
    found = {(r["dataset"], r["split"]): r["top1_mean"] for r in again["results"]}
    own = {(r["dataset"], r["split"]): r["top1_mean"] for r in summary["evaluation"]}
    assert found.keys() == {("primitives", "test"), ("primitives", "scan")}
    assert own.keys() == found.keys() | {("primitives_unseen", "test")}
    assert all(own[key] == found[key] for key in found)
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
        ([*QUICK, "eval.num_noise=eight"], "eval.num_noise is eight"),
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


@pytest.fixture
def folders(tmp_path):
    """Files of three classes in a folder per class."""
    for label, kind in enumerate(("bed", "chair", "lamp")):
        (tmp_path / "clouds" / kind).mkdir(parents=True)
        for number in range(5):
            rng = np.random.default_rng((label, number))
            np.save(tmp_path / "clouds" / kind / f"{number}.npy", rng.normal(size=(80, 3)))
    return tmp_path / "clouds"


def test_two_ranks_of_zeroshot_write_what_one_writes(trained, folders, tmp_path, free_port):
    arguments = ["checkpoint=model", "data=folder", f"data.root={folders}", "threads=1",
                 f"teacher.text.path={trained / 'bank.h5'}", "eval.num_noise=[1,3]",
                 "eval.timestep=[0,500]", "eval.batch_size=4"]  # fmt: skip
    done = script("zeroshot", *arguments, "name=one", cwd=tmp_path)
    assert "15 clouds of 3 classes, 64 of 80 points, y-up, unit sphere" in done.stdout
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               f"--master-port={free_port}", str(ROOT / "scripts" / "zeroshot.py")]  # fmt: skip
    subprocess.run([*command, *arguments, "name=two", "eval.batch_size=2"], cwd=tmp_path,
                   env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True,
                   timeout=300)  # fmt: skip
    found = [tmp_path / "runs" / name / "predictions" / "folder_all.csv" for name in ("one", "two")]
    assert found[0].read_bytes() == found[1].read_bytes()
    one, two = (json.loads((tmp_path / "runs" / name / "summary.json").read_text())["results"]
                for name in ("one", "two"))  # fmt: skip
    for left, right in zip(one, two, strict=True):
        assert left | {"seconds_per_cloud": 0} == right | {"seconds_per_cloud": 0}
    assert (tmp_path / "runs" / "two" / "pictures" / "grid_folder_all.png").exists()


@pytest.mark.parametrize("table", ["table1", "table5"])
def test_tables_say_which_data_sets_are_absent(trained, tmp_path, table):
    """One data set is there, one is there and broken, the others are absent."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "root" / "scanobjectnn"
    for path, data in (("main_split_nobg/test_objectdataset.h5", rng.normal(size=(15, 200, 3))),
                       ("main_split/test_objectdataset.h5", np.zeros((15, 200)))):  # fmt: skip
        (folder / path).parent.mkdir(parents=True)
        with h5py.File(folder / path, "w") as file:
            file["data"], file["label"] = data, np.arange(15)
    names = (ROOT / "data" / "classes" / "scanobjectnn.txt").read_text().split()
    with h5py.File(tmp_path / "bank.h5", "w") as file:
        file["name"], file["feature"] = names, rng.normal(size=(15, 12))
        file.attrs["model"], file.attrs["pretrained"] = "tiny", "none"
    arguments = [f"eval={table}", "checkpoint=model", f"data_root={tmp_path / 'root'}", "threads=1",
                 f"teacher.text.path={trained / 'bank.h5'}", f"name={table}", "eval.seeds=[0]",
                 "eval.timestep=[0,500]", "eval.batch_size=15"]  # fmt: skip
    script("zeroshot", *arguments, cwd=tmp_path)
    run = tmp_path / "runs" / table
    text = (run / f"{table}.md").read_text()
    assert "absent: " in text.partition("modelnet40")[2]
    assert (run / f"{table}.csv").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert {r["dataset"] for r in summary["results"]} == {"scanobjectnn_obj_only"}
    if table == "table1":
        assert "scanobjectnn_obj_bg: absent: " in text
        assert "shape (15, 200)" in text
        assert list(summary["absent"]) == ["modelnet10", "modelnet40", "scanobjectnn_obj_bg",
                                           "scanobjectnn_pb_t50_rs"]  # fmt: skip
    else:
        assert len(summary["results"]) == 10
        assert (run / "pictures" / "table5_scanobjectnn_obj_only_test.png").exists()


DATA = sorted(p.stem for p in (ROOT / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("data", DATA)
def test_every_data_configuration_composes(data):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("zeroshot", [f"data={data}", "++data.root=x", "data_root=nowhere",
                                   "++data.path=x", "++data.shape_names=x"])  # fmt: skip
    tests = cfg.data.tests.values() if OmegaConf.is_dict(cfg.data.tests) else cfg.data.tests
    for test in tests:
        OmegaConf.to_container(test, resolve=True)
        assert test["_target_"].startswith("dual_denoising.data.")


MICRO = ["model.clip.model=local-dir:data/micro_clip", "model.clip.pretrained=null"]
RECON = [
    "+num_groups=8",
    "+group_size=8",
    "+width=24",
    "+depth=1",
    "heads=2",
    "text=${teacher.text}",
]
TWO_STEPS = ["attack=quick", "attack.jobs.PGD-10.steps=2", "attack.jobs.EOT-PGD-20.steps=2",
             "score_seeds=2"]  # fmt: skip


def recon(prefix):
    return [f"+{prefix}.model.{s[1:]}" if s[0] == "+" else f"{prefix}.model.{s}" for s in RECON]


def test_a_baseline_is_evaluated_attacked_and_scored_as_any_model(folders, tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "bank.h5", "w") as file:
        file["name"], file["feature"] = ["bed", "chair", "lamp"], rng.normal(size=(3, 512))
        file.attrs["model"], file.attrs["pretrained"] = "tiny", "none"
    common = ["baseline=recon", "checkpoint=random", *recon("baseline"), f"data_root={tmp_path}",
              "teacher.text.path=${data_root}/bank.h5", "data=folder", f"data.root={folders}",
              "threads=1", "num_points=64"]  # fmt: skip
    script("zeroshot", *common, "name=plain", cwd=tmp_path)
    (result,) = json.loads((tmp_path / "runs/plain/summary.json").read_text())["results"]
    assert (result["num_noise"], result["timestep"], result["seeds"]) == (1, 0, [0])
    assert result["system"] == "ReCon"
    assert result["weights"] == "random weights"
    assert "random weights; no meaning; text of " in result["note"]
    assert not result["comparable"]
    assert not result["seen"]
    script("zeroshot", *common, "wrap=noise", "eval.num_noise=[2]", "eval.timestep=[0,500]",
           "name=noise", cwd=tmp_path)  # fmt: skip
    results = json.loads((tmp_path / "runs/noise/summary.json").read_text())["results"]
    assert [r["timestep"] for r in results] == [0, 500]
    assert results[0]["top1_mean"] == result["top1_mean"]  # without noise the paths are one
    assert results[0]["label"] == "ReCon, noise s = 0.08"
    settings = [*TWO_STEPS, "attack.settings=[[2,500]]", "attack.eps=[0.05]", "subset=6"]
    for name, wrap in (("attacked", []), ("noisy", ["wrap=noise"])):
        script("attack", *common, *settings, *wrap, f"name={name}", cwd=tmp_path)
        result = json.loads((tmp_path / "runs" / name / "summary.json").read_text())["results"][0]
        setting = (2, 500) if wrap else (1, 0)
        assert (result["num_noise"], result["timestep"]) == setting
        assert result["linf_max"] <= 0.05 + 1e-6
    text = (tmp_path / "runs/attacked/attack.md").read_text()
    assert "ReCon; random weights" in text
    done = script("attack", *common, *settings, "+baseline.model.ratio=0.9", "name=attacked",
                  cwd=tmp_path, check=False)  # fmt: skip
    assert "of other settings" in last_line(done)  # no tensor tells the ratio
    found = next((tmp_path / "runs/attacked/adversarial").glob("PGD*.h5"))
    script("score", *common[:-1], f"adversarial={found}", "eps=0.05", "seeds=2", "name=score",
           cwd=tmp_path)  # fmt: skip
    (scored,) = json.loads((tmp_path / "runs/score/summary.json").read_text())["results"]
    attacked = json.loads((tmp_path / "runs/attacked/summary.json").read_text())["results"][0]
    assert scored["robust_mean"] == attacked["robust_mean"]


@pytest.mark.parametrize("name", ["zeroshot", "attack"])
def test_no_checkpoint_is_one_line(name, folders, tmp_path):
    common = ["teacher=standin", "data=folder", f"data.root={folders}", "threads=1"]
    done = script(name, *common, cwd=tmp_path, check=False)
    assert last_line(done).startswith("error: no checkpoint is given; checkpoint=runs/NAME/model")
    done = script(name, *common, "baseline=ulip", cwd=tmp_path, check=False)
    assert last_line(done).startswith("error: no checkpoint is given; data/checkpoints.md says")


def test_tables_of_all_systems_list_what_is_missing(folders, tmp_path):
    common = ["threads=1", "data=folder", f"data.root={folders}", "num_points=64"]
    systems = ["systems.recon.checkpoint=random", *recon("systems.recon"), "teacher=standin"]
    views = [f"systems.{name}.{part}" for name in ("pointclip", "pointclip_v2", "clip2point")
             for part in MICRO]  # fmt: skip
    script("zeroshot", "experiment=table1_all", *common, *systems, *views,
           "+systems.pointclip_v2.model.prompts='a {}'", cwd=tmp_path)  # fmt: skip
    text = (tmp_path / "runs/table1_all/table1.md").read_text()
    assert "here: PointCLIP, without noise" in text
    assert "ulip: absent: data/checkpoints/ulip/checkpoint_pointbert.pt: no such checkpoint" in text
    assert "clip2point: absent: data/checkpoints/clip2point/best_eval.pth" in text
    assert "ours: absent: runs/shapenet55/model" in text
    assert (tmp_path / "runs/table1_all/pointclip/zeroshot.md").exists()
    script("attack", "experiment=table2_all", *common, *systems, *TWO_STEPS,
           "attack.eps=[0.01,0.05]", cwd=tmp_path)  # fmt: skip
    text = (tmp_path / "runs/table2_all/table2.md").read_text()
    assert "PGD-10@0.05" in text
    assert "uni3d: absent: data/checkpoints/uni3d/uni3d-l/model.pt: no such checkpoint" in text
    assert "ReCon, folder all: n = 15, random weights" in text
    assert "random weights; no meaning" in text
    assert "(!)" in text
