"""The scripts, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

from dual_denoising import DualDenoising
from dual_denoising.clip.features import TextBank
from dual_denoising.clip.towers import OpenClipText
from dual_denoising.run import load_config
from tests.conftest import ROOT

EXPERIMENTS = sorted(
    p.stem
    for p in (ROOT / "configs" / "experiment").glob("*.yaml")
    if not p.stem.endswith("_all")  # of zeroshot.py and attack.py
)
FOUR = "classes=[bowl,mug,bed,rocket]"
QUICK = [
    "experiment=quickstart",
    "teacher=standin",
    "model.feature_types=[text]",
    f"data.train.{FOUR}",
    "data.train.without=[]",
    "data.train.per_class=8",
    "data.train.num_points=128",
    *(
        f"++data.{part}.{setting}"
        for part in ("tests.1", "tests.2", "tests.3", "validation")
        for setting in (FOUR, "per_class=3", "num_points=128")
    ),
    "data.num_points=64",
    "model.num_groups=8",
    "model.group_size=8",
    "optim.batch_size=8",
    "optim.epochs=2",
    "optim.warmup_epochs=0",
    "eval.seeds=[0]",
    "eval.num_noise=[1]",
    "eval.timestep=[0]",
    "checkpoint_every=1",
    "threads=1",
]

HELP = """
import runpy, sys

sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""


