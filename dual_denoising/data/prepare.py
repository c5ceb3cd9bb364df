"""What was downloaded -> one HDF5 file per split, with a manifest; and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import yaml
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dual_denoising.data import ASSETS
from dual_denoising.data.clouds import CloudDataset, TestSet
from dual_denoising.data.folder import Folder
from dual_denoising.data.sources import digest
from dual_denoising.errors import InputError, input_error


def catalogue() -> dict:
    """Titles, downloads, terms and counts of the data sets, from data/datasets.yaml."""
    return yaml.safe_load((ASSETS / "datasets.yaml").read_text())


def where_to_get(name: str) -> str:
    """One paragraph on the official download of a data set and its terms."""
    entry = catalogue().get(name)
    if entry is None:
        return f"{name}: data of your own"
    return f"{entry['title']}\n  download: {entry['download'].strip()}\n  terms: {entry['terms']}"


def open_sources(
    configs: Iterable, make: Callable, tolerant: bool = False
) -> tuple[list, list[str]]:
    """Sources that ``make`` makes of the configurations; if tolerant, its other complaints."""
    sources, wrong = [], []
    for config in configs:
        try:
            made = make(config)
        except Exception as error:
            if input_error(error) is None or not tolerant:
                raise
            wrong.append(str(input_error(error)))
            continue
        made = made.source if isinstance(made, TestSet) else made
        sources += made if isinstance(made, list) else [made]
    return sources, wrong


def check_convertible(name: str, root: str) -> None:
    """Raises InputError for a data set that is read as it was downloaded."""
    if (catalogue().get(name) or {}).get("as_is"):
        raise InputError(
            f"{name} is read as it was downloaded: move or link it to {root}/{name}; "
            f"'check data={name} source=...' tells whether it is whole"
        )


class _Rows(Dataset):
    """(index, points (N, 3) or None, reason) of every cloud: a bad one does not stop the others."""

    def __init__(self, clouds: CloudDataset):
        self.clouds = clouds

    def __getitem__(self, index: int):
        try:
            return index, self.clouds[index]["points"].numpy(), ""
        except InputError as error:
            return index, None, str(error)


def rows(clouds: CloudDataset, indices: Sequence[int], workers: int, title: str) -> Iterator:
    """Reads clouds in parallel, with a progress bar."""
    loader = DataLoader(_Rows(clouds), batch_size=None, sampler=indices, num_workers=workers)
    return tqdm(loader, title, len(indices), unit="cloud")


def convert(source, folder: Path, points: int, workers: int, few: str = "refuse") -> dict:
    """Writes <name>_<split>.h5 (y-up, scale as read) and its entry in manifest.json; returns that.

    Goes on where it was stopped, if it is asked for the same: of clouds that are in files of their
    own, those unchanged since are kept. Raises InputError that names the clouds that cannot be
    read; the others stay in the .partial file. few: 'refuse' or 'repeat' clouds of fewer points.
    """
    path = folder / f"{source.name}_{source.split}.h5"
    if Path(source.origin).resolve() == path.resolve():
        raise InputError(f"{path}: is the source itself; choose another data_root for the result")
    clouds = CloudDataset(source, points, few=few, unit_sphere=False)
    partial, bad = path.with_suffix(".partial"), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pending = _begin(source, partial, points)
        with h5py.File(partial, "r+") as file:
            read = rows(clouds, pending, workers, f"{source.name} {source.split}")
            for count, (index, cloud, reason) in enumerate(read):
                if cloud is None:
                    bad.append(reason)
                    continue
                file["data"][index], file["done"][index] = cloud, True
                if count % 50 == 0:
                    file.flush()
            if not bad:
                del file["done"], file["stamp"], file.attrs["job"]
        if not bad:
            os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: not written ({error}); free space and start again") from error
    if bad:
        more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise InputError(f"{len(bad)} of {len(clouds)} clouds: {'; '.join(bad[:10])}{more}")
    return _record(source, path, points)


def _begin(source, partial: Path, points: int) -> list[int]:
    """Makes the .partial file with the clouds of an earlier attempt; indices of the others."""
    sampling = [getattr(source, key, None) for key in ("points_per_mesh", "seed")]
    job = {"up": source.up, "origin": _origin(source), "points": points, "sampling": sampling}
    stamps = [_stamp(source, index) for index in range(len(source.labels))]
    known = _known(partial, json.dumps(job))
    kept = [known.get(key) for key in zip(source.ids, stamps, strict=True)]
    fresh = partial.with_suffix(".begun")
    with h5py.File(fresh, "w") as file:
        file.create_dataset("data", (len(kept), points, 3), "f4", chunks=(1, points, 3),
                            compression="gzip", compression_opts=1, shuffle=True)  # fmt: skip
        file["label"], file["name"], file["stamp"] = source.labels, list(source.ids), stamps
        file["done"] = np.array([cloud is not None for cloud in kept])
        file.attrs["up"], file.attrs["origin"] = "y", source.origin
        file.attrs["job"] = json.dumps(job)
        for index, cloud in enumerate(kept):
            if cloud is not None:
                file["data"][index] = cloud
    os.replace(fresh, partial)
    return [index for index, cloud in enumerate(kept) if cloud is None]


def _origin(source) -> list[str]:
    """The source's place; and the state of its files, unless every cloud has one of its own."""
    place = Path(source.origin)
    files = [place] if place.is_file() else sorted(place.glob("*"))
    files = [] if hasattr(source, "files") else [file for file in files if file.is_file()]
    return [str(place.resolve()), *map(_state, files)]


