"""Certified accuracies: a table, curves over the L2 radius, and a row per cloud."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dual_denoising.data.storage import write_text
from dual_denoising.errors import InputError, check
from dual_denoising.evaluation.certificate import ABSTAINS, Certified
from dual_denoising.evaluation.metrics import wilson_interval
from dual_denoising.reports import pictures
from dual_denoising.reports.tables import interval, markdown, percent, save

STEM = "certificate_t"  # of a table's file, before the timestep


def read_tables(runs: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The tables of earlier runs in a folder of runs; raises InputError where one has none."""
    tables = {}
    check("beside", names, isinstance(names, list), "give a list of runs, as [certify]")
    for name in names:
        found = sorted((runs / name).glob(f"{STEM}*.csv"))
        if not found:
            raise InputError(f"beside has '{name}': no certificate in {runs / name}")
        for path in found:
            tables[f"{name}, t = {path.stem.removeprefix(STEM)}"] = pd.read_csv(path)
    return tables


def write_certificates(
    folder: Path, results: Sequence[Certified], radii: Sequence[float], beside: Mapping
) -> None:
    """Writes certificate.md, certificate_t<t>.csv with a row per cloud, and the curves.

    beside: tables of other runs, whose curves are drawn too.
    """
    first, rows, tables = results[0], [], {}
    for found in results:
        row = {
            "t": found.timestep,
            "σ": f"{found.sigma:.3f}",
            "vote, tokens of the clean clouds": percent(found.vote_clean),
            "vote, tokens of the noised": percent(found.vote_noised),
            "largest r": f"{found.largest:.3f}",
            "abstains": percent(float((found.answers == ABSTAINS).mean())),
        }
        for r in map(float, radii):
            row[f"r ≥ {r:g}" if r else "certified"] = percent(found.accuracy(r))
        row["95% of clouds"] = interval(wilson_interval(found.accuracy(0.0), len(found.labels)))
        tried, changed = ~np.isnan(found.moved), np.isfinite(found.moved)
        if tried.any():
            row["C&W changed"] = f"{changed.sum()} of {tried.sum()}"
        if changed.any():
            nearest = found.moved[changed]
            times = nearest / found.radii[changed]  # a certified label has a radius above 0
            row["its L2, median"] = f"{np.median(nearest):.3f}"
            row["L2 / certified radius, least"] = f"{times.min():.2f}"
        rows.append(row)
        clouds = {"index": found.indices, "label": found.labels, "answer": found.answers}
        table = pd.DataFrame({**clouds, "radius": found.radii, "cw_l2": found.moved})
        write_text(folder / f"{STEM}{found.timestep}.csv", table.to_csv(index=False))
        own = f"{folder.name}, " if beside else ""
        tables[f"{own}t = {found.timestep}, σ = {found.sigma:.3f}"] = table
    words = (
        f"{first.label}, {first.model}, {first.note}; {first.dataset}, n = {len(first.labels)}; "
        f"{first.choosing} votes choose, {first.draws} count, each cloud at confidence 1 − "
        f"{first.alpha:g}. Shares of all clouds in percent; r is the L2 norm over the whole cloud "
        "by which points are moved; where all votes agree it is the largest r. C&W: of the clouds "
        "that were attacked and are certified as their label"
    )
    curves = {}
    for name, table in (tables | dict(beside)).items():
        radius, right = table["radius"].to_numpy(), (table["label"] == table["answer"]).to_numpy()
        at = np.linspace(0, radius.max() * 1.02, 200)
        curves[name] = at, (right & (radius >= at[:, None])).mean(1)
    picture, axes = folder / "pictures" / "certified.png", ("L2 radius", "certified accuracy (%)")
    pictures.curves(curves, picture, *axes, first.label)
    save(folder, "certificate", f"{markdown(rows)}\n\n{words}")
