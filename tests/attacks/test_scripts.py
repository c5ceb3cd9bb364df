"""attack.py and score.py as a user runs them."""

import json
import os
import signal
import time

import numpy as np
import pytest


@pytest.fixture
def arguments(trained, tmp_path):
    """What lets attack.py run on the trained toy and clouds of its three names."""
    for label, kind in enumerate(("bed", "chair", "lamp")):
        (tmp_path / "clouds" / kind).mkdir(parents=True)
        for number in range(4):
            rng = np.random.default_rng((label, number))
            np.save(tmp_path / "clouds" / kind / f"{number}.npy", rng.normal(size=(80, 3)))
    return [
        "checkpoint=model",
        "data=folder",
        f"data.root={tmp_path / 'clouds'}",
        "threads=1",
        "teacher=clip_vitb32",
        f"teacher.text.path={trained / 'bank.h5'}",
    ]


@pytest.mark.slow
def test_a_killed_attack_ends_in_the_table_of_one_that_was_not(arguments, tmp_path, script):
    options = [
        *arguments,
        "subset=9",
        "batch_size=1",
        "score_seeds=2",
        "pictures=1",
        "attack.settings=[[2,500]]",
        "attack.jobs.PGD-10.steps=20",
    ]
    job = script("attack", *options, "name=killed", start=True)
    folder = tmp_path / "runs" / "killed" / "adversarial"
    while job.poll() is None and len(list(folder.glob("*.h5"))) < 2:
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    fields = ("attack", "robust_mean", "robust_sd", "linf_max", "l2_mean", "clean_mean")
    tables = []
    for name in ("killed", "whole"):
        script("attack", *options, f"name={name}")
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        tables.append([[r[field] for field in fields] for r in summary["results"]])
        assert (tmp_path / "runs" / name / "attack.md").exists()
    assert tables[0] == tables[1]
    per_cloud = list((tmp_path / "runs" / "whole" / "per_cloud").glob("*.csv"))
    assert len(per_cloud) == 4  # and the worst of the three
    assert len(list((tmp_path / "runs" / "whole" / "pictures").glob("PGD*.png"))) == 1
    made = next((tmp_path / "runs" / "whole" / "adversarial").glob("PGD*.h5"))
    options = [*arguments, f"adversarial={made}", "settings=[[2,500]]", "seeds=2"]
    script("score", *options, "eps=0.025")
    again = json.loads((tmp_path / "runs" / "score" / "summary.json").read_text())["results"][0]
    first = summary["results"][0]
    assert again["robust_mean"] == first["robust_mean"]
    assert again["linf_max"] == first["linf_max"] <= 0.025 + 1e-6
    refused = script("score", *options, "eps=0.02", check=False)
    assert refused.returncode == 1
    assert "0.02" in refused.stderr.strip().splitlines()[-1]
