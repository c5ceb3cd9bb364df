"""ScanObjectNN's three test sets of the paper, as its authors' HDF5 files hold them; y-up."""

from pathlib import Path

from dual_denoising.data import ASSETS
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.errors import check_choice

VARIANTS = {
    "obj_only": "main_split_nobg/test_objectdataset.h5",
    "obj_bg": "main_split/test_objectdataset.h5",
    "pb_t50_rs": "main_split/test_objectdataset_augmentedrot_scale75.h5",
}


class ScanObjectNN(ModelNetH5):
    """OBJ_ONLY, OBJ_BG or PB_T50_RS of ``root``, 2048 points each, as published or prepared."""

    def __init__(self, root: str, variant: str):
        check_choice("variant", variant, VARIANTS)
        name, names = f"scanobjectnn_{variant}", ASSETS / "classes" / "scanobjectnn.txt"
        prepared, official = Path(root, f"{name}_test.h5"), Path(root, VARIANTS[variant])
        path = prepared if prepared.exists() else official
        super().__init__(str(path), str(names), "test", name)
