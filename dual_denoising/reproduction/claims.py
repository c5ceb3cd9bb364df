"""The paper's claims, each with a verdict that is computed from the numbers of a study."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from dual_denoising.evaluation.result import OURS
from dual_denoising.reports.cells import Cell, Row, cell, signed
from dual_denoising.reports.paper import COLUMNS, HEADLINE
from dual_denoising.reproduction.tables import PLAIN, clean, under

HOLDS, FAILS, OPEN, UNTESTED = "holds here", "does not hold here", "undecided", "not tested"


@dataclass
class Claim:
    """What the paper says, the verdict, and the numbers that it is computed from."""

    section: str
    words: str
    verdict: str
    numbers: str
    jobs: tuple[str, ...] = ()


def paired(first: Cell, second: Cell) -> tuple[Cell, Cell]:
    """Both with the training seeds that both have."""
    both = [seed for seed in first.seeds if seed in second.seeds]

    def chosen(cell: Cell) -> Cell:
        values = dict(zip(cell.seeds, cell.values, strict=True))
        return replace(cell, seeds=tuple(both), values=tuple(values[seed] for seed in both))

    return chosen(first), chosen(second)


def difference(first: Cell, second: Cell) -> tuple[float, float]:
    """Mean of first − second over training seeds, and half its 95% interval, in points.

    The interval adds what training seeds (Student's t of their differences) and the sampling of
    clouds (binomial, as of two samples, which is wider than that of one) contribute.
    """
    gaps = np.subtract(first.values, second.values)
    of_clouds = 0.0
    for one in (first, second):
        middle = (float(np.mean(one.values)) / 100 * one.n + 2) / (one.n + 4)  # Agresti and Coull
        of_clouds += middle * (1 - middle) / (one.n + 4)
    squared = (1.96 * 100) ** 2 * of_clouds
    if len(gaps) > 1:
        squared += (stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1)) ** 2 / len(gaps)
    return float(gaps.mean()), float(np.sqrt(squared))


def verdict(
    first: Cell, second: Cell, least: float = 0.0, within: float | None = None, trained: bool = True
) -> tuple[str, str]:
    """Whether first − second exceeds ``least`` points, and the numbers in words.

    within: test |first − second| < within instead. trained: both models were trained here, each
    from seeds of its own, so that one seed leaves the claim undecided.
    """
    first, second = paired(first, second)
    if not first.values:
        return UNTESTED, "no run of it"
    gap, half = difference(first, second)
    if within is None:
        found = HOLDS if gap - half > least else FAILS if gap + half < least else OPEN
    else:
        near, far = abs(gap) + half < within, abs(gap) - half > within
        found = HOLDS if near else FAILS if far else OPEN
    seeds = len(first.values)
    if trained and seeds < 2:
        found = OPEN
    words = (
        f"{first.here} against {second.here}: {signed(gap)} ± {half:.1f} points "
        f"(95%; {seeds} training seed{'s' * (seeds > 1)}, n = {min(first.n, second.n)})"
    )
    return found, words


Found = tuple[str, str, tuple[str, ...]]  # verdict, numbers in words, the runs that they are from


class Evidence:
    """What a study measured, and verdicts on pairs of its cells."""

    def __init__(self, rows: Sequence[Row]):
        self.rows, self.noise = rows, feature_noise(rows)
        grid = dict.fromkeys(row["dataset"] for row in rows if row["measure"] == "grid")
        self.dataset = "modelnet40" if "modelnet40" in grid else next(iter(grid), "")

    def clean(self, model: str) -> Cell:
        return clean(self.rows, model, **HEADLINE)

    def under(self, model: str, attack: str = "PGD") -> Cell:
        return under(self.rows, model, attack)

    def measured(self, *measures: str, **match) -> Cell:
        return cell([row for row in self.rows if row["measure"] in measures], **match)

    def at(self, paths: int, t: int) -> Cell:
        """Of ours, clean, on the dataset that stands for the paper's first."""
        return self.measured("grid", num_noise=paths, timestep=t, dataset=self.dataset)

    def compare(self, first: Cell, second: Cell, *, about_noise: bool = False, **how) -> Found:
        """Of two models that are trained here; about_noise: say beside it what ε₂ decides."""
        found, numbers = verdict(first, second, **how)
        words, more = self.noise if about_noise else ("", ())
        jobs = () if found == UNTESTED else tuple(dict.fromkeys(first.jobs + second.jobs + more))
        return found, f"{numbers}{words}", jobs

    def one_seed(self, first: Cell, second: Cell, **how) -> Found:
        """Of one model, or against a published one: a single training seed can decide."""
        return self.compare(first, second, trained=False, **how)

    def more_accurate(self, name: str) -> Found:
        """Ours against a published system, on the first dataset of Table 1 that has both."""
        for dataset in COLUMNS:
            own = self.measured("grid", "systems", system=OURS, dataset=dataset, **HEADLINE)
            other = self.measured("systems", system=name, dataset=dataset)
            if own.values and other.values:
                return self.one_seed(own, other)
        return UNTESTED, "no run of it", ()

    def more_robust(self, name: str) -> Found:
        """Ours against a published system, under the paper's PGD."""
        attack: dict[str, Any] = {"attack": "PGD", "eps": 0.025}
        return self.one_seed(
            self.measured("table2", system=OURS, **HEADLINE, **attack),
            self.measured("table2", "systems_attacked", system=name, **attack),
        )


def claims(rows: Sequence[Row], cost: Callable[[int], float]) -> list[Claim]:
    """All claims of the paper. cost: how many times the FLOPs of one path S take at t = 0.

    Those that could not be tested come last.
    """
    of, ratio = Evidence(rows), cost(16)
    numbers, jobs = f"{ratio:.2f} times the FLOPs of S = 1", of.clean("ours").jobs
    few = "More paths at t = 0 cost little (taken as: S = 16 at most 1.5 times S = 1)"
    cost_of_paths: dict[str, Found] = {few: (HOLDS if ratio <= 1.5 else FAILS, numbers, jobs)}
    found = {
        "4.2": {
            f"More accurate than {name} (first dataset of Table 1 that has both)": (
                of.more_accurate(name)
            )
            for name in ("PointCLIP V2", "CLIP2Point", "ULIP", "ReCon")
        },
        "1": about_masking(of),
        "4.4": about_the_denoisers(of) | about_inference(of) | cost_of_paths,
        "4.3": {
            f"More robust than {name} (PGD, ε = 0.025)": of.more_robust(name)
            for name in ("ReCon", "ULIP", "ULIP-2", "Uni3D")
        },
        "our check": our_checks(of),
    }
    made = [
        Claim(section, words, *what)
        for section, mine in found.items()
        for words, what in mine.items()
    ]
    return sorted(made, key=lambda claim: claim.verdict == UNTESTED)


def about_masking(of: Evidence) -> dict[str, Found]:
    mask = of.clean("mask")
    return {
        "Denoising generalises better than masked reconstruction": of.compare(
            of.clean("ours"), mask
        ),
        "and is more robust than it (PGD)": of.compare(of.under("ours"), of.under("mask")),
        "Masked reconstruction is close to reconstructing all clean tokens (taken as: within 3 "
        "points)": of.compare(mask, of.clean("s_0"), within=3),
    }


def about_the_denoisers(of: Evidence) -> dict[str, Found]:
    """Claims about how a model is trained."""
    ours, s_0, tokens = map(of.clean, ("ours", "s_0", "learned_tokens"))
    robust, robust_s_0, robust_tokens = map(of.under, ("ours", "s_0", "learned_tokens"))
    return {
        "Noise on the points improves accuracy (s = 0.08 against s = 0)": of.compare(ours, s_0),
        "Without it accuracy is still decent (taken as: at most 10 points less)": of.compare(
            s_0, ours, least=-10
        ),
        "Too large a scale is harmful (s = 0.08 against 0.12)": of.compare(
            ours, of.clean("s_0.12")
        ),
        "The timestep matters (Δ = 100 against 1000, no timestep)": of.compare(
            ours, of.clean("delta_1000")
        ),
        "Merging timesteps helps (Δ = 100 against 1)": of.compare(ours, of.clean("delta_1")),
        "PointDAE makes the model more robust (PGD; s = 0 has no noise at test time either)": (
            of.compare(robust, robust_s_0)
        ),
        "Feature denoising makes it more robust (PGD)": of.compare(
            robust, robust_tokens, about_noise=True
        ),
        "PointDAE matters more than feature denoising, for accuracy": of.compare(
            tokens, s_0, about_noise=True
        ),
        "and for robustness (PGD)": of.compare(robust_tokens, robust_s_0, about_noise=True),
    }


def about_inference(of: Evidence) -> dict[str, Found]:
    """Claims about noise paths and the timestep at test time, of one model."""
    robust = of.measured("table5", **HEADLINE)
    return {
        "At t = 0 more paths help much (S = 16 against 1)": of.one_seed(
            of.at(16, 0), of.at(1, 0), about_noise=True
        ),
        "Noise at test time improves accuracy (t = 500 against 0, S = 8)": of.one_seed(
            of.at(8, 500), of.at(8, 0)
        ),
        "and robustness (PGD-10, t = 500 against 0, S = 8)": of.one_seed(
            robust, of.measured("table5", **PLAIN)
        ),
        "More paths improve robustness (PGD-10, t = 500, S = 8 against 1; in its Table 5 they "
        "do not)": of.one_seed(robust, of.measured("table5", num_noise=1, timestep=500)),
    }


def our_checks(of: Evidence) -> dict[str, Found]:
    """What the paper does not say, but a reader of its attacks asks."""
    ours = of.under("ours")
    return {
        "50 steps of PGD leave no less than 10 (as in its Tables 2 and 5)": of.one_seed(
            of.measured("fig8", attack="PGD-50", steps=50),
            of.measured("fig8", attack="PGD-50", steps=10),
            least=-1,
        ),
        "An attack that knows of the noise (APGD, M = 4) leaves as much as PGD (taken as: at "
        "most 2 points less)": of.one_seed(of.under("ours", "APGD"), ours, least=-2),
        "Training with noise is more robust (PGD) than noise at test time alone": of.compare(
            ours, of.under("s_0", "PGD, noise")
        ),
        "and than masked training with noise at test time alone": of.compare(
            ours, of.under("mask", "PGD, noise")
        ),
    }


def feature_noise(rows: Sequence[Row]) -> tuple[str, tuple[str, ...]]:
    """What ε₂ decides of ours, to be said beside every claim about it, and the runs it is from."""
    mine = [row for row in rows if row["model"] == "ours" and row["feature_noise"]]
    found = {row["job"]: row["feature_noise"] for row in mine}
    if not found:
        return "", ()
    variance, agree = (
        Cell(tuple(100 * of[key] for of in found.values())).here
        for key in ("output_share", "agreement")
    )
    words = f". ε₂ decides {variance}% of ours' variance at t = 0; two draws agree on {agree}%"
    return words, tuple(found)
