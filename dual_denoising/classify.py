"""Files in, ranked names out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate
from tqdm import tqdm

from dual_denoising import plots
from dual_denoising.data.clouds import draw_points, normalise, y_up
from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.sources import read_names
from dual_denoising.errors import InputError
from dual_denoising.report import write_text
from dual_denoising.teacher import TextBank
from dual_denoising.zeroshot import ZeroShotClassifier

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
    """Names with commas between them, or the lines of a file."""
    if Path(labels).is_file():
        return read_names(labels)
    names = [name.strip() for name in labels.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise InputError(f"--labels is '{labels}': give different names, \"chair,table,lamp\"")
    return names


def text_features(teacher: str, args):
    """Where the names' features come from: the command line's choice, the model's own teacher."""
    if args.open_clip:
        from dual_denoising.clip import OpenClipText  # slow to import, and rarely needed

        model, _, pretrained = teacher.partition("/")
        return OpenClipText(model, pretrained, args.weights, args.prompts or "recon60")
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
    for path in tqdm(files, "classifying", unit="file"):
        try:
            points = prepare(path, num_points, up, classifier.seed)
        except (InputError, OSError) as error:
            failed[str(path)] = str(error)
            continue
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
    rows = []
    for result in results:
        ranked = list(result["probabilities"].items())[:top]
        row = {"file": Path(result["file"]).name}
        row |= {f"{i}.": f"{n} {100 * p:.1f}%" for i, (n, p) in enumerate(ranked, 1)}
        rows.append(row)
    text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    text += "".join(f"\n\nskipped: {reason}" for reason in failed.values())
    write_text(folder / "classify.md", text + "\n")
    table = pd.DataFrame([{"file": r["file"]} | r["probabilities"] for r in results])
    write_text(folder / "classify.csv", table.to_csv(index=False))
    print(f"\n{text}\n\n{len(results)} classified, {len(failed)} skipped; written to {folder}")
