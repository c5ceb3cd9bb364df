"""Files in, ranked names out."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from dual_denoising.clip.features import Text, TextBank
from dual_denoising.clip.towers import OpenClipText
from dual_denoising.data.files import READERS, read_cloud
from dual_denoising.data.points import draw_points, normalise, y_up
from dual_denoising.data.sources import read_names
from dual_denoising.errors import InputError, NoShapeError
from dual_denoising.evaluation.calibration import Calibration
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.systems import System
from dual_denoising.keyed_random import Stream, generator
from dual_denoising.training.record import TrainingRecord

log = logging.getLogger(__name__)

NONE = "none of these"


@dataclass
class Named:
    """A classified file: its points as the model saw them, and {name: probability}, best first.

    answer: the best name, or NONE where ``score``, how sure the model is that the right name is
    among them, is below its calibration's threshold (None: it has no calibration).
    """

    file: str
    points: np.ndarray
    probabilities: dict[str, float]
    answer: str
    score: float | None = None


@dataclass
class Outcome:
    """Classified files; {file: reason} of those that could not be read; what else to know.

    Files of a folder that hold no shape (a licence.txt) are notes, not failures.
    """

    named: list[Named] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict:
        """What summary.json says of it."""
        rows = [{k: v for k, v in vars(n).items() if k != "points"} for n in self.named]
        return {"results": rows, "failed": self.failed, "notes": self.notes}


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and all of a known format below the folders named, sorted."""
    files = []
    for path in paths:
        if path.is_dir():
            there = sorted(p for p in path.rglob("*") if p.is_file())
            below = [p for p in there if p.suffix.lower() in READERS]
            others = [p.name for p in there if p.suffix.lower() not in READERS]
            if not below:
                raise InputError(f"{path}: holds no file of {' '.join(READERS)}")
            if others:
                log.warning("%s: left out %d files, the first is %s", path, len(others), others[0])
            files += below
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    return list(dict.fromkeys(files))


def read_labels(labels: str, text: Text, taught: Sequence[str]) -> list[str]:
    """Names with commas between them, or the lines of a file (or its one line of such names).

    'all': every name of the bank of text features, or those that the model was taught where the
    text features are of any words.
    """
    if labels == "all":
        return list(text.names or taught)
    names = labels.split(",")
    if os.path.isfile(labels):
        names = read_names(labels)
        names = names[0].split(",") if len(names) == 1 else names
    elif len(names) == 1 and ("/" in labels or Path(labels[-255:]).suffix):
        raise InputError(f"--labels is '{labels}': no such file")
    names = [name.strip() for name in names if name.strip()]
    counts = Counter(name.replace("_", " ").lower() for name in names)
    twice = next((word for word, count in counts.items() if count > 1), None)
    if not names or twice:
        why = f"'{twice}' is there twice" if twice else "no name"
        raise InputError(f"--labels is '{labels}': {why}; give different ones, as \"chair,lamp\"")
    return names


def text_of(
    record: TrainingRecord,
    build: Callable,
    bank: str | None,
    open_clip: bool,
    weights: str | None,
    prompts: str | None,
) -> Text:
    """Where the names' features come from: open_clip's form of the teacher, a file, or its own."""
    if open_clip and record.teacher.startswith("micro_clip"):
        raise InputError("--open-clip: the model's own teacher encodes any names; leave it out")
    if open_clip and bank is not None:
        raise InputError(f"--text is '{bank}': with --open-clip CLIP encodes the names; give one")
    if open_clip:
        model, _, pretrained = record.teacher.partition("/")
        return OpenClipText(model, pretrained, weights, prompts or list(record.prompts) or "name")
    if weights:
        raise InputError("--weights are CLIP's: they need --open-clip")
    if bank is not None:
        return TextBank(bank, prompts)
    settings = record.text_settings(os.environ.get("DUAL_DENOISING_DATA", "data"))
    return build(settings | ({"prompts": prompts} if prompts else {}))


