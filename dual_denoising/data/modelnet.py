"""ModelNet10 and ModelNet40 in every layout in which they are passed on.

| layout | files | up |
|---|---|---|
| h5 | <name>_<split>.h5, shape_names.txt; scripts/prepare_data.py writes it | attribute or y |
| ply_hdf5 | ply_data_<split><i>.h5 (n, 2048, 3), shape_names.txt (40 classes) | y |
| normal_resampled | modelnet<n>_<split>.txt, <class>/<class>_<number>.txt, 10,000 points | y |
| fps_dat | modelnet<n>_<split>_8192pts_fps.dat, a pickle | y |
| off | <class>/<split>/<class>_<number>.off, Princeton's meshes | z |

The frames were looked up in the code that made or reads the files: see README, "Data".
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from dual_denoising.data import ASSETS
from dual_denoising.data.clouds import check_points
from dual_denoising.data.files import read_cloud
from dual_denoising.data.folder import Folder
from dual_denoising.data.pickles import load_arrays
from dual_denoising.data.sources import ArraySource, FileSource, need, read_h5, read_names
from dual_denoising.errors import InputError, MissingError

FRAMES = {"ply_hdf5": "y", "normal_resampled": "y", "fps_dat": "y", "off": "z"}


class ModelNetH5(ArraySource):
    """One split in one HDF5 file: ``data`` (n, N, 3), ``label`` (n,), optional ``name`` (n,).

    up: the up-axis of the file's own frame; None takes the file's attribute ``up``, else y.
    """

    def __init__(self, path: str, shape_names: str, split: str, name: str, up: str | None = None):
        data, labels, ids, stored = read_h5(Path(path))
        names = read_names(shape_names)
        super().__init__(name, split, up or stored or "y", names, data, labels, ids, str(path))


def open_modelnet(
    root: str,
    split: str,
    classes: int = 40,
    layout: str = "auto",
    up: str | None = None,
    name: str | None = None,
    points_per_mesh: int = 2048,
    seed: int = 0,
) -> ArraySource | FileSource:
    """A split of ModelNet10 or 40 from whatever lies in ``root``; ``layout`` chooses among several.

    up: overrides the up-axis of the layout. Meshes are sampled, area-uniform, a function of seed.
    """
    if classes not in (10, 40):
        raise InputError(f"classes is {classes}: ModelNet has 10 or 40")
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"layout is '{layout}': choose auto or one of {', '.join(LAYOUTS)}")
    root, name = Path(root), name or f"modelnet{classes}"
    for kind, (find, read) in LAYOUTS.items():
        found = find(root, split, classes, name) if layout in ("auto", kind) else None
        if found:
            frame = up or FRAMES.get(kind)
            return read(found, split, classes, name, frame, points_per_mesh, seed)
    raise MissingError(
        f"{root}: no {name} {split} in {'any known layout' if layout == 'auto' else layout} "
        f"({', '.join(LAYOUTS)}); put the data there, or set DUAL_DENOISING_DATA (data_root=...); "
        f"python scripts/prepare_data.py data={name} says where to get it"
    )


def class_names(classes: int) -> list[str]:
    return read_names(ASSETS / "classes" / f"modelnet{classes}.txt")


def _first(root: Path, pattern: str) -> Path | None:
    """The folder, the root or one in it, that holds files of the pattern."""
    folders = [root, *sorted(p for p in root.glob("*") if p.is_dir())]
    return next((f for f in folders if next(f.glob(pattern), None)), None)


def _find_h5(root, split, classes, name):
    return root / f"{name}_{split}.h5" if (root / f"{name}_{split}.h5").exists() else None


def _read_h5(path, split, classes, name, up, points, seed):
    return ModelNetH5(path, path.parent / "shape_names.txt", split, name, up)


def _find_ply(root, split, classes, name):
    return _first(root, f"ply_data_{split}*.h5") if classes == 40 else None


def _read_ply(folder, split, classes, name, up, points, seed):
    """The files that the list names, or all of the split where there is no list."""
    listed = folder / f"{split}_files.txt"
    names = [Path(x).name for x in read_names(listed)] if listed.exists() else []
    paths = [need(folder / x) for x in names] or sorted(folder.glob(f"ply_data_{split}*.h5"))
    parts = [read_h5(path) for path in paths]
    sizes = {part[0].shape[1] for part in parts}
    if len(sizes) > 1:
        raise InputError(f"{folder}: files of {sorted(sizes)} points; unpack the data set again")
    data = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    ids = [f"{path.stem}/{i}" for path, part in zip(paths, parts, strict=True) for i in part[2]]
    own = folder / "shape_names.txt"
    names = read_names(own) if own.exists() else class_names(40)
    return ArraySource(name, split, up, names, data, labels, ids, str(folder))


def _find_lists(root, split, classes, name):
    return _first(root, f"modelnet{classes}_{split}.txt")


def _read_lists(folder, split, classes, name, up, points, seed):
    names, rows = class_names(classes), read_names(folder / f"modelnet{classes}_{split}.txt")
    kinds = [row.rpartition("_")[0] for row in rows]
    unknown = next((row for row, kind in zip(rows, kinds, strict=True) if kind not in names), None)
    if unknown:
        raise InputError(
            f"{folder}/modelnet{classes}_{split}.txt: '{unknown}' is of no known class"
        )
    files = [folder / kind / f"{row}.txt" for row, kind in zip(rows, kinds, strict=True)]
    labels = np.array([names.index(kind) for kind in kinds])
    read = functools.partial(_read_txt, seed=seed)
    return FileSource(name, split, up, names, files, labels, rows, str(folder), read)


def _read_txt(path: Path, index: int, seed: int) -> np.ndarray:
    return read_cloud(path, seed=seed)


def _find_dat(root, split, classes, name):
    file = f"modelnet{classes}_{split}_8192pts_fps.dat"
    folder = _first(root, file)
    return folder / file if folder else None


def _read_dat(path, split, classes, name, up, points, seed):
    content = load_arrays(path)
    if not (isinstance(content, (list, tuple)) and len(content) == 2):
        raise InputError(f"{path}: holds no pair of lists (points, labels)")
    try:
        clouds = [np.asarray(cloud)[:, :3] for cloud in content[0]]
        labels = np.array([np.asarray(label).reshape(-1)[0] for label in content[1]], np.int64)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not lists of clouds (N, 3+) and labels ({error})") from error
    for i, cloud in enumerate(clouds):
        check_points(cloud, f"{path}, cloud {i}")
    ids = [str(i) for i in range(len(clouds))]
    return ArraySource(name, split, up, class_names(classes), clouds, labels, ids, str(path))


def _find_off(root, split, classes, name):
    return _first(root, f"*/{split}/*.off")


def _read_off(folder, split, classes, name, up, points, seed):
    names = class_names(classes)
    return Folder(str(folder), split, name, up, names, points, seed)


LAYOUTS = {
    "h5": (_find_h5, _read_h5),
    "ply_hdf5": (_find_ply, _read_ply),
    "normal_resampled": (_find_lists, _read_lists),
    "fps_dat": (_find_dat, _read_dat),
    "off": (_find_off, _read_off),
}
