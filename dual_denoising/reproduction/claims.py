"""The paper's claims, each with a verdict that is computed from the numbers of a study."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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


def claims(rows: Sequence[Row], cost: Callable[[int], float]) -> list[Claim]:
    """All claims of the paper. cost: how many times the FLOPs of one path S take at t = 0.

    Those that could not be tested come last.
    """

    noise = feature_noise(rows)

    def compare(
        first: Cell, second: Cell, *, about_noise: bool = False, **how
    ) -> tuple[str, str, tuple[str, ...]]:
        found, numbers = verdict(first, second, **how)
        words, more = noise if about_noise else ("", ())
        jobs = () if found == UNTESTED else tuple(dict.fromkeys(first.jobs + second.jobs + more))
        return found, f"{numbers}{words}", jobs

    one_seed = partial(compare, trained=False)  # of one model, or against a published one
    grid = dict.fromkeys(row["dataset"] for row in rows if row["measure"] == "grid")
    main = "modelnet40" if "modelnet40" in grid else next(iter(grid), "")

    def measured(*measures: str, **match) -> Cell:
        return cell([row for row in rows if row["measure"] in measures], **match)

    def at(paths: int, t: int) -> Cell:
        return measured("grid", num_noise=paths, timestep=t, dataset=main)

    def more_accurate(name: str) -> tuple[str, str, tuple[str, ...]]:
        for dataset in COLUMNS:
            own = measured("grid", "systems", system=OURS, dataset=dataset, **HEADLINE)
            other = measured("systems", system=name, dataset=dataset)
            if own.values and other.values:
                return one_seed(own, other)
        return UNTESTED, "no run of it", ()

    models = ("ours", "mask", "s_0", "learned_tokens", "s_0.12", "delta_1", "delta_1000")
    ours, mask, s_0, tokens, s_012, delta_1, no_time = (
        clean(rows, model, **HEADLINE) for model in models
    )
    pgd_ours, pgd_mask, pgd_s_0, pgd_tokens = (under(rows, m, "PGD") for m in models[:4])
    ratio = cost(16)
    attack: dict[str, Any] = {"attack": "PGD", "eps": 0.025}
    cheap = HOLDS if ratio <= 1.5 else FAILS, f"{ratio:.2f} times the FLOPs of S = 1", ours.jobs
    found = {
        "4.2": {
            f"More accurate than {name} (first data set of Table 1 that has both)": more_accurate(
                name
            )
            for name in ("PointCLIP V2", "CLIP2Point", "ULIP", "ReCon")
        },
        "1": {
            "Denoising generalises better than masked reconstruction": compare(ours, mask),
            "and is more robust than it (PGD)": compare(pgd_ours, pgd_mask),
            "Masked reconstruction is close to reconstructing all clean tokens (taken as: within 3 "
            "points)": compare(mask, s_0, within=3),
        },
        "4.4": {
            "Noise on the points improves accuracy (s = 0.08 against s = 0)": compare(ours, s_0),
            "Without it accuracy is still decent (taken as: at most 10 points less)": compare(
                s_0, ours, least=-10
            ),
            "Too large a scale is harmful (s = 0.08 against 0.12)": compare(ours, s_012),
            "The timestep matters (Δ = 100 against 1000, no timestep)": compare(ours, no_time),
            "Merging timesteps helps (Δ = 100 against 1)": compare(ours, delta_1),
            "PointDAE makes the model more robust (PGD; s = 0 has no noise at test time either)": (
                compare(pgd_ours, pgd_s_0)
            ),
            "Feature denoising makes it more robust (PGD)": compare(
                pgd_ours, pgd_tokens, about_noise=True
            ),
            "PointDAE matters more than feature denoising, for accuracy": compare(
                tokens, s_0, about_noise=True
            ),
            "and for robustness (PGD)": compare(pgd_tokens, pgd_s_0, about_noise=True),
            "At t = 0 more paths help much (S = 16 against 1)": one_seed(
                at(16, 0), at(1, 0), about_noise=True
            ),
            "Noise at test time improves accuracy (t = 500 against 0, S = 8)": one_seed(
                at(8, 500), at(8, 0)
            ),
            "and robustness (PGD-10, t = 500 against 0, S = 8)": one_seed(
                measured("table5", **HEADLINE), measured("table5", **PLAIN)
            ),
            "More paths improve robustness (PGD-10, t = 500, S = 8 against 1; in its Table 5 they "
            "do not)": one_seed(
                measured("table5", **HEADLINE), measured("table5", num_noise=1, timestep=500)
            ),
            "More paths at t = 0 cost little (taken as: S = 16 at most 1.5 times S = 1)": cheap,
        },
        "4.3": {
            f"More robust than {name} (PGD, ε = 0.025)": one_seed(
                measured("table2", system=OURS, **HEADLINE, **attack),
                measured("table2", "systems_attacked", system=name, **attack),
            )
            for name in ("ReCon", "ULIP", "ULIP-2", "Uni3D")
        },
        "our check": {
            "50 steps of PGD leave no less than 10 (as in its Tables 2 and 5)": one_seed(
                measured("fig8", attack="PGD-50", steps=50),
                measured("fig8", attack="PGD-50", steps=10),
                least=-1,
            ),
            "An attack that knows of the noise (APGD, M = 4) leaves as much as PGD (taken as: at "
            "most 2 points less)": one_seed(under(rows, "ours", "APGD"), pgd_ours, least=-2),
            "Training with noise is more robust (PGD) than noise at test time alone": compare(
                pgd_ours, under(rows, "s_0", "PGD, noise")
            ),
            "and than masked training with noise at test time alone": compare(
                pgd_ours, under(rows, "mask", "PGD, noise")
            ),
        },
    }
    made = [
        Claim(section, words, *of) for section, mine in found.items() for words, of in mine.items()
    ]
    return sorted(made, key=lambda claim: claim.verdict == UNTESTED)


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
