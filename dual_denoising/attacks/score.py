"""Scoring adversarial clouds, our own or anyone's, with noise that no attack has seen."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from dual_denoising.attacks.base import draw_logits
from dual_denoising.attacks.pgd import NORMS, length
from dual_denoising.attacks.run import FLAGS
from dual_denoising.errors import InputError, check_choice, check_number, reading
from dual_denoising.keyed_random import FirstSeed
from dual_denoising.ops import knn_points

FIELDS = ("clean", "adversarial", "label", "index", "done", *FLAGS, "seconds", "recorded")
CLOUDS = "HDF5 file of clouds", "give one as attack.py writes"  # what errors.reading says


def score(
    model: nn.Module,
    clean: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    indices: Tensor,
    seeds: Sequence[int],
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Which of R noise seeds × n clouds are right, clean (R, n) and robust (R, n), and distances.

    Robust: still classified as the label, of ALL clouds, those that are wrong when clean too.
    """
    right = {
        kind: predictions(model, clouds, indices, seeds, device) == labels.numpy()
        for kind, clouds in (("clean", clean), ("robust", adversarial))
    }
    return distances(clean, adversarial) | right


def most_harmful(
    model: nn.Module,
    found: Sequence[Tensor],
    labels: Tensor,
    indices: Tensor,
    seeds: Sequence[int],
    device: torch.device,
) -> np.ndarray:
    """Which attack's clouds (n, N, 3) are least often right, cloud by cloud: (n,).

    seeds: not those that score the choice afterwards, or the luckiest attack would look strongest.
    """
    rights = [
        predictions(model, clouds, indices, seeds, device) == labels.numpy() for clouds in found
    ]
    return np.mean(rights, axis=1).argmin(0)


@torch.inference_mode()
def predictions(
    model: nn.Module, clouds: Tensor, indices: Tensor, seeds: Sequence[int], device: torch.device
) -> np.ndarray:
    """Classes (R, n) of clouds (n, N, 3) under fresh noise, −1 where a logit is not finite."""
    model.eval().to(device)
    found = []
    for rows in torch.arange(len(clouds)).split(32):
        fresh = [FirstSeed.SCORE + seed for seed in seeds]
        logits = draw_logits(model, clouds[rows].to(device), indices[rows].to(device), fresh)
        found.append(logits.argmax(-1).where(logits.isfinite().all(-1), -1).cpu())
    return torch.cat(found, 1).numpy()


def distances(clean: Tensor, adversarial: Tensor) -> dict[str, np.ndarray]:
    """Per cloud (n,): L∞ and L2 of the perturbation, Chamfer-L2 and Hausdorff of the two sets."""
    moved = (adversarial - clean).flatten(1).double()
    there = [
        knn_points(a, b, K=1).dists[..., 0] for a, b in ((clean, adversarial), (adversarial, clean))
    ]
    return {
        "linf": moved.abs().amax(1).numpy(),
        "l2": moved.norm(dim=1).numpy(),
        "chamfer": torch.stack([d.mean(1) for d in there]).sum(0).numpy(),
        "hausdorff": torch.stack([d.amax(1) for d in there]).amax(0).sqrt().numpy(),
    }


def load(path: Path) -> dict[str, np.ndarray]:
    """Clouds of an attack's file, or of anyone's making: adversarial, clean, label, index.

    index is 0..n−1 where the file has none. Raises InputError for one that lacks the others, is
    unfinished, or whose clouds do not fit each other.
    """
    with reading(path, *CLOUDS), h5py.File(path) as file:
        content = {key: file[key][()] for key in FIELDS if key in file}
    missing = [key for key in ("adversarial", "clean", "label") if key not in content]
    if missing:
        raise InputError(f"{path}: holds no '{missing[0]}'; it needs adversarial, clean, label")
    n = np.size(content["label"])
    content.setdefault("index", np.arange(n))
    for key in ("label", "index", "adversarial", "clean"):
        whole, values = key in ("label", "index"), np.asarray(content[key])
        if values.dtype.kind not in ("iu" if whole else "fiu") or not np.isfinite(values).all():
            kind = "integers" if whole else "finite numbers"
            raise InputError(f"{path}: {key} is of {values.dtype}; give {kind}")
        # as models are given them
        content[key] = values.reshape(-1).astype(int) if whole else values.astype(np.float32)
    shape = content["clean"].shape
    shapes = [content[key].shape for key in ("clean", "adversarial", "label", "index")]
    if not n or shapes != [shape, shape, (n,), (n,)] or shape[:1] + shape[2:] != (n, 3):
        raise InputError(
            f"{path}: clean, adversarial, label and index have shapes {shapes}; they must be "
            "(n, N, 3) twice, and (n,) for labels and indices, n > 0"
        )
    if "done" in content and not content["done"].all():
        raise InputError(
            f"{path}: {int((~content['done']).sum())} of {n} clouds are not attacked yet"
        )
    return content


def write_made_by(path: Path, made_by: Mapping) -> None:
    """Says in an attack's file what it was made with: model, data, text features, ball, (S, t)."""
    with h5py.File(path, "r+") as file:
        file.attrs["made_by"] = json.dumps(made_by)


def made_by(path: Path) -> dict:
    """What ``write_made_by`` wrote, {} of anyone else's file."""
    with reading(path, *CLOUDS), h5py.File(path) as file:
        content = dict(json.loads(file.attrs.get("made_by", "{}")))
    for key, kind in MADE_BY.items():
        if not isinstance(content.get(key), (kind, type(None))):
            raise InputError(f"{path}: says it was made with {key}={content[key]}; give {key}=...")
    return content


MADE_BY = {
    "checkpoint": str,
    "baseline": dict,
    "data": dict,
    "teacher": dict,
    "settings": list,
    "norm": str,
    "test_set": str,
    "num_points": int,
}


def check_ball(
    path: Path, content: dict[str, np.ndarray], eps: float | None, norm: str = "linf"
) -> None:
    """Raises InputError where an adversarial cloud lies outside the stated ball."""
    if norm == "none":  # C&W's, which knows no ball
        return
    check_choice("norm", norm, (*NORMS, "none"))
    if eps is None:
        raise InputError("eps is not given, and the file does not say it: eps=0.025")
    check_number("eps", eps, whole=False)
    moved = content["adversarial"].astype(np.float64) - content["clean"]
    size = length(torch.from_numpy(moved), norm).flatten().numpy()
    outside = np.flatnonzero(size > eps * (1 + 1e-5) + 1e-6)
    if len(outside):
        raise InputError(
            f"{path}: cloud {outside[0]} moves by {size[outside[0]]:.6g} in {norm}, outside the "
            f"stated ball of {eps:g} ({len(outside)} of {len(size)} clouds); it is not scored"
        )


def check_labels(path: Path, content: dict[str, np.ndarray], classes: int) -> None:
    """Raises InputError where a label is none of the model's classes."""
    wrong = np.flatnonzero((content["label"] < 0) | (content["label"] >= classes))
    if len(wrong):
        raise InputError(
            f"{path}: label[{wrong[0]}] is {content['label'][wrong[0]]}, but there are {classes} "
            "classes; choose the dataset that the labels belong to (data=...)"
        )
