"""The paper's claims, each with a verdict that is computed from the numbers of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from dual_denoising.evaluation.metrics import mean_sd
from dual_denoising.reproduction.tables import (
    HEADLINE,
    PLAIN,
    Cell,
    Row,
    cell,
    clean,
    signed,
    under,
)

HOLDS, FAILS, OPEN, UNTESTED = "holds here", "does not hold here", "undecided", "not tested"


@dataclass
class Claim:
    """What the paper says, the verdict, and the numbers that it is computed from."""

    section: str
    words: str
    verdict: str
    numbers: str
    jobs: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return asdict(self)


def difference(first: Cell, second: Cell) -> tuple[float, float]:
    """Mean of first − second over training seeds, and half its 95% interval, in points.

    The interval adds what training seeds (Student's t of their differences) and the sampling of
    clouds (binomial, as of two samples, which is wider than that of one) contribute.
    """
    pairs = np.array(list(zip(first.values, second.values, strict=False)))
    gaps, seeds = pairs[:, 0] - pairs[:, 1], len(pairs)
    of_clouds = 0.0
    for share, n in zip(pairs.mean(0) / 100, (first.n, second.n), strict=True):
        middle = (share * n + 2) / (n + 4)  # Agresti and Coull: 0 of n is not certain either
        of_clouds += middle * (1 - middle) / (n + 4)
    half = (1.96 * 100) ** 2 * of_clouds
    if seeds > 1:
        half += (stats.t.ppf(0.975, seeds - 1) * gaps.std(ddof=1)) ** 2 / seeds
    return float(gaps.mean()), float(np.sqrt(half))


def verdict(first: Cell, second: Cell, least: float = 0.0) -> tuple[str, str]:
    """Whether first − second exceeds ``least`` points, and the numbers in words."""
    if not first.values or not second.values:
        return UNTESTED, "no run of it"
    gap, half = difference(first, second)
    found = HOLDS if gap - half > least else FAILS if gap + half < least else OPEN
    pairs = min(len(first.values), len(second.values))
    words = (
        f"{first.here} against {second.here}: {signed(gap)} ± {half:.1f} points "
        f"(95%; {pairs} training seed{'s' * (pairs > 1)}, n = {min(first.n, second.n)})"
    )
    return found, words


def claims(rows: Sequence[Row], cost: Callable[[int], float]) -> list[Claim]:
    """All claims of the paper. cost: FLOPs of S paths at t = 0, in those of one."""
    ours = clean(rows, "ours", **HEADLINE)
    grid = [row for row in rows if row["measure"] == "grid"]
    share = feature_noise(rows)

    def at(paths: int, t: int) -> Cell:
        return cell(grid, num_noise=paths, timestep=t)

    def pgd(model: str) -> Cell:
        return under(rows, model, "PGD")

    def clean_at(model: str) -> Cell:
        return clean(rows, model, **HEADLINE)

    def compare(section: str, words: str, first: Cell, second: Cell, least=0.0, note="") -> Claim:
        found, numbers = verdict(first, second, least)
        jobs = () if found == UNTESTED else tuple(dict.fromkeys(first.jobs + second.jobs))
        return Claim(section, words, found, f"{numbers}{note}", jobs)

    table5 = [row for row in rows if row["measure"] == "table5"]
    fig8 = [row for row in rows if (row["measure"], row.get("attack")) == ("fig8", "PGD-50")]
    table2 = [row for row in rows if row["measure"] == "table2"]
    at_2: dict[str, Any] = HEADLINE | {"attack": "PGD", "eps": 0.025}
    ratio = cost(16)
    return [
        compare("1", "Denoising generalises better than masked reconstruction",
                ours, clean_at("mask")),
        compare("1", "and is more robust than it (PGD)", pgd("ours"), pgd("mask")),
        compare("4.4", "Noise on the points improves accuracy (s = 0.08 against s = 0)",
                ours, clean_at("s_0")),
        compare("4.4", "Without it accuracy is still decent (taken as: at most 10 points less)",
                clean_at("s_0"), ours, least=-10),
        compare("4.4", "Too large a scale is harmful (s = 0.08 against 0.12)",
                ours, clean_at("s_0.12")),
        compare("4.4", "The timestep matters (Δ = 100 against 1000, no timestep)",
                ours, clean_at("delta_1000")),
        compare("4.4", "Merging timesteps helps (Δ = 100 against 1)", ours, clean_at("delta_1")),
        compare("4.4", "PointDAE makes the model more robust (PGD)", pgd("ours"), pgd("s_0")),
        compare("4.4", "Feature denoising makes it more robust (PGD)",
                pgd("ours"), pgd("learned_tokens"), note=share),
        compare("4.4", "PointDAE matters more than feature denoising, for accuracy",
                clean_at("learned_tokens"), clean_at("s_0"), note=share),
        compare("4.4", "and for robustness (PGD)", pgd("learned_tokens"), pgd("s_0"), note=share),
        compare("4.4", "At t = 0 more paths help much (S = 16 against 1)",
                at(16, 0), at(1, 0), note=share),
        compare("4.4", "Noise at test time improves accuracy (t = 500 against 0, S = 8)",
                at(8, 500), at(8, 0)),
        compare("4.4", "and robustness (PGD-10, t = 500 against 0, S = 8)",
                cell(table5, **HEADLINE), cell(table5, **PLAIN)),
        Claim("4.4", "More paths at t = 0 cost little (taken as: S = 16 at most 1.5 times S = 1)",
              HOLDS if ratio <= 1.5 else FAILS, f"{ratio:.2f} times the FLOPs of S = 1"),
        *(compare("4.3", f"More robust than {name} (PGD, ε = 0.025)",
                  cell(table2, **at_2, system="Dual Denoising"),
                  cell(table2, attack="PGD", eps=0.025, system=name))
          for name in ("ReCon", "ULIP", "ULIP-2", "Uni3D")),
        compare("Table 5, Fig. 8", "50 steps of PGD leave no less than 10 (as in its tables)",
                cell(fig8, steps=50), cell(fig8, steps=10), least=-1),
        compare("not the paper's", "An attack that knows of the noise (APGD, M = 4) leaves as much "
                "as PGD (taken as: at most 2 points less)", under(rows, "ours", "APGD"),
                pgd("ours"), least=-2),
    ]  # fmt: skip


def feature_noise(rows: Sequence[Row]) -> str:
    """What ε₂ decides of ours, to be said beside every claim about it."""
    found = {row["seed"]: row["feature_noise"] for row in rows if row["model"] == "ours"
             and row["feature_noise"]}  # fmt: skip
    if not found:
        return ""
    variance, agree = (
        "{:.1f} ± {:.1f}%".format(*(100 * x for x in mean_sd([of[key] for of in found.values()])))
        for key in ("output_share", "agreement")
    )
    return f". ε₂ decides {variance} of ours' variance at t = 0; two draws agree on {agree}"
