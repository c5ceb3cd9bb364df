"""The CC0 meshes of M3-org/base-meshes, of the repository's own file or of a clone."""

import re
from pathlib import Path

import numpy as np

from dual_denoising.data.folder import FileSource
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.sources import Source, plainly_named
from dual_denoising.errors import InputError


def open_base_meshes(
    root: str | None = None, points_per_mesh: int = 1024, name: str = "base_meshes"
) -> Source:
    """Meshes under the names that the bank of text features has for them; the others are left out.

    root: a folder with .glb files, at any depth, named as in the collection (air_vent_01.glb).
    They are sampled, area-uniform. None: the 337 clouds of the repository.
    """
    folder = "data/base_meshes"
    if root is None:
        path, listed = f"{folder}/base_meshes_test.h5", f"{folder}/shape_names.txt"
        return ModelNetH5(path, listed, "test", name)
    files = sorted(Path(root).rglob("*.glb"))
    if not files:
        raise InputError(f"{root}: holds no .glb; give a clone of M3-org/base-meshes")
    words = [re.sub(r"_\d+$", "", file.stem).replace("_", " ") for file in files]
    names = sorted(set(words))
    labels = np.array([names.index(word) for word in words], np.int64)
    ids = [file.relative_to(root).as_posix() for file in files]
    whole = FileSource(name, "test", "y", names, labels, ids, root, files, points_per_mesh)
    return plainly_named(whole, "base_meshes")
