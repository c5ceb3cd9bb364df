"""attack.py and score.py as a user runs them."""

import json
import time

import pytest


@pytest.mark.slow
def test_a_killed_attack_ends_in_the_table_of_one_that_was_not(on_folders, tmp_path, script, call):
    options = f"attack {on_folders} subset=9 batch_size=1 score_seeds=2 pictures=1"
    options += " attack.settings=[[2,500]] attack.jobs.PGD-10.steps=20"
    job = script(f"{options} name=killed", start=True)
    folder = tmp_path / "runs" / "killed" / "adversarial"
    while job.poll() is None and len(list(folder.glob("*.h5"))) < 2:
        time.sleep(0.02)
    assert job.poll() is None
    job.kill()
    job.communicate()
    fields = ("attack", "robust_mean", "robust_sd", "linf_max", "l2_mean", "clean_mean")
    tables = []
    for name in ("killed", "whole"):
        call(f"{options} name={name}")
        run = tmp_path / "runs" / name
        results = json.loads((run / "summary.json").read_text())["results"]
        tables.append([[r[field] for field in fields] for r in results])
        assert (run / "attack.md").exists()
    assert tables[0] == tables[1]
    assert len(list((run / "per_cloud").glob("*.csv"))) == 4  # and the worst of the three
    assert len(list((run / "pictures").glob("PGD*.png"))) == 1
    made = next((run / "adversarial").glob("PGD*.h5"))
    score = f"score {on_folders} adversarial={made} settings=[[2,500]] seeds=2"
    call(f"{score} eps=0.025")
    again = json.loads((tmp_path / "runs" / "score" / "summary.json").read_text())["results"][0]
    assert again["robust_mean"] == results[0]["robust_mean"]
    assert again["linf_max"] == results[0]["linf_max"] <= 0.025 + 1e-6
    _, errors = call(f"{score} eps=0.02", status=1)
    assert "0.02" in errors.strip().splitlines()[-1]
