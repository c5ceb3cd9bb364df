"""Files in, ranked names out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate
from tqdm import tqdm

from dual_denoising.clip.features import TextBank
from dual_denoising.data.clouds import draw_points, normalise, y_up
from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.sources import read_names
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.reports import pictures as plots
from dual_denoising.reports.tables import write_text

SHEET = 120  # files that the contact sheet shows


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and all of a known format below the folders named, sorted."""
    files = []
    for path in paths:
        if path.is_dir():
            below = [p for p in path.rglob("*") if p.suffix.lower() in READERS and p.is_file()]
            if not below:
                raise InputError(f"{path}: holds no file of {' '.join(READERS)}")
            files += sorted(below)
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def read_labels(labels: str) -> list[str]:
    """Names with commas between them, or the lines of a file (or its one line of such names)."""
    names = labels.split(",")
    if os.path.isfile(labels):
        names = read_names(labels)
        names = names[0].split(",") if len(names) == 1 else names
    elif len(names) == 1 and ("/" in labels or Path(labels[-255:]).suffix):
        raise InputError(f"--labels is '{labels}': no such file")
    names = [name.strip() for name in names if name.strip()]
    if not names or len({name.replace("_", " ").lower() for name in names}) < len(names):
        raise InputError(f"--labels is '{labels}': give different names, \"chair,table,lamp\"")
    return names


def text_features(teacher: str, args):
    """Where the names' features come from: the command line's choice, the model's own teacher."""
    if args.open_clip:
        from dual_denoising.clip.towers import OpenClipText  # slow to import, and rarely needed

        model, _, pretrained = teacher.partition("/")
        return OpenClipText(model, pretrained, args.weights, args.prompts or "recon60")
    if args.weights:
        raise InputError("--weights are CLIP's: they need --open-clip")
    root = Path(os.environ.get("DUAL_DENOISING_DATA", "data"))
    bank = args.text or root / "clip_text" / "clip_vitb32_openai_text.h5"
    return TextBank(str(bank), args.prompts)


def prepare(path: Path, num_points: int, up: str, seed: int) -> np.ndarray:
    """A file as the model sees it: (num_points, 3) float32, y-up, unit sphere.

    Points of a cloud are drawn without repetition; a smaller cloud's are repeated.
    """
    points = read_cloud(path, num_points, seed)
    drawn = draw_points(points, num_points, np.random.default_rng(seed))
    return normalise(y_up(drawn, up)).astype(np.float32)


def classify(
    classifier: ZeroShotClassifier,
    files: Sequence[Path],
    labels: Sequence[str],
    num_points: int,
    up: str,
    device: torch.device,
    pictures: Path,
    top: int,
) -> tuple[list[dict], dict[str, str]]:
    """Results of every file, best name first, and the reasons of those that could not be read.

    A result: file, probabilities {name: share}, picture. Noise is keyed by the seed alone, so that
    a file's answer does not depend on the others.
    """
    results, failed, sheet = [], {}, []
    shutil.rmtree(pictures, ignore_errors=True)  # of an earlier run of this name
    for path in tqdm(files, "classifying", unit="file"):
        try:
            points = prepare(path, num_points, up, classifier.seed)
        except (InputError, OSError) as error:
            failed[str(path)] = str(error)
            continue
        except KeyboardInterrupt:
            failed["interrupted"] = f"interrupted at {path}; it and those after it are missing"
            break
        logits = classifier(torch.from_numpy(points)[None].to(device))[0]
        shares = logits.softmax(-1).tolist()
        ranked = sorted(zip(labels, shares, strict=True), key=lambda pair: -pair[1])
        picture = pictures / f"{len(results):04d}_{path.stem[:80]}.png"
        lines = [f"{name} {100 * share:.0f}%" for name, share in ranked[: min(top, 3)]]
        plots.cloud_grid([[points]], picture, columns=["\n".join([path.name, *lines])], size=2.4)
        sheet.append((points, f"{path.stem[:24]}\n{lines[0]}"))
        results.append({"file": str(path), "probabilities": dict(ranked), "picture": str(picture)})
    if sheet:
        plots.contact_sheet(sheet[:SHEET], pictures / "contact_sheet.png")
    return results, failed


def write(folder: Path, results: Sequence[dict], failed: dict[str, str], top: int) -> None:
    """Prints the ranked names and writes them to classify.md and classify.csv."""
    parents = {str(Path(result["file"]).parent) for result in results}
    mixed = len({Path(parent).is_absolute() for parent in parents}) != 1
    common = "" if mixed else os.path.commonpath(parents)
    rows = []
    for result in results:
        ranked = list(result["probabilities"].items())[:top]
        row = {"file": os.path.relpath(result["file"], common) if common else result["file"]}
        row |= {f"{i}.": f"{n} {100 * p:.1f}%" for i, (n, p) in enumerate(ranked, 1)}
        rows.append(row)
    text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    text += "".join(f"\n\nskipped: {reason}" for reason in failed.values())
    write_text(folder / "classify.md", text + "\n")
    table = pd.DataFrame([{"file": r["file"]} | r["probabilities"] for r in results])
    write_text(folder / "classify.csv", table.to_csv(index=False))
    print(f"\n{text}\n\n{len(results)} classified, {len(failed)} skipped; written to {folder}")
