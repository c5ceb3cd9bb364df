"""The scripts, as a user runs them."""

import json
import re
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
from dual_denoising.errors import InputError
from dual_denoising.run import check_targets, load_config
from tests.conftest import ROOT, write_features, write_h5

EXPERIMENTS = sorted(
    p.stem
    for p in (ROOT / "configs" / "experiment").glob("*.yaml")
    if not p.stem.endswith("_all")  # of zeroshot.py and attack.py
)
FOUR = "classes=[bowl,mug,bed,rocket]"
ONCE = "eval.seeds=[0] eval.num_noise=[1] eval.timestep=[0]"
QUICK = f"""
experiment=quickstart teacher=standin model.feature_types=[text] data.train.{FOUR}
data.train.without=[] data.train.per_class=8 data.train.num_points=128 data.num_points=64
model.num_groups=8 model.group_size=8 optim.batch_size=8 optim.epochs=2 optim.warmup_epochs=0
checkpoint_every=1 threads=1 {ONCE}
""" + " ".join(
    f"++data.{part}.{setting}"
    for part in ("tests.1", "tests.2", "tests.3", "validation")
    for setting in (FOUR, "per_class=3", "num_points=128")
)
UNTESTED = f"{QUICK} data.tests=[] data.validation=null optim.epochs=6"

HELP = """
import contextlib, io, json, runpy, sys

said = {}
for path in sys.argv[1:]:
    sys.argv, text = [path, "--help"], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    said[path] = text.getvalue(), "torch" in sys.modules
print(json.dumps(said))
"""


def last_line(errors):
    return errors.strip().splitlines()[-1]


def summary_of(tmp_path, name):
    return json.loads((tmp_path / "runs" / name / "summary.json").read_text())


def results_of(tmp_path, name):
    return summary_of(tmp_path, name)["results"]


