"""Teacher features of a dataset, computed once into one HDF5 file (format: data/feature_file.py).

Beside it lies a .partial file until all are done, so that a killed run goes on.
"""

import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop
from tqdm import tqdm

from dual_denoising.clip.features import read_prompts
from dual_denoising.clip.image_tower import ImageTeacher
from dual_denoising.clip.towers import OpenClip
from dual_denoising.clip.views import Renderer, draw, read_picture
from dual_denoising.data.datasets import Tried, evenly_spaced
from dual_denoising.data.sources import Source
from dual_denoising.data.storage import RowFile, atomic, fingerprint
from dual_denoising.errors import InputError, check, check_choice, check_number, reading
from dual_denoising.keyed_random import Stream, key

log = logging.getLogger(__name__)
Clip = OpenClip | ImageTeacher

CROP = (0.6, 1.0)  # share of a view's area


class Rendered:
    """Pictures of every shape of a source by a renderer, of its meshes where it has any."""

    def __init__(self, source: Source, renderer: Renderer):
        self.source, self.renderer = source, renderer
        self.views, self.title = len(renderer.cameras), str(renderer)

    def __getitem__(self, index: int) -> list[Image.Image]:
        return draw(self.renderer, self.source, index)

    def fingerprint(self, index: int) -> str:
        return self.source.fingerprint(index)


class DatasetImages:
    """The dataset's own pictures, ``folder/<id>.png``, one a shape."""

    views = 1

    def __init__(self, source: Source, folder: str | None):
        self.source, self.folder = source, Path(str(folder))
        fix = "no folder; unpack the dataset's pictures there, or images=render"
        check("folder", folder, self.folder.is_dir(), fix)
        self.title = f"pictures of {self.folder.resolve()}"

    def path(self, index: int) -> Path:
        return self.folder / f"{self.source.ids[index]}.png"

    def __getitem__(self, index: int) -> list[Image.Image]:
        return [read_picture(self.path(index))]

    def fingerprint(self, index: int) -> str:
        """Of the shape, and of its picture's size and last bytes: a PNG's checksum is there."""
        try:
            with self.path(index).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 64))
                end = size << 32 | zlib.crc32(file.read())
        except OSError:
            end = -1
        return f"{self.source.fingerprint(index)} {end}"


Pictures = Rendered | DatasetImages


def prepare(
    settings: Mapping, source: Source, build: Callable, device: torch.device
) -> tuple[Clip, Pictures | None, Callable[[], dict[str, str]]]:
    """Checks a configuration as configs/cache_teacher.yaml.

    Returns the CLIP, the pictures, and the call of ``cache`` that does what the configuration says.
    """
    output, kind = Path(settings["output"]), settings["images"]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not output.exists():
        raise InputError(f"{output}: missing; make it in one process, scripts/cache_teacher.py")
    check_choice("images", kind, ("folder", "render", "none"))
    precision = settings["clip"]["precision"] or ("bf16" if device.type == "cuda" else "fp32")
    clip = build(settings["clip"], device=str(device), precision=precision)
    pictures: Pictures | None = None
    if kind == "render":
        pictures = Rendered(source, build(settings["renderer"]))
    elif kind == "folder":
        pictures = DatasetImages(source, settings["folder"])
    prompts = read_prompts(settings["prompts"])
    least = {"batch_size": 1, "workers": 0, "crops": 0}
    options = {name: check_number(name, settings[name], low) for name, low in least.items()}
    return clip, pictures, partial(cache, clip, source, pictures, prompts, output, **options)


