"""What will run and how long it takes, before anything runs; what a budget cuts of it."""

from __future__ import annotations

from collections.abc import Callable

from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports.tables import markdown
from dual_denoising.reproduction.costs import computed, measured
from dual_denoising.reproduction.study import Study, Work
from dual_denoising.run import load_config


def first_model(study: Study, build: Callable) -> tuple[DualDenoising, int]:
    """The untrained first model of a study, and how many points it takes."""
    cfg = load_config("pretrain", ["name=plan", *study.jobs[0].overrides])
    return build(cfg.model), cfg.data.num_points


def plan(whole: Study, build: Callable) -> tuple[Study, str]:
    """The study within budget_hours, and the plan in words.

    Hours are from speeds measured on this machine, and beside them those of GPUs, computed.
    """
    model, points = first_model(whole, build)
    here, gpus = measured(model, points), computed(model, points)
    budget = whole.cfg.budget_hours
    study = whole if budget is None else whole.within(budget, here)
    rows, total = [], Work()
    for kind, jobs in study.by_kind():
        work = study.work_of(jobs)
        total += work
        rows.append({"runs": f"{len(jobs)} × {kind}", "hours": f"{work.seconds(here) / 3600:.2f}"})
    at_once = study.cfg.processes
    parts = [
        markdown(rows),
        f"scale {study.cfg.scale}: {study.words}",
        f"{len(study.jobs)} runs, {total.seconds(here) / 3600:.1f} hours of one thread, at the "
        f"speed measured on this machine just now; {at_once} at a time: "
        f"{study.hours(here):.1f} hours, if that does not slow them down",
    ]
    if study.cut_words(whole):
        parts.append(f"budget_hours={budget:g} {study.cut_words(whole)}")
    parts.append(
        "computed, not measured: at the peak of their matrix units, which no run reaches, "
        + " and ".join(
            f"{name} {total.seconds(cost) / 3600:.2g} hours" for name, cost in gpus.items()
        )
    )
    return study, "\n\n".join(parts)
