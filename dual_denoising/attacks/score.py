"""Scoring adversarial clouds, our own or anyone's, with noise that no attack has seen."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from dual_denoising.attacks.base import device_of, draw_logits, length
from dual_denoising.attacks.pgd import NORMS
from dual_denoising.attacks.run import FLAGS
from dual_denoising.data.datasets import Sample
from dual_denoising.errors import InputError, check, check_choice, check_number, reading
from dual_denoising.keyed_random import FirstSeed
from dual_denoising.ops import knn_points

FIELDS = ("clean", "adversarial", "label", "index", "done", *FLAGS, "seconds", "recorded")
MADE_BY = {"checkpoint": str, "norm": str, "test_set": str, "settings": list, "num_points": int}
MADE_BY |= dict.fromkeys(("baseline", "data", "teacher"), dict)
CLOUDS = "HDF5 file of clouds", "give one as attack.py writes"  # what errors.reading says


def score(
    model: nn.Module, sample: Sample, adversarial: Tensor, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Which of R noise seeds × n clouds are right, clean (R, n) and robust (R, n), and distances.

    Robust: still classified as the label, of ALL clouds, those that are wrong when clean too.
    """
    clean, robust = right(model, sample, (sample.clouds, adversarial), seeds)
    return distances(sample.clouds, adversarial) | {"clean": clean, "robust": robust}


def right(
    model: nn.Module, sample: Sample, versions: Sequence[Tensor], seeds: Sequence[int]
) -> np.ndarray:
    """Whether versions of the sample's clouds are classified as their label (versions, R, n)."""
    answers = [predictions(model, clouds, sample.indices, seeds) for clouds in versions]
    return np.stack(answers) == sample.labels.numpy()


@torch.inference_mode()
def predictions(
    model: nn.Module, clouds: Tensor, indices: Tensor, seeds: Sequence[int]
) -> np.ndarray:
    """Classes (R, n) of clouds (n, N, 3) under fresh noise, −1 where a logit is not finite."""
    device, found = device_of(model.eval()), []
    fresh = [FirstSeed.SCORE + seed for seed in seeds]
    for rows in torch.arange(len(clouds)).split(32):
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


def load(path: Path) -> dict[str, Tensor]:
    """Clouds of an attack's file, or of anyone's making: adversarial, clean, label, index.

    index is 0..n−1 where the file has none. Raises InputError for one that lacks the others, is
    unfinished, or whose clouds do not fit each other.
    """
    with reading(path, *CLOUDS), h5py.File(path) as file:
        content = {key: file[key][()] for key in FIELDS if key in file}
        n = np.size(content["label"])
        for key in ("label", "index"):
            values = np.asarray(content.get(key, np.arange(n))).reshape(n)
            check(f"{path}: {key}", values.dtype, values.dtype.kind in "iu", "give integers")
            content[key] = values.astype(int)
        both = [content[key].astype(np.float32) for key in ("clean", "adversarial")]
    shapes = [x.shape for x in both]
    good = n and shapes == [(n, *shapes[0][1:2], 3)] * 2
    check(f"{path}: shapes of clean, adversarial", shapes, good, f"give (n, N, 3) for {n} labels")
    if not all(np.isfinite(x).all() for x in both):
        raise InputError(f"{path}: clouds hold values that are not finite: leave those clouds out")
    content |= zip(("clean", "adversarial"), both, strict=True)
    if left := n - int(content.get("done", np.ones(n)).sum()):
        words = f"{left} of {n} clouds are not attacked yet; its own command goes on with them"
        raise InputError(f"{path}: {words}")
    numbers = {key: values for key, values in content.items() if values.dtype.kind in "biuf"}
    return {key: torch.as_tensor(values) for key, values in numbers.items()}


def write_made_by(path: Path, made_by: Mapping) -> None:
    """Says in an attack's file what it was made with: model, data, text features, ball, (S, t)."""
    with h5py.File(path, "r+") as file:
        file.attrs["made_by"] = json.dumps(made_by)


def made_by(path: Path) -> dict:
    """What ``write_made_by`` wrote, {} of anyone else's file."""
    with reading(path, *CLOUDS), h5py.File(path) as file:
        content = dict(json.loads(file.attrs.get("made_by", "{}")))
    for key, kind in MADE_BY.items():
        good = isinstance(content.get(key), (kind, type(None)))
        fix = "attack anew, or remove the file's attribute made_by"
        check(f"{path}: made_by {key}", content.get(key), good, fix)
    return content


def check_ball(
    path: Path, content: Mapping[str, Tensor], eps: float | None, norm: str = "linf"
) -> None:
    """Raises InputError where an adversarial cloud lies outside the stated ball."""
    check_choice("norm", norm, (*NORMS, "none"))
    if norm == "none":  # C&W's
        check("eps", eps, eps is None, "norm is none, which has no ball; leave it out")
        return
    if eps is None:
        raise InputError("eps is not given, and the file does not say it: eps=0.025")
    ball = check_number("eps", eps, whole=False)
    moved = content["adversarial"].double() - content["clean"]
    size = length(moved, norm).flatten().numpy()
    outside = np.flatnonzero(size > ball * (1 + 1e-5) + 1e-6)
    if len(outside):
        raise InputError(
            f"{path}: cloud {outside[0]} moves by {size[outside[0]]:.6g} in {norm}, outside the "
            f"stated ball of {ball:g} ({len(outside)} of {len(size)} clouds); it is not scored"
        )
