"""The Princeton Shape Benchmark, as it was downloaded or prepared."""

from pathlib import Path

import numpy as np

from dual_denoising.data.folder import FileSource
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.sources import Source
from dual_denoising.errors import reading


def open_princeton(root: str, split: str, points_per_mesh: int = 2048) -> Source:
    """A split, 'train' or 'test', of its base classification, under the leaf names.

    root: a folder with ``princeton_<split>.h5`` and ``princeton_<split>_names.txt`` or
    ``shape_names.txt``, or with ``benchmark/`` of psb_v1.zip, whose meshes are sampled,
    area-uniform.
    """
    folder = Path(root)
    file, own = folder / f"princeton_{split}.h5", folder / f"princeton_{split}_names.txt"
    if file.exists():
        listed = own if own.exists() else folder / "shape_names.txt"
        return ModelNetH5(str(file), str(listed), split, "princeton")
    top = folder / "benchmark" if (folder / "benchmark").is_dir() else folder
    classes = top / "classification" / "v1" / "base"
    models = read_classification(classes / f"{split}.cla")
    names = sorted(models)
    files = [top / "db" / str(i // 100) / f"m{i}" / f"m{i}.off" for m in models.values() for i in m]
    labels = np.array([names.index(k) for k, m in models.items() for _ in m], np.int64)
    ids = [file.stem for file in files]
    return FileSource("princeton", split, "y", names, labels, ids, str(top), files, points_per_mesh)


def read_classification(path: Path) -> dict[str, list[int]]:
    """{class: model numbers} of a .cla file, classes without a model left out.

    The format is shape.cs.princeton.edu/benchmark/documentation/classification_format.html.
    """
    fix = "prepare_data.py data=princeton says where it is; or set DUAL_DENOISING_DATA"
    with reading(path, "classification", fix):
        words = iter(path.read_text().split())
        if (next(words), next(words)) != ("PSB", "1"):
            raise ValueError("it does not begin with 'PSB 1'")
        classes, _models = int(next(words)), int(next(words))
        found = {}
        for _ in range(classes):
            kind, _parent, count = next(words), next(words), int(next(words))
            found[kind] = [int(next(words)) for _ in range(count)]
    return {kind: models for kind, models in found.items() if models}
