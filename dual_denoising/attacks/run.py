"""Attacks on a data set: streamed to disk, resumed where killed, scored with fresh noise."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dual_denoising.attacks.base import Attack, draw_logits
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.errors import InputError
from dual_denoising.evaluation.metrics import mean_sd, wilson_interval
from dual_denoising.ops import knn_points

log = logging.getLogger(__name__)

FIELDS = (
    "clean", "adversarial", "label", "index", "done", "failed", "flat", "unsuccessful", "seconds",
    "recorded",
)  # fmt: skip
FRESH = 2**50  # first noise seed of a scoring; no attack draws from there
MOST = {"cuda": 512, "cpu": 25}  # clouds at once; a killed run loses as many


def stratified(labels: np.ndarray, count: int | None, seed: int = 0) -> np.ndarray:
    """Indices of ``count`` clouds, in order, as many of every class as the data set's shares say.

    The same for the same labels, count and seed; None takes all.
    """
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    if count < 1:
        raise InputError(f"subset is {count}: choose at least 1 cloud")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for kind in np.unique(labels):
        mine = shuffled[labels[shuffled] == kind]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.sort(np.lexsort((shuffled, place))[:count])


def sample(test: CloudDataset, count: int | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A stratified sample: clouds (n, N, 3), labels (n,), indices (n,) in the data set."""
    chosen = stratified(test.source.labels, count, seed)
    print(f"{len(chosen)} of {len(test)} clouds, sample seed {seed}")
    clouds = torch.stack([test[int(i)]["points"] for i in chosen])
    return clouds, torch.as_tensor(test.source.labels[chosen]), torch.as_tensor(chosen)


def run(
    attack: Attack,
    clouds: Tensor,
    labels: Tensor,
    indices: Tensor,
    path: Path,
    settings: dict,
    batch_size: int | None,
    device: torch.device,
    record: Sequence[int] = (),
    title: str = "attack",
) -> None:
    """Attacks clouds (n, N, 3) and writes them batch by batch to an HDF5 file.

    The file holds clean, adversarial, label, index, failed, flat, done, seconds and, for the steps
    of ``record``, the clouds of those steps (T, n, N, 3). A file of the same settings is gone on
    with; of others raises InputError. batch_size: None for what fits into the free memory; if it
    does not after all, the batch is halved.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: choose at least 1, or null")
    _begin(path, clouds, labels, indices, settings, record)
    with h5py.File(path, "r+") as file:
        pending = np.flatnonzero(~file["done"][()])
        progress = tqdm(total=len(clouds), initial=len(clouds) - len(pending), desc=title,
                        unit="cloud")  # fmt: skip
        if len(pending) and batch_size is None:
            batch_size = fitting(attack, clouds[:1].to(device), indices[:1].to(device))
        while len(pending):
            rows = pending[:batch_size]
            steps: dict[int, Tensor] = {}
            started, full = time.perf_counter(), False
            try:
                found = attack(
                    *(x[rows].to(device) for x in (clouds, labels, indices)),
                    record=lambda step, x, into=steps: _keep(step, x, record, into),
                ).cpu()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                # the CPU's allocator has no error of its own
                if (isinstance(error, RuntimeError) and not _is_memory(error)) or len(rows) == 1:
                    raise
                full = True
            if full:  # here the error no longer holds the graph
                batch_size = max(1, len(rows) // 2)
                log.warning("%s: out of memory, going on with batches of %d", title, batch_size)
                torch.cuda.empty_cache()
                continue
            failed = attack.failed.cpu()
            file["seconds"][rows] = (time.perf_counter() - started) / len(rows)
            file["adversarial"][rows] = found.numpy()
            for place, step in enumerate(record):
                kept = torch.where(failed[:, None, None], clouds[rows], steps[step])
                file["recorded"][place, rows] = kept.numpy()
            file["failed"][rows] = failed.numpy()
            file["flat"][rows] = attack.flat.cpu().numpy()
            file["unsuccessful"][rows] = attack.unsuccessful.cpu().numpy()
            file.flush()
            file["done"][rows] = True  # after all else of these clouds is written
            file.flush()
            pending = pending[len(rows) :]
            progress.update(len(rows))
        progress.close()


def fitting(attack: Attack, cloud: Tensor, index: Tensor) -> int:
    """As many clouds like (1, N, 3) as leave two thirds of the free memory to the backward pass."""
    most = MOST.get(cloud.device.type, MOST["cpu"])
    if attack.kind in ("black", "noise"):
        return most
    if cloud.is_cuda:
        torch.cuda.empty_cache()  # what earlier attacks left reserved is free too
        free, _ = torch.cuda.mem_get_info(cloud.device)
    else:
        free = psutil.virtual_memory().available
    return int(min(max(free / 3 / attack.bytes_per_cloud(cloud, index), 1), most))


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _keep(step: int, points: Tensor, record: Sequence[int], into: dict[int, Tensor]) -> None:
    if step in record:
        into[step] = points.detach().cpu().clone()


def check(path: Path, clouds, labels, indices, settings: dict, record: Sequence[int]) -> None:
    """Raises InputError where an attack's file is there already, but damaged or of another run."""
    if not path.exists():
        return
    try:
        with h5py.File(path) as file:
            same = file.attrs["settings"] == _settings(settings, record)
            for key, values in (("clean", clouds), ("label", labels), ("index", indices)):
                same = same and np.array_equal(file[key][()], values.numpy())
    except BlockingIOError as error:
        raise InputError(f"{path}: in use by another run; choose another name=...") from error
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it to attack anew") from error
    if not same:
        raise InputError(f"{path}: of other settings or clouds; choose another name=...")