def test_help_says_what_each_script_does_without_waiting_for_torch(tmp_path):
    """All in one interpreter, where torch, once imported, would be seen by all that follow."""
    paths = sorted((ROOT / "scripts").glob("*.py"))
    command = [sys.executable, "-c", HELP, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for path, (text, torch_is_in) in zip(paths, json.loads(done.stdout).values(), strict=True):
        assert not torch_is_in, path
        assert path.read_text().split('"""')[1].strip().splitlines()[0] in " ".join(text.split())
        assert path.stem != "pretrain" or "model=paper|small|tiny" in text
        assert path.stem != "zeroshot" or "experiment=table1_all\n" in text
    assert not list(tmp_path.iterdir())


OURS = {"_target_": "dual_denoising.clip.features.TextBank", "path": "a.h5"}


@pytest.mark.parametrize(
    "settings",
    [
        {"_target_": "os.system"},
        [OURS, {"text": {"_target_": "os.system"}}],
        {"text": {"_target_": "os.system"}, "text._target_": OURS["_target_"]},
        OURS | {"path": "${oc.env:HOME}"},
    ],
)
def test_a_file_cannot_name_what_is_run(settings):
    assert check_targets([OURS]) == [OURS]
    with pytest.raises(InputError, match="of a model or file is"):
        check_targets(settings)


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


def test_a_folder_is_tested_on_another_split_than_it_is_trained_on(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "bed" / split).mkdir(parents=True)
        np.save(tmp_path / "bed" / split / "bed.npy", np.eye(3))
    data = load_config(
        "pretrain", ["data=folder", f"data.root={tmp_path}", "data.split=train"]
    ).data
    assert instantiate(data.tests[0]).source.split == "train"
    data.test_split = "test"
    splits = instantiate(data.train).split, instantiate(data.tests[0]).source.split
    assert splits == ("train", "test")


@pytest.mark.parametrize(("script", "status"), [("zeroshot", 1), ("contact_sheet", 0)])
def test_a_folder_of_another_script_is_refused(tmp_path, call, script, status):
    summary = tmp_path / "runs" / "mine" / "summary.json"
    summary.parent.mkdir(parents=True)
    before = json.dumps({"command": f"'/a folder/scripts/{script}.py' name=mine"})
    summary.write_text(before)
    line = "contact_sheet name=mine data.tests.0.per_class=1 data.tests.1.per_class=1 columns=1"
    _, errors = call(f"{line} classes=[mug]", status=status)
    assert (summary.read_text() == before) == bool(status)
    assert not status or "zeroshot.py" in last_line(errors)


def test_pretraining_leaves_what_others_rely_on_and_zeroshot_reads_it(tmp_path, call):
    out, _ = call(f"pretrain name=quick {QUICK}")
    assert "primitives scan" in out
    run = tmp_path / "runs" / "quick"
    left = " ".join(sorted(path.name for path in run.iterdir()))
    assert left == "checkpoints config.yaml metrics.jsonl model pictures summary.json zeroshot.md"
    summary = summary_of(tmp_path, "quick")
    assert {"command", "seconds", "device", "versions"} <= summary.keys()
    assert (summary["steps"], summary["samples"]) == (8, 64)
    model = DualDenoising.from_pretrained(run / "model")
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert {"token_std_initial", "output_share"} <= summary["feature_noise"].keys()
    call(f"zeroshot checkpoint=runs/quick/model {ONCE}")
    keys = ("dataset", "split", "n", "top1_mean", "ece", "auroc")
    found, own = (
        [[r[k] for k in keys] for r in rows]
        for rows in (results_of(tmp_path, "zeroshot"), summary["evaluation"])
    )
    assert found == own
    sets = ["base_meshes_recipes", "primitives", "primitives_unseen", "primitives"]
    assert [(r[0], r[2]) for r in own] == list(zip(sets, (94, 12, 12, 12), strict=True))
    for wrong, words in (
        ("checkpoint=runs/quick/model teacher.text.seed=3", "stand-in"),
        ("checkpoint=runs/quick/checkpoints/last.pt", "last.pt"),
        ("checkpoint=runs/quick/model data.tests=[]", "data"),
    ):
        line = f"zeroshot data=primitives teacher=standin num_points=64 {wrong}"
        assert words in last_line(call(line, status=1)[1])


def test_a_run_killed_in_an_epoch_ends_with_the_same_weights(tmp_path, script, call):
    call(f"pretrain name=whole {UNTESTED}")
    process = script(f"pretrain name=killed {UNTESTED}", start=True)
    metrics = tmp_path / "runs" / "killed" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    last = metrics.with_name("checkpoints") / "last.pt"
    assert 0 < torch.load(last, weights_only=True)["step"] < 24
    call(f"pretrain name=killed {UNTESTED}")
    whole, resumed = (
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors")
        for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_torchrun_trains_the_same_script(tmp_path, script, call):
    line = f"pretrain {QUICK} model.token_norm=layer"
    script(f"{line} name=ranks", ranks=2)
    call(f"{line} name=alone")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").open()]
        for name in ("ranks", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pretrain", "nowhere/shapenet55"),
        ("pretrain experiment=modelnet10", "nowhere/"),
        (f"pretrain {QUICK} data.num_points=9999", "num_points=9999"),
        (f"pretrain {QUICK} data.num_points=0", "num_points"),
        ("zeroshot num_points=0", "num_points"),
        ("train_micro_clip training.lr=abc", "training.lr"),
        (f"pretrain {QUICK} model.feature_types=[image]", "teacher.images"),
        (f"pretrain {QUICK} eval.type_weights=5", "eval.type_weights is 5"),
        (f"pretrain {QUICK} device=gpu", "device is 'gpu'"),
        (f"pretrain {QUICK} seed=-1", "seed is -1"),
        (f"pretrain {QUICK} mix_text=2", "mix_text is 2"),
        (f"pretrain {QUICK} logger=wandb logger.mode=foo", "logger.mode is 'foo'"),
        (f"pretrain {QUICK} threads=-2", "threads is -2"),
        (f"pretrain {QUICK} name=../evil", "name is '../evil'"),
        (f"pretrain {QUICK} +optim.epoch=3", "nearest: epochs"),
        ("pretrain optim.epoch=3", "nearest: optim.epochs"),
        ("pretrain +sed=3", "nearest: seed"),
        ("pretrain ++sed=3", "nearest: seed"),
        (f"pretrain {QUICK} data.facing=5", "data.facing is 5"),
        (f"pretrain {QUICK} data.more={{bowl:2}}", "data.per_name"),
        (f"pretrain {QUICK} data.per_name=2 data.more={{nosuch:2}}", "'nosuch'"),
        (f"pretrain {QUICK} data.augmentation=null", "data.augmentation"),
        (f"pretrain {QUICK} data.tests=[5]", "data.tests is"),
        (f"pretrain {QUICK} data.train.yaw=5", "data.train: "),
        (f"pretrain {QUICK} model.stop_gradient=null", "model.stop_gradient"),
        (f"pretrain {QUICK} teacher.text=null", "teacher.text is None"),
        ("benchmark part=ops ops.group_size=2000", "ops.group_size is 2000"),
        ("zeroshot checkpoint=5", "checkpoint is 5"),
        ("zeroshot name=true", "name is True"),
        ("score adversarial=null", "adversarial is None"),
        ("attack subset=3 num_points=16", "num_points is 16"),
        ("attack +attack.jobs.PGD-10.record=5", "record is 5"),
        ("certify +attack.grouping=frozen subset=2", "attack.grouping"),
        ("certify timestep=[500,500] subset=2", "timestep is"),
        ("certify beside=foo", "beside is 'foo'"),
        ("train_micro_clip held_out=bus", "held_out is 'bus'"),
        ("train_micro_clip held_out=[nosuch]", "'nosuch'"),
        ("train_micro_clip test_per_class=0", "test_per_class is 0"),
        ("train_image_tower data=primitives tower.heads=3", "tower: "),
        ("benchmark attack.steps=0", "attack.steps is 0"),
        ("contact_sheet classes=[]", "classes is []"),
        ("attack attack.jobs={}", "attack.jobs is {}"),
        ("pretrain model.feature_width=768", "model.feature_width"),
        ("pretrain +model.feature_width=768", "model.feature_width"),
        ("pretrain model=tinny", "tiny"),
        ("pretrain experiment=table2_all", "table2_all"),
        ("attack attack=table2 systems=[recon]", "systems is"),
        (f"pretrain {QUICK} data.num_points=4", "data.num_points is 4"),
        ("zeroshot data=primitives ~data.tests.1", "~data.tests.1"),
        ("zeroshot data=null", "data=null"),
        ("zeroshot data=5", "data=5"),
        ("zeroshot name=null", "name is None"),
        ("zeroshot table=foo", "table is 'foo'"),
        ("pretrain optim.lr=${foo}", "optim.lr"),
        ("pretrain experiment=quickstart data.train=5", "data.train is 5"),
        ("reproduce plan_only=abc", "plan_only is 'abc'"),
        ("benchmark ops.clouds=abc", "ops.clouds is 'abc'"),
        ("pretrain optim.lr", "optim.lr"),
        ("score", "adversarial"),
        ("score adversarial=x.h5 checkpoint=x", "x.h5"),
        ("attack baseline=ulip data=primitives", "checkpoint"),
        ("zeroshot baseline=ulip checkpoint=x", "data"),
        ("zeroshot checkpoint=nowhere", "nowhere"),
        ("zeroshot data.up=z", "data=NAME"),
        ("contact_sheet data.tests=[]", "data"),
        ("benchmark part=speed", "part is 'speed'"),
    ],
    ids=lambda text: " ".join(text.split()[-2:]),
)
def test_bad_input_ends_in_one_line_and_leaves_no_folder(tmp_path, call, line, words):
    _, errors = call(line, status=1, DUAL_DENOISING_DATA="nowhere")
    assert words in last_line(errors)
    assert last_line(errors).startswith("error: ")
    assert not (tmp_path / "runs").exists()


def test_an_attack_may_be_added_on_the_command_line(call):
    job = "{track:adaptive,_target_:dual_denoising.attacks.Square,steps:7}"
    out, _ = call(f"attack --cfg job +attack.jobs.mine={job}")
    assert "steps: 7" in out.partition("mine:")[2]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("teacher=clip_vitb32", "glass_box"),
        ("teacher.images=null", "teacher.images"),
        ("teacher.make.renderer.size=4", "size is 4"),
        ("teacher.make.prompts=nosuch", "nosuch"),
        ("teacher.make.batch_size=0", "batch_size is 0"),
    ],
)
def test_a_teachers_settings_are_checked_before_shapes_are_drawn(call, setting, words):
    _, errors = call(
        f"pretrain experiment=quickstart {setting}", status=1, DUAL_DENOISING_DATA="no"
    )
    assert words in last_line(errors)
    assert "drawing" not in errors


