"""Teacher features in files, and text features of class names.

A file of features is HDF5. Attributes name the teacher: ``model``, ``pretrained`` (open_clip's
names, or a folder's and its hash) and ``weights`` (SHA-256 of the tensors). Text features are
``name`` (n,) and ``feature`` (n, E) or, with several prompts, (n, prompts, E), with the attribute
``prompts`` or ``prompt``. Image features are ``id`` (n,) and ``feature`` (n, E) or, with several
views, (n, views, E); ``reason`` (n,) says why a row has none, '' where it has, ``stamp`` (n,) is
the fingerprint of each shape. Each kind lies in the group ``text`` or ``images`` or, alone in its
file, at the root. Features are as the tower gives them, not normalised.
"""

import difflib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.data import ASSETS, shipped
from dual_denoising.errors import InputError, reading
from dual_denoising.keyed_random import Stream


@dataclass
class FeatureFile:
    """Cached features (n, variants, E) under their keys: names of classes or ids of shapes."""

    path: str
    kind: str = "name"  # the dataset that holds the keys, 'name' or 'id'

    def __post_init__(self):
        path = shipped(self.path)
        if not path.exists():
            raise InputError(
                f"{self.path}: missing teacher features; scripts/cache_teacher.py makes them, or "
                "set DUAL_DENOISING_DATA (data_root=...) to the folder that holds them"
            )
        needs = f"it needs '{self.kind}', 'feature' and the attributes 'model' and 'pretrained'"
        with reading(self.path, "HDF5 file of features", needs), h5py.File(path) as file:
            group = file.get({"name": "text", "id": "images"}[self.kind], file)
            keys, features = group[self.kind].asstr()[()], group["feature"][()]
            count = len(keys)
            reasons = group["reason"].asstr()[()] if "reason" in group else [""] * count
            stamps = group["stamp"].asstr()[()] if "stamp" in group else [None] * count
            prompts = np.atleast_1d(group.attrs.get("prompts", group.attrs.get("prompt", ())))
            self.teacher = f"{file.attrs['model']}/{file.attrs['pretrained']}"
            self.weights = file.attrs.get("weights")
            self.whole_views = file.attrs.get("crops") == 0
        if features.ndim not in (2, 3) or len(features) != count or 0 in features.shape:
            raise InputError(
                f"{self.path}: 'feature' has shape {features.shape} for {count} keys; it must be "
                "(n, E) or (n, variants, E)"
            )
        self.features = features.reshape(count, -1, features.shape[-1])
        if features.dtype.kind != "f":
            raise InputError(f"{self.path}: 'feature' is of {features.dtype}; give numbers")
        sizes, done = np.abs(self.features).max(-1), np.array(reasons) == ""
        broken = np.flatnonzero(done & ~(np.isfinite(sizes) & (sizes > 0)).all(1))
        if len(broken):
            raise InputError(
                f"{self.path}: {len(broken)} features are 0 or not finite numbers, the first is of "
                f"'{keys[broken[0]]}'; cache them anew"
            )
        names, counts = np.unique(keys, return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"{self.path}: '{names[counts > 1][0]}' stands there twice; cache it anew"
            )
        self.rows = {key: row for row, key in enumerate(keys) if not reasons[row]}
        self.fingerprints = dict(zip(keys, stamps, strict=True))
        self.reasons = {key: reason for key, reason in zip(keys, reasons, strict=True) if reason}
        self.prompts = [str(prompt).replace("{name}", "{}") for prompt in prompts]

    def take(self, keys: Sequence[str]) -> Float[Tensor, "n v e"]:
        """Features of ``keys``, float32."""
        missing = [key for key in keys if key not in self.rows]
        if missing:
            why = self.reasons.get(missing[0])
            raise InputError(
                f"{self.path}: no feature for {len(missing)} of {len(keys)} keys, the first is "
                f"'{missing[0]}'{f' ({why})' if why else ''}; cache the features of this data set"
            )
        return torch.from_numpy(self.features[[self.rows[key] for key in keys]]).float()


class Text(ABC):
    """Text features of class names.

    teacher: model and weights in words. width: E. weights: a hash of them, where it is known.
    """

    teacher: str
    width: int
    prompts: Sequence[str]
    names: Sequence[str] = ()  # all that it has features of, where these are not any words
    weights: str | None = None
    class_words = ""  # how class weights are made, where that is special

    def spelling(self, name: str) -> str:
        """The spelling under which a class's name is looked up."""
        return name.replace("_", " ")

    @abstractmethod
    def lookup(self, names: Sequence[str], underscores: bool = False) -> Float[Tensor, "c p e"]:
        """Features of class names, one per prompt, not normalised.

        Underscores count as spaces, unless ``underscores`` and the teacher encodes anew.
        """

    def class_weights(self, names: Sequence[str], raw_sum: bool = False) -> Float[Tensor, "c e"]:
        """Unit vectors of class names, to compare features with; ``raw_sum`` as class_weights."""
        return class_weights(self.lookup(names, underscores=raw_sum), raw_sum)

    def center(self, taught: Sequence[str]) -> Float[Tensor, " e"]:
        """Mean unit vector of ``names``; of the taught ones where it has features of any words."""
        return self.class_weights(self.names or taught).mean(0)


