"""Certified accuracies: a table, curves over the L2 radius, and a row per cloud."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dual_denoising.data.storage import write_text
from dual_denoising.errors import InputError
from dual_denoising.evaluation.certificate import ABSTAINS, Certified
from dual_denoising.evaluation.metrics import wilson_interval
from dual_denoising.reports import pictures
from dual_denoising.reports.tables import interval, markdown, percent, save

STEM = "certificate_t"  # of a table's file, before the timestep


def read_tables(runs: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The tables of earlier runs in a folder of runs; raises InputError where one has none."""
    tables = {}
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
    first, rows = results[0], []
    for found in results:
        row = {
            "t": found.timestep,
            "σ": f"{found.sigma:.3f}",
            "vote, tokens of the clean clouds": percent(found.vote_clean),
            "vote, tokens of the noised": percent(found.vote_noised),
            "largest r": f"{found.largest:.3f}",
            "abstains": percent(float((found.answers == ABSTAINS).mean())),
        }
        row |= {
            f"r ≥ {r:g}" if r else "certified": percent(found.accuracy(r))
            for r in map(float, radii)
        }
        row["95% of clouds"] = interval(wilson_interval(found.accuracy(0.0), len(found.labels)))
        rows.append(row | _attack(found))
        clouds = {"index": found.indices, "label": found.labels, "answer": found.answers}
        clouds |= {"radius": found.radii, "cw_l2": found.moved}
        write_text(folder / f"{STEM}{found.timestep}.csv", pd.DataFrame(clouds).to_csv(index=False))
    words = (
        f"{first.label}, {first.model}, {first.note}; {first.dataset}, n = {len(first.labels)}; "
        f"{first.choosing} votes choose, {first.draws} count, each cloud at confidence 1 − "
        f"{first.alpha:g}. Shares of all clouds in percent; r is the L2 norm over the whole cloud "
        "by which points are moved; where all votes agree it is the largest r. C&W: of the clouds "
        "that were attacked and are certified as their label"
    )
    own = f"{folder.name}, " if beside else ""
    curves = {
        f"{own}t = {f.timestep}, σ = {f.sigma:.3f}": _curve(f.right, f.radii) for f in results
    }
    for name, table in beside.items():
        right = (table["label"] == table["answer"]).to_numpy()
        curves[name] = _curve(right, table["radius"].to_numpy())
    picture, axes = folder / "pictures" / "certified.png", ("L2 radius", "certified accuracy (%)")
    pictures.curves(curves, picture, *axes, first.label)
    save(folder, "certificate", f"{markdown(rows)}\n\n{words}")


def _attack(found: Certified) -> dict:
    tried = ~np.isnan(found.moved)
    if not tried.any():
        return {}
    changed = tried & np.isfinite(found.moved)
    row = {"C&W changed": f"{changed.sum()} of {tried.sum()}"}
    if changed.any():
        nearest = found.moved[changed]
        times = nearest / found.radii[changed]  # a certified label has a radius above 0
        row |= {
            "its L2, median": f"{np.median(nearest):.3f}",
            "L2 / certified radius, least": f"{times.min():.2f}",
        }
    return row


def _curve(right: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.linspace(0, radii.max() * 1.02, 200)
    return at, (right & (radii >= at[:, None])).mean(1)
