"""ShapeNet55 in the ShapeNet55-34 layout: ``shapenet_pc/<synset>-<id>.npy`` (8192, 3) and lists."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_denoising.data import ASSETS
from dual_denoising.data.folder import FileSource
from dual_denoising.errors import InputError, reading

log = logging.getLogger(__name__)


class ShapeNet55(FileSource):
    """The clouds of some of the lists ``ShapeNet-55/<list>.txt``, read one by one; y-up.

    Rows that name no model (the official lists hold two) are skipped with a warning that names
    them. A model id may itself contain '-': the synset is what stands before the first. Missing
    clouds raise InputError, or if not ``strict`` when they are read.
    """

    def __init__(self, root: str, lists: Sequence[str] = ("train", "test"), strict: bool = True):
        folder, table = Path(root), (ASSETS / "shapenet55_synsets.txt").read_text()
        synsets = dict(line.split(" ", 1) for line in table.splitlines())
        order = {synset: i for i, synset in enumerate(synsets)}
        fix = f"put ShapeNet55 (ShapeNet55-34 layout) into {root}, or run experiment=quickstart"
        rows: list[str] = []
        for part in lists:
            path = folder / "ShapeNet-55" / f"{part}.txt"
            with reading(path, "list of shapes", f"{fix}, which needs no data"):
                rows += filter(None, map(str.strip, path.read_text(errors="replace").splitlines()))
        good = [row for row in rows if re.fullmatch(rf"({'|'.join(order)})-.+\.npy", row)]
        if len(good) < len(rows):
            bad = ", ".join(sorted(set(rows) - set(good)))
            log.warning("%s: skipped %d malformed rows: %s", root, len(rows) - len(good), bad)
        files = [folder / "shapenet_pc" / row for row in good]
        missing = [path.name for path in files if not path.exists()]
        if missing and strict:
            count = f"{len(missing)} of {len(good)} listed clouds"
            raise InputError(f"{root}: {count} missing, as {missing[0]}; unpack the dataset again")
        labels = np.array([order[row.split("-", 1)[0]] for row in good], np.int64)
        ids, names = [row.removesuffix(".npy") for row in good], list(synsets.values())
        split = "+".join(lists)
        super().__init__("shapenet55", split, "y", names, labels, ids, str(root), files)