def test_a_bad_cloud_in_a_loaders_worker_ends_in_one_line(shapenet, call):
    for path in (shapenet / "shapenet_pc").iterdir():
        path.write_bytes(b"\x93NUMPY, cut")
    line = "pretrain model=tiny teacher=standin workers=1 optim.batch_size=2"
    _, errors = call(f"{line} data.root={shapenet}", status=1)
    assert last_line(errors).startswith(f"error: {shapenet}/shapenet_pc/0")


def test_the_front_pages_python_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    code = text.split("## In Python")[1].split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert (names["logits"].shape, names["features"].shape) == ((1, 3), (1, 1, 512))
    assert names["logits"].argmax() == 2  # a door


def test_a_benchmark_times_every_part(tmp_path, call):
    small = "ops.clouds=1 ops.points=64 ops.groups=4 ops.group_size=4 train.batch_size=2"
    small += " train.points=64 infer.clouds=1 infer.points=64 infer.num_noise=[1,2]"
    small += " attack.clouds=2 attack.points=64 attack.steps=1 attack.num_noise=2"
    call(f"benchmark model=tiny repeats=1 attack.searches=1 attack.search_steps=2 {small}")
    summary = summary_of(tmp_path, "benchmark")
    assert {"machine", "ops", "train", "infer", "attack"} <= summary.keys()
    assert {row["by"] for row in summary["ops"]} >= {"ours", "naive torch"}
    assert all(row["share of floor"] > 0 for row in summary["infer"] + summary["attack"])
    assert {row["by"] for row in summary["attack"]} == {"ours", "a pass per path"}
    assert summary["train"][0]["samples/s"] > 0


