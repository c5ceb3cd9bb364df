"""Files that are either whole or not there: training state and finished models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from dual_denoising.errors import InputError

FIXED = ("model", "data", "teacher", "optim", "seed")  # what a resumed run must not change


TRAINING = ("dataset", "split", "class_names", "num_points", "teacher")


def save_state(state: Mapping, path: Path) -> None:
    """Writes training state beside ``path``, then moves it there; a failure leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        kept = "the previous one is kept" if path.exists() else "there is no earlier one"
        raise InputError(f"{path}: checkpoint not written ({error}); {kept}; free space") from error


def load_state(path: Path) -> dict:
    """Training state, tensors and plain values only: nothing in the file is ever executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the reader stumbles over
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not a training checkpoint ({reason}); remove it, or choose another name=..."
        ) from error
    if not isinstance(state, dict) or "step" not in state or "settings" not in state:
        raise InputError(f"{path}: holds no training state; remove it, or choose another name=...")
    return state


def check_settings(saved: Mapping, now: Mapping, path: Path) -> None:
    """Raises InputError naming the first setting in which a run to resume differs from this one."""
    before, after = (_flat({k: v for k, v in s.items() if k in FIXED}) for s in (saved, now))
    for field in sorted((before.keys() | after.keys()) - {"data.tests"}):
        if before.get(field) != after.get(field):
            raise InputError(
                f"{path}: belongs to a run with {field}={before.get(field)}, now it is "
                f"{after.get(field)}; choose another name=..., or resume=false to start over"
            )


def _flat(tree: Mapping, prefix: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def save_model(model: nn.Module, folder: Path, training: Mapping) -> None:
    """Writes config.json, model.safetensors and training.json (what it learned from) as a whole."""
    temporary = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # the hub's empty model card
        (temporary / "training.json").write_text(json.dumps(dict(training), indent=1))
        replaced = folder.with_name(f"{folder.name}.replaced")
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{folder}: model not written ({error}); free space and resume") from error


def load_training(folder: Path) -> dict:
    """What a saved model was trained on: the fields of TRAINING."""
    path = folder / "training.json"
    try:
        training = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a run's folder 'model'"
        ) from error
    known = training if isinstance(training, dict) else {}
    missing = [field for field in TRAINING if field not in known]
    if missing:
        raise InputError(f"{path}: has no field '{missing[0]}'; give a run's folder 'model'")
    return training


def is_torchscript(path: str | Path) -> bool:
    """Whether a file of weights is a TorchScript archive, which only OpenAI's own CLIPs are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any("/code/" in name for name in file.namelist())


def digest_state(model: nn.Module, *more) -> str:
    """SHA-256 of a model's tensors and of other tensors or numbers: who answered."""
    state = hashlib.sha256()
    for tensor in (*model.state_dict().values(), *map(torch.as_tensor, more)):
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
