"""The paper's tables beside ours: Markdown, CSV and a heat-map of S × t."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from dual_denoising.data import ASSETS
from dual_denoising.reports import pictures as plots
from dual_denoising.reports.tables import by_set, write_text

COLUMNS = {
    "modelnet10": "ModelNet10",
    "modelnet40": "ModelNet40",
    "scanobjectnn_obj_only": "S-OBJ_ONLY",
    "scanobjectnn_obj_bg": "S-OBJ_BG",
    "scanobjectnn_pb_t50_rs": "S-PB_T50_RS",
}  # our data sets -> the paper's names in Table 1
OURS = "Dual Denoising"
TABLE2 = (
    "label", "weights", "num_points", "comparable", "attack", "eps", "steps", "num_noise",
    "timestep", "dataset", "split", "n", "clean_mean", "robust_mean", "robust_sd",
)  # fmt: skip
HEADLINE, BEST, PUBLISHED = "(8, 500)", "best t per test set", "without noise"
GRIDS = {"modelnet40": "ModelNet40", "scanobjectnn_obj_only": "ScanObjNN"}  # and in Table 5


def paper_results() -> dict:
    """The paper's own numbers, in percent."""
    return json.loads((ASSETS / "paper_results.json").read_text())


def write_table1(folder: Path, results: Sequence[dict], absent: Mapping[str, str]) -> None:
    """Writes table1.md and table1.csv: the paper's Table 1, and below it what was run.

    Ours at the headline (8, 500), and at the best t of each test set at S = 8, which is how the
    paper picks it. A data set that is absent, and a setting that was not run, are said to be.
    """
    paper = paper_results()["table1_zero_shot"]
    methods = {
        name: dict(zip(paper["columns"], cells, strict=True))
        for name, cells in paper.items()
        if name != "columns"
    }
    rows = [{"accuracy (%)": f"paper: {name}"} | cells for name, cells in methods.items()]
    tidy, notes = [], ""
    for one in dict.fromkeys(map(kind, results)) or [kind({})]:
        system, label, _ = one
        mine = [r for r in results if kind(r) == one]
        paper_name = "Ours" if system == OURS else system
        for choice in _choices(system, mine):
            title = f"here: {choice}" if system == OURS else f"here: {label}, {choice}"
            cells, lines = _row(mine, choice, methods.get(paper_name, {}))
            gaps = {line["column"]: _gap(line["result"], line["paper"]) for line in lines}
            rows += [{"accuracy (%)": title} | cells]
            rows += [{"accuracy (%)": f"  minus paper's {paper_name}"} | gaps]
            tidy += [
                {"system": system, "column": line["column"], "choice": choice}
                | _tidy(line["dataset"], line["result"], line["paper"])
                for line in lines
            ]
        for (dataset, split), r in by_set(mine).items():
            notes += f"\n\n{label}, {dataset} {split}: n = {r['n']}, {len(r['seeds'])} noise seeds"
            notes += f", {r['note']}, {r['class_weights']}"
    text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) + notes
    text += "".join(f"\n\n{name}: absent: {reason}" for name, reason in absent.items())
    text += (
        "\n\npaper: arXiv 2407.00905, Table 1; its 'Ours' takes the best t of each test set. seen: "
        "the names were trained on, which is not zero-shot and not comparable; (!): not the model "
        "of the paper's row, the note says why"
    )
    _write(folder, "table1", text, tidy)


def kind(result: Mapping) -> tuple[str, str, str]:
    """What results of one row have in common: the system, its label and its weights."""
    system = result.get("system", OURS)
    return system, result.get("label", system), result.get("weights", "")


def _choices(system: str, results: Sequence[dict]) -> Sequence[str]:
    """Which settings of a system make a row: a model without noise has one."""
    noisy = system == OURS or any(r.get("noise_scale") for r in results)
    return (HEADLINE, BEST) if noisy else (PUBLISHED,)


def _row(results: Sequence[dict], choice: str, paper: Mapping) -> tuple[dict, list[dict]]:
    """Cells of a row, and what each of them is of."""
    cells, lines = {}, []
    for dataset, column in COLUMNS.items():
        result = _choose(results, dataset, choice)
        ran = any(r["dataset"] == dataset for r in results)
        cells[column] = _cell(result, choice) if result else "not run" if ran else "absent"
        target = paper.get(column)
        lines += [{"dataset": dataset, "column": column, "result": result, "paper": target}]
    return cells, lines


