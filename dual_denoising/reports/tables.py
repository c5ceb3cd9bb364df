"""What a run leaves behind for people and programs: summary.json, tables, one-line errors."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from tabulate import tabulate

from dual_denoising.errors import InputError
from dual_denoising.evaluation.metrics import mean_sd
from dual_denoising.reports import pictures as plots


def versions() -> dict[str, str]:
    names = ("dual-denoising", "torch", "timm", "numpy")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads of {platform.machine()}"


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: not written ({error.strerror}); free space") from error


def write_config(folder: Path, settings: Mapping) -> None:
    """Writes a script's whole configuration to config.yaml."""
    write_text(folder / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))


def write_summary(folder: Path, seconds: float, device: torch.device, **fields) -> None:
    """Writes ``summary.json``: command, seconds, device, versions, and the script's own fields."""
    common = {
        "command": " ".join(sys.argv),
        "seconds": round(seconds, 2),
        "device": device_name(device),
        "versions": versions(),
    }
    write_text(folder / "summary.json", json.dumps(common | fields, indent=1))


def accuracy_table(results: Sequence[dict]) -> str:
    """Markdown table of zero-shot results, accuracies in percent as mean ± sd over noise seeds."""
    rows = [
        {
            "data": f"{r['dataset']} {r['split']}",
            "n": r["n"],
            "S": r["num_noise"],
            "t": timestep_words(r),
            "seeds": len(r["seeds"]),
            "top-1": f"{100 * r['top1_mean']:.1f} ± {100 * r['top1_sd']:.1f}",
            "95% of clouds": "{:.1f} to {:.1f}".format(*(100 * x for x in r["top1_interval"])),
            "top-3": f"{100 * r['top3_mean']:.1f}",
            "top-5": f"{100 * r['top5_mean']:.1f}",
            "per class": f"{100 * r['class_mean']:.1f}",
            "ms/cloud": f"{1000 * r['seconds_per_cloud']:.1f}",
            "note": r["note"],
        }
        for r in results
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def timestep_words(result: dict) -> str:
    """The timestep, or those of an ensemble with their weights."""
    if isinstance(result["timestep"], int):
        return str(result["timestep"])
    weights = ":".join(f"{w:g}" for w in result["timestep_weights"])
    return f"{', '.join(map(str, result['timestep']))} ({weights})"


def class_table(result: dict) -> str:
    """Markdown table of one result's accuracy per class and what each is taken for most often."""
    names, rows = result["class_names"], []
    for true, counts in enumerate(result["confusion"]):
        total = max(sum(counts), 1)
        shares = [(100 * n / total, name) for n, name in zip(counts, names, strict=True)]
        shares.sort(reverse=True)
        wrong = [f"{name} {share:.0f}" for share, name in shares if share and name != names[true]]
        hit = f"{100 * counts[true] / total:.1f}"
        rows.append({"class": names[true], "top-1": hit, "taken for (%)": ", ".join(wrong[:2])})
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def write_evaluation(
    folder: Path, results: Sequence[dict], absent: Mapping[str, str] | None = None
) -> None:
    """Writes the accuracies to zeroshot.md, with a confusion matrix per set, and prints them.

    absent: data sets that could not be evaluated, and why.
    """
    if not results and not absent:
        return
    text = accuracy_table(results)
    for name, reason in (absent or {}).items():
        text += f"\n\n{name}: not evaluated: {reason}"
    for (dataset, split), result in by_set(results).items():
        setting = f"S = {result['num_noise']}, t = {timestep_words(result)}"
        title = f"{dataset} {split}, {setting}, n = {result['n']}, {result['note']}"
        text += f"\n\n{title}; class weights: {result['class_weights']}\n\n{class_table(result)}"
        text += f"\n\n{result['warning']}" if result["warning"] else ""
        picture = folder / "pictures" / f"confusion_{dataset}_{split}.png"
        counts = np.array(result["confusion"])
        plots.confusion_picture(counts, result["class_names"], picture, title)
    write_text(folder / "zeroshot.md", text + "\n")
    print(f"\n{text}\n\nwritten to {folder}")


def by_set(results: Sequence[dict]) -> dict[tuple[str, str], dict]:
    """The headline (8, 500) of every data set and split, or the last setting where it has none."""
    chosen: dict[tuple[str, str], dict] = {}
    for result in results:
        key = result["dataset"], result["split"]
        if chosen.get(key, {}).get("headline"):
            continue
        headline = (result["num_noise"], result["timestep"]) == (8, 500)
        chosen[key] = result | {"headline": headline}
    return chosen


def write_predictions(folder: Path, source, results: Sequence[dict], predicted: np.ndarray) -> None:
    """Writes predictions/<set>_<split>.csv: a row per cloud, a column per (S, t, seed).

    results: of one data set, in order; predicted (M, S, R, n) classes, −1 for none.
    """
    names = np.array([*source.class_names, ""])  # −1 is the last
    table = {"index": range(len(source.labels)), "id": source.ids}
    table["label"] = names[source.labels]
    settings = len(predicted)
    for row, result in enumerate(results):
        s, m = divmod(row, settings)
        for seed, guess in zip(result["seeds"], predicted[m, s], strict=True):
            step = timestep_words(result).replace(", ", "+").split(" ")[0]
            table[f"S{result['num_noise']}_t{step}_seed{seed}"] = names[guess]
    stem = f"{source.name}_{source.split}"
    write_text(folder / "predictions" / f"{stem}.csv", pd.DataFrame(table).to_csv(index=False))


def write_ablation(folder: Path, summaries: Mapping[str, Sequence[dict]]) -> None:
    """Prints top-1 of every row at every (S, t), mean ± sd over training seeds; ablation.md."""
    rows = []
    for name, runs in summaries.items():
        row = {"row": name}
        for cell in zip(*(run["evaluation"] for run in runs), strict=True):
            mean, sd = mean_sd([100 * result["top1_mean"] for result in cell])
            row[f"S={cell[0]['num_noise']}, t={cell[0]['timestep']}"] = f"{mean:.1f} ± {sd:.1f}"
        row["minutes"] = f"{mean_sd([run['seconds'] / 60 for run in runs])[0]:.1f}"
        rows.append(row)
    first = next(iter(summaries.values()))
    result = first[0]["evaluation"][0]
    text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    text += (
        f"\n\ntop-1 (%) on {result['dataset']} {result['split']}, n = {result['n']}, "
        f"{result['note']}; {len(first)} training seeds, {first[0]['samples']} samples each"
    )
    write_text(folder / "ablation.md", text + "\n")
    print(f"{text}\n\nwritten to {folder}")


def write_micro_clip(folder: Path, results: Mapping[str, dict]) -> None:
    """Prints accuracies and retrieval of a small CLIP and writes them to micro_clip.md."""
    rows = [
        {
            "views of": name,
            "n": r["n"],
            "names": r["classes"],
            "zero-shot": f"{100 * r['accuracy']:.1f}",
            "95%": "{:.1f} to {:.1f}".format(*(100 * x for x in r["interval"])),
            "meshes": f"{100 * r['meshes']:.1f}",
            "clouds": f"{100 * r['clouds']:.1f}",
            "R@1 image to text": f"{100 * r['image_to_text']:.1f}",
            "R@1 text to image": f"{100 * r['text_to_image']:.1f}",
        }
        for name, r in results.items()
    ]
    text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    write_text(folder / "micro_clip.md", text + "\n")
    print(f"{text}\n\nwritten to {folder}")


def write_benchmark(folder: Path, tables: Mapping[str, Sequence[dict]]) -> None:
    """Prints the rows of each benchmark and writes them to benchmark.md."""
    parts = [
        tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g")
        for rows in tables.values()
    ]
    text = "\n\n".join(parts)
    write_text(folder / "benchmark.md", text + "\n")
    print(f"{text}\n\nwritten to {folder}")
