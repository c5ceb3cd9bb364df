"""Robust accuracies: scores, tables with the paper's numbers beside ours, curves, pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate
from torch import nn

from dual_denoising.attacks import Attack
from dual_denoising.attacks import run as campaign
from dual_denoising.attacks.plan import Job
from dual_denoising.errors import InputError
from dual_denoising.reports import pictures as plots
from dual_denoising.reports import verdicts as sanity
from dual_denoising.reports.paper import (
    OURS,
    comparable,
    draw_grids,
    paper_grid,
    paper_results,
    table2_column,
)
from dual_denoising.reports.tables import write_text

CHOOSING = 10**6  # first fresh noise seed by which the worst of several attacks is chosen


def fresh_seeds(count: int, first: int = 0) -> range:
    """Noise seeds of a scoring; raises InputError for none."""
    if count < 1 or not 0 <= first < CHOOSING - count:
        raise InputError(f"{count} noise seeds from {first}: score over at least 1, better 10")
    return range(first, first + count)


def score_file(
    path: Path,
    classifier: nn.Module,
    seeds: Sequence[int],
    device: torch.device,
    attack: Attack,
    job: Job,
    folder: Path,
) -> list[dict]:
    """Results of an attack's file: of its last clouds, and of every recorded step before.

    Writes per_cloud/<job>.csv.
    """
    loaded = campaign.load(path)
    if attack.norm != "none" and attack.ball_words == attack.norm:
        campaign.check_ball(path, loaded, job.eps, attack.norm)
    content = {key: torch.as_tensor(value) for key, value in loaded.items()}
    stages = [(step, content["recorded"][i]) for i, step in enumerate(job.record)]
    stages = [stage for stage in stages if stage[0] != attack.stages]
    results = []
    for step, adversarial in [*stages, (None, content["adversarial"])]:
        fields, each = campaign.score(
            classifier, content["clean"], adversarial, content["label"], content["index"], seeds,
            device,
        )  # fmt: skip
        share = step / attack.stages if step else 1.0
        blind = attack.kind == "noise"  # it neither aims nor has a loss
        results.append(
            {
                "track": job.track,
                "attack": job.name,
                "kind": "transfer" if job.surrogate else attack.kind,
                "target": "" if blind else attack.target,
                "loss": "" if blind else getattr(attack, "loss_words", attack.loss),
                "norm": attack.ball_words,
                "faithful": _faithful(attack, job),
                "eps": job.eps,
                "steps": step or getattr(attack, "steps", None),
                "last": step is None,
                "eot": attack.draws,
                "num_noise": job.setting[0],
                "timestep": job.setting[1],
                "failed": int(content["failed"].sum()),
                "flat": int(content["flat"].sum()),
                "unsuccessful": int(content["unsuccessful"].sum()),
                "seconds_per_cloud": float(content["seconds"].mean()) * share,
            }
            | fields
        )
    table = {key: content[key] for key in ("index", "label", "failed")}
    _write_per_cloud(folder, job.stem, table | each)
    return results


def _faithful(attack: Attack, job: Job) -> bool:
    """Whether an attack is the paper's in all that ε, steps, (S, t) and data set do not say."""
    like = {"target": "second_best", "draws": 1, "noise": "resampled", "grouping": "redone"}
    if attack.norm == "none":
        like |= {"loss": "clamped_margin", "kappa": 0, "searches": 10, "lr": 0.01, "weight": 10}
        like |= {"bounds": (0.0, 80.0), "abort": None}
    else:
        like |= {"ball_words": "linf", "loss": "ce", "alpha": job.eps / 10, "restarts": 1}
        like |= {"momentum": 0}
    same = all(getattr(attack, key, None) == value for key, value in like.items())
    return same and job.track == "paper" and job.surrogate is None


def _write_per_cloud(folder: Path, stem: str, table: Mapping) -> None:
    table = pd.DataFrame({key: np.asarray(value) for key, value in table.items()})
    write_text(folder / "per_cloud" / f"{stem}.csv", table.to_csv(index=False))