def _choose(results: Sequence[dict], dataset: str, choice: str) -> dict | None:
    """The result of a data set at S = 8 and t = 500, or at the t of the highest accuracy."""
    if choice == PUBLISHED:
        return next((r for r in results if r["dataset"] == dataset), None)
    mine = [r for r in results if (r["dataset"], r["num_noise"]) == (dataset, 8)]
    mine = [r for r in mine if isinstance(r["timestep"], int)]
    if choice == HEADLINE:
        return next((r for r in mine if r["timestep"] == 500), None)
    return max(mine, key=lambda r: r["top1_mean"], default=None)


def _cell(result: dict, choice: str) -> str:
    where = f" at {result['timestep']}" if choice == BEST else ""
    mark = ", seen" if result["seen"] else "" if comparable(result) else " (!)"
    return f"{100 * result['top1_mean']:.1f} ± {100 * result['top1_sd']:.1f}{where}{mark}"


def comparable(result: Mapping) -> bool:
    """Whether a model is the paper's in all that is known of it; a note says in what it is not."""
    return result.get("comparable", True)


def _gap(result: dict | None, target: float | None) -> str:
    if result is None or target is None:
        return ""
    if result["seen"] or not comparable(result):
        return "(seen)" if result["seen"] else "(not comparable)"
    return f"{100 * result['top1_mean'] - target:+.1f}"


def _tidy(dataset: str, result: dict | None, target: float | None) -> dict:
    """A line of a CSV: percentages, no difference where the names were trained on."""
    if result is None:
        return {"dataset": dataset, "n": 0, "paper": target}
    top1 = 100 * result["top1_mean"]
    compared = target is not None and not result["seen"] and comparable(result)
    return {
        "dataset": dataset,
        "split": result["split"],
        "n": result["n"],
        "num_noise": result["num_noise"],
        "timestep": result["timestep"],
        "top1": top1,
        "sd": 100 * result["top1_sd"],
        "low": 100 * result["top1_interval"][0],
        "high": 100 * result["top1_interval"][1],
        "paper": target,
        "difference": top1 - target if compared else None,
        "seen": result["seen"],
        "note": result["note"],
    }


def write_grids(folder: Path, results: Sequence[dict], absent: Mapping[str, str]) -> None:
    """Writes grid.md, grid.csv and a heat-map S × t for every data set with more than one cell."""
    counts = Counter((r["dataset"], r["split"]) for r in results if isinstance(r["timestep"], int))
    several = [r for r in results if counts[r["dataset"], r["split"]] > 1]
    if several:
        _write_grids(folder, several, absent, "grid")


def write_table5(folder: Path, results: Sequence[dict], absent: Mapping[str, str]) -> None:
    """Writes table5.md, table5.csv and heat-maps: clean accuracy over S × t, the paper's beside."""
    _write_grids(folder, results, absent, "table5")


def _write_grids(folder: Path, results, absent: Mapping[str, str], stem: str) -> None:
    parts, tidy = [], []
    for (dataset, split), chosen in by_set(results).items():
        mine = [r for r in results if (r["dataset"], r["split"]) == (dataset, split)]
        cells = {(r["num_noise"], r["timestep"]): r for r in mine if isinstance(r["timestep"], int)}
        paper = paper_grid(dataset)
        tables = {"here": {key: 100 * r["top1_mean"] for key, r in cells.items()}}
        if paper:
            tables["paper"] = paper
        if paper and not chosen["seen"]:
            tables["difference"] = {
                k: v - paper[k] for k, v in tables["here"].items() if k in paper
            }
        title = f"{dataset} {split}, n = {chosen['n']}, {len(chosen['seeds'])} noise seeds"
        parts += [f"{title}, {chosen['note']}, {chosen['class_weights']}"]
        parts += draw_grids(folder / "pictures" / f"{stem}_{dataset}_{split}.png", tables, title)
        sds = [100 * r["top1_sd"] for r in cells.values()]
        parts.append(f"sd over noise seeds: median {np.median(sds):.2f}, largest {max(sds):.2f}")
        tidy += [_tidy(dataset, r, paper.get(key)) for key, r in cells.items()]
    parts += [f"| {name} | absent: {reason} |" for name, reason in absent.items()]
    tidy += [{"dataset": name, "n": 0, "note": reason} for name, reason in absent.items()]
    parts.append("accuracy in percent; paper: arXiv 2407.00905, Table 5")
    _write(folder, stem, "\n\n".join(parts), tidy)


