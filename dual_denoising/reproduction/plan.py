"""What will run and how long it takes, before anything runs; what a budget cuts of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dual_denoising.data.storage import write_text
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports.tables import markdown
from dual_denoising.reproduction.costs import computed, measured
from dual_denoising.reproduction.runs import Ledger
from dual_denoising.reproduction.study import Study, Work
from dual_denoising.run import load_config


def first_model(study: Study, build: Callable) -> tuple[DualDenoising, int]:
    """The untrained first model of a study, and how many points it takes."""
    cfg = load_config("pretrain", ["name=plan", *study.jobs[0].overrides])
    return build(cfg.model), cfg.data.num_points


def plan(whole: Study, build: Callable, folder: Path, ledger: Ledger, device) -> tuple[Study, str]:
    """The study within budget_hours, and the plan in words.

    Hours are from speeds measured on this machine, and beside them those of GPUs, computed. What a
    budget left is kept in sizes.json of the folder, since the next measurement will differ.
    """
    model, points = first_model(whole, build)
    gpus, here = computed(model, points), measured(model, points, device)
    study = _within(whole, here, folder / "sizes.json")
    pending = {job.name for job in ledger.pending(study.jobs)}
    rows, total, left = [], Work(), 0.0
    for kind, jobs in study.by_kind().items():
        open_jobs = [job for job in jobs if job.name in pending]
        hours = study.work_of(jobs).seconds(here) / 3600
        total += study.work_of(jobs)
        left += hours * len(open_jobs) / len(jobs)
        rows.append(
            {
                "runs": f"{len(jobs)} × {kind}",
                "hours": f"{hours:.2f}",
                "done": len(jobs) - len(open_jobs),
            }
        )
    at_once = study.cfg.processes
    parts = [
        markdown(rows),
        f"scale {study.cfg.scale}: {study.words}",
        f"{len(pending)} of {len(study.jobs)} runs are left: {left:.1f} hours of one thread at the "
        f"speed measured just now; {at_once} at a time: {left / at_once:.1f} hours, if that does "
        "not slow them down",
        study.cut_words(whole),
        "computed, not measured: all of it at the peak of a GPU's matrix units, which no run "
        "reaches: "
        + " and ".join(
            f"{name} {total.seconds(cost) / 3600:.2g} hours" for name, cost in gpus.items()
        ),
    ]
    return study, "\n\n".join(filter(None, parts))


def _within(whole: Study, costs: tuple[float, float, float], path: Path) -> Study:
    """The study within its budget: that of an earlier start, or now chosen."""
    budget = whole.cfg.budget_hours
    if budget is None:
        return whole
    asked = {"budget_hours": budget, **whole.sizes}
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("asked") == asked:
        return whole.sized(kept["sizes"])
    study = whole.within(budget, costs)
    if not whole.cfg.plan_only:
        write_text(path, json.dumps({"asked": asked, "sizes": study.sizes}))
    return study
