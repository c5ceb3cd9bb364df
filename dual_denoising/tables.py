"""The paper's tables beside ours: Markdown, CSV and a heat-map of S × t."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from dual_denoising import plots
from dual_denoising.data import ASSETS
from dual_denoising.report import by_set, write_text

COLUMNS = {
    "modelnet10": "ModelNet10",
    "modelnet40": "ModelNet40",
    "scanobjectnn_obj_only": "S-OBJ_ONLY",
    "scanobjectnn_obj_bg": "S-OBJ_BG",
    "scanobjectnn_pb_t50_rs": "S-PB_T50_RS",
}  # our data sets -> the paper's names in Table 1
GRIDS = {"modelnet40": "ModelNet40", "scanobjectnn_obj_only": "ScanObjNN"}  # and in Table 5


def paper_results() -> dict:
    """The paper's own numbers, in percent."""
    return json.loads((ASSETS / "paper_results.json").read_text())


def write_table1(folder: Path, results: Sequence[dict], absent: Mapping[str, str]) -> None:
    """Writes table1.md and table1.csv: the paper's Table 1 and this checkpoint below it.

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
    tidy = []
    for choice in ("(8, 500)", "best t per test set"):
        own, gap = {"accuracy (%)": f"here: {choice}"}, {"accuracy (%)": "  minus paper's Ours"}
        for dataset, column in COLUMNS.items():
            result, target = _choose(results, dataset, choice), methods["Ours"][column]
            ran = any(r["dataset"] == dataset for r in results)
            own[column] = _cell(result, choice) if result else "not run" if ran else "absent"
            gap[column] = _gap(result, target)
            tidy.append({"column": column, "choice": choice} | _tidy(dataset, result, target))
        rows += [own, gap]
    text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    for (dataset, split), r in by_set(results).items():
        text += f"\n\n{dataset} {split}: n = {r['n']}, {len(r['seeds'])} noise seeds, {r['note']}"
        text += f", {r['class_weights']}"
    text += "".join(f"\n\n{name}: absent: {reason}" for name, reason in absent.items())
    text += (
        "\n\npaper: arXiv 2407.00905, Table 1; its 'Ours' takes the best t of each test set. seen: "
        "the names were trained on, which is not zero-shot and not comparable"
    )
    _write(folder, "table1", text, tidy)


def _choose(results: Sequence[dict], dataset: str, choice: str) -> dict | None:
    """The result of a data set at S = 8 and t = 500, or at the t of the highest accuracy."""
    mine = [r for r in results if (r["dataset"], r["num_noise"]) == (dataset, 8)]
    mine = [r for r in mine if isinstance(r["timestep"], int)]
    if choice == "(8, 500)":
        return next((r for r in mine if r["timestep"] == 500), None)
    return max(mine, key=lambda r: r["top1_mean"], default=None)


def _cell(result: dict, choice: str) -> str:
    where = "" if choice == "(8, 500)" else f" at {result['timestep']}"
    mark = ", seen" if result["seen"] else ""
    return f"{100 * result['top1_mean']:.1f} ± {100 * result['top1_sd']:.1f}{where}{mark}"


def _gap(result: dict | None, target: float) -> str:
    if result is None:
        return ""
    return "(seen)" if result["seen"] else f"{100 * result['top1_mean'] - target:+.1f}"


def _tidy(dataset: str, result: dict | None, target: float | None) -> dict:
    """A line of a CSV: percentages, no difference where the names were trained on."""
    if result is None:
        return {"dataset": dataset, "n": 0, "paper": target}
    top1 = 100 * result["top1_mean"]
    comparable = target is not None and not result["seen"]
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
        "difference": top1 - target if comparable else None,
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