class TextBank(Text):
    """CLIP text features of class names from a cache file.

    A name the file lacks is looked up with spaces for underscores and then in data/aliases.yaml;
    one that is still unknown raises InputError with the nearest names. prompts: a set or a file, of
    which the cache must hold every one; None takes all that it holds.
    """

    def __init__(self, path: str, prompts: str | None = None):
        self.file = FeatureFile(path)
        self.teacher, self.weights = self.file.teacher, self.file.weights
        self.width = self.file.features.shape[-1]
        self.names = sorted(self.file.rows)
        self.aliases = yaml.safe_load((ASSETS / "aliases.yaml").read_text())
        self.prompts: Sequence[str] = self.file.prompts
        self.variants = list(range(self.file.features.shape[1]))
        if prompts is not None:
            self.prompts = read_prompts(prompts)
            missing = [prompt for prompt in self.prompts if prompt not in self.file.prompts]
            if missing:
                raise InputError(
                    f"{path}: has no features of the prompt '{missing[0]}' (of {prompts}); it "
                    f"holds {self.file.prompts}; encode them with teacher=open_clip"
                )
            self.variants = [self.file.prompts.index(prompt) for prompt in self.prompts]

    def lookup(self, names: Sequence[str], underscores: bool = False) -> Float[Tensor, "c p e"]:
        found = {name: self.spelling(name) for name in names}
        near = {
            name: difflib.get_close_matches(name.replace("_", " "), self.names, 3, 0.5)
            for name, spelling in found.items()
            if spelling not in self.file.rows
        }
        if near:
            shown = [f"'{name}' ({', '.join(nearest) or '-'})" for name, nearest in near.items()]
            more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
            raise InputError(
                f"{self.file.path}: no text feature for {', '.join(shown[:5])}{more}; choose one "
                "of the nearest, in brackets (data/clip_text/names.txt has all), add the spelling "
                "to data/aliases.yaml, or let CLIP encode any words: teacher=open_clip, with "
                "classify.py --open-clip"
            )
        return self.file.take(list(found.values()))[:, self.variants]

    def spelling(self, name: str) -> str:
        plain = super().spelling(name)
        spellings = (name, plain, plain.lower(), *self.aliases.get(plain.lower(), ()))
        return next((spelling for spelling in spellings if spelling in self.file.rows), plain)


class StandInBank(Text):
    """Seeded random vectors in place of text features: they separate names and mean nothing.

    For runs without any CLIP. A model trained on it knows no word that it was not trained on.
    """

    prompts = ("{}",)

    def __init__(self, width: int = 512, seed: int = 0):
        self.width, self.seed = width, seed
        self.teacher = f"stand-in (random vectors {seed} of width {width}, no meaning)"

    def lookup(self, names: Sequence[str], underscores: bool = False) -> Float[Tensor, "c 1 e"]:
        keys = [zlib.crc32(name.replace("_", " ").encode()) for name in names]
        drawn = keyed_random.key(Stream.NAMES, self.seed, torch.tensor(keys))
        return keyed_random.gaussian(drawn, 1, self.width)


def class_weights(features: Float[Tensor, "c p e"], raw_sum: bool = False) -> Float[Tensor, "c e"]:
    """Unit vectors of classes: prompts normalised, averaged, normalised.

    raw_sum: ReCon's form, the sum of the raw features, normalised at the end.
    """
    normal = torch.nn.functional.normalize
    return normal(features.sum(1) if raw_sum else normal(features, dim=-1).mean(1), dim=-1)


def read_prompts(prompts: str) -> list[str]:
    """Templates with ``{}`` for the name: a set of data/prompts by its name, or a file's lines."""
    own = ASSETS / "prompts" / f"{prompts}.txt"
    path = own if own.exists() else Path(prompts)
    try:
        lines = [x for x in path.read_text(encoding="utf-8").splitlines() if x.strip()]
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in own.parent.glob("*.txt")))
        raise InputError(
            f"prompts is '{prompts}': neither a set ({known}) nor a file that can be read"
        ) from error
    wrong = next((line for line in lines if line.count("{}") != 1), None)
    if wrong is not None or not lines:
        raise InputError(f"{path}: '{wrong or ''}' must hold {{}} once, for the class name")
    return lines