def _stamp(source, index: int) -> str:
    return _state(Path(source.files[index])) if hasattr(source, "files") else ""


def _state(file: Path) -> str:
    if not file.exists():
        return "missing"
    return f"{file.stat().st_size}:{file.stat().st_mtime_ns}"


def _known(partial: Path, job: str) -> dict[tuple[str, str], np.ndarray]:
    """Clouds of an earlier attempt at the same job by (id, stamp)."""
    if not partial.exists():
        return {}
    try:
        with h5py.File(partial) as file:
            if file.attrs["job"] != job:
                return {}
            keys = zip(file["name"].asstr()[()], file["stamp"].asstr()[()], strict=True)
            done = file["done"][()]
            return {key: file["data"][i] for i, key in enumerate(keys) if done[i]}
    except (OSError, KeyError, RuntimeError):  # killed while writing: nothing can be trusted
        return {}


def _record(source, path: Path, points: int) -> dict:
    """Adds a split to the manifest and the class names to shape_names.txt."""
    counts = Counter(source.class_names[label] for label in source.labels)
    entry = {
        "file": path.name,
        "sha256": digest(path),
        "clouds": len(source.labels),
        "points": points,
        "up": "y",
        "read_as": source.up,
        "origin": source.origin,
        "classes": {name: counts[name] for name in source.class_names},
    }
    manifest = path.parent / "manifest.json"
    entries = json.loads(manifest.read_text()) if manifest.exists() else {}
    entries[f"{source.name}_{source.split}"] = entry
    (path.parent / "shape_names.txt").write_text("\n".join(source.class_names) + "\n")
    manifest.write_text(json.dumps(entries, indent=1))
    return entry


def problems(name: str, sources: Sequence, workers: int = 0) -> list[str]:
    """Everything that is missing, duplicated, empty or odd about the splits of a data set."""
    found: list[str] = []
    first_seen: dict[str, str] = {}
    for source in sources:
        found += _wrong_counts(name, source)
        clouds = CloudDataset(source, 1, few="repeat", unit_sphere=False)
        for index, _, reason in rows(clouds, range(len(clouds)), workers, f"check {source.split}"):
            if reason:
                found.append(reason)
                continue
            mark, here = _content(source, index), f"{source.split} '{source.ids[index]}'"
            if mark in first_seen:
                found.append(f"{source.origin}: {here} is the same as {first_seen[mark]}")
            first_seen.setdefault(mark, here)
    return found + _strangers(sources) + _gaps(sources)


def _wrong_counts(name: str, source) -> list[str]:
    found = [f"{place}: missing" for place in getattr(source, "missing", ())]
    want = (catalogue().get(name) or {}).get("shapes", {}).get(source.split)
    if want not in (None, len(source.labels)):
        found.append(
            f"{source.origin}: {source.split} has {len(source.labels)} clouds, the official list "
            f"has {want}"
        )
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    empty = [source.class_names[i] for i in np.flatnonzero(counts == 0)]
    return found + [f"{source.origin}: {source.split} has no '{name}'" for name in empty]


def _content(source, index: int) -> str:
    if hasattr(source, "files"):
        return digest(source.files[index])
    return hashlib.sha256(np.ascontiguousarray(source.clouds[index])).hexdigest()


def _strangers(sources: Sequence) -> list[str]:
    """Files and folders beside those that are read, of which nothing is known."""
    used = {Path(file) for source in sources for file in getattr(source, "files", ())}
    folders = {file.parent for file in used}
    tops = {Path(s.origin): set(s.class_names) for s in sources if isinstance(s, Folder)}
    odd = [
        f"{path}: odd, of no split"
        for folder in sorted(folders)
        for path in sorted(folder.iterdir() if folder.exists() else ())
        if path.is_file() and path not in used
    ]
    return odd + [
        f"{path}: odd, of no class"
        for top, names in tops.items()
        for path in sorted(top.iterdir())
        if path.is_dir() and path.name not in names
    ]


def _gaps(sources: Sequence) -> list[str]:
    """Files that the numbering over all splits leaves out: chair_0002 between 0001 and 0003."""
    numbers: dict[str, set[int]] = {}
    for source in sources:
        for file in getattr(source, "files", ()):
            stem, _, number = Path(file).stem.rpartition("_")
            if stem and number.isdigit():
                numbers.setdefault(stem, set()).add(int(number))
    return [
        f"{stem}_{number:04d}: missing, its neighbours are there"
        for stem, there in sorted(numbers.items())
        for number in sorted(set(range(1, max(there))) - there)
    ]
