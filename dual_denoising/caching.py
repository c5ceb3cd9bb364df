"""Teacher features of a data set, computed once into one HDF5 file; restartable.

The file's format is described in dual_denoising/teacher.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop
from tqdm import tqdm

from dual_denoising.clip import OpenClip
from dual_denoising.errors import InputError, input_error
from dual_denoising.teacher import content_of, read_prompts
from dual_denoising.views import DatasetImages, Rendered, Renderer

log = logging.getLogger(__name__)

PENDING, DONE, FAILED = 0, 1, 2


class Pixels(Dataset):
    """Preprocessed views of every shape: (index, pixels (V·max(K, 1), 3, H, W), '') or the reason
    why there are none. K random crops, flipped by chance, of every view; 0 takes it whole.
    """

    def __init__(self, pictures, preprocess: Compose, size: int, crops: int = 0, seed: int = 0):
        self.pictures, self.preprocess, self.crops, self.seed = pictures, preprocess, crops, seed
        self.crop = Compose([RandomResizedCrop(size, (0.6, 1.0)), RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.pictures.ids)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, str]:
        try:
            views = self.pictures[index]
        except Exception as error:
            cause = input_error(error)
            if cause is None:
                raise
            return index, torch.empty(0), str(cause)
        if self.crops:
            with torch.random.fork_rng([]):
                torch.manual_seed(self.seed * 2**32 + index)
                views = [self.crop(view) for view in views for _ in range(self.crops)]
        return index, torch.stack([self.preprocess(view) for view in views]), ""


def cache(
    clip: OpenClip,
    source,
    pictures,
    prompts: Sequence[str],
    path: Path,
    batch_size: int = 64,
    workers: int = 0,
    crops: int = 0,
) -> dict[str, str]:
    """Writes image features of ``pictures`` (None for none), text features of classes × prompts.

    Returns {id: reason} of the shapes that have none. A run that was killed goes on where its last
    batch ended. Raises InputError for ids that occur twice, and for a file of another content.
    """
    twice = [key for key, count in Counter(source.ids).items() if count > 1] if pictures else []
    if twice:
        raise InputError(
            f"{source.origin}: {len(twice)} ids are of two shapes, the first is '{twice[0]}'; "
            "features could not be told apart, so rename one"
        )
    attributes = {
        "model": clip.names[0],
        "pretrained": clip.names[1],
        "weights": clip.weights_hash,
        "preprocess": str(clip.preprocess),
        "prompts": list(prompts),
        "dataset": source.name,
        "content": content_of(source),
        "dataset_hash": _hash([*source.class_names, "", *source.ids]),
        "images": describe(pictures, crops),
    }
    if path.exists():
        _check(path, attributes)
        log.info("%s: complete already", path)
        return _failures(path)
    begun = path.with_name(f"{path.name}.begun")
    views = pictures.views * max(crops, 1) if pictures else 0
    _begin(begun, attributes, list(source.ids) if pictures else [], views, clip.width)
    with h5py.File(begun, "r+") as file:
        if "text" not in file:
            names = [name.replace("_", " ") for name in source.class_names]
            features = clip.encode_names(names, prompts)
            text = file.create_group("text")
            text["feature"], text["name"] = features.numpy(), names
            text.attrs["prompts"] = list(prompts)
            file.flush()
        if pictures:
            _encode(clip, pictures, file, batch_size, workers, crops)
    os.replace(begun, path)
    return _failures(path)


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def describe(pictures, crops: int) -> str:
    """What the pictures are, in words that differ where they do."""
    if pictures is None:
        return "none"
    shown = getattr(pictures, "renderer", None) or pictures.__class__.__name__
    return f"{shown}, {crops} crops a view"


def _begin(path: Path, attributes: dict, ids: Sequence[str], views: int, width: int) -> None:
    if path.exists():
        _check(path, attributes)
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            file.attrs.update(attributes)
            if ids:
                images = file.create_group("images")
                images["id"] = list(ids)
                images["state"] = np.zeros(len(ids), np.uint8)
                images["reason"] = [""] * len(ids)  # of those that failed
                images.create_dataset("feature", (len(ids), views, width), np.float32)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(
            f"{path.parent}: cannot be written ({error}); choose output=... elsewhere"
        ) from error


def _check(path: Path, attributes: dict) -> None:
    """Raises InputError unless a file is of the same teacher, data, pictures and prompts."""
    try:
        with h5py.File(path) as file:
            for key, value in attributes.items():
                found = file.attrs[key]
                found = found.tolist() if isinstance(found, np.ndarray) else found
                if found != value:
                    raise InputError(
                        f"{path}: its {key} is {_short(found)}, not {_short(value)}; choose "
                        "another output=..., or remove it"
                    )
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it to begin anew") from error


def _short(value) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 60 else f"{text[:56]} ..."


def _failures(path: Path) -> dict[str, str]:
    with h5py.File(path) as file:
        if "images" not in file:
            return {}
        ids, reasons = (file["images"][key].asstr()[()] for key in ("id", "reason"))
        bad = file["images"]["state"][()] == FAILED
        return dict(zip(ids[bad], reasons[bad], strict=True))


def _encode(clip, pictures, file: h5py.File, batch_size, workers, crops) -> None:
    images = file["images"]
    pending = np.flatnonzero(images["state"][()] == PENDING).tolist()
    size = clip.tower.visual.image_size
    pixels = Pixels(pictures, clip.preprocess, size[0] if isinstance(size, tuple) else size, crops)
    loader = DataLoader(
        torch.utils.data.Subset(pixels, pending), batch_size, num_workers=workers, collate_fn=list,
        multiprocessing_context="spawn" if workers else None,  # OpenGL does not survive a fork
    )  # fmt: skip
    progress = tqdm(total=len(pixels), initial=len(pixels) - len(pending), desc="encoding views",
                    unit="shape", disable=None)  # fmt: skip
    for batch in loader:
        for index, _, reason in batch:
            if reason:
                images["reason"][index] = reason
                log.warning("%s: %s", pictures.ids[index], reason)
        good = sorted((item for item in batch if not item[2]), key=lambda item: item[0])
        if good:
            rows = [index for index, *_ in good]
            shown = torch.stack([views for _, views, _ in good])
            features = clip.encode_images(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])
            images["feature"][rows] = features.numpy()
        file.flush()
        for index, _, reason in batch:  # after all else of these shapes is written
            images["state"][index] = FAILED if reason else DONE
        file.flush()
        progress.update(len(batch))
    progress.close()


def make(settings: Mapping, source, device: str) -> tuple[OpenClip, dict[str, str]]:
    """Caches what a configuration as configs/cache_teacher.yaml says; the CLIP, and what failed."""
    output = Path(settings["output"])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not output.exists():
        raise InputError(f"{output}: missing; make it in one process, scripts/cache_teacher.py")
    precision = settings["clip"]["precision"] or ("bf16" if "cuda" in device else "fp32")
    clip = instantiate(settings["clip"], device=device, precision=precision)
    renderer = instantiate(settings["renderer"])
    pictures = pictures_of(source, settings["images"], settings.get("folder"), renderer)
    prompts = read_prompts(settings["prompts"])
    batch_size, workers, crops = (settings[key] for key in ("batch_size", "workers", "crops"))
    return clip, cache(clip, source, pictures, prompts, output, batch_size, workers, crops)


def pictures_of(source, kind: str, folder: str | None, renderer: Renderer):
    """Pictures of a source's shapes: 'folder', 'render', or None for 'none'."""
    if kind == "none":
        return None
    if kind == "render":
        return Rendered(source, renderer)
    if kind == "folder":
        return DatasetImages(source, folder)
    raise InputError(f"images is '{kind}': choose folder, render or none")


def sheet(pictures, count: int) -> list[tuple[str, list[Image.Image]]]:
    """Names and views of ``count`` shapes, evenly spread, without those that cannot be drawn."""
    rows = []
    for index in np.unique(np.linspace(0, len(pictures.ids) - 1, count).astype(int)):
        try:
            rows.append((pictures.ids[index], pictures[index]))
        except Exception as error:
            if input_error(error) is None:
                raise
    return rows
