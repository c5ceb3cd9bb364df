"""The report of a reproduction: one HTML file that needs no network, and Markdown."""

import base64
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from dual_denoising.data.storage import write_text
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports import pictures
from dual_denoising.reports.cells import Table
from dual_denoising.reports.templates import render
from dual_denoising.reproduction.claims import FAILS, HOLDS, OPEN, UNTESTED, claims
from dual_denoising.reproduction.costs import paths_cost
from dual_denoising.reproduction.figures import figures
from dual_denoising.reproduction.plan import first_model
from dual_denoising.reproduction.study import Study
from dual_denoising.reproduction.tables import made_tables, read_rows


def sum_up(study: Study, whole: Study, build: Callable, folder: Path) -> None:
    """The report of a study whose runs are done. whole: before a budget cut it."""
    rows = read_rows(study.jobs)
    cost = partial(paths_cost, *first_model(study, build))
    papers = "ours" in study.cfg.models  # else it is a study of our own
    record = {
        "name": folder.name,
        "title": f"Dual Denoising reproduced, scale {study.cfg.scale}",
        "words": f"{study.words}. {study.cut_words(whole)}".strip(),
        "caution": study.cfg.caution,
        "tables": [asdict(table) for table in made_tables(rows, study.tables)],
        "claims": claims(rows, cost) if papers else [],
        "commands": {job.name: job.command for job in study.jobs},
    }
    trained = next((job for job in study.jobs if job.model == "ours"), study.jobs[0])
    write_report(folder, record, figures(DualDenoising.from_pretrained(trained.checkpoint)))


def write_report(folder: Path, record: Mapping[str, Any], figures: Sequence) -> None:
    """Writes results.json (``record``), report.md, pictures/ and report.html.

    record: name, title, words, caution, tables (their asdict), claims, commands {run: command}; all
    that report.md says.
    """
    write_text(folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", in_markdown(record))
    for figure in figures:
        path = folder / "pictures" / f"{figure.name}.png"
        titles, clouds = ([[pair[i] for pair in row] for row in figure.rows] for i in (0, 1))
        pictures.cloud_grid(clouds, path, titles, size=2.2)
    drawn = _pictures(folder / "pictures", [Table.of(table) for table in record["tables"]])
    shots = {name: base64.b64encode(path.read_bytes()).decode() for name, path in drawn.items()}
    more = {"pictures": shots, "figures": figures, "for_canvas": pictures.for_canvas}
    page = _page("report.html", record, viewer=pictures.VIEWER.read_text(), **more)
    write_text(folder / "report.html", page)


def in_markdown(record: Mapping[str, Any]) -> str:
    """Everything but the pictures."""
    shown = {"section": "section", "words": "claim", "verdict": "verdict", "numbers": "numbers"}
    rows = [{title: c[key] for key, title in shown.items()} for c in record["claims"]]
    return _page("report.md.jinja", record, claims=rows)


def _page(template: str, record: Mapping[str, Any], **more) -> str:
    tables = [Table.of(table) for table in record["tables"]]
    found = Counter(claim["verdict"] for claim in record["claims"])
    counts = {name: found[name] for name in (HOLDS, FAILS, OPEN, UNTESTED)}
    path = Path(__file__).with_name(template)
    return render(path, record=record, tables=tables, counts=counts, **more)


def _pictures(folder: Path, tables: Sequence[Table]) -> dict[str, Path]:
    """Draws the curves of Fig. 8 and the heat-maps of Table 5: {picture: its file}."""
    found, rows = {}, {table.name: table.rows for table in tables}
    if fig8 := rows.get("fig8"):
        found["fig8"] = folder / "fig8.png"
        lines = {
            name: ([int(steps) for steps in row], [cell.mean / 100 for cell in row.values()])
            for name, row in fig8.items()
        }
        axes = ("steps of PGD", "robust accuracy (%)")
        pictures.curves(lines, found["fig8"], *axes, marker="o", markersize=3)
    halves: dict[str, dict] = {}
    for name, row in rows.get("table5", {}).items():
        half, paths = name.split(", S = ")
        means = {int(t.removeprefix("t = ")): cell.mean for t, cell in row.items()}
        halves.setdefault(half, {})[int(paths)] = means
    for half, grid in halves.items():
        path = found[f"table5_{half}"] = folder / f"table5_{half.replace(', ', '_')}.png"
        pictures.heat_maps({half: pd.DataFrame(grid).T}, path, "accuracy (%) here")
    return found