def write_table2(folder: Path, results: Sequence[dict], absent: Mapping[str, str]) -> None:
    """Writes table2.md and table2.csv: robust accuracy per attack and ε of every system.

    The paper's track alone, and the paper's Table 2 below it; absent: systems that did not run.
    """
    mine = [r for r in results if r["track"] == "paper" and r["last"]]
    columns = _columns(mine)
    here: dict[str, dict[str, str]] = {"clean": {}}
    for r in mine:
        row = r["attack"] if r["eps"] is None else f"{r['attack']}@{r['eps']:g}"
        column, mark = columns[_place(r)], "" if comparable(r) else " (!)"
        here["clean"][column] = f"{100 * r['clean_mean']:.1f}{mark}"
        here.setdefault(row, {})[column] = (
            f"{100 * r['robust_mean']:.1f} ± {100 * r['robust_sd']:.1f}{mark}"
        )
    paper = paper_results()["table2_attacks_modelnet40"]
    theirs = {
        row: dict(zip(paper["columns"], cells, strict=True)) for row, cells in paper["rows"].items()
    }
    parts = [
        tabulate(
            [{title: row} | cells for row, cells in rows.items()], headers="keys",
            tablefmt="github", disable_numparse=True,
        )
        for title, rows in (("here", here), ("paper, ModelNet40", theirs))
        if rows != {"clean": {}}
    ]  # fmt: skip
    for r in {_place(r): r for r in mine}.values():
        where = f"{columns[_place(r)]}, {r['dataset']} {r['split']}"
        weights = "" if r["weights"] in r["note"] else f"{r['weights']}, "
        parts.append(f"{where}: n = {r['n']}, {weights}{r['note']}")
    parts += [f"{name}: absent: {reason}" for name, reason in absent.items()]
    parts.append(
        "robust accuracy in percent of all clouds, on noise that no attack has seen; (!): not the "
        "model of the paper's column, the note says why; paper: arXiv 2407.00905, Table 2"
    )
    tidy = [{key: r[key] for key in TABLE2} | {"column": columns[_place(r)]} for r in mine]
    _write(folder, "table2", "\n\n".join(parts), tidy)


def _place(result: Mapping) -> tuple:
    return *kind(result), result["num_noise"], result["timestep"]


def _columns(results: Sequence[dict]) -> dict[tuple, str]:
    """{place: column}; several weights of one system are numbered."""
    columns: dict[tuple, str] = {}
    for r in results:
        title = table2_column(r | {"system": kind(r)[1]} if kind(r)[0] != OURS else r)
        taken = [name for place, name in columns.items() if place != _place(r)]
        number = sum(name == title or name.startswith(f"{title} #") for name in taken)
        columns.setdefault(_place(r), f"{title} #{number + 1}" if number else title)
    return columns


def table2_column(result: Mapping) -> str:
    """The column of the paper's Table 2 that a result is like: a system, or ours at an (S, t)."""
    s, t = result["num_noise"], result["timestep"]
    if result.get("system", OURS) == OURS:
        return f"Ours(N={s},t={t})"
    return result["system"] if (s, t) == (1, 0) else f"{result['system']}(N={s},t={t})"


def draw_grids(picture: Path, tables: Mapping[str, Mapping], title: str) -> list[str]:
    """Markdown tables S × t of {name: {(S, t): percentage}}, and their heat-map as a picture."""
    paths, steps = (sorted({key[i] for key in tables["here"]}) for i in (0, 1))
    grids = {
        name: np.array([[values.get((s, t), np.nan) for t in steps] for s in paths])
        for name, values in tables.items()
    }
    plots.heat_maps(grids, paths, steps, picture, title)
    parts = []
    for name, grid in grids.items():
        rows = [[f"S = {s}", *row] for s, row in zip(paths, grid, strict=True)]
        head = [f"{name}: t =", *steps]
        parts.append(tabulate(rows, head, tablefmt="github", floatfmt=".1f"))
    return parts


def paper_grid(dataset: str, suffix: str = "") -> dict[tuple[int, int], float]:
    """The paper's Table 5 for a data set, {(S, t): accuracy in percent}; {} where it has none.

    suffix: ' Adversarial' for PGD with 10 steps at ε = 0.01.
    """
    table = paper_results()["table5_N_by_t"]
    grid = table["grids"].get(GRIDS.get(dataset, "") + suffix, {})
    return {(int(s), t): v for s, row in grid.items() for t, v in zip(table["t"], row, strict=True)}


def _write(folder: Path, stem: str, text: str, tidy: Sequence[dict]) -> None:
    write_text(folder / f"{stem}.md", text + "\n")
    write_text(folder / f"{stem}.csv", pd.DataFrame(tidy).convert_dtypes().to_csv(index=False))
    print(f"\n{text}\n")


TABLES = {None: write_grids, "table1": write_table1, "table5": write_table5}
