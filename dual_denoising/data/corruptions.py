"""ModelNet-C and ModelNet40-C: ModelNet40's test clouds, corrupted; y-up.

ModelNet-C (Ren et al. 2022) has ``<corruption>_<level>.h5``, levels 0 to 4, and ``clean.h5``;
ModelNet40-C (Sun et al. 2022) ``data_<corruption>_<severity>.npy``, 1 to 5, and ``label.npy``.
Dropped points leave clouds of less than 1024 points: read them with few=keep.
"""

from collections.abc import Sequence
from pathlib import Path

from dual_denoising.data.files import load_array
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.sources import ASSETS, ArraySource, check_clouds, known_names


def modelnet_c(root: str, corruptions: Sequence[str], levels: Sequence[int]) -> list[ArraySource]:
    """ModelNet-C: the clean clouds (corruption 'clean'), then every corruption at every level."""
    names = str(ASSETS / "classes" / "modelnet40.txt")
    return [
        ModelNetH5(f"{root}/{stem}.h5", names, "test", f"modelnet_c_{stem}")
        for stem in _stems(corruptions, levels, "clean")
    ]


def modelnet40_c(root: str, corruptions: Sequence[str], levels: Sequence[int]) -> list[ArraySource]:
    """ModelNet40-C: the clean clouds ('original'), then every corruption at every severity."""
    names, labels = known_names("modelnet40"), load_array(Path(root, "label.npy")).reshape(-1)
    ids, sources = [str(i) for i in range(len(labels))], []
    for stem in _stems(corruptions, levels, "original"):
        path = Path(root, f"data_{stem}.npy")
        data, name = load_array(path), f"modelnet40_c_{stem}"
        own = check_clouds(data, labels, path)
        sources.append(ArraySource(name, "test", "y", names, own, ids, str(path), data))
    return sources


def _stems(corruptions: Sequence[str], levels: Sequence[int], clean: str) -> list[str]:
    kinds = ([clean] if c == clean else [f"{c}_{level}" for level in levels] for c in corruptions)
    return [stem for kind in kinds for stem in kind]
