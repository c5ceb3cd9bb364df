"""ModelNet10 and ModelNet40 in the five layouts in which they are passed on (data/README.md)."""

from pathlib import Path

import numpy as np

from dual_denoising.data.folder import FileSource, Folder
from dual_denoising.data.pickles import load_arrays
from dual_denoising.data.sources import ArraySource, Source, known_names, read_h5, read_names
from dual_denoising.errors import InputError, check, check_choice, reading


class ModelNetH5(ArraySource):
    """One split in one HDF5 file: ``data`` (n, N, 3), ``label`` (n,), optional ``name`` (n,).

    up: the up-axis of the file's own frame; None takes the file's attribute ``up``, else y.
    """

    def __init__(self, path: str, shape_names: str, split: str, name: str, up: str | None = None):
        data, labels, ids, stored = read_h5(Path(path))
        names = read_names(shape_names)
        super().__init__(name, split, up or stored or "y", names, labels, ids, str(path), data)


def open_modelnet(
    root: str,
    split: str,
    classes: int = 40,
    layout: str = "auto",
    up: str | None = None,
    points_per_mesh: int = 2048,
    strict: bool = True,
) -> Source:
    """A split of ModelNet10 or 40 from whatever lies in ``root``; ``layout`` chooses among several.

    up: overrides the up-axis of the layout. Meshes are sampled, area-uniform. Raises InputError
    where a class's folder is missing, unless not ``strict``.
    """
    check("classes", classes, classes in (10, 40), "ModelNet has 10 or 40")
    check_choice("layout", layout, ("auto", *LAYOUTS))
    name = f"modelnet{classes}"
    folders = [Path(root), *sorted(p for p in Path(root).glob("*") if p.is_dir())]
    for known, (pattern, read, frame) in LAYOUTS.items():
        files = pattern.format(name=name, split=split)
        folder = next((f for f in folders if next(f.glob(files), None)), None)
        if folder is None or layout not in ("auto", known) or (known, classes) == ("ply_hdf5", 10):
            continue
        return read(folder, name, split, up or frame, points_per_mesh, strict)
    raise InputError(
        f"{root}: no {name} {split} in {'any known layout' if layout == 'auto' else layout} "
        f"({', '.join(LAYOUTS)}); put the data there, or set DUAL_DENOISING_DATA (data_root=...); "
        f"python scripts/prepare_data.py data={name} says where to get it"
    )


def _h5(folder: Path, name: str, split: str, up: str, *_) -> Source:
    return ModelNetH5(f"{folder}/{name}_{split}.h5", f"{folder}/shape_names.txt", split, name, up)


def _ply_hdf5(folder: Path, name: str, split: str, up: str, *_) -> Source:
    """The files that the split's list names, or all of the split where there is no list."""
    listed, own = folder / f"{split}_files.txt", folder / "shape_names.txt"
    paths = [folder / Path(x).name for x in read_names(listed)] if listed.exists() else []
    paths = paths or sorted(folder.glob(f"ply_data_{split}*.h5"))
    parts = [read_h5(path) for path in paths]
    sizes = {part[0].shape[1] for part in parts}
    if len(sizes) > 1:
        raise InputError(f"{folder}: files of {sorted(sizes)} points; unpack the dataset again")
    data, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    ids = [f"{path.stem}/{i}" for path, part in zip(paths, parts, strict=True) for i in part[2]]
    names = read_names(own) if own.exists() else known_names(name)
    return ArraySource(name, split, up, names, labels, ids, str(folder), data)


def _normal_resampled(folder: Path, name: str, split: str, up: str, *_) -> Source:
    listed = folder / f"{name}_{split}.txt"
    names, rows = known_names(name), read_names(listed)
    kinds = [row.rpartition("_")[0] for row in rows]
    for row, kind in zip(rows, kinds, strict=True):
        check(f"{listed}: a row", row, kind in names, "of no known class")
    files = [folder / kind / f"{row}.txt" for row, kind in zip(rows, kinds, strict=True)]
    labels = np.array([names.index(kind) for kind in kinds])
    return FileSource(name, split, up, names, labels, rows, str(folder), files)


def _fps_dat(folder: Path, name: str, split: str, up: str, *_) -> Source:
    path = folder / f"{name}_{split}_8192pts_fps.dat"
    with reading(path, "pair of lists, clouds (N, 3+) and labels", "download it again"):
        stored, numbers = load_arrays(path)
        clouds = [np.asarray(cloud)[:, :3] for cloud in stored]
        labels = np.array([np.asarray(number).reshape(-1)[0] for number in numbers], np.int64)
    ids = [str(i) for i in range(len(clouds))]
    return ArraySource(name, split, up, known_names(name), labels, ids, str(path), clouds)


def _off(folder: Path, name: str, split: str, up: str, points: int, strict: bool) -> Source:
    return Folder(str(folder), split, name, up, known_names(name), points, strict)


LAYOUTS = {  # the files by which one is known, its reader, and the up-axis of its files
    "h5": ("{name}_{split}.h5", _h5, ""),
    "ply_hdf5": ("ply_data_{split}*.h5", _ply_hdf5, "y"),
    "normal_resampled": ("{name}_{split}.txt", _normal_resampled, "y"),
    "fps_dat": ("{name}_{split}_8192pts_fps.dat", _fps_dat, "y"),
    "off": ("*/{split}/*.off", _off, "z"),
}
