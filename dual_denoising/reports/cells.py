"""Tables whose cells are the paper's number, the one measured here, and the difference."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import numpy as np
import yaml

from dual_denoising.data import ASSETS
from dual_denoising.evaluation.metrics import mean_sd
from dual_denoising.reports.tables import markdown

Row = dict[str, Any]  # a Result's record, and the job, measure, model and seed that it is of
Of = str | Callable[[Row], float] | None  # a row's accuracy: its field, or a function
Cells = dict[str, dict[str, "Cell"]]  # of rows and columns


@cache
def report() -> dict:
    """data/report.yaml: the titles of the tables, and the claims."""
    return yaml.safe_load((ASSETS / "report.yaml").read_text())


@dataclass(frozen=True)
class Cell:
    """An accuracy in percent: the paper's, and here one value per training seed.

    n: clouds. seeds, jobs: of the runs that the values are from. compared: whether the paper's
    number is of the same model, attack and steps. noise_sd: of a single training seed, the spread
    over noise seeds. mark: what else must be said beside the number.
    """

    values: tuple[float, ...] = ()
    paper: float | None = None
    n: int = 0
    seeds: tuple[int, ...] = ()
    jobs: tuple[str, ...] = ()
    compared: bool = True
    noise_sd: float | None = None
    mark: str = ""

    @property
    def mean(self) -> float:
        """Of training seeds; NaN where there is none."""
        return float(np.mean(self.values)) if self.values else np.nan

    @property
    def here(self) -> str:
        if not self.values:
            return ""
        spread = self.noise_sd if len(self.values) == 1 else mean_sd(self.values)[1]
        return f"{self.mean:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")

    @property
    def gap(self) -> float | None:
        """Here − the paper's; None where they do not compare."""
        if not self.values or self.paper is None or not self.compared:
            return None
        return self.mean - self.paper

    @property
    def difference(self) -> str:
        return "" if self.gap is None else signed(self.gap)

    @property
    def words(self) -> str:
        """Paper / here / difference, as far as they are there."""
        here = self.here and self.here + self.mark
        if self.paper is None:
            return here
        return f"{self.paper:.1f} / {here or '–'} / {self.difference or '–'}"


def signed(points: float) -> str:
    """A difference as '+1.2' or '−1.2'."""
    return f"{points:+.1f}".replace("-", "−")


@dataclass
class Table:
    """Rows of cells; ``about`` says what they are of and how they differ from the paper's."""

    name: str
    title: str
    about: str
    rows: Cells = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))

    @property
    def clouds(self) -> str:
        """Of how many clouds its cells are, as 'n = 60, 908'."""
        found = {cell.n for row in self.rows.values() for cell in row.values()} - {0}
        return f"n = {', '.join(map(str, sorted(found)))}" if found else ""

    @property
    def markdown(self) -> str:
        rows = self.rows.items()
        return markdown([{"": n} | {c: cell.words for c, cell in row.items()} for n, row in rows])

    @classmethod
    def of(cls, record: Mapping) -> Self:
        """A table from its ``asdict``, also one that was read from JSON."""
        rows = {
            name: {column: Cell(**cell) for column, cell in row.items()}
            for name, row in record["rows"].items()
        }
        return cls(**{**record, "rows": rows})


def cell(rows: Sequence[Row], paper: float | None = None, of: Of = None, **match) -> Cell:
    """The accuracy of the rows whose fields equal ``match`` (a list: any), one per training seed.

    of: which accuracy; None: the robust one under attack, else top-1.
    """
    first: dict[int, Row] = {}
    for row in rows:
        pairs = ((row.get(key), value) for key, value in match.items())
        if all(own in value if isinstance(value, list) else own == value for own, value in pairs):
            first.setdefault(row["seed"], row)  # the first test set and the first such step
    if not first:
        return Cell(paper=paper)
    seeds, chosen = zip(*sorted(first.items()), strict=True)
    main = "robust" if "robust_mean" in chosen[0] else "top1"
    name = of or f"{main}_mean"
    alone = len(chosen) == 1 and not of and len(chosen[0]["seeds"]) > 1
    return Cell(
        tuple(name(row) if callable(name) else 100 * row[name] for row in chosen),
        paper,
        chosen[0]["n"],
        seeds,
        jobs=tuple(row["job"] for row in chosen),
        compared=all(row.get("faithful", True) and row.get("comparable", True) for row in chosen),
        mark=chosen[0].get("mark", ""),
        noise_sd=100 * chosen[0][f"{main}_sd"] if alone else None,
    )


def placed(
    places: Iterable[tuple[str, str, Row, Of]],
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> Cells:
    """Cells of (row, column, result, accuracy); several results of one place are training seeds.

    paper: its numbers, {row: {column: percent}}.
    """
    paper = paper or {}
    found: dict = {name: {column: ([], None) for column in row} for name, row in paper.items()}
    for name, column, row, of in places:
        rows, _ = found.setdefault(name, {}).get(column, ([], None))
        found[name][column] = [*rows, row], of
    return {
        name: {c: cell(own, paper.get(name, {}).get(c), of) for c, (own, of) in columns.items()}
        for name, columns in found.items()
    }
