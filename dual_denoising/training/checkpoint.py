"""Training state, and finished models with what is known of their training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dual_denoising.clip.features import Text
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.storage import atomic
from dual_denoising.errors import InputError, brief
from dual_denoising.model.dual_denoising import DualDenoising

FIXED = ("model", "data", "teacher", "optim", "seed")  # what a resumed run must not change


@dataclass
class TrainingRecord:
    """What a model was trained on; ``training.json`` beside its weights."""

    dataset: str
    split: str
    class_names: Sequence[str]
    num_points: int
    teacher: str

    @classmethod
    def of(cls, clouds: CloudDataset, text: Text) -> TrainingRecord:
        """The record of training on these clouds."""
        source = clouds.source
        names = list(source.class_names)
        return cls(source.name, source.split, names, clouds.num_points, text.teacher)

    @classmethod
    def load(cls, folder: str | Path) -> TrainingRecord:
        """The record of a saved model."""
        path = Path(folder) / "training.json"
        try:
            content = dict(json.loads(path.read_text()))
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except KeyError as error:
            raise InputError(
                f"{path}: has no field {error}; give a run's folder 'model'"
            ) from error
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: missing; train the model first, or give a run's folder 'model'"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); give a run's folder 'model'"
            ) from error


def save_state(state: Mapping, path: Path) -> None:
    """Writes training state. Where that fails the previous one is kept."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def load_state(path: Path) -> dict:
    """Training state: tensors and plain values only, nothing in the file is ever executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the reader stumbles over
        raise InputError(
            f"{path}: no training checkpoint ({brief(error)}); remove it, or choose another "
            "name=..."
        ) from error
    if not isinstance(state, dict) or "step" not in state or "settings" not in state:
        raise InputError(f"{path}: holds no training state; remove it, or choose another name=...")
    return state


def check_settings(saved: Mapping, now: Mapping, path: Path) -> None:
    """Raises InputError naming the first setting in which a run to resume differs from this one."""
    before, after = (_leaves({k: v for k, v in s.items() if k in FIXED}) for s in (saved, now))
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field) and not field.startswith("data.tests"):
            raise InputError(
                f"{path}: belongs to a run with {field}={before.get(field)}, now it is "
                f"{after.get(field)}; choose another name=..., or resume=false to start over"
            )


def _leaves(tree: Mapping, prefix: str = "") -> dict:
    """{'a.b': value} of nested settings."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        elif key != "_target_":  # where a class lives does not change what it does
            found[prefix + key] = value
    return found


def save_model(model: DualDenoising, folder: Path, record: TrainingRecord) -> None:
    """Writes config.json, model.safetensors and training.json, all of them or none."""
    temporary = folder.with_name(f"{folder.name}.partial")
    replaced = folder.with_name(f"{folder.name}.replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # the Hub's empty model card
        (temporary / "training.json").write_text(json.dumps(asdict(record), indent=1))
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{folder}: not written ({error}); free space and resume") from error
