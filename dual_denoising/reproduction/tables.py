"""The paper's tables from the results of a study's runs: every cell paper, here, difference."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np

from dual_denoising.errors import check
from dual_denoising.reports.cells import Cell, Row, Table, cell
from dual_denoising.reports.paper import HEADLINE, fig8, table1, table2, table5
from dual_denoising.reproduction.study import Job

PLAIN: dict[str, Any] = {"num_noise": 8, "timestep": 0}
RADII = 0.02, 0.04, 0.08, 0.12, 0.16  # of certificates


def read_rows(jobs: Sequence[Job]) -> list[Row]:
    """All results of these runs, from their summaries."""
    rows = []
    for job in jobs:
        summary = json.loads(Path("runs", job.name, "summary.json").read_text())
        of = {"job": job.name, "measure": job.measure, "model": job.model, "seed": job.seed}
        of["feature_noise"] = summary.get("feature_noise")
        found = summary.get("evaluation") or summary.get("results") or ()
        rows += [result | of for result in found]
    return rows


def clean(rows: Sequence[Row], model: str, **at) -> Cell:
    """Of the evaluation that ends a training, or of the measure ``clean``."""
    mine = [row for row in rows if row["measure"] in ("", "clean")]
    return cell(mine, model=model, **at)


MISSING = "The text of the paper that is at hand has no such numbers."


OF_MODELS = {  # what tables of models say of their columns
    "clean": "Clean accuracy.",
    "attacked": "At (8, 500): clean accuracy on the whole test set, the others on the attacked "
    "sample, ε = 0.025. PGD as in the paper; APGD knows that the model is random. A model of s = 0 "
    "has no noise on the points at test time either, but where the column says so.",
}


def of_models(rows: Sequence[Row], name: str, spec: Mapping) -> Table:
    """Accuracies of {model: its words}: clean, at the settings of training, or clean and robust."""
    table = Table(name, spec["title"], f"{OF_MODELS[spec['columns']]} {MISSING}")
    for model, words in spec["models"].items():
        here = clean(rows, model, **HEADLINE)
        if spec["columns"] == "clean":
            table.rows[words] = {"(8, 0)": clean(rows, model, **PLAIN), "(8, 500)": here}
        else:
            cells = {attack: under(rows, model, attack) for attack in ("PGD", "PGD, noise", "APGD")}
            found = {attack: found for attack, found in cells.items() if found.values}
            table.rows[words] = {"clean": here} | found
    return table


def under(rows: Sequence[Row], model: str, attack: str) -> Cell:
    """Robust accuracy of a model under the PGD or the APGD that all models of a study meet.

    'PGD, noise': with s = 0.08 at test time around a model that was trained without.
    """
    measure = {"PGD": "attacked", "APGD": "adaptive", "PGD, noise": "control"}[attack]
    return cell(rows, model=model, measure=measure, last=True, **HEADLINE)


def accuracies(rows: Sequence[Row]) -> Table:
    """Clean accuracy of every model under every measure, on every test set and at every (S, t)."""
    table = Table(
        "accuracies",
        "Accuracies",
        "Clean top-1. Taught names and others are scored among all names of the test set; the "
        "harmonic mean is low where either is.",
    )
    keys = ("model", "measure", "dataset", "split", "num_noise", "timestep")
    mine = [row for row in rows if "top1_mean" in row]
    models = list(dict.fromkeys(row["model"] for row in mine))
    for row in sorted(mine, key=lambda row: models.index(row["model"])):
        where = {key: row[key] for key in keys}
        title = ", ".join(filter(None, (row["model"], row["measure"], row["dataset"])))
        title += f" {row['split']}, n = {row['n']}"
        at = f"({row['num_noise']}, {row['timestep']})"
        cells = table.rows.setdefault(title, {})
        cells[at] = cell(mine, **where)
        if row["top1_untaught"] is None or row["top1_taught"] is None:
            continue
        found = (cell(mine, of=of, **where) for of in ("top1_taught", "top1_untaught"))
        sizes = row["n_taught"], row["n"] - row["n_taught"]
        taught, others = (replace(c, n=n) for c, n in zip(found, sizes, strict=True))
        cells |= {f"{at}, taught names": taught, f"{at}, other names": others}
        pairs = zip(taught.values, others.values, strict=True)
        means = tuple(float(harmonic_mean(pair)) for pair in pairs)  # of a 0 it is an integer
        cells[f"{at}, harmonic mean"] = replace(taught, n=row["n"], values=means)
    return table


def attacks(rows: Sequence[Row]) -> Table:
    """Robust accuracy of every model under every attack of every measure."""
    table = Table("attacks", "Under attack", "Robust accuracy on noise that no attack has seen.")
    mine = [row for row in rows if row.get("last")]
    for row in mine:
        keys = ("attack", "eps", "num_noise", "timestep", "model", "measure")
        title = f"{row['attack']}, ({row['num_noise']}, {row['timestep']})"
        found = cell(mine, **{key: row[key] for key in keys})
        table.rows.setdefault(f"{row['model']}, {row['measure']}", {})[title] = found
    return table


def feature_noise(rows: Sequence[Row]) -> Table:
    """What ε₂ decides in every model, on the first test set of its training."""
    table = Table(
        "feature_noise",
        "What ε₂ decides",
        "At t = 0, where no other noise is: the share of the features' variance that lies between "
        "draws of ε₂, how many clouds two draws agree on, and top-1 with one draw, with the mean "
        "of 16, and with ε₂ = 0.",
    )
    columns = {"output_share": "share", "agreement": "two draws agree"}
    columns |= {"top1_s1": "S = 1", "top1_s16": "S = 16", "top1_without": "ε₂ = 0"}
    mine = [{**row, **row["feature_noise"]} for row in rows if row["feature_noise"]]
    for model in dict.fromkeys(row["model"] for row in mine):
        cells = {words: cell(mine, of=key, model=model) for key, words in columns.items()}
        table.rows[model] = cells
    return table


def certificates(rows: Sequence[Row]) -> Table:
    """Certified accuracy of every model at L2 radii, of the measures that certify."""
    table = Table(
        "certificates",
        "Certified accuracy",
        "Shares of all clouds; the vote takes tokens of the noised clouds. r is the L2 norm over "
        "the whole cloud; above the largest radius that the votes can certify a share is 0.",
    )
    mine = []
    for row in rows:
        if "radii" in row:
            right, radii = np.equal(row["answers"], row["labels"]), np.array(row["radii"])
            shares = {"vote": row["vote_noised"], "certified": right.mean()}
            shares |= {f"r ≥ {least}": (right & (radii >= least)).mean() for least in RADII}
            mine.append({**row, **shares, "n": len(right)})
    for row in mine:
        where = {key: row[key] for key in ("model", "measure", "timestep")}
        columns = "vote", "certified", *(f"r ≥ {least}" for least in RADII)
        title = f"{row['model']}, {row['measure']}, t = {row['timestep']}"
        table.rows[title] = {words: cell(mine, of=words, **where) for words in columns}
    return table


TABLES: dict[str, Callable[[Sequence[Row]], Table]] = {
    made.__name__: made
    for made in (table1, table2, table5, fig8, accuracies, attacks, feature_noise, certificates)
}


def made_tables(rows: Sequence[Row], specs: Mapping[str, Mapping]) -> list[Table]:
    """All tables of a study. specs: what configs/scale says of each, {name: spec}.

    Raises InputError for a table that cannot be made.
    """
    for name, spec in specs.items():
        kind = spec.get("columns", name)
        whole = bool(spec.get("title")) and isinstance(spec["models"], Mapping)
        fix = f"it has title, columns ({' or '.join(OF_MODELS)}) and models, {{model: its words}}"
        fix = f"a table of models: {fix}; others are {', '.join(TABLES)}"
        check(f"tables.{name}", kind, whole if kind in OF_MODELS else kind in TABLES, fix)
    tables = []
    for name, spec in specs.items():
        if spec.get("columns") in OF_MODELS:
            made = of_models(rows, name, spec)
        else:
            models, measures = spec["models"], ("", *spec["measures"])
            mine = [r for r in rows if r["model"] in models and r["measure"] in measures]
            made = TABLES[spec.get("columns", name)](mine)
            made = replace(made, name=name, title=spec.get("title", made.title))
        tables.append(made)
    return tables