def last_line(errors):
    return errors.strip().splitlines()[-1]


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda p: p.stem)
def test_help_says_what_the_script_does_without_waiting_for_torch(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HELP, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    text, _, torch_is_in = done.stdout.strip().rpartition("\n")
    assert torch_is_in == "False"
    sentence = path.read_text().split('"""')[1].strip().splitlines()[0]
    assert sentence in " ".join(text.split())
    assert path.stem != "pretrain" or "model=paper|small|tiny" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_builds(experiment):
    cfg = load_config("pretrain", [f"experiment={experiment}"])
    assert cfg.name == experiment
    assert isinstance(instantiate(cfg.model), DualDenoising)
    assert instantiate(cfg.optim).batch_size > 0
    assert instantiate(cfg.data.augmentation).yaw_degrees >= 0


@pytest.mark.parametrize("data", sorted(p.stem for p in (ROOT / "configs/data").glob("*.yaml")))
def test_every_data_configuration_composes(data):
    overrides = ["++data.root=x", "data_root=nowhere", "++data.path=x", "++data.shape_names=x"]
    tests = load_config("zeroshot", [f"data={data}", *overrides]).data.tests
    for test in tests.values() if OmegaConf.is_dict(tests) else tests:
        if test is not None:
            OmegaConf.to_container(test, resolve=True)
            assert test["_target_"].startswith("dual_denoising.data.")


def test_pretraining_leaves_what_others_rely_on_and_zeroshot_reads_it(tmp_path, call):
    out, _ = call("pretrain", *QUICK, "name=quick")
    run = tmp_path / "runs" / "quick"
    assert {p.name for p in run.iterdir()} == {
        "config.yaml",
        "summary.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "pictures",
        "zeroshot.md",
    }
    summary = json.loads((run / "summary.json").read_text())
    assert {"command", "seconds", "device", "versions"} <= summary.keys()
    assert (summary["steps"], summary["samples"]) == (8, 64)
    model = DualDenoising.from_pretrained(run / "model")
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert {
        "token_std_initial",
        "token_std",
        "output_share",
        "agreement",
        "top1_s1",
        "top1_s16",
        "top1_without",
    } <= summary["feature_noise"].keys()
    first = summary["evaluation"][1]
    assert {
        "dataset",
        "split",
        "n",
        "num_noise",
        "timestep",
        "seeds",
        "top1_mean",
        "top1_sd",
        "top5_mean",
        "seconds_per_cloud",
        "seen",
    } <= first.keys()
    assert (first["dataset"], first["split"], first["n"]) == ("primitives", "test", 12)
    assert "primitives scan" in out

    call(
        "zeroshot",
        "checkpoint=runs/quick/model",
        "eval.seeds=[0]",
        "eval.num_noise=[1]",
        "eval.timestep=[0]",
    )
    again = json.loads((tmp_path / "runs" / "zeroshot" / "summary.json").read_text())
    keys = ("dataset", "split", "top1_mean", "ece", "auroc")
    found, own = (
        [[r[k] for k in keys] for r in rows] for rows in (again["results"], summary["evaluation"])
    )
    assert found == own
    assert [r[0] for r in own] == [
        "base_meshes_recipes",
        "primitives",
        "primitives_unseen",
        "primitives",
    ]
    common = ["data=primitives", "teacher=standin", "data.num_points=64"]
    for wrong, words in (
        (["checkpoint=runs/quick/model", "teacher.text.seed=3"], "stand-in"),
        (["checkpoint=runs/quick/checkpoints/last.pt"], "last.pt"),
        (["checkpoint=runs/quick/model", "data.tests=[]"], "data"),
    ):
        _, errors = call("zeroshot", *common, *wrong, status=1)
        assert words in last_line(errors)


def test_a_run_killed_in_an_epoch_ends_with_the_same_weights(tmp_path, script, call):
    call("pretrain", *QUICK, "name=whole", "optim.epochs=6")
    arguments = [*QUICK, "name=killed", "optim.epochs=6"]
    process = script("pretrain", *arguments, start=True)
    last = tmp_path / "runs" / "killed" / "checkpoints" / "last.pt"
    metrics = tmp_path / "runs" / "killed" / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.time() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < torch.load(last, weights_only=True)["step"] < 24
    call("pretrain", *arguments)
    whole, resumed = (
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors")
        for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_torchrun_trains_the_same_script(tmp_path, script, call):
    arguments = [*QUICK, "model.token_norm=layer"]
    script("pretrain", *arguments, "name=ranks", ranks=2)
    call("pretrain", *arguments, "name=alone")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").open()]
        for name in ("ranks", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nowhere/shapenet55"),
        (["experiment=modelnet10"], "nowhere/"),
        ([*QUICK, "data.num_points=9999"], "num_points=9999"),
        ([*QUICK, "data.num_points=0"], "num_points"),
        ([*QUICK, "optim.batch_size=33"], "optim.batch_size=32"),
        ([*QUICK, "model.width=100"], "model.width is 100"),
        ([*QUICK, "model.feature_types=[image]"], "teacher.images"),
        ([*QUICK, "eval.num_noise=eight"], "eval.num_noise is eight"),
        ([*QUICK, "eval.type_weights=5"], "eval.type_weights is 5"),
        ([*QUICK, "device=gpu"], "device is 'gpu'"),
        ([*QUICK, "seed=-1"], "seed is -1"),
        ([*QUICK, "threads=-2"], "threads is -2"),
        ([*QUICK, "name=../evil"], "name is '../evil'"),
        ([*QUICK, "+optim.epoch=3"], "nearest: epochs"),
        (["optim.epoch=3"], "nearest: optim.epochs"),
        (["optim.epoch=3", "optim.learning=1"], "optim.learning"),
        (["optim.learning_rate=1"], "optim.learning_rate"),
        (["+sed=3"], "nearest: seed"),
        (["model=tinny"], "tiny"),
        (["optim.lr"], "optim.lr"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_no_folder(tmp_path, call, arguments, words):
    _, errors = call("pretrain", *arguments, status=1, DUAL_DENOISING_DATA="nowhere")
    assert words in last_line(errors)
    assert last_line(errors).startswith("error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("score", [], "adversarial"),
        ("score", ["adversarial=x.h5", "checkpoint=x"], "x.h5"),
        ("attack", ["baseline=ulip", "data=primitives"], "checkpoint"),
        ("zeroshot", ["baseline=ulip", "checkpoint=x"], "data"),
        ("zeroshot", ["checkpoint=nowhere"], "nowhere"),
        ("zeroshot", ["data.up=z"], "data=NAME"),
        ("cache_teacher", ["data=primitives", "pictures=-1"], "pictures"),
        ("contact_sheet", ["data.tests=[]"], "data"),
        ("benchmark", ["part=speed"], "part is 'speed'"),
    ],
)
def test_the_other_scripts_name_what_is_wrong(call, name, arguments, words):
    _, errors = call(name, *arguments, status=1)
    assert words in last_line(errors)


def test_a_bad_cloud_in_a_loaders_worker_ends_in_one_line(tmp_path, call):
    root = tmp_path / "shapenet55"
    (root / "shapenet_pc").mkdir(parents=True)
    (root / "ShapeNet-55").mkdir()
    rows = [f"02691156-{i}.npy" for i in range(4)]
    (root / "ShapeNet-55" / "train.txt").write_text("\n".join(rows))
    for row in rows:
        np.save(root / "shapenet_pc" / row, np.random.default_rng(0).normal(size=(2000, 3)))
    for row in rows[1:]:
        (root / "shapenet_pc" / row).write_bytes(b"\x93NUMPY, cut")
    _, errors = call(
        "pretrain",
        "model=tiny",
        "data.train.lists=[train]",
        "teacher=standin",
        "workers=1",
        "optim.batch_size=4",
        status=1,
        DUAL_DENOISING_DATA=str(tmp_path),
    )
    assert last_line(errors).startswith(f"error: {root}/shapenet_pc/02691156-")


def test_the_front_pages_python_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    code = text.split("## In Python")[1].split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert (names["logits"].shape, names["features"].shape) == ((1, 3), (1, 1, 512))
    assert names["logits"].argmax() == 2  # a door


def test_a_benchmark_times_every_part(tmp_path, call):
    small = [
        "ops.clouds=1",
        "ops.points=64",
        "ops.groups=4",
        "ops.group_size=4",
        "train.batch_size=2",
        "train.points=64",
        "infer.clouds=1",
        "infer.points=64",
        "infer.num_noise=[1,2]",
        "attack.clouds=2",
        "attack.points=64",
        "attack.steps=1",
        "attack.num_noise=2",
        "attack.searches=1",
        "attack.search_steps=2",
    ]
    call("benchmark", "model=tiny", "repeats=1", *small)
    summary = json.loads((tmp_path / "runs" / "benchmark" / "summary.json").read_text())
    assert {"machine", "ops", "train", "infer", "attack"} <= summary.keys()
    assert {row["by"] for row in summary["ops"]} >= {"ours", "naive torch"}
    assert all(row["share of floor"] > 0 for row in summary["infer"])
    assert summary["train"][0]["samples/s"] > 0


def test_a_contact_sheet_has_a_row_for_every_class(tmp_path, call):
    tests = [f"data.tests.{i}.per_class=1" for i in range(2)]
    call("contact_sheet", *tests, "columns=2", "classes=[bowl,mug]")
    sheets = list((tmp_path / "runs" / "contact_sheet" / "pictures").iterdir())
    assert {p.name for p in sheets} == {"primitives_test.png", "primitives_scan.png"}


@pytest.fixture
def folders(tmp_path):
    """Files of three classes in a folder per class."""
    for label, kind in enumerate(("bed", "chair", "lamp")):
        (tmp_path / "clouds" / kind).mkdir(parents=True)
        for number in range(5):
            rng = np.random.default_rng((label, number))
            np.save(tmp_path / "clouds" / kind / f"{number}.npy", rng.normal(size=(80, 3)))
    return tmp_path / "clouds"


@pytest.mark.slow
def test_two_ranks_of_zeroshot_write_what_one_writes(trained, folders, tmp_path, script, call):
    arguments = [
        "checkpoint=model",
        "data=folder",
        f"data.root={folders}",
        "threads=1",
        "teacher=clip_vitb32",
        f"teacher.text.path={trained / 'bank.h5'}",
        "eval.num_noise=[1,3]",
        "eval.timestep=[0,500]",
        "eval.batch_size=4",
    ]
    call("zeroshot", *arguments, "name=one")
    script("zeroshot", *arguments, "name=two", "eval.batch_size=2", ranks=2)
    found = [tmp_path / "runs" / name / "predictions" / "folder_all.csv" for name in ("one", "two")]
    assert found[0].read_bytes() == found[1].read_bytes()
    one, two = (
        json.loads((tmp_path / "runs" / name / "summary.json").read_text())["results"]
        for name in ("one", "two")
    )
    for left, right in zip(one, two, strict=True):
        assert left | {"seconds_per_cloud": 0} == right | {"seconds_per_cloud": 0}
    assert (tmp_path / "runs" / "two" / "pictures" / "grid_folder_all.png").exists()


@pytest.mark.parametrize("table", ["table1", "table5"])
def test_tables_say_which_data_sets_are_absent(trained, tmp_path, call, table):
    """One data set is there, one is there and broken, the others are absent."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "root" / "scanobjectnn"
    for path, data in (
        ("main_split_nobg/test_objectdataset.h5", rng.normal(size=(15, 200, 3))),
        ("main_split/test_objectdataset.h5", np.zeros((15, 200))),
    ):
        (folder / path).parent.mkdir(parents=True)
        with h5py.File(folder / path, "w") as file:
            file["data"], file["label"] = data, np.arange(15)
    names = (ROOT / "data" / "classes" / "scanobjectnn.txt").read_text().split()
    with h5py.File(tmp_path / "bank.h5", "w") as file:
        file["name"], file["feature"] = names, rng.normal(size=(15, 12))
        file.attrs["model"], file.attrs["pretrained"] = "tiny", "none"
    call(
        "zeroshot",
        f"eval={table}",
        "checkpoint=model",
        f"data_root={tmp_path / 'root'}",
        "teacher=clip_vitb32",
        f"teacher.text.path={trained / 'bank.h5'}",
        f"name={table}",
        "eval.seeds=[0]",
        "eval.timestep=[0,500]",
        "eval.batch_size=15",
    )
    run = tmp_path / "runs" / table
    assert (run / f"{table}.csv").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert {r["dataset"] for r in summary["results"]} == {"scanobjectnn_obj_only"}
    if table == "table1":
        assert set(summary["absent"]) == {
            "modelnet10",
            "modelnet40",
            "scanobjectnn_obj_bg",
            "scanobjectnn_pb_t50_rs",
        }
        assert "(15, 200)" in (run / "table1.md").read_text()
    else:
        assert set(summary["absent"]) == {"modelnet40"}
        assert len(summary["results"]) == 10
        assert (run / "pictures" / "table5_scanobjectnn_obj_only_test.png").exists()


MICRO = ["model.clip.model=local-dir:data/micro_clip", "model.clip.pretrained=null"]
RECON = [
    "+num_groups=8",
    "+group_size=8",
    "+width=24",
    "+depth=1",
    "heads=2",
    "text=${teacher.text}",
]
TWO_STEPS = [
    "attack=quick",
    "attack.jobs.PGD-10.steps=2",
    "attack.jobs.EOT-PGD-20.steps=2",
    "score_seeds=2",
]


def recon(prefix):
    return [f"+{prefix}.model.{s[1:]}" if s[0] == "+" else f"{prefix}.model.{s}" for s in RECON]


def results_of(tmp_path, name):
    return json.loads((tmp_path / "runs" / name / "summary.json").read_text())["results"]


def test_a_baseline_is_evaluated_attacked_and_scored_as_any_model(folders, tmp_path, call):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "bank.h5", "w") as file:
        file["name"], file["feature"] = ["bed", "chair", "lamp"], rng.normal(size=(3, 512))
        file.attrs["model"], file.attrs["pretrained"] = "tiny", "none"
    common = [
        "baseline=recon",
        "checkpoint=random",
        *recon("baseline"),
        f"data_root={tmp_path}",
        "teacher=clip_vitb32",
        "teacher.text.path=${data_root}/bank.h5",
        "data=folder",
        f"data.root={folders}",
        "num_points=64",
    ]
    call("zeroshot", *common, "name=plain")
    (result,) = results_of(tmp_path, "plain")
    assert (result["num_noise"], result["timestep"], result["seeds"]) == (1, 0, [0])
    assert result["system"] == "ReCon"
    assert result["model"] == "random weights"
    assert not result["comparable"]
    assert not result["seen"]
    call(
        "zeroshot",
        *common,
        "noise_scale=0.08",
        "eval.num_noise=[2]",
        "eval.timestep=[0,500]",
        "name=noise",
    )
    results = results_of(tmp_path, "noise")
    assert [r["timestep"] for r in results] == [0, 500]
    assert results[0]["top1_mean"] == result["top1_mean"]  # without noise the paths are one
    assert results[0]["label"] == "ReCon, noise s = 0.08"
    settings = [*TWO_STEPS, "attack.settings=[[2,500]]", "attack.eps=[0.05]", "subset=6"]
    for name, wrap in (("attacked", []), ("noisy", ["noise_scale=0.08"])):
        call("attack", *common, *settings, *wrap, f"name={name}")
        result = results_of(tmp_path, name)[0]
        setting = (2, 500) if wrap else (1, 0)
        assert (result["num_noise"], result["timestep"]) == setting
        assert result["linf_max"] <= 0.05 + 1e-6
    _, errors = call(
        "attack", *common, *settings, "+baseline.model.ratio=0.9", "name=attacked", status=1
    )
    assert "settings" in last_line(errors)  # no tensor tells the ratio
    found = next((tmp_path / "runs/attacked/adversarial").glob("PGD*.h5"))
    call("score", *common[:-1], f"adversarial={found}", "eps=0.05", "seeds=2", "name=score")
    _, errors = call("certify", *common, "subset=3", status=1)
    assert "noise_scale" in last_line(errors)
    votes = ["timestep=[500]", "draws=20", "choosing=5", "attacked=1", "attack.steps=2"]
    call("certify", *common, *votes, "noise_scale=0.08", "subset=3")
    (certified,) = results_of(tmp_path, "certify")
    assert (len(certified["radii"]), certified["draws"]) == (3, 20)
    assert (tmp_path / "runs" / "certify" / "certificate_t500.csv").exists()
    again = ["certify", *common, *votes, "noise_scale=0.08", "subset=3", "attacked=0", "name=again"]
    call(*again, "beside=[certify]")
    _, errors = call(*again, "beside=[none]", status=1)
    assert "beside" in last_line(errors)
    (scored,) = results_of(tmp_path, "score")
    assert scored["robust_mean"] == results_of(tmp_path, "attacked")[0]["robust_mean"]
    call("score", f"data_root={tmp_path}", f"adversarial={found}", "seeds=2", "name=own")
    assert results_of(tmp_path, "own")[0]["system"] == "ReCon"  # the file says which


@pytest.mark.slow
def test_tables_of_all_systems_list_what_is_missing(folders, tmp_path, call):
    common = ["data=folder", f"data.root={folders}", "num_points=64"]
    systems = ["systems.recon.checkpoint=random", *recon("systems.recon"), "teacher=standin"]
    views = [
        f"systems.{name}.{part}"
        for name in ("pointclip", "pointclip_v2", "clip2point")
        for part in MICRO
    ]
    call(
        "zeroshot",
        "experiment=table1_all",
        *common,
        *systems,
        *views,
        "+systems.pointclip_v2.model.prompts='a {}'",
    )
    text = (tmp_path / "runs/table1_all/table1.md").read_text()
    assert "here: PointCLIP, without noise" in text
    for missing in (
        "ulip/checkpoint_pointbert.pt",
        "clip2point/best_eval.pth",
        "runs/shapenet55/model",
    ):
        assert missing in text
    assert (tmp_path / "runs/table1_all/pointclip/zeroshot.md").exists()
    call("attack", "experiment=table2_all", *common, *systems, *TWO_STEPS, "attack.eps=[0.01,0.05]")
    text = (tmp_path / "runs/table2_all/table2.md").read_text()
    assert "PGD-10@0.05" in text
    assert "uni3d/uni3d-l/model.pt" in text
    assert "ReCon, folder all: n = 15, random weights" in text
    assert "(!)" in text


def test_a_run_interrupted_by_ctrl_c_says_so_and_resumes(tmp_path, script):
    process = script("pretrain", *QUICK, "optim.epochs=200", "name=run", start=True)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.count("\n") < 60  # no terminal: no bar for every step
    assert len(errors) < 8000
    assert "last.pt" in last_line(errors)
    assert (tmp_path / "runs" / "run" / "checkpoints" / "last.pt").exists()


def test_the_front_pages_chain_works_in_order_and_agrees(tmp_path, call):
    """Classify, evaluate, attack and score with the shipped model, which none of them is given."""
    root = {"DUAL_DENOISING_DATA": str(tmp_path / "nowhere")}
    samples = ROOT / "data" / "base_meshes" / "samples"
    names = "chair,bench,desk,door,bottle,vase"
    out, _ = call("classify", samples, "--labels", names, **root)
    assert "6 classified, 0 skipped" in out
    call("zeroshot", "eval.seeds=[0]", "eval.num_noise=[1]", "eval.timestep=[0]", **root)
    summary = json.loads((tmp_path / "runs" / "zeroshot" / "summary.json").read_text())
    found = {r["dataset"]: r for r in summary["results"]}
    assert found.keys() == {"base_meshes_recipes", "base_meshes"}
    assert found["base_meshes_recipes"]["n"] == 94
    assert found["base_meshes_recipes"]["top1_mean"] > 0.3
    assert {"ece", "auroc", "false_accept"} <= found["base_meshes"].keys()
    assert {r["model"] for r in summary["results"]} == {"primitives_clip"}
    absent = {"modelnet10 test", "modelnet40_sample test"}  # not in the repository
    assert set(summary["absent"]) == absent
    assert all("missing" in reason for reason in summary["absent"].values())
    call("attack", "subset=6", *TWO_STEPS, "attack.settings=[[2,500]]", **root)
    (path,) = (tmp_path / "runs" / "attack" / "adversarial").glob("EOT-PGD*.h5")
    attacked = {r["attack"]: r for r in results_of(tmp_path, "attack")}
    call("score", f"adversarial={path}", "seeds=2", **root)
    (scored,) = results_of(tmp_path, "score")
    same = ("dataset", "n", "num_noise", "timestep", "eps", "clean_mean", "robust_mean", "linf_max")
    assert [scored[key] for key in same] == [attacked["EOT-PGD-20"][key] for key in same]
    _, errors = call("score", f"adversarial={path}", "eps=0.001", status=1, **root)
    assert "ball" in last_line(errors)


def test_a_record_can_name_nothing_that_our_settings_do_not(trained, tmp_path, call):
    path = tmp_path / "model" / "training.json"
    record = json.loads(path.read_text())
    for field, node in (
        ("text", {"_target_": "os.mkdir", "path": "pwned"}),
        ("tests", [{"source": {"_target_": "os.mkdir", "path": "pwned"}}]),
    ):
        good = {
            "text": {
                "_target_": "dual_denoising.clip.features.TextBank",
                "path": str(trained / "bank.h5"),
            }
        }
        path.write_text(json.dumps(record | good | {field: node}))
        _, errors = call("zeroshot", "checkpoint=model", status=1)
        assert "os.mkdir" in last_line(errors)
    assert not (tmp_path / "pwned").exists()


def test_names_alone_are_cached_as_a_bank(tmp_path, call):
    (tmp_path / "names.txt").write_text("chair\nfire truck\n")
    clip = ["clip.model=local-dir:data/micro_clip", "clip.pretrained=null"]
    call(
        "cache_teacher",
        "data=names",
        "data.path=names.txt",
        "images=none",
        "prompts=a_name",
        "output=bank.h5",
        *clip,
    )
    bank = TextBank(str(tmp_path / "bank.h5"))
    assert (bank.names, bank.prompts) == (["chair", "fire truck"], ["a {}"])
    text = OpenClipText("local-dir:data/micro_clip", prompts="a_name", cache=str(tmp_path / "c"))
    torch.testing.assert_close(bank.lookup(["fire_truck"]), text.lookup(["fire_truck"]))


REFERENCE = "${oc.create:{_target_: pathlib.Path, _args_: [pwned]}}"


def test_a_foreign_file_can_hold_no_reference(trained, tmp_path, call):
    path = tmp_path / "model" / "training.json"
    record = json.loads(path.read_text())
    bank = {"_target_": "dual_denoising.clip.features.TextBank", "path": REFERENCE}
    path.write_text(json.dumps(record | {"text": bank}))
    _, errors = call("zeroshot", "checkpoint=model", status=1)
    assert "path=" in last_line(errors)
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.attrs["made_by"] = json.dumps({"checkpoint": "model", "data": {"tests": [bank]}})
    _, errors = call("score", "adversarial=evil.h5", status=1)
    assert "path=" in last_line(errors)
    with h5py.File(tmp_path / "evil.h5", "r+") as file:
        file.attrs["made_by"] = json.dumps({"checkpoint": 5})
    _, errors = call("score", "adversarial=evil.h5", status=1)
    assert "checkpoint=5" in last_line(errors)