def worst_case(
    done: Sequence[tuple[Job, Path, dict]],
    classifier: nn.Module,
    seeds: Sequence[int],
    device: torch.device,
    folder: Path,
) -> list[dict]:
    """The result of taking, cloud by cloud, the most harmful of several attacks; [] for one.

    done: jobs of one ε and (S, t), their files and results. Which attack is taken is decided on
    noise seeds of its own. Writes adversarial/worst_*.h5 and per_cloud/worst_*.csv.
    """
    job, _, like = done[0]
    if len(done) < 2:
        return []
    contents = [campaign.load(path) for _, path, _ in done]
    clean, label, index = (contents[0][key] for key in ("clean", "label", "index"))
    tensors = torch.as_tensor(clean), torch.as_tensor(index)
    choosing = range(CHOOSING, CHOOSING + len(seeds))
    rights = [
        campaign.predictions(
            classifier, torch.as_tensor(c["adversarial"]), tensors[1], choosing, device
        ) == label
        for c in contents
    ]  # fmt: skip
    chosen = np.mean(rights, axis=1).argmin(0)
    adversarial = np.stack([c["adversarial"] for c in contents])[chosen, np.arange(len(label))]
    fields, each = campaign.score(
        classifier, tensors[0], torch.as_tensor(adversarial), torch.as_tensor(label), tensors[1],
        seeds, device,
    )  # fmt: skip
    names = np.array([other.name for other, *_ in done])
    title = f"worst of {len(done)}"
    stem = replace(job, name=title).stem
    arrays = {"clean": clean, "adversarial": adversarial, "label": label, "index": index}
    campaign.save(folder / "adversarial" / f"{stem}.h5", {}, **arrays)
    _write_per_cloud(folder, stem, {"index": index, "label": label, "attack": names[chosen]} | each)
    own = {
        "track": "adaptive", "attack": title, "kind": "worst", "target": "",
        "loss": "", "faithful": False, "steps": None, "last": True, "eot": None,
        "seconds_per_cloud": sum(result["seconds_per_cloud"] for *_, result in done),
    } | {
        key: max(result[key] for *_, result in done) for key in ("failed", "flat", "unsuccessful")
    }  # fmt: skip
    return [like | own | fields]