def test_a_contact_sheet_has_a_row_for_every_class(tmp_path, call):
    tests = [f"data.tests.{i}.per_class=1" for i in range(2)]
    call("contact_sheet", *tests, "columns=2", "classes=[bowl,mug]")
    sheets = list((tmp_path / "runs" / "contact_sheet" / "pictures").iterdir())
    assert {p.name for p in sheets} == {"primitives_test.png", "primitives_scan.png"}


@pytest.mark.slow
def test_two_ranks_of_zeroshot_write_what_one_writes(on_folders, tmp_path, script, call):
    line = f"zeroshot {on_folders} eval.num_noise=[1,3] eval.timestep=[0,500]"
    call(f"{line} name=one eval.batch_size=4")
    script(f"{line} name=two eval.batch_size=2", ranks=2)
    found = [tmp_path / "runs" / name / "predictions" / "folder_all.csv" for name in ("one", "two")]
    assert found[0].read_bytes() == found[1].read_bytes()
    pairs = zip(results_of(tmp_path, "one"), results_of(tmp_path, "two"), strict=True)
    for left, right in pairs:
        assert left | {"seconds_per_cloud": 0} == right | {"seconds_per_cloud": 0}
    assert (tmp_path / "runs" / "two" / "pictures" / "grid_folder_all.png").exists()


