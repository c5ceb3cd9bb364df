"""The paper's tables from the results of a study's runs: every cell paper, here, difference."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import harmonic_mean

import numpy as np

from dual_denoising.errors import check
from dual_denoising.reports.cells import Cells, Of, Row, Table, cell, placed, report
from dual_denoising.reports.paper import PAPERS
from dual_denoising.reproduction.study import Job

Places = Iterator[tuple[str, str, Row, Of]]


def read_rows(jobs: Sequence[Job]) -> list[Row]:
    """All results of these runs, from their summaries."""
    rows = []
    for job in jobs:
        summary = json.loads(Path("runs", job.name, "summary.json").read_text())
        of = {"job": job.name, "measure": job.measure, "model": job.model, "seed": job.seed}
        of["feature_noise"] = summary.get("feature_noise")
        rows += [row | of for row in summary.get("evaluation") or summary.get("results") or ()]
    return rows


def of_models(rows: Sequence[Row], models: Mapping[str, str], columns: Mapping) -> Cells:
    """Accuracies of {model: its words} in {column: the fields of its results}."""
    return {
        words: {
            c: found for c, of in columns.items() if (found := cell(rows, model=m, **of)).values
        }
        for m, words in models.items()
    }


def accuracies(rows: Sequence[Row]) -> Places:
    """Clean accuracy of every model under every measure, on every test set and at every (S, t)."""
    mine = [row for row in rows if "top1_mean" in row]
    models = [row["model"] for row in mine]
    for row in sorted(mine, key=lambda row: models.index(row["model"])):
        title = ", ".join(filter(None, (row["model"], row["measure"], row["dataset"])))
        title += f" {row['split']}, n = {row['n']}"
        at = f"({row['num_noise']}, {row['timestep']})"
        yield title, at, row, None
        if row["top1_taught"] is not None and row["top1_untaught"] is not None:
            taught = row["n_taught"]
            yield title, f"{at}, taught names", row | {"n": taught}, "top1_taught"
            yield title, f"{at}, other names", row | {"n": row["n"] - taught}, "top1_untaught"
            yield title, f"{at}, harmonic mean", row, _both


def _both(row: Row) -> float:
    return float(harmonic_mean((100 * row["top1_taught"], 100 * row["top1_untaught"])))


def attacks(rows: Sequence[Row]) -> Places:
    """Robust accuracy of every model under every attack of every measure."""
    for row in rows:
        if row.get("last"):
            at = f"({row['num_noise']}, {row['timestep']})"
            yield f"{row['model']}, {row['measure']}", f"{row['attack']}, {at}", row, None


def feature_noise(rows: Sequence[Row]) -> Places:
    """What ε₂ decides in every model, on the first test set of its training."""
    for row in rows:
        if row["feature_noise"]:
            for key, words in report()["tables"]["feature_noise"]["fields"].items():
                yield row["model"], words, row | row["feature_noise"], key


def certificates(rows: Sequence[Row]) -> Places:
    """Certified accuracy of every model at L2 radii, of the measures that certify."""
    for row in rows:
        if "radii" in row:
            right, radii = np.equal(row["answers"], row["labels"]), np.array(row["radii"])
            shares = {"vote": row["vote_noised"], "certified": right.mean()}
            for least in report()["tables"]["certificates"]["radii"]:
                shares[f"r ≥ {least}"] = (right & (radii >= least)).mean()
            title = f"{row['model']}, {row['measure']}, t = {row['timestep']}"
            for words in shares:
                yield title, words, row | shares | {"n": len(right)}, words


PLACES = {made.__name__: made for made in (accuracies, attacks, feature_noise, certificates)}


def made_tables(rows: Sequence[Row], specs: Mapping[str, Mapping]) -> list[Table]:
    """All tables of a study. specs: what configs/scale says of each, {name: spec}.

    Raises InputError for a table that cannot be made.
    """
    tables, kinds = [], report()["tables"]
    for name, spec in specs.items():
        kind, models = spec.get("columns", name), spec["models"]
        check(f"tables.{name}", kind, kind in kinds, f"its columns are one of {', '.join(kinds)}")
        own = {**kinds[kind], **spec}
        if columns := kinds[kind].get("columns"):
            whole = bool(spec.get("title")) and isinstance(models, Mapping)
            check(f"tables.{name}", spec, whole, "it has a title, and models, {model: its words}")
            cells = of_models(rows, models, columns)
        else:
            measures = ("", *spec["measures"])
            mine = [r for r in rows if r["model"] in models and r["measure"] in measures]
            cells = PAPERS[kind](mine) if kind in PAPERS else placed(PLACES[kind](mine))
        tables.append(Table(name, own["title"], own["about"], cells))
    return tables