def prepare(path: str | Path, num_points: int, up: str, seed: int) -> np.ndarray:
    """A file as the model sees it: (num_points, 3) float32, y-up, unit sphere.

    Points of a cloud are drawn without repetition; a smaller cloud's are repeated.
    """
    return prepare_points(read_cloud(Path(path), num_points, seed), num_points, up, seed)


def prepare_points(points: np.ndarray, num_points: int, up: str, seed: int) -> np.ndarray:
    """Points (N, 3) in any frame and scale as the model sees them, (num_points, 3) float32."""
    drawn = draw_points(points, num_points, generator(Stream.FILE, seed))
    return normalise(y_up(drawn, up)).astype(np.float32)


def classify(
    classifier: ZeroShotClassifier,
    files: Sequence[Path],
    labels: Sequence[str],
    system: System,
    up: str,
    asked: Sequence[Path] = (),
) -> Outcome:
    """Names every file. Interrupted, it gives what it has.

    asked: files that were named one by one, of which each must hold a shape. Noise is keyed by the
    seed alone, so that a file's answer does not depend on the others.
    """
    outcome, num_points = Outcome(), system.training.num_points
    for path in tqdm(files, "classifying", unit="file"):
        try:
            stored = read_cloud(path, num_points, classifier.seed)
            points = prepare_points(stored, num_points, up, classifier.seed)
            with torch.inference_mode():
                logits = classifier(torch.from_numpy(points)[None].to(classifier.device))[0].cpu()
        except (InputError, OSError) as error:
            if isinstance(error, NoShapeError) and path not in asked:
                outcome.notes.append(f"left out: {error}")
            else:
                outcome.failed[str(path)] = str(error)
            continue
        except KeyboardInterrupt:
            reason = f"interrupted at {path}; it and those after it are missing"
            outcome.failed["interrupted"] = reason
            break
        places: Any = classifier.model.num_groups
        if len(stored) < places:
            outcome.notes.append(
                f"{path}: {len(stored)} points, repeated; the model looks at {places} places of a "
                "shape, so take this with care"
            )
        answer = decide(logits, labels, system.calibration)
        outcome.named.append(Named(str(path), points, *answer))
    if len(labels) == 1:
        outcome.notes.append("one name was offered: its probability is 100% of any shape")
    outcome.notes += doubts(outcome.named, labels, system, up)
    return outcome


def doubts(named: Sequence[Named], labels: Sequence[str], system: System, up: str) -> list[str]:
    """What to know before one believes the answers."""
    notes, calibration = [], system.calibration
    if calibration is None:
        notes.append("this model has no calibration: shares of a softmax, never 'none of these'")
    else:
        words = calibration.score.replace("_", " ")
        notes.append(f"{NONE}: the score ({words}) is below {calibration.threshold:.2f}")
    none = sum(n.answer == NONE for n in named)
    if none > len(named) / 2 and len(named) > 1:
        notes.append(
            f"{none} of {len(named)} are {NONE}: are their names among those offered, do the files "
            f"point up along {up} (--up), and face as the model's card says? primitives_clip_yaw "
            "was trained at any heading"
        )
    other = "z" if up == "y" else "y"
    picture = "pictures/contact_sheet.png"
    notes.append(f"read {up}-up: if shapes in {picture} lie that should stand, try --up {other}")
    strange = [name for name, known in zip(labels, system.taught(labels), strict=True) if not known]
    if strange:
        more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
        notes.append(f"never taught, so trust them less: {', '.join(strange[:8])}{more}")
    return notes


def decide(
    logits: Float[Tensor, " c"], labels: Sequence[str], calibration: Calibration | None
) -> tuple[dict[str, float], str, float | None]:
    """{name: probability} of a cloud, likeliest first, its answer, and the calibration's score."""
    shares = calibration.probabilities(logits) if calibration else logits.softmax(-1)
    ranked = sorted(zip(labels, shares.tolist(), strict=True), key=lambda pair: -pair[1])
    known = None if calibration is None else float(calibration.known(logits))
    unsure = known is not None and calibration is not None and known < calibration.threshold
    return dict(ranked), NONE if unsure else ranked[0][0], known