@pytest.mark.parametrize("table", ["table1", "table5"])
def test_tables_say_which_data_sets_are_absent(trained, tmp_path, call, table):
    """One dataset is there, one is there and broken, the others are absent."""
    rng = np.random.default_rng(0)
    folder, labels = tmp_path / "root" / "scanobjectnn", np.arange(15)
    whole, broken = rng.normal(size=(15, 200, 3)), np.zeros((15, 200))
    write_h5(folder / "main_split_nobg" / "test_objectdataset.h5", whole, labels)
    write_h5(folder / "main_split" / "test_objectdataset.h5", broken, labels)
    names = (ROOT / "data" / "classes" / "scanobjectnn.txt").read_text().split()
    write_features(tmp_path / "bank.h5", names, rng.normal(size=(15, 12)))
    call(
        f"zeroshot name={table} eval={table} checkpoint=model data_root={tmp_path / 'root'}"
        f" teacher=clip_vitb32 teacher.text.path={trained / 'bank.h5'} eval.seeds=[0]"
        " eval.timestep=[0,500] eval.batch_size=15"
    )
    run = tmp_path / "runs" / table
    assert (run / f"{table}.csv").exists()
    summary = summary_of(tmp_path, table)
    assert {r["dataset"] for r in summary["results"]} == {"scanobjectnn_obj_only"}
    absent = " ".join(sorted(summary["absent"]))
    if table == "table1":
        assert absent == "modelnet10 modelnet40 scanobjectnn_obj_bg scanobjectnn_pb_t50_rs"
        assert "(15, 200)" in (run / "table1.md").read_text()
    else:
        assert absent == "modelnet40"
        assert len(summary["results"]) == 10
        assert (run / "pictures" / "table5_scanobjectnn_obj_only_test.png").exists()


MICRO = ("model.clip.model=local-dir:data/micro_clip", "model.clip.pretrained=null")
RECON = "+num_groups=8 +group_size=8 +width=24 +depth=1 heads=2 text=${teacher.text}"
TWO_STEPS = "attack=quick attack.jobs.PGD-10.steps=2 attack.jobs.EOT-PGD-20.steps=2 score_seeds=2"


def recon(prefix):
    return re.sub(r"(\+?)(\S+)", rf"\1{prefix}.model.\2", RECON)


