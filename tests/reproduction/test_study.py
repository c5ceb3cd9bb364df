"""What is run, in which order, how often, and how much of it a budget leaves."""

import json
import re
import shutil
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from dual_denoising.reproduction import runs
from dual_denoising.reproduction.plan import plan
from dual_denoising.reproduction.study import CUT, Job, Study
from dual_denoising.reproduction.tables import made_tables
from dual_denoising.run import Run, load_config
from tests.conftest import ROOT, assert_refuses

COSTS = 1e-3, 1e-3, 1e-3
SCALES = sorted(path.stem for path in (ROOT / "configs" / "scale").glob("*.yaml"))


def study(*overrides):
    return Study(load_config("reproduce", list(overrides)))


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_commands_that_their_scripts_take(scale):
    jobs = study(f"scale={scale}").jobs
    trained = {job.model: job for job in jobs if not job.measure}
    measured = {job.measure: job for job in jobs if job.measure}
    for job in (*trained.values(), *measured.values()):
        assert load_config(job.script, job.arguments).name == job.name


@pytest.mark.parametrize("scale", SCALES)
def test_no_two_models_of_a_scale_are_the_same(scale):
    jobs = [job for job in study(f"scale={scale}", "seeds=1").jobs if not job.measure]
    made = [load_config(job.script, job.arguments) for job in jobs]
    for cfg in made:
        cfg.name = ""
    assert all(made.count(cfg) == 1 for cfg in made)


def test_a_model_that_several_tables_need_is_trained_once_and_before_it_is_measured():
    jobs = study("seeds=2", "threads=3").jobs
    assert len({job.name for job in jobs}) == len(jobs)
    assert all("threads=3" in job.arguments for job in jobs)
    assert not any(job.measure.startswith("systems") for job in jobs)  # their files are not there
    for place, job in enumerate(jobs):
        if job.measure:
            (model,) = [
                o.name for o in jobs if not o.measure and (o.model, o.seed) == (job.model, job.seed)
            ]
            assert model in [o.name for o in jobs[:place]]
            assert f"checkpoint=runs/{model}/model" in job.arguments


def test_a_shipped_model_is_measured_and_not_trained():
    jobs = study("scale=shipped").jobs
    assert {job.model for job in jobs} == {"primitives_clip", "primitives_clip_yaw"}
    assert all(job.measure and f"checkpoint={job.model}" in job.arguments for job in jobs)


def test_one_table_alone_needs_its_own_models_alone():
    jobs = study("only=[table3b]", "seeds=1").jobs
    assert [job.model for job in jobs] == ["ours", "delta_1", "delta_1000"]
    assert_refuses("only", study, "only=[table9]")


def test_a_budget_cuts_all_four_sizes_alike_and_is_kept():
    whole = study("only=[table4]", "budget_hours=1")
    full = whole.hours(COSTS)
    part = whole.within(full / 4, COSTS)
    assert part.hours(COSTS) <= full / 4
    shares = [part.cfg[name] / whole.cfg[name] for name in CUT]
    assert all(0 < share < 1 for share in shares)
    assert max(shares) - min(shares) < 0.2  # seeds are whole: 1 of 3
    assert all(name in part.cut_words(whole) for name in CUT)
    words = " ".join(job.command for job in part.jobs)
    for key, name in (("optim.epochs", "epochs"), ("subset", "clouds"), ("PGD.steps", "steps")):
        assert set(re.findall(rf"{key}=(\d+)", words)) == {str(part.cfg[name])}
    assert_refuses("budget_hours", whole.within, 1e-6, COSTS)


def test_what_a_budget_left_is_kept_for_the_next_start(tmp_path, monkeypatch):
    whole, ledger = study("only=[table3b]", "budget_hours=1"), runs.Ledger(tmp_path / "none")
    build, place = Run(whole.settings).build, torch.device("cpu")
    monkeypatch.setattr("dual_denoising.reproduction.plan.measured", lambda *_: (0.06, 0.06, 0.06))
    first, words = plan(whole, build, tmp_path, ledger, place)
    assert first.sizes != whole.sizes
    assert "budget_hours" in words
    monkeypatch.setattr("dual_denoising.reproduction.plan.measured", lambda *_: (0.05, 0.05, 0.05))
    assert plan(whole, build, tmp_path, ledger, place)[0].jobs == first.jobs


ODD = ["tables.fig8.models=[me]", "tables.fig8.measures=[none]", "tables=null", "only=[]"]
ODD += ["tables.fig8=null", "measures.fig8=null"]


@pytest.mark.parametrize("bad", ["processes=0", "only=5", "seeds=x", "clouds=0", *ODD])
def test_bad_settings_are_named(bad):
    assert_refuses(bad.partition("=")[0], study, bad)


@pytest.mark.parametrize("bad", ["columns=typo", "title=null"])
def test_a_table_that_cannot_be_made_is_named(bad):
    assert_refuses(r"tables\.table3a is", made_tables, [], study(f"tables.table3a.{bad}").tables)


def test_work_is_counted_as_by_hand():
    found = study("scale=mini", "epochs=2", "clouds=7", "steps=5", "only=[table4]", "seeds=1")
    works = {(job.measure, job.model): found.work(job) for job in found.jobs}
    data = found.cfg.data
    samples, paths, _ = works["", "ours"]
    assert samples == 2 * data.training
    assert paths == data.test * 8 * 3  # of t = 0 and 500 the latter; 3 noise seeds
    _, paths, gradients = works["attacked", "ours"]
    assert gradients == 7 * 5 * 8
    assert paths == 7 * 10 * 8  # ten fresh noise seeds
    # APGD: 5 steps of a gradient and a third, and before them one and two thirds; M = 4
    assert works["adaptive", "ours"][2] == pytest.approx(7 * (5 * 4 / 3 + 5 / 3) * 4 * 8)


