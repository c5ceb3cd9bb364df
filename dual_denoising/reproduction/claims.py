"""The paper's claims, each with a verdict that is computed from the numbers of a study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from dual_denoising.reports.cells import Cell, Row, cell, report, signed
from dual_denoising.reports.paper import paper_results

HOLDS, FAILS, OPEN, UNTESTED = "holds here", "does not hold here", "undecided", "not tested"


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
    first: Cell, second: Cell, least: float = 0.0, within: float | None = None, seeds: int = 2
) -> tuple[str, str]:
    """Whether first − second exceeds ``least`` points, and the numbers in words.

    within: test |first − second| < within instead. seeds: of training that both must have, else
    the claim is undecided; only these are compared.
    """
    both = [seed for seed in first.seeds if seed in second.seeds]
    if not both:
        return UNTESTED, "no run of it"
    first, second = (
        replace(one, values=tuple(one.values[one.seeds.index(seed)] for seed in both))
        for one in (first, second)
    )
    gap, half = difference(first, second)
    if within is None:
        found = HOLDS if gap - half > least else FAILS if gap + half < least else OPEN
    else:
        near, far = abs(gap) + half < within, abs(gap) - half > within
        found = HOLDS if near else FAILS if far else OPEN
    return found if len(both) >= seeds else OPEN, (
        f"{first.here} against {second.here}: {signed(gap)} ± {half:.1f} points "
        f"(95%; {len(both)} training seed{'s' * (len(both) > 1)}, n = {min(first.n, second.n)})"
    )


def claims(rows: Sequence[Row], cost: Callable[[int], float]) -> list[dict]:
    """All claims of data/report.yaml: section, words, verdict, numbers, and the runs (jobs).

    cost: how many times the FLOPs of one path S take at t = 0. Those that could not be tested come
    last.
    """
    found, (about_noise, of_noise) = [], feature_noise(rows)
    for section, entries in report()["claims"].items():
        for claim in entries:
            first, second = _pair(rows, claim["first"], claim.get("second", claim["first"]))
            jobs = first.jobs + second.jobs
            if "paths" in claim:
                ratio = cost(claim["paths"])
                answer = HOLDS if ratio <= claim["most"] else FAILS
                numbers = f"{ratio:.2f} times the FLOPs of S = 1"
            else:
                answer, numbers = verdict(first, second, **claim.get("rule", {}))
            if claim.get("noise"):
                numbers, jobs = numbers + about_noise, jobs + of_noise
            jobs = () if answer == UNTESTED else tuple(dict.fromkeys(jobs))
            said = {"section": section, "words": claim["words"], "verdict": answer}
            found.append(said | {"numbers": numbers, "jobs": jobs})
    return sorted(found, key=lambda claim: claim["verdict"] == UNTESTED)


def _pair(rows: Sequence[Row], first: Mapping, second: Mapping) -> tuple[Cell, Cell]:
    """Both sides of a claim on the first dataset, in the order of Table 1, that both have."""
    known = paper_results()["our_names"]["table1_zero_shot"]
    for dataset in dict.fromkeys([*known, *(row["dataset"] for row in rows)]):
        pair = cell(rows, dataset=dataset, **first), cell(rows, dataset=dataset, **second)
        if all(one.values for one in pair):
            return pair
    return Cell(), Cell()


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