def cache(
    clip: Clip,
    source: Source,
    pictures: Pictures | None,
    prompts: Sequence[str],
    path: Path,
    batch_size: int = 64,
    workers: int = 0,
    crops: int = 0,
) -> dict[str, str]:
    """Writes image features of ``pictures`` (None for none), text features of classes × prompts.

    crops: random crops of each view, flipped by chance; 0 takes it whole. Returns {id: reason} of
    the shapes that have no features; they are tried again by the next call. Raises InputError for
    ids that occur twice, and for a file of another teacher, dataset, pictures or prompts.
    """
    twice = [key for key, count in Counter(source.ids).items() if count > 1]
    if pictures and twice:
        words = f"{len(twice)} ids are of two shapes, the first is '{twice[0]}'; rename one"
        raise InputError(f"{source.origin}: {words}")
    title = pictures.title if pictures else "none"
    attributes = {
        "model": clip.names[0],
        "pretrained": clip.names[1],
        "weights": clip.weights_hash,
        "precision": clip.precision,
        "preprocess": str(clip.preprocess),
        "prompts": list(prompts),
        "dataset": source.name,
        "images": f"{title}, {crops} crops of {CROP} a view" if pictures and crops else title,
    }
    marks = [pictures.fingerprint(i) for i in range(len(source))] if pictures else []
    content = fingerprint(list(source.class_names), list(source.ids), marks)
    if path.exists() and _complete(path, attributes, content):
        log.info("%s: complete already", path)
        return {}
    begun, failed = path.with_name(f"{path.name}.partial"), {}
    if pictures:
        views = pictures.views * max(crops, 1)
        empty = np.zeros((len(source), views, clip.width), np.float32)
        settings = attributes | {"ids": fingerprint(list(source.ids))}
        with RowFile.resumed(begun, settings, marks, feature=empty) as rows:
            failed = _encode(clip, pictures, rows, batch_size, workers, crops)
            features = rows.file["feature"][()]
    names = list(dict.fromkeys(name.replace("_", " ") for name in source.class_names))
    encoded = clip.encode_names(names, prompts).numpy()
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(attributes | {"content": content, "crops": crops})
        text = file.create_group("text")
        text["feature"], text["name"] = encoded, names
        text.attrs["prompts"] = list(prompts)
        if pictures:
            images = file.create_group("images")
            images["id"] = list(source.ids)
            images["stamp"] = [source.fingerprint(i) for i in range(len(source))]
            images["feature"] = features
            images["reason"] = [failed.get(i, "") for i in range(len(source))]
    if not failed:
        begun.unlink(missing_ok=True)
    return {source.ids[i]: reason for i, reason in failed.items()}


def _complete(path: Path, attributes: dict, content: str) -> bool:
    """Whether a file has the features of all shapes that are there now.

    Raises InputError for a file of another teacher, dataset, pictures or prompts.
    """
    with reading(path, "cache of this version", "remove it"), h5py.File(path) as file:
        found = {name: np.asarray(file.attrs[name]).tolist() for name in attributes}
        same = file.attrs["content"] == content
        failed = "images" in file and any(file["images/reason"][()])
    for name, value in attributes.items():
        if found[name] != value:
            texts = (str(found[name]), str(value))
            own, other = (t if len(t) < 90 else f"{t[:40]} … {t[-45:]}" for t in texts)
            words = f"its {name} is {own}, not {other}"
            fix = "choose another file (output=..., teacher.path=..., name=...), or remove it"
            raise InputError(f"{path}: {words}; {fix}")
    return same and not failed


def _encode(
    clip: Clip, pictures: Pictures, file: RowFile, batch_size: int, workers: int, crops: int
) -> dict[int, str]:
    """Features of the shapes that an earlier try has not made; {index: reason} of those without."""
    wanted = Subset(Tried(Pixels(pictures, clip, crops)), file.pending.tolist())
    spawn = "spawn" if workers else None  # OpenGL does not survive a fork
    loader = DataLoader(
        wanted, batch_size, num_workers=workers, collate_fn=list, multiprocessing_context=spawn
    )
    failed: dict[int, str] = {}
    for items in tqdm(loader, "encoding views", unit="batch"):
        failed |= {index: reason for index, _, reason in items if reason}
        if good := [item for item in items if not item[2]]:
            rows, pixels = np.array([i for i, *_ in good]), torch.stack([p for _, p, _ in good])
            encoded = clip.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
            finite = encoded.isfinite().all(-1).all(-1).numpy()
            failed |= dict.fromkeys(
                rows[~finite], f"its features are not finite in {clip.precision}"
            )
            file.finish(rows[finite], feature=encoded.numpy()[finite])
    for index, reason in failed.items():
        log.warning("%s: %s", pictures.source.ids[index], reason)
    return failed


class Pixels:
    """Preprocessed views (views·max(crops, 1), 3, H, W) of a shape.

    crops: of every view, random ones of 60 to 100% of its area, flipped by chance; 0 takes it
    whole.
    """

    def __init__(self, pictures: Pictures, clip: Clip, crops: int = 0):
        self.pictures, self.preprocess, self.crops = pictures, clip.preprocess, crops
        self.crop = Compose([RandomResizedCrop(clip.image_size, CROP), RandomHorizontalFlip()])

    def __getitem__(self, index: int) -> torch.Tensor:
        views = self.pictures[index]
        if self.crops:
            with torch.random.fork_rng([]):
                torch.manual_seed(int(key(Stream.CROPS, index)))
                views = [self.crop(view) for view in views for _ in range(self.crops)]
        return torch.stack([self.preprocess(view) for view in views])


def sheet(pictures: Pictures, count: int) -> list[tuple[str, list[Image.Image]]]:
    """Names and views of ``count`` shapes, evenly spread, without those that cannot be drawn."""
    ids, drawn = pictures.source.ids, Tried(pictures)
    chosen = map(drawn.__getitem__, evenly_spaced(len(ids), count))
    return [(ids[i], views) for i, views, reason in chosen if not reason]
