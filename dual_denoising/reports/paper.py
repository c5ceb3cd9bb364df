"""The paper's numbers, and its tables with ours beside them, made from rows of results."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from dual_denoising.data import ASSETS
from dual_denoising.evaluation.result import OURS, Result
from dual_denoising.reports.cells import Cell, Cells, Row, cell, placed

HEADLINE: dict[str, Any] = {"num_noise": 8, "timestep": 500}
STEPS = {"PGD": 50, "IFGM": 50, "C&W": 500}  # of the attacks of Table 2


@cache
def paper_results() -> dict:
    """The paper's own numbers, in percent, and what it calls our datasets."""
    return json.loads((ASSETS / "paper_results.json").read_text())


def paper_grid(dataset: str, suffix: str = "") -> dict[tuple[int, int], float]:
    """The paper's Table 5 for a dataset, {(S, t): accuracy in percent}; {} where it has none.

    suffix: ' Adversarial' for PGD with 10 steps at ε = 0.01.
    """
    table = paper_results()["table5_N_by_t"]
    name = paper_results()["our_names"]["table5_N_by_t"].get(dataset, "")
    grid = table["grids"].get(name + suffix, {})
    return {(int(s), t): v for s, row in grid.items() for t, v in zip(table["t"], row, strict=True)}


def table2_column(system: str, paths: int, timestep: object) -> str:
    """The column of the paper's Table 2 that a result is like: a system, or ours at an (S, t)."""
    at = f"(N={paths},t={timestep})"
    if system == OURS:
        return f"Ours{at}"
    return system if (paths, timestep) == (1, 0) else system + at


def paper_number(result: Result) -> float | None:
    """The paper's robust accuracy (%) of what a result did: Table 2, or Table 5's PGD-10.

    Only where the attack and all its settings, ε, (S, t) and the dataset are the paper's.
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


def table1(rows: Sequence[Row]) -> Cells:
    """Zero-shot accuracy of all systems; ours at (8, 500), as fixed, and at the best t."""
    paper = paper_results()["table1_zero_shot"]
    columns = paper_results()["our_names"]["table1_zero_shot"]
    mine = [row for row in rows if row["measure"] in ("grid", "systems")]
    mine = [row | {"column": columns.get(row["dataset"], row["dataset"])} for row in mine]
    mine = [row | ({"label": "Ours"} if row["label"] == OURS else {}) for row in mine]
    noisy = {"Ours", *(row["label"] for row in mine if row["timestep"] == 500)}
    fixed = [r for r in mine if r["label"] not in noisy or HEADLINE.items() <= r.items()]
    table = placed(((r["label"], r["column"], r, None) for r in fixed), paper)
    best = {column: Cell(paper=number) for column, number in paper["Ours"].items()}
    at_8 = [row for row in mine if (row["label"], row["num_noise"]) == ("Ours", 8)]
    single = [row for row in at_8 if isinstance(row["timestep"], int)]
    for column, cells in placed((r["column"], r["timestep"], r, None) for r in single).items():
        t = max(sorted(cells), key=lambda t: cells[t].mean)
        number, mark = paper["Ours"].get(column), f" at {t}{cells[t].mark}"
        best[column] = replace(cells[t], paper=number, mark=mark)
    return table | {"Ours, best t": best}


def table2(rows: Sequence[Row]) -> Cells:
    """Robust accuracy per attack and ε."""
    places: list[tuple[str, str, Row, str | None]] = []
    for row in rows:
        if row["measure"] in ("table2", "systems_attacked") and row["last"]:
            column = table2_column(row["label"], row["num_noise"], row["timestep"])
            as_long = row["steps"] == STEPS.get(row["attack"])
            whole = row | {"faithful": row["faithful"] and as_long}
            places.append(("clean", column, row, "clean_mean"))
            places.append((attack_row(row["attack"], row["eps"]), column, whole, None))
    return placed(places, paper_results()["table2_attacks_modelnet40"])


def table5(rows: Sequence[Row]) -> Cells:
    """Accuracy over S × t, clean, and under PGD-10 at ε = 0.01."""
    table: Cells = {}
    halves = {"clean": ("grid", ""), "PGD-10": ("table5", " Adversarial")}
    for title, (measure, suffix) in halves.items():
        for words, dataset, mine in _sets(rows, measure):
            paper = paper_grid(dataset, suffix) if mine else {}
            here = {(r["num_noise"], r["timestep"]) for r in mine}
            for paths, t in sorted(here | paper.keys()):
                row = table.setdefault(f"{title}{words}, S = {paths}", {})
                row[f"t = {t}"] = cell(mine, paper.get((paths, t)), num_noise=paths, timestep=t)
    return table


def _sets(rows: Sequence[Row], measure: str) -> list[tuple[str, str, list[Row]]]:
    """Rows of ModelNet40, or of what stands for it, and of ScanObjectNN, with words for a title."""
    scans = "scanobjectnn_obj_only"
    mine = [r for r in rows if r["measure"] in (measure, f"{measure}_{scans}")]
    apart = [[r for r in mine if (r["dataset"] == scans) == scan] for scan in (False, True)]
    return [("", "modelnet40", apart[0]), (", ScanObjectNN", scans, apart[1])]


def fig8(rows: Sequence[Row]) -> Cells:
    """Robust accuracy over PGD's steps."""
    table: Cells = {}
    last = paper_results()["table2_attacks_modelnet40"]["PGD@0.01"]["Ours(N=8,t=500)"]
    for words, dataset, mine in _sets(rows, "fig8"):
        paper = {10: paper_grid(dataset, " Adversarial")[8, 500]}
        paper |= {50: last} if dataset == "modelnet40" else {}
        for attack in dict.fromkeys(row["attack"] for row in mine):
            known = paper if attack == "PGD-50" else {}
            table[f"{attack}{words}"] = {
                str(steps): cell(mine, known.get(steps), attack=attack, steps=steps)
                for steps in sorted({row["steps"] for row in mine})
            }
    return table


PAPERS = {made.__name__: made for made in (table1, table2, table5, fig8)}
