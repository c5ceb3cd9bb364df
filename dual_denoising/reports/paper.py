"""The paper's numbers, and its tables with ours beside them: Markdown, CSV, heat-maps of S × t."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dual_denoising.data import ASSETS
from dual_denoising.data.storage import write_text
from dual_denoising.evaluation.result import OURS, Result
from dual_denoising.reports import pictures
from dual_denoising.reports.cells import Cell, Row, Table, cell
from dual_denoising.reports.tables import by_set, csv, save

COLUMNS = {
    "modelnet10": "ModelNet10",
    "modelnet40": "ModelNet40",
    "scanobjectnn_obj_only": "S-OBJ_ONLY",
    "scanobjectnn_obj_bg": "S-OBJ_BG",
    "scanobjectnn_pb_t50_rs": "S-PB_T50_RS",
}  # our data sets -> the paper's names in Table 1
GRIDS = {"modelnet40": "ModelNet40", "scanobjectnn_obj_only": "ScanObjNN"}  # and in Table 5
HEADLINE: dict[str, Any] = {"num_noise": 8, "timestep": 500}
STEPS = {"PGD": 50, "IFGM": 50, "C&W": 500}  # of the attacks of Table 2


def paper_results() -> dict:
    """The paper's own numbers, in percent."""
    return json.loads((ASSETS / "paper_results.json").read_text())


def paper_grid(dataset: str, suffix: str = "") -> dict[tuple[int, int], float]:
    """The paper's Table 5 for a data set, {(S, t): accuracy in percent}; {} where it has none.

    suffix: ' Adversarial' for PGD with 10 steps at ε = 0.01.
    """
    table = paper_results()["table5_N_by_t"]
    grid = table["grids"].get(GRIDS.get(dataset, "") + suffix, {})
    return {(int(s), t): v for s, row in grid.items() for t, v in zip(table["t"], row, strict=True)}


def table2_column(system: str, paths: int, timestep: object) -> str:
    """The column of the paper's Table 2 that a result is like: a system, or ours at an (S, t)."""
    at = f"(N={paths},t={timestep})"
    if system == OURS:
        return f"Ours{at}"
    return system if (paths, timestep) == (1, 0) else system + at


def paper_number(result: Result) -> float | None:
    """The paper's robust accuracy (%) of what a result did: Table 2, or Table 5's PGD-10.

    Only where the attack and all its settings, ε, (S, t) and the data set are the paper's.
    """
    if not result.faithful or not result.comparable:
        return None
    if (result.system, result.attack) == (OURS, "PGD-10"):
        at_paper = (result.steps, result.eps) == (10, 0.01)
        grid = paper_grid(result.dataset, " Adversarial")
        return grid.get(result.setting) if at_paper else None
    if result.dataset != "modelnet40" or STEPS.get(result.attack) != result.steps:
        return None
    table = paper_results()["table2_attacks_modelnet40"]
    return table.get(attack_row(result.attack, result.eps), {}).get(
        table2_column(result.system, *result.setting)
    )


def attack_row(attack: str, eps: float | None) -> str:
    """The row of the paper's Table 2 of an attack: 'PGD@0.025'."""
    return attack if eps is None else f"{attack}@{eps:g}"


