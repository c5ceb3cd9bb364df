"""Files in, ranked names out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dual_denoising.clip.features import Text, TextBank
from dual_denoising.clip.towers import OpenClipText
from dual_denoising.data import ASSETS
from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.points import draw_points, normalise, y_up
from dual_denoising.data.sources import read_names
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier


@dataclass
class Named:
    """A classified file: its points as the model saw them, and {name: share}, best first."""

    file: str
    points: np.ndarray
    probabilities: dict[str, float]


@dataclass
class Outcome:
    """Classified files, and {file: reason} of those that could not be read."""

    named: list[Named] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and all of a known format below the folders named, sorted."""
    files = []
    for path in paths:
        if path.is_dir():
            below = [p for p in path.rglob("*") if p.suffix.lower() in READERS and p.is_file()]
            if not below:
                raise InputError(f"{path}: holds no file of {' '.join(READERS)}")
            files += sorted(below)
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
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


def text_of(
    teacher: str, bank: str | None, open_clip: bool, weights: str | None, prompts: str | None
) -> Text:
    """Where the names' features come from: open_clip's form of the teacher, or a bank's file.

    The micro-CLIP of the repository encodes names itself.
    """
    if open_clip:
        model, _, pretrained = teacher.partition("/")
        return OpenClipText(model, pretrained, weights, prompts or "recon60")
    if weights:
        raise InputError("--weights are CLIP's: they need --open-clip")
    if bank is None and teacher.startswith("micro_clip/"):
        return OpenClipText(f"local-dir:{ASSETS / 'micro_clip'}", prompts=prompts or "micro")
    root = Path(os.environ.get("DUAL_DENOISING_DATA", "data"))
    return TextBank(bank or str(root / "clip_text" / "clip_vitb32_openai_text.h5"), prompts)


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
) -> Outcome:
    """Names every file. Interrupted, it gives what it has.

    Noise is keyed by the seed alone, so that a file's answer does not depend on the others.
    """
    outcome = Outcome()
    for path in tqdm(files, "classifying", unit="file"):
        try:
            points = prepare(path, num_points, up, classifier.seed)
            with torch.inference_mode():
                logits = classifier(torch.from_numpy(points)[None].to(device))[0]
        except (InputError, OSError) as error:
            outcome.failed[str(path)] = str(error)
            continue
        except KeyboardInterrupt:
            reason = f"interrupted at {path}; it and those after it are missing"
            outcome.failed["interrupted"] = reason
            break
        shares = zip(labels, logits.softmax(-1).tolist(), strict=True)
        ranked = sorted(shares, key=lambda pair: -pair[1])
        outcome.named.append(Named(str(path), points, dict(ranked)))
    return outcome
