"""What was downloaded -> one HDF5 file per split, with a manifest; and what is wrong with it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from torch.utils.data import DataLoader
from tqdm import tqdm

from dual_denoising.data import ASSETS
from dual_denoising.data.datasets import CloudDataset, Tried, open_tests
from dual_denoising.data.folder import Folder
from dual_denoising.data.sources import Source
from dual_denoising.data.storage import RowFile, atomic, fingerprint, read_json, write_text
from dual_denoising.errors import InputError, check_choice, check_number


def catalogue(name: str) -> dict:
    """Title, download, terms and counts of a dataset, from data/datasets.yaml; {} of another."""
    return yaml.safe_load((ASSETS / "datasets.yaml").read_text()).get(name, {})


def where_to_get(name: str | None) -> str:
    """One paragraph on the official download of a dataset and its terms."""
    if name is None:
        raise InputError("data is not given: say data=modelnet40, or another of configs/data")
    entry = catalogue(name)
    if not entry:
        return f"{name}: data of your own"
    return (
        f"{entry['title']}\n  download: {entry['download'].strip()}\n  terms: {entry['terms']}\n"
        f"  then: data={name} source=/path/of/the/download"
    )


def read_from(data: Any, name: str, source: str, points: int, checks: bool) -> None:
    """Makes a ``data`` configuration read the folder ``source``, to check or to convert it."""
    if not Path(source).is_dir():
        raise InputError(f"source is {source}: no such folder; give that of the downloaded {name}")
    if "root" not in data:
        raise InputError(f"data={name} does not read one folder; choose a dataset that does")
    if not checks and catalogue(name).get("as_is"):
        raise InputError(f"{name} is read as it was downloaded: link it to <data_root>/{name}")
    # a check names all that is missing, not the first
    own = {"root": str(source), "points_per_mesh": points, "strict": not checks}
    data.update({key: value for key, value in own.items() if key in data})


def open_sources(
    data: Mapping, build: Callable, tolerant: bool = False
) -> tuple[list[Source], list[str]]:
    """The sources of a ``data`` configuration; if tolerant, also what is wrong with the others."""
    tests = data["tests"]
    if not isinstance(tests, Mapping):
        tests = {f"data.tests.{i}": config for i, config in enumerate(tests)}
    found, absent = open_tests({"train": data["train"], **tests}, build, 1, tolerant)
    return [clouds.source for clouds in found], list(absent.values())


def convert(source: Source, folder: Path, points: int, workers: int, few: str = "refuse") -> dict:
    """Writes <name>_<split>.h5 (y-up, scale as read) and its entry in manifest.json; returns that.

    Started again, it goes on where it was stopped, unless the files have changed since. Raises
    InputError that names the clouds that cannot be read; the others are kept for the next try.
    few: 'refuse' or 'repeat' clouds of fewer points.
    """
    check_choice("few", few, ("refuse", "repeat"))
    check_number("workers", workers)
    path = folder / f"{source.name}_{source.split}.h5"
    own = Path(source.origin).resolve() == path.resolve()
    known = read_json(folder / "manifest.json")  # damaged, it is to be seen before any work
    if own or (path.exists() and path.stem not in known):
        words = "the source itself, or not of manifest.json; choose another data_root"
        raise InputError(f"{path}: {words}")
    clouds = CloudDataset(source, points, few=few, unit_sphere=False)
    partial, bad = path.with_suffix(".partial"), []
    settings = {"points": points, "ids": fingerprint(list(source.ids))}
    states = [source.fingerprint(i) for i in range(len(source))]
    empty = np.zeros((len(source), points, 3), np.float32)
    with RowFile.resumed(partial, settings, states, data=empty) as file:
        for index, cloud, reason in _read(clouds, file.pending.tolist(), workers, path.stem):
            if cloud is None:
                bad.append(reason)
            else:
                file.finish(np.array([index]), data=cloud["points"][None])
        data = file.file["data"][()]
    if bad:
        raise InputError(f"{len(bad)} of {len(clouds)} clouds: {'; '.join(bad[:10])}")
    with atomic(path) as temporary, h5py.File(temporary, "w") as whole:
        whole.create_dataset("data", data=data, compression="gzip", compression_opts=1)
        whole["label"], whole["name"] = source.labels, list(source.ids)
        whole.attrs["up"], whole.attrs["origin"] = "y", source.origin
    entry = _record(source, path, points)
    partial.unlink()
    return entry


def _read(clouds: CloudDataset, indices: Sequence[int], workers: int, title: str) -> Iterator:
    loader = DataLoader(Tried(clouds), batch_size=None, sampler=indices, num_workers=workers)
    return iter(tqdm(loader, title, len(indices), unit="cloud"))


def _record(source: Source, path: Path, points: int) -> dict:
    """Adds a split to manifest.json and writes its class names to shape_names.txt.

    Where shape_names.txt holds names of another split, they go to <name>_<split>_names.txt.
    """
    entries = read_json(path.with_name("manifest.json"))
    names, listed = "\n".join(source.class_names) + "\n", path.parent / "shape_names.txt"
    users = [stem for stem, e in entries.items() if e.get("names", listed.name) == listed.name]
    if listed.exists() and listed.read_text() != names and users != [path.stem]:
        listed = path.with_name(f"{path.stem}_names.txt")
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    entry = {
        "file": path.name,
        "sha256": fingerprint(path),
        "clouds": len(source),
        "points": points,
        "up": "y",
        "read_as": source.up,
        "origin": source.origin,
        "classes": dict(zip(source.class_names, counts, strict=True)),
        "names": listed.name,
    }
    write_text(listed, names)
    write_text(path.parent / "manifest.json", json.dumps(entries | {path.stem: entry}, indent=1))
    return entry


def problems(name: str, sources: Sequence[Source], workers: int = 0) -> list[str]:
    """Everything that is missing, duplicated, empty or odd about the splits of a dataset."""
    found: list[str] = []
    first_seen: dict[str, str] = {}
    for source in sources:
        found += _wrong_counts(name, source)
        clouds = CloudDataset(source, 1, few="repeat", unit_sphere=False)
        for index, _, reason in _read(clouds, range(len(clouds)), workers, f"check {source.split}"):
            if reason:
                found.append(reason)
                continue
            shape, here = source.drawable(index), f"{source.split} '{source.ids[index]}'"
            mark = fingerprint(shape if isinstance(shape, Path) else source.read(index))
            if (first := first_seen.setdefault(mark, here)) != here:
                found.append(f"{source.origin}: {here} is the same as {first}")
    return found + _strangers(sources) + _gaps(sources)


def _wrong_counts(name: str, source: Source) -> list[str]:
    found = [f"{place}: missing" for place in source.missing]
    want, count = catalogue(name).get("shapes", {}).get(source.split), len(source)
    if want not in (None, count):
        found.append(f"{source.origin}: {source.split} has {count} clouds, officially {want}")
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    empty = [source.class_names[int(i)] for i in np.flatnonzero(counts == 0)]
    return found + [f"{source.origin}: {source.split} has no '{kind}'" for kind in empty]


def _files(sources: Sequence[Source]) -> list[Path]:
    shapes = (source.drawable(i) for source in sources for i in range(len(source)))
    return [shape for shape in shapes if isinstance(shape, Path)]


def _strangers(sources: Sequence[Source]) -> list[str]:
    """Files and folders beside those that are read, of which nothing is known."""
    used = set(_files(sources))
    odd = [
        f"{path}: odd, of no split"
        for folder in sorted({file.parent for file in used})
        for path in sorted(folder.iterdir() if folder.exists() else ())
        if path.is_file() and path not in used
    ]
    tops = {Path(s.origin): set(s.class_names) for s in sources if isinstance(s, Folder)}
    return odd + [
        f"{path}: odd, of no class"
        for top, names in tops.items()
        for path in sorted(top.iterdir())
        if path.is_dir() and path.name not in names
    ]


def _gaps(sources: Sequence[Source]) -> list[str]:
    """Files that the numbering over all splits leaves out: chair_0002 between 0001 and 0003."""
    numbers: dict[str, set[int]] = {}
    for file in _files(sources):
        stem, _, number = file.stem.rpartition("_")
        if stem and number.isdigit():
            numbers.setdefault(stem, set()).add(int(number))
    return [
        f"{stem}_{number:04d}: missing, its neighbours are there"
        for stem, there in sorted(numbers.items())
        for number in sorted(set(range(1, max(there))) - there)
    ]
