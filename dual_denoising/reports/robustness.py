"""Robust accuracies: a table per track, curves, S × t, verdicts, pictures of examples."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_denoising.attacks import score as scoring
from dual_denoising.data.storage import write_text
from dual_denoising.evaluation.result import Result
from dual_denoising.evaluation.robustness import Attacker
from dual_denoising.reports import pictures
from dual_denoising.reports.beside_paper import grid_tables
from dual_denoising.reports.paper import paper_number
from dual_denoising.reports.tables import csv, interval, markdown, percent, save
from dual_denoising.reports.verdicts import verdicts

BALLS = {"linf": "L∞ ball", "l2": "L2 ball", "rms": "L2 ball over √(3N)", "none": "no ball"}


def print_plan(rows: Sequence[dict]) -> None:
    """Prints what will run and about how long it takes."""
    total = sum(row["minutes"] for row in rows)
    shown = [row | {"minutes": f"{row['minutes']:.1f}"} for row in rows]
    long = f"{total:.0f} minutes" if total >= 2 else f"{60 * total:.0f} seconds"
    print(f"\n{markdown(shown)}\n\nabout {long}, from one gradient of each (S, t)\n")


def write_attacks(folder: Path, results: Sequence[Result], show: bool = True) -> None:
    """Writes attack.md, and of each track a CSV and curves; prints the tables if ``show``."""
    parts = []
    for track in ("paper", "adaptive"):
        mine = [r for r in results if r.track == track]
        if not mine:
            continue
        ends = [r for r in mine if r.last]
        parts += [f"{track} track", _table(ends), *_grids(folder, ends)]
        rows = [r.record() | {"paper": paper_number(r)} for r in mine]
        write_text(folder / f"attack_{track}.csv", csv(rows))
        for along, words, chosen in (("steps", "steps", mine), ("eps", "ε", ends)):
            picture, look = folder / "pictures" / f"{along}_{track}.png", {"marker": "o"}
            lines, ylabel = _curves(chosen, along), "robust accuracy (%)"
            pictures.curves(lines, picture, words, ylabel, markersize=3, capsize=2, **look)
    first = results[0]
    parts.append("; ".join(dict.fromkeys([first.label, first.model, first.note])))
    parts.append(
        f"{first.dataset} {first.split}, n = {first.n}, {len(first.seeds)} fresh noise seeds; "
        "accuracy in percent of all clouds, those that are wrong when clean too"
    )
    failed, missed = (max(getattr(r, key) for r in results) for key in ("failed", "unsuccessful"))
    if failed:
        parts.append(f"failed attacks (gradient or objective not finite): {failed}")
    if missed:
        parts.append(
            f"C&W without any success: at most {missed} clouds; their last iterate is scored"
        )
    checks = verdicts(results)
    if checks:
        parts.append(markdown([{"check": k, "verdict": v} for k, v in checks.items()]))
    save(folder, "attack", "\n\n".join(parts), show)


def _table(results: Sequence[Result]) -> str:
    rows = []
    for r in results:
        row = {
            "attack": r.attack,
            "ball": BALLS[r.norm],
            "ε": "" if r.eps is None else f"{r.eps:g}",
            "steps": r.steps or "",
            "M": r.eot or "",
            "S": r.num_noise,
            "t": r.timestep,
            "clean": percent(r.clean_mean),
            "robust": percent(r.robust_mean, r.robust_sd),
            "95% of clouds": interval(r.robust_interval),
            "L∞, largest": f"{r.linf_max:.4f}",
            "L2": f"{r.l2_mean:.3f}",
            "Chamfer": f"{r.chamfer_mean:.2e}",
            "Hausdorff": f"{r.hausdorff_mean:.4f}",
            "s/cloud": f"{r.seconds_per_cloud:.2f}" if r.seconds_per_cloud else "",
        }
        paper = paper_number(r)
        rows.append(row | {"paper": "" if paper is None else f"{paper:.1f}"})
    full = [key for key in rows[0] if any(row[key] != "" for row in rows)]
    return markdown([{key: row[key] for key in full} for row in rows])


def _grids(folder: Path, results: Sequence[Result]) -> list[str]:
    """Table 5's form, S × t, of every attack at several S and t, and its heat-map."""
    parts: list[str] = []
    grids: dict[tuple, dict] = {}
    for r in results:
        grids.setdefault((r.attack, r.eps), {})[r.setting] = r
    for (attack, eps), cells in grids.items():
        paths, steps = map(set, zip(*cells, strict=True))
        if min(len(paths), len(steps)) < 2 or len(cells) < len(paths) * len(steps):
            continue
        here = {place: 100 * r.robust_mean for place, r in cells.items()}
        numbers = {place: paper_number(r) for place, r in cells.items()}
        published = {place: number for place, number in numbers.items() if number is not None}
        title = f"{results[0].track} track, {attack}" + ("" if eps is None else f", ε = {eps:g}")
        stem = re.sub(r"[^\w.-]+", "_", title.replace("ε = ", "eps"))
        parts.append(f"{title}: robust accuracy, S × t")
        picture = folder / "pictures" / f"grid_{stem}.png"
        parts += grid_tables(here, published, True, picture, title)
    return parts


def _curves(results: Sequence[Result], along: str) -> dict[str, list[tuple]]:
    """{name: [xs, robust accuracies, sds]} where an attack has several values of ``along``."""
    curves: dict[str, list] = {}
    for r in results:
        size = "" if along == "eps" or r.eps is None else f" eps {r.eps:g}"
        name = f"{r.attack}{size}, S={r.num_noise}, t={r.timestep}"
        if getattr(r, along) is not None:
            curves.setdefault(name, []).append((getattr(r, along), r.robust_mean, r.robust_sd))
    return {name: [*zip(*sorted(p), strict=True)] for name, p in curves.items() if len(p) > 1}


def write_scores(folder: Path, path: Path, results: Sequence[Result]) -> None:
    """Writes score.md: the scores of one file at every (S, t)."""
    first, made = results[0], scoring.made_by(Path(path))
    seeds = f"{len(first.seeds)} fresh noise seeds"
    words = f"{path}, n = {first.n}, {seeds}; means over clouds"
    model = f"scored: {first.label}, {first.model}, on {first.dataset} {first.split}"
    if made.get("checkpoint"):
        model += f"; the clouds were made against {made['checkpoint']}"
    save(folder, "score", f"{_table(results)}\n\n{words}\n\n{model}")


def draw_examples(attacker: Attacker, names: Sequence[str], folder: Path, count: int) -> None:
    """Draws clean cloud, adversarial cloud and displacement, clouds that it fooled first."""
    if not count:
        return
    content = scoring.load(attacker.file.path)
    pair = content["clean"], content["adversarial"]
    clean, adversarial = (
        scoring.predictions(attacker.classifier, clouds, content["index"], [0])[0]
        for clouds in pair
    )
    label, names = content["label"].numpy(), [*names, "no answer"]  # −1
    fooled = (clean == label) & (adversarial != label)
    examples: list = []
    for i in np.argsort(-fooled.astype(int), kind="stable")[:count]:
        words = f"{names[label[i]]}\n{names[clean[i]]} → {names[adversarial[i]]}"
        clouds = [each[i].numpy() for each in pair]
        examples.append((*clouds, words, bool(adversarial[i] != label[i])))
    title = f"{attacker.job.title}, {BALLS[attacker.attack.norm]}"
    picture = folder / "pictures" / f"{attacker.job.stem}.png"
    pictures.displacements(examples, picture, title)