def write(folder: Path, results: Sequence[dict]) -> None:
    """Prints a table of robust accuracies per track; writes attack.md, a CSV and curves of each."""
    parts = []
    for track in ("paper", "adaptive"):
        mine = [r for r in results if r["track"] == track and r["last"]]
        if mine:
            parts += [f"{track} track", _table(mine), *_grids(folder, mine)]
    first = results[0]
    who = [first[key] for key in ("label", "weights", "note") if first.get(key)]
    if who:
        parts.append("; ".join(dict.fromkeys(who)))
    parts.append(
        f"{first['dataset']} {first['split']}, n = {first['n']}, {len(first['seeds'])} fresh noise "
        "seeds; accuracy in percent of all clouds, those that are wrong when clean too"
    )
    if any(r["failed"] for r in results):
        parts.append(f"failed attacks (gradient not finite): {max(r['failed'] for r in results)}")
    if any(r["unsuccessful"] for r in results):
        most = max(r["unsuccessful"] for r in results)
        parts.append(
            f"C&W without any success: at most {most} clouds; their last iterate is scored"
        )
    checks = sanity.verdicts(results)
    if checks:
        rows = [{"check": name, "verdict": verdict} for name, verdict in checks.items()]
        parts.append(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    text = "\n\n".join(parts)
    write_text(folder / "attack.md", text + "\n")
    for track in dict.fromkeys(r["track"] for r in results):
        mine = [r for r in results if r["track"] == track]
        table = pd.DataFrame([r | {"paper": paper_number(r)} for r in mine])
        write_text(folder / f"attack_{track}.csv", table.to_csv(index=False))
        for along in ("steps", "eps"):
            picture = folder / "pictures" / f"{along}_{track}.png"
            plots.robustness_curves(_curves(mine, along), along, picture)
    print(f"\n{text}\n\nwritten to {folder}")


def _table(results: Sequence[dict]) -> str:
    rows = []
    for r in results:
        paper, interval = paper_number(r), [100 * x for x in r["robust_interval"]]
        rows.append(
            {
                "attack": r["attack"],
                "ball": {"linf": "L∞", "l2": "L2", "none": "-"}.get(r["norm"], r["norm"]),
                "ε": "" if r["eps"] is None else f"{r['eps']:g}",
                "steps": r["steps"] or "",
                "M": r["eot"] or "",
                "S": r["num_noise"],
                "t": r["timestep"],
                "clean": f"{100 * r['clean_mean']:.1f}",
                "robust": f"{100 * r['robust_mean']:.1f} ± {100 * r['robust_sd']:.1f}",
                "95% of clouds": "{:.1f} to {:.1f}".format(*interval),
                "L∞": f"{r['linf_max']:.3f}",
                "L2": f"{r['l2_mean']:.3f}",
                "s/cloud": f"{r['seconds_per_cloud']:.2f}",
                "paper": "" if paper is None else f"{paper:.1f}",
            }
        )
    if not any(row["paper"] for row in rows):
        rows = [{k: v for k, v in row.items() if k != "paper"} for row in rows]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _grids(folder: Path, results: Sequence[dict]) -> list[str]:
    """Table 5's form, S × t, of every attack at several S and t, and its heat-map."""
    parts = []
    for key in dict.fromkeys((r["track"], r["attack"], r["eps"]) for r in results):
        mine = [r for r in results if (r["track"], r["attack"], r["eps"]) == key]
        cells = {(r["num_noise"], r["timestep"]): r for r in mine}
        paths, steps = ({place[i] for place in cells} for i in (0, 1))
        if min(len(paths), len(steps)) < 2 or len(cells) < len(paths) * len(steps):
            continue
        grids = {"here": {place: 100 * r["robust_mean"] for place, r in cells.items()}}
        paper = {place: paper_number(r) for place, r in cells.items()}
        if paper := {place: number for place, number in paper.items() if number is not None}:
            grids["paper"] = paper
            grids["difference"] = {k: v - paper[k] for k, v in grids["here"].items() if k in paper}
        track, attack, eps = key
        title = f"{track} track, {attack}" + ("" if eps is None else f", ε = {eps:g}")
        stem = re.sub(r"[^\w.-]+", "_", title.replace("ε = ", "eps"))
        picture = folder / "pictures" / f"grid_{stem}.png"
        parts += [f"{title}: robust accuracy, S × t", *draw_grids(picture, grids, title)]
    return parts


def paper_number(result: Mapping) -> float | None:
    """The paper's own robust accuracy (%) of what a result did: Table 2, or Table 5's PGD-10.

    Only where the attack and all its settings, ε, (S, t) and the data set are the paper's.
    """
    if not result["faithful"] or not comparable(result):
        return None
    kind, setting = result["attack"], (result["num_noise"], result["timestep"])
    ours = result.get("system", OURS) == OURS
    if ours and kind == "PGD-10" and (result["steps"], result["eps"]) == (10, 0.01):
        return paper_grid(result["dataset"], " Adversarial").get(setting)
    steps = {"PGD": 50, "IFGM": 50, "C&W": 500}
    if result["dataset"] != "modelnet40" or steps.get(kind) != result["steps"]:
        return None
    table = paper_results()["table2_attacks_modelnet40"]
    columns = [name.replace(" ", "") for name in table["columns"]]
    column = table2_column(result)
    row = table["rows"].get(kind if result["eps"] is None else f"{kind}@{result['eps']:g}")
    return row[columns.index(column)] if row and column in columns else None


def _curves(results: Sequence[dict], along: str) -> dict[str, list[tuple[float, float, float]]]:
    """{name: [(x, robust accuracy, sd)]} where an attack has several values of ``along``."""
    other = "eps" if along == "steps" else "steps"
    curves: dict[str, list] = {}
    for r in results:
        if r[along] is None or (along == "eps" and not r["last"]):
            continue
        mark = "" if r[other] is None else f" {other} {r[other]:g}" * (along == "steps")
        name = f"{r['attack']}{mark}, S={r['num_noise']}, t={r['timestep']}"
        curves.setdefault(name, []).append((r[along], r["robust_mean"], r["robust_sd"]))
    return {name: sorted(points) for name, points in curves.items() if len(points) > 1}


def write_scores(folder: Path, results: Sequence[dict]) -> None:
    """Prints the scores of one file at every (S, t) and writes them to score.md."""
    rows = [
        {
            "S": r["num_noise"],
            "t": r["timestep"],
            "clean": f"{100 * r['clean_mean']:.1f}",
            "robust": f"{100 * r['robust_mean']:.1f} ± {100 * r['robust_sd']:.1f}",
            "95% of clouds": "{:.1f} to {:.1f}".format(*(100 * x for x in r["robust_interval"])),
            "L∞, largest": f"{r['linf_max']:.4f}",
            "L2": f"{r['l2_mean']:.4f}",
            "Chamfer": f"{r['chamfer_mean']:.2e}",
            "Hausdorff": f"{r['hausdorff_mean']:.4f}",
        }
        for r in results
    ]
    first = results[0]
    text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    text += (
        f"\n\n{first['file']}, n = {first['n']}, {len(first['seeds'])} fresh noise seeds, all "
        f"within {first['norm']} {first['eps']:g}; means over clouds but the largest L∞"
    )
    write_text(folder / "score.md", text + "\n")
    print(f"\n{text}\n\nwritten to {folder}")


def draw_examples(
    path: Path, classifier: nn.Module, names: Sequence[str], picture: Path, count: int
) -> None:
    """Draws clean cloud, adversarial cloud and displacement, clouds that it fooled first."""
    if not count:
        return
    content = {key: torch.as_tensor(value) for key, value in campaign.load(path).items()}
    device = next(classifier.parameters()).device
    guesses = [
        campaign.predictions(classifier, content[key], content["index"], [0], device)[0]
        for key in ("clean", "adversarial")
    ]
    label = content["label"].numpy()
    names = [*names, "no answer"]  # −1
    order = np.argsort(-((guesses[0] == label) & (guesses[1] != label)).astype(int), kind="stable")
    examples = [
        (
            content["clean"][i].numpy(),
            content["adversarial"][i].numpy(),
            f"{names[label[i]]}\n{names[guesses[0][i]]} → {names[guesses[1][i]]}",
        )
        for i in order[:count]
    ]
    plots.displacements(examples, picture, picture.stem)
