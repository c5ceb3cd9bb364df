"""Teacher features of a data set, computed once into one HDF5 file; restartable.

The file's format is described in dual_denoising/teacher.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import zlib
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

from dual_denoising.clip.features import read_prompts, stamp
from dual_denoising.clip.towers import OpenClip
from dual_denoising.clip.views import DatasetImages, Rendered
from dual_denoising.errors import InputError, input_error

log = logging.getLogger(__name__)

PENDING, DONE, FAILED = 0, 1, 2
CONTENT = ("classes_and_ids", "shapes")  # may change: what is still the same is kept
CROP = (0.6, 1.0)  # share of a view's area
FULL = re.compile("write failed|extend file|No space")  # in h5py's RuntimeError of a full disk


class Pixels(Dataset):
    """Preprocessed views of every shape: (index, pixels (V·max(K, 1), 3, H, W), '') or the reason
    why there are none. K random crops of 60 to 100% of the area, flipped by chance, of every view;
    0 takes it whole.
    """

    def __init__(self, pictures, preprocess: Compose, size: int, crops: int = 0, seed: int = 0):
        self.pictures, self.preprocess, self.crops, self.seed = pictures, preprocess, crops, seed
        self.crop = Compose([RandomResizedCrop(size, CROP), RandomHorizontalFlip()])

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

    Returns {id: reason} of the shapes that have none; they are tried again when the file is made
    again. A run that was killed goes on where its last batch ended, and where shapes were added,
    mended or taken away, what is of the others is kept. Raises InputError for ids that occur twice,
    for a file of another teacher, data set, pictures or prompts, and where nothing can be written.
    """
    for name, value, low in (("batch_size", batch_size, 1), ("workers", workers, 0),
                             ("crops", crops, 0)):  # fmt: skip
        if not isinstance(value, int) or value < low:
            raise InputError(f"{name} is {value}: choose a whole number from {low}")
    twice = [key for key, count in Counter(source.ids).items() if count > 1] if pictures else []
    if twice:
        raise InputError(
            f"{source.origin}: {len(twice)} ids are of two shapes, the first is '{twice[0]}'; "
            "features could not be told apart, so rename one"
        )
    stamps = [stamp(source, index) for index in range(len(source.ids))]
    attributes = {
        "model": clip.names[0],
        "pretrained": clip.names[1],
        "weights": clip.weights_hash,
        "precision": clip.precision,
        "preprocess": str(clip.preprocess),
        "prompts": list(prompts),
        "dataset": source.name,
        "images": describe(pictures, crops),
        "classes_and_ids": _hash([*source.class_names, "", *source.ids]),
        "shapes": _hash(stamps),
    }
    begun = path.with_name(f"{path.name}.begun")
    try:
        earlier = path if path.exists() else None
        if earlier:
            same = _check(path, attributes)
            if same and not _failures(path) and not _changed(path, pictures):
                log.info("%s: complete already", path)
                return {}
        _make(
            clip, source, pictures, prompts, begun, earlier, attributes, stamps, batch_size,
            workers, crops,
        )  # fmt: skip
        os.replace(begun, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not FULL.search(str(error)):
            raise
        raise InputError(
            f"{path}: not written ({_short(error)}); free space or choose output=... elsewhere; "
            "what was finished is kept"
        ) from error
    return _failures(path)


def _make(
    clip, source, pictures, prompts, begun: Path, earlier: Path | None, attributes: dict,
    stamps: list[str], batch_size: int, workers: int, crops: int,
) -> None:  # fmt: skip
    views = pictures.views * max(crops, 1) if pictures else 0
    ids = list(source.ids) if pictures else []
    _begin(begun, earlier, attributes, ids, stamps, views, clip.width)
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


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def describe(pictures, crops: int) -> str:
    """What the pictures are, in words that differ where they do."""
    if pictures is None:
        return "none"
    if isinstance(pictures, Rendered):
        shown = str(pictures.renderer)
    else:
        shown = f"pictures of {pictures.folder.resolve()}"
    return f"{shown}, {crops} crops of {CROP} a view" if crops else shown


def _begin(
    path: Path, earlier: Path | None, attributes: dict, ids: Sequence[str], stamps: list[str],
    views: int, width: int,
) -> None:  # fmt: skip
    """Begins a file, with what an earlier one has of the same shapes; or goes on with one begun."""
    if path.exists():
        if _check(path, attributes):
            return
        earlier = path
    partial = path.with_name(f"{path.name}.partial")
    text = h5py.string_dtype("utf-8", 300)  # of fixed length: it survives a kill
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _reserve(partial, 2**20 + len(ids) * (400 + views * width * 4))
        with h5py.File(partial, "w") as file:
            file.attrs.update(attributes)
            if ids:
                images = file.create_group("images")
                images["id"], images["stamp"] = list(ids), stamps
                images["state"] = np.zeros(len(ids), np.uint8)
                images["picture"] = np.full(len(ids), -1)  # of which file, where it was one
                images.create_dataset("reason", (len(ids),), text)  # of those that failed
                images["feature"] = np.zeros((len(ids), views, width), np.float32)
                if earlier:
                    _take_over(earlier, images)
        os.replace(partial, path)
    except (OSError, RuntimeError):
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _take_over(earlier: Path, images: h5py.Group) -> None:
    """Copies what is done of shapes that are still the same."""
    with h5py.File(earlier) as file:
        old = file["images"]
        known = zip(old["id"].asstr()[()], old["stamp"].asstr()[()], strict=True)
        place = {key: row for row, key in enumerate(known)}
        wanted = zip(images["id"].asstr()[()], images["stamp"].asstr()[()], strict=True)
        pairs = [(row, place[key]) for row, key in enumerate(wanted) if key in place]
        done = old["state"][()] == DONE
        rows, places = np.array([p for p in pairs if done[p[1]]], int).reshape(-1, 2).T
        for name in ("feature", "picture", "state"):
            values = images[name][()]
            values[rows] = old[name][()][places]
            images[name][()] = values


def _reserve(path: Path, size: int) -> None:
    """Raises OSError where the disk has no room: h5py crashes when one is full."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _changed(path: Path, pictures) -> bool:
    """Whether any picture's file is another than it was."""
    if not hasattr(pictures, "path"):
        return False
    with h5py.File(path) as file:
        return not np.array_equal(file["images"]["picture"][()], _pictures(pictures))


def _pictures(pictures) -> np.ndarray:
    """What tells pictures' files apart, unread: their size and end, where PNGs have a CRC."""
    return np.array([_end(pictures.path(index)) for index in range(len(pictures.ids))])


def _end(path: Path) -> int:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            return size << 32 | zlib.crc32(file.read())
    except OSError:
        return -1


def _check(path: Path, attributes: dict) -> bool:
    """Whether a file is of the very same classes and shapes.

    Raises InputError unless it is of the same teacher, data set, pictures and prompts.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder; choose a file, output=...h5")
    try:
        with h5py.File(path) as file:
            for key, value in attributes.items():
                found = file.attrs[key]
                found = found.tolist() if isinstance(found, np.ndarray) else found
                if found != value and key not in CONTENT:
                    raise InputError(
                        f"{path}: its {key.replace('_', ' ')} is {_short(found)}, not "
                        f"{_short(value)}; choose another file (output=..., teacher.path=..., "
                        "name=...), or remove it"
                    )
            return all(file.attrs[key] == attributes[key] for key in CONTENT)
    except BlockingIOError as error:
        raise InputError(f"{path}: another run is writing it; wait for its end") from error
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it to begin anew") from error


def _short(value) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 90 else f"{text[:40]} ... {text[-45:]}"


def _failures(path: Path) -> dict[str, str]:
    with h5py.File(path) as file:
        if "images" not in file:
            return {}
        ids, reasons = (file["images"][key].asstr()[()] for key in ("id", "reason"))
        bad = file["images"]["state"][()] == FAILED
        return dict(zip(ids[bad], reasons[bad], strict=True))


def _encode(clip, pictures, file: h5py.File, batch_size, workers, crops) -> None:
    images = file["images"]
    if hasattr(pictures, "path"):
        found = _pictures(pictures)
        same = images["picture"][()] == found
        images["state"][()] = np.where(same, images["state"][()], PENDING)
        images["picture"][()] = found
    pending = np.flatnonzero(images["state"][()] != DONE).tolist()
    size = clip.tower.visual.image_size
    pixels = Pixels(pictures, clip.preprocess, size[0] if isinstance(size, tuple) else size, crops)
    loader = DataLoader(
        torch.utils.data.Subset(pixels, pending), batch_size, num_workers=workers, collate_fn=list,
        multiprocessing_context="spawn" if workers else None,  # OpenGL does not survive a fork
    )  # fmt: skip
    progress = tqdm(total=len(pixels), initial=len(pixels) - len(pending), desc="encoding views",
                    unit="shape", disable=None)  # fmt: skip
    for batch in loader:
        bad = {index: reason for index, _, reason in batch if reason}
        good = sorted((item for item in batch if not item[2]), key=lambda item: item[0])
        if good:
            rows = [index for index, *_ in good]
            shown = torch.stack([views for _, views, _ in good])
            features = clip.encode_images(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])
            images["feature"][rows] = features.numpy()
            for row, whole in zip(rows, features.isfinite().flatten(1).all(1), strict=True):
                if not whole:
                    bad[row] = f"its features are not finite in {clip.precision}"
        for index, reason in bad.items():
            images["reason"][index] = reason.encode()[:300].decode(errors="ignore")
            log.warning("%s: %s", pictures.ids[index], reason)
        file.flush()
        for index, *_ in batch:  # after all else of these shapes is written
            images["state"][index] = FAILED if index in bad else DONE
        file.flush()
        progress.update(len(batch))
    progress.close()


def make(settings: Mapping, source, pictures, device: str) -> tuple[OpenClip, dict[str, str]]:
    """Caches what a configuration as configs/cache_teacher.yaml says; the CLIP, and what failed."""
    output = Path(settings["output"])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not output.exists():
        raise InputError(f"{output}: missing; make it in one process, scripts/cache_teacher.py")
    precision = settings["clip"]["precision"] or ("bf16" if "cuda" in device else "fp32")
    clip = instantiate(settings["clip"], device=device, precision=precision)
    prompts = read_prompts(settings["prompts"])
    batch_size, workers, crops = (settings[key] for key in ("batch_size", "workers", "crops"))
    return clip, cache(clip, source, pictures, prompts, output, batch_size, workers, crops)


def pictures_of(settings: Mapping, source) -> Rendered | DatasetImages | None:
    """Pictures of a source's shapes, as such a configuration's ``images`` says: from 'folder',
    'render', or None for 'none'.
    """
    kind = settings["images"]
    if kind == "none":
        return None
    if kind == "render":
        return Rendered(source, instantiate(settings["renderer"]))
    if kind == "folder":
        return DatasetImages(source, settings["folder"])
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