def test_without_the_first_data_the_next_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = study(f"data_root={tmp_path}")
    assert found.cfg.data.name == "primitives"
    assert found.missing is None
    assert "data=primitives" in found.jobs[0].arguments
    absent = study("scale=claims", f"data_root={tmp_path}")
    assert absent.missing.startswith(str(tmp_path))
    build = Run(absent.settings).build
    _, words = plan(absent, build, tmp_path, runs.Ledger(tmp_path / "none"), torch.device("cpu"))
    assert absent.missing in words


SCRIPT = """
import pathlib, sys
name = sys.argv[1].removeprefix("name=")
folder = pathlib.Path("runs", name)
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls").open("a") as file:
    file.write("x")
if (folder / "wrong").exists():
    sys.exit("error: it is wrong")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Scripts that only count how often they are run."""
    (tmp_path / "scripts").mkdir()
    for name in ("pretrain", "zeroshot", "attack"):
        (tmp_path / "scripts" / f"{name}.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    return tmp_path


def run(jobs, path):
    ledger = runs.Ledger(path)
    runs.run_all(ledger.pending(jobs), ledger, 2, "data")


def test_what_is_done_is_not_run_again_and_a_failure_ends_in_its_words(fake):
    jobs = study("only=[table4]", "seeds=1").jobs
    wrong = fake / "runs" / jobs[-1].name / "wrong"
    wrong.parent.mkdir(parents=True)
    wrong.touch()
    path = fake / "runs.json"
    assert_refuses("it is wrong", run, jobs, path)
    wrong.unlink()
    run(jobs, path)
    calls = {job.name: (fake / "runs" / job.name / "calls").read_text() for job in jobs}
    assert calls.pop(jobs[-1].name) == "xx"
    assert set(calls.values()) == {"x"}
    assert json.loads(path.read_text()).keys() == {job.name for job in jobs}
    shutil.rmtree(wrong.parent)
    assert [job.name for job in runs.Ledger(path).pending(jobs)] == [jobs[-1].name]


def test_a_measure_waits_for_its_model_and_is_not_run_where_that_fails(fake):
    jobs = study("only=[fig8]", "seeds=1").jobs
    wrong = fake / "runs" / jobs[0].name / "wrong"
    wrong.parent.mkdir(parents=True)
    wrong.touch()
    assert_refuses(re.escape(jobs[0].name), run, jobs, fake / "runs.json")
    assert not (fake / "runs" / jobs[1].name).exists()


def test_runs_of_another_command_are_refused(fake):
    path = fake / "runs.json"
    run(study("only=[table3b]", "seeds=1").jobs, path)
    assert_refuses("name=", run, study("only=[table3b]", "seeds=1", "epochs=2").jobs, path)
    path.write_text("[")
    assert_refuses("runs.json", run, study("only=[table3b]", "seeds=1").jobs, path)


SLEEPER = """
import os, pathlib, time
pathlib.Path("child").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_killed_reproduction_leaves_no_run_behind(fake):
    (fake / "scripts" / "pretrain.py").write_text(SLEEPER)
    job = Job("a", "pretrain", "ours", 0, "", "a", ())
    parent = get_context("fork").Process(target=run, args=([job], fake / "runs.json"))
    parent.start()
    while not (fake / "child").exists() or not (fake / "child").read_text():
        time.sleep(0.05)
    child = Path("/proc", (fake / "child").read_text())
    assert child.exists()
    parent.kill()
    parent.join()
    for _ in range(100):
        if not child.exists():
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")


TOY = """experiment=modelnet10 data=primitives data.train.classes=[bowl,mug,bed,rocket]
data.validation=null data.train.per_class=6 data.tests.0.per_class=3 data.tests.1.per_class=1
data.train.num_points=96 data.num_points=64 model.num_groups=8 model.group_size=8
optim.batch_size=8 optim.warmup_epochs=0"""
QUOTED = ", ".join(f'"{override}"' for override in TOY.split())
DATA = f"name: primitives, words: toys, roots: [.], training: 24, test: 12, overrides: [{QUOTED}]"
TOYS = f"choices=[{{{DATA}}}]"


@pytest.mark.slow
def test_a_reproduction_killed_on_its_way_ends_in_the_same_report(tmp_path, script):
    small = ["seeds=1", "clouds=4", "epochs=1", "steps=1", "only=[table3b,fig8]", TOYS]
    script("reproduce", *small, "name=calm")
    ledger = tmp_path / "runs" / "torn" / "runs.json"
    for done in (0, 1, 2):  # it is killed while the next run goes on
        run = script("reproduce", *small, "name=torn", "processes=1", start=True)
        while len(json.loads(ledger.read_text()) if ledger.exists() else ()) < done:
            time.sleep(0.1)
        time.sleep(6)
        assert run.poll() is None
        run.kill()
        run.communicate()
    script("reproduce", *small, "name=torn")
    for file in ("results.json", "report.md", "report.html"):
        calm, torn = ((tmp_path / "runs" / n / file).read_text() for n in ("calm", "torn"))
        assert calm.replace("calm", "torn") == torn
