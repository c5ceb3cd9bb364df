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
from dual_denoising.reports.cells import Cell, Table, report
from dual_denoising.reports.paper import PAPERS, paper_grid, paper_number
from dual_denoising.reports.tables import by_set, csv, save


def write_table(
    name: str, folder: Path, results: Sequence[Result], absent: Mapping[str, str]
) -> None:
    """Writes <name>.md and .csv: a table of the paper with these results beside its numbers.

    absent: {dataset or system: why it is left out}. Several models of one name are numbered.
    """
    rows, notes = [], {}
    models: dict[str, dict[str, int]] = {}
    for r in results:
        known = models.setdefault(r.label, {})
        number = known.setdefault(r.model, len(known) + 1)
        label = r.label + (f" #{number}" if number > 1 else "")
        mark = ", seen" if r.seen else "" if r.comparable else " (!)"
        compared = not mark and (not r.attack or paper_number(r) is not None)
        of = {"measure": "systems_attacked" if r.attack else "systems", "seed": 0, "job": ""}
        if r.track != "adaptive":
            rows.append({**r.record(), **of, "label": label, "mark": mark, "faithful": compared})
        notes[label, r.dataset, r.split] = (
            f"{label}, {r.model}, {r.dataset} {r.split}: n = {r.n}, {len(r.seeds)} noise seeds, "
            f"{r.note}" + (f", {r.class_weights}" if r.class_weights else "")
        )
    table = Table(name, **report()["tables"][name], rows=PAPERS[name](rows))
    parts = [table.markdown, *notes.values(), *_absent(absent)]
    parts.append(
        f"{table.about} In percent: paper / here / difference, ± over noise seeds. No difference "
        "where names were trained on (seen), or (!) where it is not the model of the paper's row "
        "or column: the note says why. Paper: arXiv 2407.00905"
    )
    tidy = []
    for (line, cells), column in product(table.rows.items(), table.columns):
        c = cells.get(column, Cell())
        where = {"row": line, "column": column, "paper": c.paper, "sd": c.noise_sd, "n": c.n}
        here = c.values[0] if c.values else None
        tidy.append(where | {"here": here, "difference": c.gap, "mark": c.mark})
    write_text(folder / f"{name}.csv", csv(tidy))
    save(folder, name, "\n\n".join(parts))


def _absent(reasons: Mapping[str, str]) -> list[str]:
    return [f"{name}: absent: {reason}" for name, reason in reasons.items()]


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
    single = [r for r in results if isinstance(r.timestep, int)]
    counts = Counter((r.dataset, r.split) for r in single)
    single = [r for r in single if counts[r.dataset, r.split] >= least]
    if not single:
        return
    parts, tidy = [], []
    for (dataset, split), chosen in by_set(single).items():
        cells = {r.setting: r for r in single if (r.dataset, r.split) == (dataset, split)}
        here = {key: 100 * r.top1_mean for key, r in cells.items()}
        published, seeds = paper_grid(dataset), len(chosen.seeds)
        title = f"{dataset} {split}, n = {chosen.n}, {seeds} noise seed{'s' * (seeds > 1)}"
        picture = folder / "pictures" / f"{stem}_{dataset}_{split}.png"
        parts += [f"{title}, {chosen.note}, {chosen.class_weights}"]
        parts += grid_tables(here, published, not chosen.seen, picture, title)
        sds = [100 * r.top1_sd for r in cells.values()]
        spread = f"sd over noise seeds: median {np.median(sds):.2f}, largest {max(sds):.2f}"
        parts += [spread] if seeds > 1 else []
        parts += ["paper: arXiv 2407.00905, Table 5"] if published.keys() & here.keys() else []
        for key, r in cells.items():
            paper, top1, (low, high) = published.get(key), here[key], r.top1_interval
            line = {"dataset": dataset, "split": split, "n": r.n, "num_noise": r.num_noise}
            line |= {"timestep": r.timestep, "top1": top1, "sd": 100 * r.top1_sd}
            line |= {"low": 100 * low, "high": 100 * high, "paper": paper}
            alike = r.comparable and not r.seen
            gap = top1 - paper if alike and paper is not None else None
            tidy.append(line | {"difference": gap, "seen": r.seen, "note": r.note})
    tidy += [{"dataset": name, "n": 0, "note": reason} for name, reason in absent.items()]
    write_text(folder / f"{stem}.csv", csv(tidy))
    save(folder, stem, "\n\n".join([*parts, *_absent(absent), "accuracy in percent"]))


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
        "table1": partial(write_table, "table1"),
        "table5": partial(write_grids, stem="table5", least=1),
    }
    check_choice("table", table, writers)
    return writers[table]