def _settings(settings: dict, record: Sequence[int]) -> str:
    return json.dumps(settings | {"record": list(record)}, sort_keys=True)


def _begin(path: Path, clouds, labels, indices, settings: dict, record: Sequence[int]) -> None:
    """Makes the file where there is none, or checks that the one there is of these settings."""
    if path.exists():
        check(path, clouds, labels, indices, settings, record)
        return
    n = len(clouds)
    arrays = {
        "clean": clouds.numpy(), "label": labels.numpy(), "index": indices.numpy(),
        "adversarial": clouds.numpy(), "seconds": np.zeros(n, np.float32),
    } | {key: np.zeros(n, bool) for key in ("done", "failed", "flat", "unsuccessful")}  # fmt: skip
    if record:
        arrays["recorded"] = np.zeros((len(record), *clouds.shape), np.float32)
    save(path, {"settings": _settings(settings, record)}, **arrays)


@torch.inference_mode()
def predictions(
    model: nn.Module, clouds: Tensor, indices: Tensor, seeds: Sequence[int],
    device: torch.device, batch_size: int = 32,
) -> np.ndarray:  # fmt: skip
    """Classes (R, n) that a model gives clouds (n, N, 3) under fresh noise, −1 where it breaks."""
    model.eval().to(device)
    found = []
    for rows in torch.arange(len(clouds)).split(batch_size):
        fresh = [FRESH + seed for seed in seeds]
        logits = draw_logits(model, clouds[rows].to(device), indices[rows].to(device), fresh)
        found.append(logits.argmax(-1).where(logits.isfinite().all(-1), -1).cpu())
    return torch.cat(found, 1).numpy()


def distances(clean: Tensor, adversarial: Tensor) -> dict[str, np.ndarray]:
    """Per cloud (n,): L∞ and L2 of the perturbation, Chamfer-L2 and Hausdorff of the two sets."""
    moved = (adversarial - clean).flatten(1).double()
    there = [knn_points(a, b, K=1).dists[..., 0] for a, b in
             ((clean, adversarial), (adversarial, clean))]  # fmt: skip
    return {
        "linf": moved.abs().amax(1).numpy(),
        "l2": moved.norm(dim=1).numpy(),
        "chamfer": sum(d.mean(1) for d in there).numpy(),
        "hausdorff": torch.stack([d.amax(1) for d in there]).amax(0).sqrt().numpy(),
    }


