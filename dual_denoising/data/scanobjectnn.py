"""ScanObjectNN's three test sets of the paper, as its authors' HDF5 files hold them; y-up."""

from pathlib import Path

from dual_denoising.data.sources import ArraySource, known_names, read_h5
from dual_denoising.errors import check_choice

VARIANTS = {
    "obj_only": ("main_split_nobg", ""),
    "obj_bg": ("main_split", ""),
    "pb_t50_rs": ("main_split", "_augmentedrot_scale75"),
}


class ScanObjectNN(ArraySource):
    """OBJ_ONLY, OBJ_BG or PB_T50_RS of ``root/{main_split,main_split_nobg}``; 2048 points each."""

    def __init__(self, root: str, variant: str):
        check_choice("variant", variant, VARIANTS)
        folder, suffix = VARIANTS[variant]
        name, names = f"scanobjectnn_{variant}", known_names("scanobjectnn")
        prepared = Path(root) / f"{name}_test.h5"  # what scripts/prepare_data.py writes
        official = Path(root) / folder / f"test_objectdataset{suffix}.h5"
        path = prepared if prepared.exists() else official
        data, labels, ids, _ = read_h5(path)
        super().__init__(name, "test", "y", names, labels, ids, str(path), data)
