"""ScanObjectNN's three splits of the paper, as its authors' HDF5 files hold them; y-up."""

from __future__ import annotations

from pathlib import Path

from dual_denoising.data.sources import ArraySource, known_names, need, read_h5
from dual_denoising.errors import InputError

VARIANTS = {
    "obj_only": ("main_split_nobg", ""),
    "obj_bg": ("main_split", ""),
    "pb_t50_rs": ("main_split", "_augmentedrot_scale75"),
}


class ScanObjectNN(ArraySource):
    """OBJ_ONLY, OBJ_BG or PB_T50_RS of ``root/{main_split,main_split_nobg}``; 2048 points each."""

    def __init__(self, root: str, variant: str, split: str = "test"):
        if variant not in VARIANTS:
            raise InputError(f"variant is '{variant}': choose one of {', '.join(VARIANTS)}")
        if split not in ("train", "test"):
            raise InputError(f"split is '{split}': choose train or test")
        folder, suffix = VARIANTS[variant]
        part = "training" if split == "train" else "test"
        name = f"scanobjectnn_{variant}"
        prepared = Path(root) / f"{name}_{split}.h5"  # what scripts/prepare_data.py writes
        official = Path(root) / folder / f"{part}_objectdataset{suffix}.h5"
        path = prepared if prepared.exists() else need(official)
        data, labels, ids, _ = read_h5(path)
        super().__init__(
            name, split, "y", known_names("scanobjectnn"), data, labels, ids, str(path)
        )