def table1(rows: Sequence[Row]) -> Table:
    """Zero-shot accuracy of all systems; ours at (8, 500), as fixed, and at the best t."""
    paper = paper_results()["table1_zero_shot"]
    table = Table(
        "table1",
        "Table 1: zero-shot accuracy",
        "Ours at (8, 500), fixed beforehand. The paper takes the best t of each test set: the last "
        "row. Systems without files here have the paper's number alone.",
    )
    mine = [row for row in rows if row["measure"] in ("grid", "systems")]
    ours = [row for row in mine if row["label"] == OURS]
    columns = COLUMNS | {r["dataset"]: r["dataset"] for r in mine if r["dataset"] not in COLUMNS}
    others = dict.fromkeys(row["label"] for row in mine if row["label"] != OURS)
    for name in dict.fromkeys([*paper, *others]):
        own = ours if name == "Ours" else [row for row in mine if row["label"] == name]
        noisy = name == "Ours" or any(row["timestep"] == 500 for row in own)
        table.rows[name] = {
            column: cell(
                own,
                paper.get(name, {}).get(column),
                dataset=dataset,
                **(HEADLINE if noisy else {}),
            )
            for dataset, column in columns.items()
        }
    best = table.rows["Ours, best t"] = {}
    for dataset, column in columns.items():
        best[column] = Cell(paper=paper["Ours"].get(column))
        here = [r for r in ours if (r["dataset"], r["num_noise"]) == (dataset, 8)]
        tried = {
            t: cell(here, best[column].paper, timestep=t)
            for t in sorted({r["timestep"] for r in here if isinstance(r["timestep"], int)})
        }
        if tried:
            t = max(tried, key=lambda t: float(np.mean(tried[t].values)))
            best[column] = replace(tried[t], mark=f" at {t}{tried[t].mark}")
    return table


def table2(rows: Sequence[Row]) -> Table:
    """Robust accuracy per attack and ε."""
    paper = paper_results()["table2_attacks_modelnet40"]
    table = Table(
        "table2",
        "Table 2: under attack",
        "The paper's attacks, whose target is the second-best class; accuracy on noise that no "
        "attack has seen.",
    )
    mine = [row for row in rows if row["measure"] in ("table2", "systems_attacked") and row["last"]]
    columns: dict[str, list[Row]] = {name: [] for name in paper["clean"]}
    attacks = dict.fromkeys(paper)
    for row in mine:
        column = table2_column(row["label"], row["num_noise"], row["timestep"])
        columns.setdefault(column, []).append(row)
        attacks[attack_row(row["attack"], row["eps"])] = None
    for name in attacks:
        attack, _, eps = name.partition("@")
        table.rows[name] = {}
        for column, here in columns.items():
            number = paper.get(name, {}).get(column)
            if name == "clean":
                found = cell(here, number, of="clean_mean")
            else:
                found = cell(here, number, attack=attack, eps=float(eps) if eps else None)
                as_long = all(
                    r["steps"] == STEPS.get(attack) for r in here if r["attack"] == attack
                )
                found = replace(found, compared=found.compared and as_long)
            table.rows[name][column] = found
    return table


def write_table(
    made: Callable[[Sequence[Row]], Table],
    folder: Path,
    results: Sequence[Result],
    absent: Mapping[str, str],
) -> None:
    """Writes <table>.md and .csv: a table of the paper with these results beside its numbers.

    absent: {data set or system: why it is left out}. Several models of one name are numbered.
    """
    rows, notes = [], {}
    models: dict[str, list[str]] = {}
    for r in results:
        known = models.setdefault(r.label, [])
        if r.model not in known:
            known.append(r.model)
        number = known.index(r.model) + 1
        label = r.label + (f" #{number}" if number > 1 else "")
        mark = ", seen" if r.seen else "" if r.comparable else " (!)"
        compared = not mark and (not r.attack or paper_number(r) is not None)
        of = {"measure": "systems_attacked" if r.attack else "systems", "seed": 0, "job": ""}
        rows.append({**r.record(), **of, "label": label, "mark": mark, "faithful": compared})
        notes[label, r.dataset, r.split] = (
            f"{label}, {r.model}, {r.dataset} {r.split}: n = {r.n}, {len(r.seeds)} noise seeds, "
            f"{r.note}" + (f", {r.class_weights}" if r.class_weights else "")
        )
    table = made([row for row in rows if row.get("track", "paper") == "paper"])
    parts = [*notes.values(), *(f"{name}: absent: {reason}" for name, reason in absent.items())]
    parts.append(
        f"{table.about} In percent: paper / here / difference, ± over noise seeds. No difference "
        "where names were trained on (seen), or (!) where it is not the model of the paper's row "
        "or column: the note says why. Paper: arXiv 2407.00905"
    )
    tidy = []
    for (name, row), column in product(table.rows.items(), table.columns):
        c = row.get(column, Cell())
        line = {"row": name, "column": column, "paper": c.paper, "sd": c.noise_sd, "n": c.n}
        line |= {"here": c.values[0] if c.values else None, "difference": c.gap, "mark": c.mark}
        tidy.append(line)
    write_text(folder / f"{table.name}.csv", csv(tidy))
    save(folder, table.name, "\n\n".join([table.markdown, *parts]))


