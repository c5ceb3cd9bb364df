"""ShapeNet55 in the ShapeNet55-34 layout: ``shapenet_pc/<synset>-<id>.npy`` (8192, 3) and lists."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_denoising.data import ASSETS
from dual_denoising.data.files import load_array
from dual_denoising.errors import InputError, MissingError

log = logging.getLogger(__name__)


class ShapeNet55:
    """The clouds of some of the lists ``ShapeNet-55/<list>.txt``, read from disk one by one; y-up.

    Rows that name no model (the official lists hold two) are skipped with a warning that names
    them. A model id may itself contain '-': the synset is what stands before the first. Missing
    clouds raise MissingError, or if not ``strict`` when they are read.
    """

    name, up = "shapenet55", "y"

    def __init__(self, root: str, lists: Sequence[str] = ("train", "test"), strict: bool = True):
        self.root, self.split = Path(root), "+".join(lists)
        synsets = dict(
            line.split(" ", 1)
            for line in (ASSETS / "shapenet55_synsets.txt").read_text().splitlines()
        )
        self.class_names = list(synsets.values())
        rows = self._rows(lists)
        order = {synset: i for i, synset in enumerate(synsets)}
        good = [row for row in rows if _is_model(row, order)]
        if len(good) < len(rows):
            bad = sorted(set(rows) - set(good))
            log.warning(
                "%s: skipped %d malformed rows: %s",
                self.root,
                len(rows) - len(good),
                ", ".join(bad),
            )
        if not good:
            raise InputError(f"{self.root}: the lists {self.split} name no cloud")
        self.files, self.origin = [self.root / "shapenet_pc" / row for row in good], str(root)
        self.ids = [row.removesuffix(".npy") for row in good]
        self.labels = np.array([order[row.split("-", 1)[0]] for row in good])
        missing = [path.name for path in self.files if not path.exists()]
        if missing and strict:
            raise MissingError(
                f"{self.root}/shapenet_pc: {len(missing)} of {len(good)} listed clouds are "
                f"missing, the first is {missing[0]}; unpack the data set again"
            )

    def _rows(self, lists: Sequence[str]) -> list[str]:
        rows = []
        for part in lists:
            path = self.root / "ShapeNet-55" / f"{part}.txt"
            if not path.exists():
                raise InputError(
                    f"{path}: missing; put ShapeNet55 (ShapeNet55-34 layout) into {self.root}, or "
                    "run experiment=quickstart, which needs no data"
                )
            lines = path.read_text(errors="replace").splitlines()
            rows += [line.strip() for line in lines if line.strip()]
        return rows

    def read(self, index: int) -> np.ndarray:
        return load_array(self.files[index])


def _is_model(row: str, synsets: dict[str, int]) -> bool:
    synset, _, model = row.removesuffix(".npy").partition("-")
    return row.endswith(".npy") and synset in synsets and bool(model)
