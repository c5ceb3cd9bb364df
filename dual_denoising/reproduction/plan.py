"""What will run and how long it takes, before anything runs; what a budget cuts of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dual_denoising.data.storage import read_json, write_text
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports.tables import markdown
from dual_denoising.reproduction.costs import Costs, computed, measured
from dual_denoising.reproduction.runs import Ledger
from dual_denoising.reproduction.study import Study
from dual_denoising.reproduction.tables import made_tables
from dual_denoising.run import load_config
from dual_denoising.training.record import TrainingRecord


def first_model(study: Study, build: Callable) -> tuple[DualDenoising, int]:
    """The first model of a study, untrained but where it is shipped, and its points per cloud."""
    first = study.jobs[0]
    if not first.trained:
        points = TrainingRecord.load(first.model).num_points
        return DualDenoising.from_pretrained(first.model), points
    cfg = load_config("pretrain", ["name=plan", *first.overrides])
    return build(cfg.model), cfg.data.num_points


def plan(whole: Study, build: Callable, folder: Path, ledger: Ledger, device) -> tuple[Study, str]:
    """The study within budget_hours, and the plan in words.

    Hours are from speeds measured on this machine, and beside them those of GPUs, computed. Sizes
    that a budget allowed are kept in sizes.json: the next start would measure another speed and
    choose others. Raises InputError for a table that cannot be made.
    """
    made_tables([], whole.tables)
    model, points = first_model(whole, build)
    gpus, here = computed(model, points), measured(model, points, device)
    study = _within(whole, here, folder / "sizes.json")
    pending = {job.name for job in ledger.pending(study.jobs)}
    rows, total, left = [], np.zeros(3), 0.0
    for kind, jobs in study.by_kind().items():
        work = len(jobs) * study.work(jobs[0])
        hours = float(work @ here) / 3600
        done = sum(job.name not in pending for job in jobs)
        total += work
        left += hours * (1 - done / len(jobs))
        rows.append({"runs": f"{len(jobs)} × {kind}", "hours": f"{hours:.2f}", "done": done})
    at_once = study.cfg.processes
    peaks = [f"{name} {float(total @ cost) / 3600:.2g} hours" for name, cost in gpus.items()]
    parts = [
        markdown(rows),
        f"scale {study.cfg.scale}: {study.words}",
        f"{len(pending)} of {len(study.jobs)} runs are left: {left:.1f} hours of one thread at the "
        f"speed measured just now; {at_once} at a time: {left / at_once:.1f} hours, if that does "
        "not slow them down",
        study.cut_words(whole),
        study.missing,
        "computed, not measured, for our models alone: all of it at the peak of a GPU's matrix "
        f"units, which no run reaches: {' and '.join(peaks)}",
    ]
    return study, "\n\n".join(filter(None, parts))


def _within(whole: Study, costs: Costs, path: Path) -> Study:
    """The study within its budget: that of an earlier start, or now chosen."""
    budget = whole.cfg.budget_hours
    if budget is None:
        return whole
    asked = {"budget_hours": budget, **whole.sizes}
    kept = read_json(path)
    if kept.get("asked") == asked:
        return whole.sized(kept["sizes"])
    study = whole.within(budget, costs)
    if not whole.cfg.plan_only:
        write_text(path, json.dumps({"asked": asked, "sizes": study.sizes}))
    return study