def _tidy(result: Result, target: float | None) -> dict:
    """A line of a CSV: percentages, no difference where the names were trained on."""
    top1 = 100 * result.top1_mean
    known = None if result.seen or not result.comparable else target
    return {
        "dataset": result.dataset,
        "split": result.split,
        "n": result.n,
        "num_noise": result.num_noise,
        "timestep": result.timestep,
        "top1": top1,
        "sd": 100 * result.top1_sd,
        "low": 100 * result.top1_interval[0],
        "high": 100 * result.top1_interval[1],
        "paper": target,
        "difference": None if known is None else top1 - known,
        "seen": result.seen,
        "note": result.note,
    }


def write_grids(
    folder: Path,
    results: Sequence[Result],
    absent: Mapping[str, str],
    stem: str = "grid",
    least: int = 2,
) -> None:
    """Writes <stem>.md, <stem>.csv and heat-maps: accuracy over S × t, the paper's beside.

    least: cells that a data set needs to be in them.
    """
    counts = Counter((r.dataset, r.split) for r in results if isinstance(r.timestep, int))
    results = [r for r in results if counts[r.dataset, r.split] >= least]
    if not results:
        return
    parts, tidy = [], []
    for (dataset, split), chosen in by_set(results).items():
        mine = [r for r in results if (r.dataset, r.split) == (dataset, split)]
        cells = {r.setting: r for r in mine if isinstance(r.timestep, int)}
        here = {key: 100 * r.top1_mean for key, r in cells.items()}
        published = paper_grid(dataset)
        title = f"{dataset} {split}, n = {chosen.n}, {len(chosen.seeds)} noise seeds"
        picture = folder / "pictures" / f"{stem}_{dataset}_{split}.png"
        parts += [f"{title}, {chosen.note}, {chosen.class_weights}"]
        parts += grid_tables(here, published, not chosen.seen, picture, title)
        sds = [100 * r.top1_sd for r in cells.values()]
        parts.append(f"sd over noise seeds: median {np.median(sds):.2f}, largest {max(sds):.2f}")
        tidy += [_tidy(r, published.get(key)) for key, r in cells.items()]
    parts += [f"{name}: absent: {reason}" for name, reason in absent.items()]
    tidy += [{"dataset": name, "n": 0, "note": reason} for name, reason in absent.items()]
    parts.append("accuracy in percent; paper: arXiv 2407.00905, Table 5")
    write_text(folder / f"{stem}.csv", csv(tidy))
    save(folder, stem, "\n\n".join(parts))


def grid_tables(
    here: Mapping, published: Mapping, compared: bool, picture: Path, title: str
) -> list[str]:
    """Markdown tables S × t of {(S, t): percentage}, here and the paper's, and their heat-map."""
    tables = {"here": pd.Series(dict(here)).unstack()}
    if published.keys() & here.keys():
        tables["paper"] = pd.Series(dict(published)).unstack().reindex_like(tables["here"])
        if compared:
            tables["difference"] = tables["here"] - tables["paper"]
    pictures.heat_maps(tables, picture, title)
    return [
        table.map("{:.1f}".format)
        .rename("S = {}".format)
        .rename_axis(f"{name}: t =")
        .to_markdown(tablefmt="github", disable_numparse=True)
        for name, table in tables.items()
    ]


TABLES = {
    None: write_grids,
    "table1": partial(write_table, table1),
    "table5": partial(write_grids, stem="table5", least=1),
}
