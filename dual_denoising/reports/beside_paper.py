"""A run's results beside the paper's numbers: Markdown, CSV, heat-maps of S × t."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from dual_denoising.data.storage import write_text
from dual_denoising.errors import check_choice
from dual_denoising.evaluation.result import Result
from dual_denoising.reports import pictures
from dual_denoising.reports.cells import Cell, Row, Table
from dual_denoising.reports.paper import paper_grid, paper_number, table1
from dual_denoising.reports.tables import by_set, csv, save


def write_table(
    made: Callable[[Sequence[Row]], Table],
    folder: Path,
    results: Sequence[Result],
    absent: Mapping[str, str],
) -> None:
    """Writes <table>.md and .csv: a table of the paper with these results beside its numbers.

    absent: {dataset or system: why it is left out}. Several models of one name are numbered.
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

    least: cells that a dataset needs to be in them.
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
        seeds = len(chosen.seeds)
        title = f"{dataset} {split}, n = {chosen.n}, {seeds} noise seed{'s' * (seeds > 1)}"
        picture = folder / "pictures" / f"{stem}_{dataset}_{split}.png"
        parts += [f"{title}, {chosen.note}, {chosen.class_weights}"]
        parts += grid_tables(here, published, not chosen.seen, picture, title)
        sds = [100 * r.top1_sd for r in cells.values()]
        spread = f"sd over noise seeds: median {np.median(sds):.2f}, largest {max(sds):.2f}"
        parts += [spread] if seeds > 1 else []
        parts += ["paper: arXiv 2407.00905, Table 5"] if published.keys() & here.keys() else []
        tidy += [_tidy(r, published.get(key)) for key, r in cells.items()]
    parts += [f"{name}: absent: {reason}" for name, reason in absent.items()]
    tidy += [{"dataset": name, "n": 0, "note": reason} for name, reason in absent.items()]
    parts.append("accuracy in percent")
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


def writer(table: str | None) -> Callable[[Path, Sequence[Result], Mapping[str, str]], None]:
    """What writes a table of the paper, or the grid of a run that is for none."""
    writers: dict[str | None, Callable] = {
        None: write_grids,
        "table1": partial(write_table, table1),
        "table5": partial(write_grids, stem="table5", least=1),
    }
    check_choice("table", table, writers)
    return writers[table]
