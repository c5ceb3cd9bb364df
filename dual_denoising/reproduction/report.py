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
from dual_denoising.reports.cells import Table
from dual_denoising.reports.tables import markdown
from dual_denoising.reports.templates import fill, render
from dual_denoising.reproduction.claims import FAILS, HOLDS, OPEN, UNTESTED, claims
from dual_denoising.reproduction.costs import paths_cost
from dual_denoising.reproduction.figures import Figure, figures
from dual_denoising.reproduction.plan import first_model
from dual_denoising.reproduction.study import Study
from dual_denoising.reproduction.tables import made_tables, read_rows

VERDICTS = HOLDS, FAILS, OPEN, UNTESTED
RULE = (
    "A verdict needs a difference beyond its 95% interval, over training seeds and clouds, and two "
    "seeds where two models that are trained here are compared. In the tables a cell has the "
    "paper's number, the one measured here, and the difference."
)
SPREAD = "± is over training seeds; of a single one, over noise seeds."


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
        "tables": [asdict(table) for table in made_tables(rows, study.tables)],
        "claims": [asdict(claim) for claim in found],
        "commands": {job.name: job.command for job in study.jobs},
    }
    trained = next((job for job in study.jobs if job.model == "ours"), study.jobs[0])
    shown = figures(DualDenoising.from_pretrained(trained.checkpoint))
    write_report(folder, record, shown)


def write_report(folder: Path, record: Mapping[str, Any], shown: Sequence[Figure]) -> None:
    """Writes results.json (``record``), report.md, pictures/ and report.html.

    record: name, title, words, caution, tables and claims (their asdict), commands {run: command};
    all that report.md says.
    """
    write_text(folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", in_markdown(record))
    tables = [Table.of(table) for table in record["tables"]]
    shots = {
        name: base64.b64encode(path.read_bytes()).decode()
        for name, path in _pictures(folder / "pictures", tables).items()
    }
    for figure in shown:
        path = folder / "pictures" / f"{figure.name}.png"
        titles = [[words for words, _ in row] for row in figure.rows]
        clouds = [[points for _, points in row] for row in figure.rows]
        pictures.cloud_grid(clouds, path, titles, size=2.2)
    page = render(
        Path(__file__).with_name("report.html"),
        record=record,
        tables=tables,
        rule=RULE,
        spread=SPREAD,
        viewer=pictures.VIEWER.read_text(),
        counts=counts(record["claims"]),
        pictures=shots,
        figures=shown,
        for_canvas=pictures.for_canvas,
    )
    write_text(folder / "report.html", page)


def counts(claims: Sequence[Mapping]) -> dict[str, int]:
    """How many claims have each verdict."""
    return {name: sum(claim["verdict"] == name for claim in claims) for name in VERDICTS}


def in_markdown(record: Mapping[str, Any]) -> str:
    """Everything but the pictures."""
    parts = [f"# {record['title']}", fill(record["words"]), fill(f"{record['caution']} {SPREAD}")]
    shown = ", ".join(f"{n} {name}" for name, n in counts(record["claims"]).items())
    rows = [
        {"section": c["section"], "claim": c["words"]} | {k: c[k] for k in ("verdict", "numbers")}
        for c in record["claims"]
    ]
    if rows:
        parts += [f"## {len(rows)} claims", fill(f"{shown}. {RULE}"), markdown(rows)]
    for table in map(Table.of, record["tables"]):
        parts += [f"## {table.title}", fill(f"{table.about} {table.clouds}"), table.markdown]
    parts += ["## Commands", "```bash\n" + "\n".join(record["commands"].values()) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _pictures(folder: Path, tables: Sequence[Table]) -> dict[str, Path]:
    """Draws the curves of Fig. 8 and the heat-maps of Table 5: {picture: its file}."""
    found, rows = {}, {table.name: table.rows for table in tables}
    if rows.get("fig8"):
        lines = {
            name: ([int(steps) for steps in row], [np.mean(c.values) / 100 for c in row.values()])
            for name, row in rows["fig8"].items()
        }
        found["fig8"] = folder / "fig8.png"
        axes = ("steps of PGD", "robust accuracy (%)")
        pictures.curves(lines, found["fig8"], *axes, marker="o", markersize=3)
    halves: dict[str, dict] = {}
    for name, row in rows.get("table5", {}).items():
        half, paths = name.split(", S = ")
        means = {
            int(t.removeprefix("t = ")): np.mean(cell.values) if cell.values else np.nan
            for t, cell in row.items()
        }
        halves.setdefault(half, {})[int(paths)] = means
    for half, grid in halves.items():
        path = found[f"table5_{half}"] = folder / f"table5_{half.replace(', ', '_')}.png"
        pictures.heat_maps({half: pd.DataFrame(grid).T}, path, "accuracy (%) here")
    return found
