"""Training state, and finished models."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from dual_denoising.data.storage import atomic, fingerprint
from dual_denoising.errors import InputError, fields_of, reading
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training.record import TrainingRecord

# what a resumed run must not change
FIXED = ("model", "data", "teacher", "optim", "seed", "mix_text", "sharded")
# what it may; older runs kept a feature_width that decided nothing
FREE = ("data.test", "data.validation", "data.skip_missing", "data.facing", "model.feature_width")


def save_state(state: Mapping, path: Path) -> None:
    """Writes training state. Where that fails the previous one is kept."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def load_state(path: Path) -> dict:
    """Training state: tensors and plain values only, nothing in the file is ever executed."""
    with reading(path, "training checkpoint", "remove it, or choose another name=..."):
        state = torch.load(path, map_location="cpu", weights_only=True)
        _ = [state[key] for key in ("model", "optimizer", "seconds")]
        state["step"], state["settings"] = int(state["step"]), json.loads(state["settings"])
    return state


def check_settings(saved: Mapping, now: Mapping, path: Path) -> None:
    """Raises InputError naming the first setting in which a run to resume differs from this one."""
    trees = (fields_of({key: s[key] for key in FIXED if key in s}) for s in (saved, now))
    before, after = ({k: v for k, v in t if not isinstance(v, dict)} for t in trees)
    for field in sorted(before.keys() | after.keys()):
        free = field.startswith(FREE) or field.endswith("_target_")  # where a class lives is free
        if before.get(field) != after.get(field) and not free:
            raise InputError(
                f"{path}: belongs to a run with {field}={before.get(field)}, now it is "
                f"{after.get(field)}; choose another name=..., or resume=false to start over"
            )


def save_model(
    model: DualDenoising, folder: Path, record: TrainingRecord, half: bool = False
) -> None:
    """Writes config.json, model.safetensors and training.json, all of them or none.

    half: in half precision, to which ``model`` is rounded too: it is tested as it is kept.
    """
    kept = model
    if half:
        kept = copy.deepcopy(model).half()
        model.load_state_dict(kept.state_dict())
    with atomic(folder) as temporary:
        kept.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # the Hub's empty model card
        record.weights = fingerprint(temporary / "model.safetensors")
        record.save(temporary)
