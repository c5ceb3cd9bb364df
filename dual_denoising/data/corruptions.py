"""ModelNet-C and ModelNet40-C: ModelNet40's test clouds, corrupted; y-up.

ModelNet-C (Ren et al. 2022) has ``<corruption>_<level>.h5``, levels 0 to 4, and ``clean.h5``;
ModelNet40-C (Sun et al. 2022) ``data_<corruption>_<severity>.npy``, 1 to 5, and ``label.npy``.
Dropped points leave clouds of less than 1024 points: read them with few=keep.
"""

from collections.abc import Sequence
from pathlib import Path

from dual_denoising.data.files import load_array
from dual_denoising.data.sources import ArraySource, check_clouds, known_names, read_h5


def modelnet_c(root: str, corruptions: Sequence[str], levels: Sequence[int]) -> list[ArraySource]:
    """ModelNet-C: the clean clouds (corruption 'clean'), then every corruption at every level."""
    return [
        _source(f"modelnet_c_{stem}", *read_h5(Path(root) / f"{stem}.h5")[:3], Path(root))
        for stem in _stems(corruptions, levels, "clean")
    ]


def modelnet40_c(root: str, corruptions: Sequence[str], levels: Sequence[int]) -> list[ArraySource]:
    """ModelNet40-C: the clean clouds ('original'), then every corruption at every severity."""
    folder, sources = Path(root), []
    labels = load_array(folder / "label.npy").reshape(-1)
    for stem in _stems(corruptions, levels, "original"):
        path = folder / f"data_{stem}.npy"
        data = load_array(path)
        whole = check_clouds(data, labels, path)
        ids = [str(i) for i in range(len(data))]
        sources.append(_source(f"modelnet40_c_{stem}", data, whole, ids, folder))
    return sources


def _stems(corruptions: Sequence[str], levels: Sequence[int], clean: str) -> list[str]:
    return [
        stem
        for corruption in corruptions
        for stem in ([clean] if corruption == clean else [f"{corruption}_{n}" for n in levels])
    ]


def _source(name, data, labels, ids, root) -> ArraySource:
    return ArraySource(name, "test", "y", known_names("modelnet40"), labels, ids, str(root), data)