def test_a_baseline_is_evaluated_attacked_and_scored_as_any_model(folders, tmp_path, call):
    features = np.random.default_rng(0).normal(size=(3, 512))
    write_features(tmp_path / "bank.h5", ["bed", "chair", "lamp"], features)
    own = f"baseline=recon checkpoint=random {recon('baseline')} data_root={tmp_path}"
    own += " teacher=clip_vitb32 teacher.text.path=${data_root}/bank.h5"
    own += f" data=folder data.root={folders}"
    common = f"{own} num_points=64"
    call(f"zeroshot name=plain {common}")
    (result,) = results_of(tmp_path, "plain")
    assert (result["num_noise"], result["timestep"], result["seeds"]) == (1, 0, [0])
    assert (result["system"], result["model"]) == ("ReCon", "random weights")
    assert not result["comparable"]
    assert not result["seen"]
    noise = "noise_scale=0.08"
    call(f"zeroshot name=noise {noise} eval.num_noise=[2] eval.timestep=[0,500] {common}")
    results = results_of(tmp_path, "noise")
    assert [r["timestep"] for r in results] == [0, 500]
    assert results[0]["top1_mean"] == result["top1_mean"]  # without noise the paths are one
    assert results[0]["label"] == "ReCon, noise s = 0.08"
    attack = f"attack {common} {TWO_STEPS} attack.settings=[[2,500]] attack.eps=[0.05] subset=6"
    for name, more, setting in (("attacked", "", (1, 0)), ("noisy", noise, (2, 500))):
        call(f"{attack} name={name} {more}")
        result = results_of(tmp_path, name)[0]
        assert (result["num_noise"], result["timestep"]) == setting
        assert result["linf_max"] <= 0.05 + 1e-6
    _, errors = call(f"{attack} name=attacked +baseline.model.ratio=0.9", status=1)
    assert "settings" in last_line(errors)  # no tensor tells the ratio
    found = next((tmp_path / "runs/attacked/adversarial").glob("PGD*.h5"))
    robust = results_of(tmp_path, "attacked")[0]["robust_mean"]
    for line in (f"{own} eps=0.05", f"data_root={tmp_path}"):  # the file says the rest
        call(f"score {line} adversarial={found} seeds=2")
        (scored,) = results_of(tmp_path, "score")
        assert (scored["system"], scored["robust_mean"]) == ("ReCon", robust)
    _, errors = call(f"certify {common} subset=3", status=1)
    assert "noise_scale" in last_line(errors)
    certify = f"certify {common} {noise} subset=3 timestep=[500] draws=20 choosing=5"
    certify += " attack.steps=2"
    call(f"{certify} attacked=1")
    (certified,) = results_of(tmp_path, "certify")
    assert (len(certified["radii"]), certified["draws"]) == (3, 20)
    assert (tmp_path / "runs" / "certify" / "certificate_t500.csv").exists()
    call(f"{certify} attacked=0 name=again beside=[certify]")
    _, errors = call(f"{certify} attacked=0 name=again beside=[none]", status=1)
    assert "beside" in last_line(errors)


@pytest.mark.slow
def test_tables_of_all_systems_list_what_is_missing(folders, tmp_path, call):
    common = f"data=folder data.root={folders} num_points=64 teacher=standin"
    common += f" systems.recon.checkpoint=random {recon('systems.recon')}"
    names = ("pointclip", "pointclip_v2", "clip2point")
    views = [f"systems.{name}.{part}" for name in names for part in MICRO]
    prompts = "+systems.pointclip_v2.model.prompts='a {}'"
    call(f"zeroshot experiment=table1_all {common}", *views, prompts)
    text = (tmp_path / "runs/table1_all/table1.md").read_text()
    assert re.search(r"^\| PointCLIP +\| 30.2 / ", text, re.M)
    assert re.search(r"^PointCLIP.*folder all: n = 15", text, re.M)
    missing = "ulip/checkpoint_pointbert.pt clip2point/best_eval.pth runs/shapenet55/model"
    assert all(path in text for path in missing.split())
    assert (tmp_path / "runs/table1_all/pointclip/zeroshot.md").exists()
    call(f"attack experiment=table2_all {common} {TWO_STEPS} attack.eps=[0.01,0.05]")
    text = (tmp_path / "runs/table2_all/table2.md").read_text()
    assert "PGD-10@0.05" in text
    assert "uni3d/uni3d-l/model.pt" in text
    assert re.search(r"^ReCon.*folder all: n = 15, .*random weights", text, re.M)
    assert "(!)" in text


