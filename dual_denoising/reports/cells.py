"""Tables whose cells are the paper's number, the one measured here, and the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from dual_denoising.evaluation.metrics import mean_sd
from dual_denoising.reports.tables import markdown

Row = Mapping[str, Any]  # a Result's record, and the job, measure, model and seed that it is of


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
    def here(self) -> str:
        if not self.values:
            return ""
        mean, sd = mean_sd(self.values)
        spread = self.noise_sd if len(self.values) == 1 else sd
        return f"{mean:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")

    @property
    def gap(self) -> float | None:
        """Here − the paper's; None where they do not compare."""
        if not self.values or self.paper is None or not self.compared:
            return None
        return float(np.mean(self.values)) - self.paper

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
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)

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
        """From its ``asdict``, which JSON may have kept."""
        rows = {
            name: {column: Cell(**cell) for column, cell in row.items()}
            for name, row in record["rows"].items()
        }
        return cls(**{**record, "rows": rows})


def cell(rows: Sequence[Row], paper: float | None = None, of: str | None = None, **match) -> Cell:
    """The accuracy of the rows whose fields are these, one per training seed.

    of: the field that it is in; None: robust accuracy under attack, else top-1.
    """
    first: dict[int, Row] = {}
    for row in rows:
        if all(row.get(key) == value for key, value in match.items()):
            first.setdefault(row["seed"], row)  # the first test set and the first such step
    chosen = [first[seed] for seed in sorted(first)]
    names = [of or ("robust_mean" if "robust_mean" in row else "top1_mean") for row in chosen]
    values = [100 * row[name] for row, name in zip(chosen, names, strict=True)]
    alone = len(chosen) == 1 and not of and len(chosen[0]["seeds"]) > 1
    return Cell(
        tuple(values),
        paper,
        n=chosen[0]["n"] if chosen else 0,
        seeds=tuple(sorted(first)),
        jobs=tuple(row["job"] for row in chosen),
        compared=all(row.get("faithful", True) and row.get("comparable", True) for row in chosen),
        mark=chosen[0].get("mark", "") if chosen else "",
        noise_sd=100 * chosen[0][names[0].replace("_mean", "_sd")] if alone else None,
    )
