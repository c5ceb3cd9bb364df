"""Files of teacher features.

They are HDF5. Attributes name the teacher: ``model``, ``pretrained`` (open_clip's names, or a
folder's and its hash) and ``weights`` (SHA-256 of the tensors). Text features are ``name`` (n,) and
``feature`` (n, E) or, with several prompts, (n, prompts, E), with the attribute ``prompts`` or
``prompt``. Image features are ``id`` (n,) and ``feature`` (n, E) or, with several views, (n, views,
E); ``reason`` (n,) says why a row has none, '' where it has, ``stamp`` (n,) is the fingerprint of
each shape. Text features are in the group ``text``, image features in ``images``; a file of one
kind may have them at its root. Features are as the tower gives them, not normalised.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dual_denoising.data import shipped
from dual_denoising.errors import InputError, reading


@dataclass
class FeatureFile:
    """Cached features (n, variants, E) under their keys: names of classes or ids of shapes."""

    path: str
    kind: str = "name"  # the dataset that holds the keys, 'name' or 'id'

    def __post_init__(self):
        path, needs = shipped(self.path), f"'{self.kind}', 'feature', 'model' and 'pretrained'"
        fix = f"scripts/cache_teacher.py makes it, with {needs}"
        fix += "; or set DUAL_DENOISING_DATA (data_root=...) to the folder that holds it"
        with reading(path, "HDF5 file of teacher features", fix), h5py.File(path) as file:
            group = file.get({"name": "text", "id": "images"}[self.kind], file)
            keys, features = group[self.kind].asstr()[()], group["feature"][()]
            count = len(keys)
            reasons = group["reason"].asstr()[()] if "reason" in group else [""] * count
            stamps = group["stamp"].asstr()[()] if "stamp" in group else [None] * count
            prompts = np.atleast_1d(group.attrs.get("prompts", group.attrs.get("prompt", ())))
            self.teacher = f"{file.attrs['model']}/{file.attrs['pretrained']}"
            self.weights = file.attrs.get("weights")
            self.whole_views = file.attrs.get("crops") == 0
        misshapen = features.ndim not in (2, 3) or len(features) != count or 0 in features.shape
        if misshapen or features.dtype.kind != "f":
            raise InputError(
                f"{self.path}: 'feature' has shape {features.shape} ({features.dtype}) for {count} "
                "keys; it must be (n, E) or (n, variants, E) numbers"
            )
        self.features = features.reshape(count, -1, features.shape[-1])
        sizes, done = np.abs(self.features).max(-1), np.array(reasons) == ""
        broken = np.flatnonzero(done & ~(np.isfinite(sizes) & (sizes > 0)).all(1))
        if len(broken):
            raise InputError(
                f"{self.path}: {len(broken)} features are 0 or not finite numbers, the first is of "
                f"'{keys[broken[0]]}'; cache them anew"
            )
        for key, times in Counter(keys).items():
            if times > 1:
                raise InputError(f"{self.path}: '{key}' stands there twice; cache it anew")
        self.rows = {key: row for row, key in enumerate(keys) if not reasons[row]}
        self.fingerprints = dict(zip(keys, stamps, strict=True))
        self.reasons = {key: reason for key, reason in zip(keys, reasons, strict=True) if reason}
        self.prompts = [str(prompt).replace("{name}", "{}") for prompt in prompts]

    def take(self, keys: Sequence[str]) -> Float[Tensor, "n variants e"]:
        """Features of ``keys``, float32."""
        missing = [key for key in keys if key not in self.rows]
        if missing:
            why = self.reasons.get(missing[0])
            raise InputError(
                f"{self.path}: no feature for {len(missing)} of {len(keys)} keys, the first is "
                f"'{missing[0]}'{f' ({why})' if why else ''}; cache the features of this dataset"
            )
        return torch.from_numpy(self.features[[self.rows[key] for key in keys]]).float()
