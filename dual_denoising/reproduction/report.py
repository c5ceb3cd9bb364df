"""The report of a reproduction: one HTML file that needs no network, and Markdown."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dual_denoising.data.storage import write_text
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports import pictures
from dual_denoising.reports.tables import markdown
from dual_denoising.reports.templates import render
from dual_denoising.reproduction.claims import FAILS, HOLDS, OPEN, UNTESTED, claims
from dual_denoising.reproduction.costs import paths_cost
from dual_denoising.reproduction.figures import Figure, figures
from dual_denoising.reproduction.plan import first_model
from dual_denoising.reproduction.study import Study
from dual_denoising.reproduction.tables import Cell, Table, read_rows, tables

VERDICTS = HOLDS, FAILS, OPEN, UNTESTED
RULE = (
    "A verdict needs a difference beyond its 95% interval, over training seeds and clouds, and two "
    "seeds where two models are compared. In the "
    "tables a cell has the paper's number, the one measured here (± over training seeds), and the "
    "difference."
)


def sum_up(study: Study, whole: Study, build: Callable, folder: Path) -> None:
    """The report of a study whose runs are done. whole: before a budget cut it."""
    rows = read_rows(study.jobs)
    model, points = first_model(study, build)
    papers = "ours" in study.cfg.models  # else it is a study of our own
    found = claims(rows, partial(paths_cost, model, points)) if papers else []
    record = {
        "name": folder.name,
        "title": f"Dual Denoising reproduced, scale {study.cfg.scale}",
        "words": f"{study.words}. {study.cut_words(whole)}".strip(),
        "caution": study.cfg.caution,
        "tables": [asdict(table) for table in tables(rows, study.tables)],
        "claims": [asdict(claim) for claim in found],
        "commands": {job.name: job.command for job in study.jobs},
    }
    trained = next((job for job in study.jobs if job.model == "ours"), study.jobs[0])
    write_report(
        folder, record, figures(DualDenoising.from_pretrained(f"runs/{trained.name}/model"))
    )


def write_report(folder: Path, record: Mapping[str, Any], shown: Sequence[Figure]) -> None:
    """Writes results.json (``record``), report.md, pictures/ and report.html.

    record: name, title, words, caution, tables and claims (their asdict), commands {run: command};
    all that report.md says.
    """
    write_text(folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", in_markdown(record))
    shots = _pictures(folder / "pictures", record)
    for figure in shown:
        path = folder / "pictures" / f"{figure.name}.png"
        titles = [[words for words, _ in row] for row in figure.rows]
        clouds = [[points for _, points in row] for row in figure.rows]
        pictures.cloud_grid(clouds, path, titles, size=2.2)
    page = render(
        Path(__file__).with_name("report.html"),
        record=record,
        tables=[Table.of(table) for table in record["tables"]],
        rule=RULE,
        viewer=pictures.VIEWER.read_text(),
        counts=counts(record["claims"]),
        pictures={name: base64.b64encode(path.read_bytes()).decode() for name, path in shots},
        figures=shown,
        for_canvas=pictures.for_canvas,
    )
    write_text(folder / "report.html", page)


def counts(claims: Sequence[Mapping]) -> dict[str, int]:
    """How many claims have each verdict."""
    return {name: sum(claim["verdict"] == name for claim in claims) for name in VERDICTS}


def in_markdown(record: Mapping[str, Any]) -> str:
    """Everything but the pictures."""
    parts = [f"# {record['title']}", record["words"], record["caution"]]
    shown = ", ".join(f"{n} {name}" for name, n in counts(record["claims"]).items())
    rows = [
        {"section": c["section"], "claim": c["words"]} | {k: c[k] for k in ("verdict", "numbers")}
        for c in record["claims"]
    ]
    if rows:
        parts += [f"## {len(rows)} claims", f"{shown}. {RULE}", markdown(rows)]
    for table in map(Table.of, record["tables"]):
        cells = [
            {"": name} | {column: cell_words(cell) for column, cell in row.items()}
            for name, row in table.rows.items()
        ]
        parts += [f"## {table.title}", f"{table.about} {table.clouds}", markdown(cells)]
    parts += ["## Commands", "```bash\n" + "\n".join(record["commands"].values()) + "\n```"]
    return "\n\n".join(parts) + "\n"


def cell_words(cell: Cell) -> str:
    """Paper / here / difference, as far as they are there."""
    paper = "" if cell.paper is None else f"{cell.paper:.1f}"
    if not paper or not cell.here:
        return cell.here or (f"{paper} / – / –" if paper else "")
    return f"{paper} / {cell.here} / {cell.difference}"


def _pictures(folder: Path, record: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Curves and heat-maps of the tables that have them."""
    found = []
    for table in map(Table.of, record["tables"]):
        path = folder / f"{table.name}.png"
        if table.name == "fig8" and table.rows:
            lines = {
                name: (list(map(int, row)), [np.mean(cell.values) / 100 for cell in row.values()])
                for name, row in table.rows.items()
            }
            axes = ("steps of PGD", "robust accuracy (%)")
            pictures.curves(lines, path, *axes, marker="o", markersize=3)
            found.append((table.name, path))
        if table.name == "table5" and table.rows:
            for half in dict.fromkeys(name.rpartition(", S")[0] for name in table.rows):
                rows = {n: row for n, row in table.rows.items() if n.startswith(f"{half}, S")}
                grid = [[np.mean(c.values) for c in r.values()] for r in rows.values()]
                paths = [int(name.rpartition(" ")[2]) for name in rows]
                steps = [int(name.removeprefix("t = ")) for name in next(iter(rows.values()))]
                path = folder / f"table5_{half.replace(', ', '_')}.png"
                shown = {half: pd.DataFrame(grid, paths, steps)}
                pictures.heat_maps(shown, path, "accuracy (%) here")
                found.append((f"table5_{half}", path))
    return found