def score(
    model: nn.Module,
    clean: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    indices: Tensor,
    seeds: Sequence[int],
    device: torch.device,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Robust accuracy over fresh noise seeds, as fields of a result; and per cloud what gave it.

    Robust: still classified as the label, of ALL clouds, those that are wrong when clean too.
    """
    truth = labels.numpy()
    right = predictions(model, adversarial, indices, seeds, device) == truth
    before = predictions(model, clean, indices, seeds, device) == truth
    size = distances(clean, adversarial)
    robust, sd = mean_sd(right.mean(1).tolist())
    fields = {
        "n": len(labels),
        "seeds": list(seeds),
        "clean_mean": float(before.mean()),
        "robust_mean": robust,
        "robust_sd": sd,
        "robust_interval": list(wilson_interval(robust, len(labels))),
        "linf_max": float(size["linf"].max()),
        "l2_mean": float(size["l2"].mean()),
        "chamfer_mean": float(size["chamfer"].mean()),
        "hausdorff_mean": float(size["hausdorff"].mean()),
    }
    return fields, size | {"clean": before.mean(0), "robust": right.mean(0)}


def load(path: Path) -> dict[str, np.ndarray]:
    """Clouds of an attack's file, or of anyone's making: adversarial, clean, label, index.

    index is 0..n−1 where the file has none. Raises InputError for one that lacks the others, is
    unfinished, or whose clouds do not fit each other.
    """
    try:
        with h5py.File(path) as file:
            content = {key: file[key][()] for key in FIELDS if key in file}
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a whole HDF5 file of clouds ({error})") from error
    missing = [key for key in ("adversarial", "clean", "label") if key not in content]
    if missing:
        raise InputError(f"{path}: holds no '{missing[0]}'; it needs adversarial, clean, label")
    for key in ("label", "index"):
        if key in content:
            content[key] = np.asarray(content[key]).reshape(-1)
            if content[key].dtype.kind not in "iu":
                raise InputError(f"{path}: {key} is of {content[key].dtype}; give integers")
            content[key] = content[key].astype(np.int64)
    n = len(content["label"])
    content.setdefault("index", np.arange(n))
    if len(content["index"]) != n or not n:
        raise InputError(f"{path}: {n} labels, {len(content['index'])} indices; one for each cloud")
    for key in ("adversarial", "clean"):
        if content[key].dtype.kind not in "fiu":
            raise InputError(f"{path}: {key} is of {content[key].dtype}; give numbers")
        content[key] = content[key].astype(np.float32)  # as models are given them
    shape = content["clean"].shape
    if content["adversarial"].shape != shape or len(shape) != 3 or shape[2] != 3 or shape[0] != n:
        raise InputError(
            f"{path}: clean is {shape}, adversarial {content['adversarial'].shape}, label ({n},); "
            "clouds must be (n, N, 3) and as many as labels"
        )
    for key in ("adversarial", "clean"):
        if not np.isfinite(content[key]).all():
            raise InputError(f"{path}: {key} clouds hold values that are not finite")
    if "done" in content and not content["done"].all():
        raise InputError(
            f"{path}: {int((~content['done']).sum())} of {n} clouds are not attacked yet"
        )
    return content


def save(path: Path, attributes: dict, **arrays: np.ndarray) -> None:
    """Writes arrays to an HDF5 file, as a whole or not at all."""
    partial = path.with_suffix(".begun")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            for key, values in arrays.items():
                file[key] = values
            file.attrs.update(attributes)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: not written ({error}); free space") from error


def check_ball(path: Path, content: dict[str, np.ndarray], eps: float, norm: str = "linf") -> None:
    """Raises InputError where an adversarial cloud lies outside the stated ball."""
    if norm not in ("linf", "l2"):
        raise InputError(f"norm is '{norm}': choose linf or l2")
    if not isinstance(eps, (int, float)) or not 0 <= eps < np.inf:
        raise InputError(f"eps is {eps}: give the radius of the ball, a number from 0")
    moved = content["adversarial"].astype(np.float64) - content["clean"]
    moved = moved.reshape(len(moved), -1)
    size = np.abs(moved).max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)
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
            "classes; choose the data set that the labels belong to (data=...)"
        )


def check_clean(path: Path, content: dict[str, np.ndarray], test: CloudDataset) -> None:
    """Warns where the file's clean clouds or labels are not the data set's."""
    truth = test.source.labels
    known = (content["index"] >= 0) & (content["index"] < len(truth))
    wrong = ~known
    wrong[known] = truth[content["index"][known]] != content["label"][known]
    if wrong.any():
        log.warning(
            "%s: %d of %d labels are not those of %s %s at 'index'; accuracy is against the "
            "file's own", path, wrong.sum(), len(wrong), test.source.name, test.source.split,
        )  # fmt: skip
    other = 0
    for index, cloud in zip(content["index"], content["clean"], strict=True):
        own = test[int(index)]["points"].numpy() if 0 <= index < len(test) else cloud[:0]
        other += own.shape != cloud.shape or not np.allclose(own, cloud, atol=1e-4)
    if other:
        log.warning(
            "%s: %d of %d clean clouds are not those of %s %s; the ball is around the file's own",
            path, other, len(content["label"]), test.source.name, test.source.split,
        )  # fmt: skip