def test_the_front_pages_chain_works_in_order_and_agrees(tmp_path, call):
    """Classify, evaluate, attack and score with the shipped model, which none of them is given."""
    root = {"DUAL_DENOISING_DATA": str(tmp_path / "nowhere")}
    page = (ROOT / "README.md").read_text()
    (names,) = re.findall(r'--labels "(bucket,[^"]+)"', page)
    out, _ = call("classify", ROOT / "data/base_meshes/untaught", "--labels", names, **root)
    assert "6 classified, 0 skipped" in out
    found = re.findall(r"untaught/(\S+) +\| ([a-z ]+?) +\|.*?\| ([a-z ]+) ([\d.]+)%", out)
    said = re.findall(r"\n\| (\w+\.glb) \| ([a-z ]+) \| ([a-z ]+) ([\d.]+)%", page)
    assert len(said) == 6
    assert [row[:3] for row in found] == [row[:3] for row in said]
    here, there = (np.array([float(row[3]) for row in rows]) for rows in (found, said))
    np.testing.assert_allclose(here, there, atol=0.5)  # of a hundred; machines round differently
    call(f"zeroshot {ONCE}", **root)
    summary = summary_of(tmp_path, "zeroshot")
    found = {r["dataset"]: r for r in summary["results"]}
    assert found.keys() == {"base_meshes_recipes", "base_meshes"}
    assert found["base_meshes_recipes"]["n"] == 94
    assert found["base_meshes_recipes"]["top1_mean"] > 0.3
    assert {"ece", "auroc", "false_accept"} <= found["base_meshes"].keys()
    assert {r["model"] for r in summary["results"]} == {"primitives_clip"}
    absent = {"modelnet10 test", "modelnet40_sample test"}  # not in the repository
    assert set(summary["absent"]) == absent
    assert all("missing" in reason for reason in summary["absent"].values())
    call(f"attack subset=6 {TWO_STEPS} attack.settings=[[2,500]]", **root)
    (path,) = (tmp_path / "runs" / "attack" / "adversarial").glob("EOT-PGD*.h5")
    attacked = {r["attack"]: r for r in results_of(tmp_path, "attack")}
    call("score", f"adversarial={path}", "seeds=2", **root)
    (scored,) = results_of(tmp_path, "score")
    same = ("dataset", "n", "num_noise", "timestep", "eps", "clean_mean", "robust_mean", "linf_max")
    assert [scored[key] for key in same] == [attacked["EOT-PGD-20"][key] for key in same]
    _, errors = call("score", f"adversarial={path}", "eps=0.001", status=1, **root)
    assert "ball" in last_line(errors)


def test_names_alone_are_cached_as_a_bank(tmp_path, call):
    (tmp_path / "names.txt").write_text("chair\nfire truck\n")
    call(
        "cache_teacher data=names data.path=names.txt images=none prompts=a_name output=bank.h5"
        " clip.model=local-dir:data/micro_clip clip.pretrained=null"
    )
    bank = TextBank(str(tmp_path / "bank.h5"))
    assert (bank.names, bank.prompts) == (["chair", "fire truck"], ["a {}"])
    text = OpenClipText("local-dir:data/micro_clip", prompts="a_name", cache=str(tmp_path / "c"))
    torch.testing.assert_close(bank.lookup(["fire_truck"]), text.lookup(["fire_truck"]))


def test_a_foreign_file_can_name_nothing_that_our_settings_do_not(trained, tmp_path, call):
    path = tmp_path / "model" / "training.json"
    record, evil = json.loads(path.read_text()), {"_target_": "os.mkdir", "path": "pwned"}
    bank = {"_target_": "dual_denoising.clip.features.TextBank", "path": str(trained / "bank.h5")}
    reference = bank | {"path": "${oc.create:{_target_: pathlib.Path, _args_: [pwned]}}"}
    for fields, words in (
        ({"text": evil}, "os.mkdir"),
        ({"text": bank, "tests": [{"source": evil}]}, "os.mkdir"),
        ({"text": reference}, "path of a model"),
    ):
        path.write_text(json.dumps(record | fields))
        assert words in last_line(call("zeroshot checkpoint=model", status=1)[1])
    made_by = {"checkpoint": "model", "data": {"tests": [reference]}}
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.attrs["made_by"] = json.dumps(made_by)
    assert "path of a model" in last_line(call("score adversarial=evil.h5", status=1)[1])
    assert not (tmp_path / "pwned").exists()
