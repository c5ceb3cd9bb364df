"""The paper's tables beside ours: Markdown, CSV and heat-maps of S × t."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dual_denoising.data import ASSETS
from dual_denoising.data.storage import write_text
from dual_denoising.evaluation.result import OURS, Result
from dual_denoising.reports import pictures
from dual_denoising.reports.tables import by_set, csv, markdown, percent, save

COLUMNS = {
    "modelnet10": "ModelNet10",
    "modelnet40": "ModelNet40",
    "scanobjectnn_obj_only": "S-OBJ_ONLY",
    "scanobjectnn_obj_bg": "S-OBJ_BG",
    "scanobjectnn_pb_t50_rs": "S-PB_T50_RS",
}  # our data sets -> the paper's names in Table 1
GRIDS = {"modelnet40": "ModelNet40", "scanobjectnn_obj_only": "ScanObjNN"}  # and in Table 5
HEADLINE, BEST, PUBLISHED = "(8, 500)", "best t per test set", "without noise"
STEPS = {"PGD": 50, "IFGM": 50, "C&W": 500}  # of the attacks of Table 2
LEGEND = "(!): not the model of the paper's row or column, the note says why; paper: 2407.00905"


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
    return table.get(_attack_row(result), {}).get(table2_column(result.system, *result.setting))


def _attack_row(result: Result) -> str:
    return result.attack if result.eps is None else f"{result.attack}@{result.eps:g}"


def write_table1(folder: Path, results: Sequence[Result], absent: Mapping[str, str]) -> None:
    """Writes table1.md and table1.csv: the paper's Table 1, and below it what was run.

    Ours at the headline (8, 500), and at the best t of each test set at S = 8, which is how the
    paper picks it. A data set that is absent, and a setting that was not run, are said to be.
    """
    methods = paper_results()["table1_zero_shot"]
    rows = [{"accuracy (%)": f"paper: {name}"} | cells for name, cells in methods.items()]
    tidy, notes = [], []
    systems: dict[tuple, list[Result]] = {}
    for r in results:
        systems.setdefault((r.system, r.label, r.model), []).append(r)
    for mine in systems.values():
        system, label = mine[0].system, mine[0].label
        published = methods.get("Ours" if system == OURS else system, {})
        noisy = system == OURS or any(r.noise_scale for r in mine)
        for choice in (HEADLINE, BEST) if noisy else (PUBLISHED,):
            title = f"here: {choice}" if system == OURS else f"here: {label}, {choice}"
            cells, gaps = {"accuracy (%)": title}, {"accuracy (%)": "  minus the paper's"}
            for dataset, column in COLUMNS.items():
                result, target = _choose(mine, dataset, choice), published.get(column)
                ran = any(r.dataset == dataset for r in mine)
                cells[column] = _cell(result, choice, ran)
                gaps[column] = _gap(result, target)
                line = {"system": system, "column": column, "choice": choice}
                tidy.append(line | _tidy(dataset, result, target))
            rows += [cells, gaps]
        for (dataset, split), r in by_set(mine).items():
            notes.append(
                f"{label}, {dataset} {split}: n = {r.n}, {len(r.seeds)} noise seeds, {r.note}, "
                f"{r.class_weights}"
            )
    notes += [f"{name}: absent: {reason}" for name, reason in absent.items()]
    notes.append(
        "the paper's 'Ours' takes the best t of each test set. seen: the names were trained on, "
        f"which is not zero-shot and not comparable; {LEGEND}, Table 1"
    )
    write_text(folder / "table1.csv", csv(tidy))
    save(folder, "table1", "\n\n".join([markdown(rows), *notes]))


def _choose(results: Sequence[Result], dataset: str, choice: str) -> Result | None:
    """The result of a data set at S = 8 and t = 500, or at the t of the highest accuracy."""
    mine = [r for r in results if r.dataset == dataset]
    if choice == PUBLISHED:
        return next(iter(mine), None)
    mine = [r for r in mine if r.num_noise == 8 and isinstance(r.timestep, int)]
    if choice == HEADLINE:
        return next((r for r in mine if r.timestep == 500), None)
    return max(mine, key=lambda r: r.top1_mean, default=None)


def _cell(result: Result | None, choice: str, ran: bool) -> str:
    if result is None:
        return "not run" if ran else "absent"
    where = f" at {result.timestep}" if choice == BEST else ""
    mark = ", seen" if result.seen else "" if result.comparable else " (!)"
    return percent(result.top1_mean, result.top1_sd) + where + mark


def _gap(result: Result | None, target: float | None) -> str:
    if result is None or target is None:
        return ""
    if result.seen or not result.comparable:
        return "(seen)" if result.seen else "(not comparable)"
    return f"{100 * result.top1_mean - target:+.1f}"


def _tidy(dataset: str, result: Result | None, target: float | None) -> dict:
    """A line of a CSV: percentages, no difference where the names were trained on."""
    if result is None:
        return {"dataset": dataset, "n": 0, "paper": target}
    top1 = 100 * result.top1_mean
    compared = target is not None and not result.seen and result.comparable
    return {
        "dataset": dataset,
        "split": result.split,
        "n": result.n,
        "num_noise": result.num_noise,
        "timestep": result.timestep,
        "top1": top1,
        "sd": 100 * result.top1_sd,
        "low": 100 * result.top1_interval[0],
        "high": 100 * result.top1_interval[1],
        "paper": target,
        "difference": top1 - target if compared and target is not None else None,
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
        tidy += [_tidy(dataset, r, published.get(key)) for key, r in cells.items()]
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


def write_table2(folder: Path, results: Sequence[Result], absent: Mapping[str, str]) -> None:
    """Writes table2.md and table2.csv: robust accuracy per attack and ε of every system.

    The paper's track alone, and the paper's Table 2 below it; absent: systems that did not run.
    """
    mine = [r for r in results if r.track == "paper" and r.last]
    columns = _columns(mine)
    here: dict[str, dict] = {"clean": {}}
    for r in mine:
        column, mark = columns[_place(r)], "" if r.comparable else " (!)"
        here["clean"][column] = percent(r.clean_mean) + mark
        here.setdefault(_attack_row(r), {})[column] = percent(r.robust_mean, r.robust_sd) + mark
    published = paper_results()["table2_attacks_modelnet40"]
    parts = [
        markdown([{title: row} | cells for row, cells in rows.items()])
        for title, rows in (("here", here), ("paper, ModelNet40", published))
        if rows != {"clean": {}}
    ]
    for r in {_place(r): r for r in mine}.values():
        where = f"{columns[_place(r)]}, {r.dataset} {r.split}"
        model = "" if r.model in r.note else f"{r.model}, "
        parts.append(f"{where}: n = {r.n}, {model}{r.note}")
    parts += [f"{name}: absent: {reason}" for name, reason in absent.items()]
    parts.append(
        "robust accuracy in percent of all clouds, on noise that no attack has seen; "
        f"{LEGEND}, Table 2"
    )
    tidy = [r.record() | {"column": columns[_place(r)]} for r in mine]
    write_text(folder / "table2.csv", csv(tidy))
    save(folder, "table2", "\n\n".join(parts))


def _place(result: Result) -> tuple:
    return result.system, result.label, result.model, *result.setting


def _columns(results: Sequence[Result]) -> dict[tuple, str]:
    """{place: column}; several models of one system are numbered."""
    columns: dict[tuple, str] = {}
    for r in results:
        if _place(r) in columns:
            continue
        title = table2_column(r.system, *r.setting).replace(r.system, r.label, 1)
        number = sum(name.split(" #")[0] == title for name in columns.values())
        columns[_place(r)] = f"{title} #{number + 1}" if number else title
    return columns


TABLES = {
    None: write_grids,
    "table1": write_table1,
    "table5": partial(write_grids, stem="table5", least=1),
}
