"""What a run leaves behind for people and programs: summary.json, tables, one-line errors."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from tabulate import tabulate

from dual_denoising import plots
from dual_denoising.errors import InputError
from dual_denoising.metrics import mean_sd


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
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
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
            "t": r["timestep"],
            "seeds": len(r["seeds"]),
            "top-1": f"{100 * r['top1_mean']:.1f} ± {100 * r['top1_sd']:.1f}",
            "top-5": f"{100 * r['top5_mean']:.1f}",
            "ms/cloud": f"{1000 * r['seconds_per_cloud']:.1f}",
            "note": r["note"],
        }
        for r in results
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


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


def write_evaluation(folder: Path, results: Sequence[dict]) -> None:
    """Prints the accuracies and writes them to zeroshot.md, with a confusion matrix per set."""
    if not results:
        return
    text = accuracy_table(results)
    last = {(r["dataset"], r["split"]): r for r in results}
    for (dataset, split), result in last.items():
        setting = f"S = {result['num_noise']}, t = {result['timestep']}"
        title = f"{dataset} {split}, {setting}, n = {result['n']}, {result['note']}"
        text += f"\n\n{title}\n\n{class_table(result)}"
        picture = folder / "pictures" / f"confusion_{dataset}_{split}.png"
        counts = np.array(result["confusion"])
        plots.confusion_picture(counts, result["class_names"], picture, title)
    write_text(folder / "zeroshot.md", text + "\n")
    print(f"\n{text}\n\nwritten to {folder}")


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


def write_benchmark(folder: Path, tables: Mapping[str, Sequence[dict]]) -> None:
    """Prints the rows of each benchmark and writes them to benchmark.md."""
    parts = []
    for rows in tables.values():
        facts = {k: v for k, v in rows[0].items() if k not in rows[-1]}
        shown = [{k: v for k, v in row.items() if k not in facts} for row in rows]
        parts.append(tabulate(shown, headers="keys", tablefmt="github", floatfmt=".3g"))
        parts += [
            f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in facts.items()
        ]
    text = "\n\n".join(parts)
    write_text(folder / "benchmark.md", text + "\n")
    print(f"{text}\n\nwritten to {folder}")


def one_line_errors(job: Callable, *args):
    """Runs a script's job; bad input ends it with one line instead of a traceback."""
    try:
        return job(*args)
    except Exception as error:
        cause = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__  # Hydra wraps what a constructor raises
        if cause is None:
            raise
        line = str(cause).rpartition("InputError: ")[2].strip()  # a loader's worker adds its trace
        print(f"error: {line}", file=sys.stderr)
        sys.exit(cause.status)
