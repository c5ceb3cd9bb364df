"""Teacher features: cached once, read by training and by the zero-shot classifier.

The cache is one HDF5 file. Attributes name the teacher: ``model``, ``pretrained`` (open_clip's
names, or a folder's and its hash), and where scripts/cache_teacher.py wrote it ``weights`` (SHA-256
of the tensors), ``precision``, ``preprocess``, ``images`` (what the pictures are), ``dataset`` and
hashes of its classes and shapes. Text features are ``name`` (n,) and ``feature`` (n, E)
or, with P prompts, (n, P, E), with the attribute ``prompts`` or ``prompt``. Image features are
``id`` (n,), the shapes' ids, and ``feature`` (n, E) or, with V views, (n, V, E); ``state`` (n,)
says which rows are done (1) or failed (2, and ``reason`` why), ``stamp`` (n,) what each shape was
made from. Each kind lies in the group ``text``
or ``images``, or, alone in its file, at the root. Features are as the tower gives them, not
normalised.
"""

from __future__ import annotations

import difflib
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from dual_denoising import keyed_random as noise
from dual_denoising.data import ASSETS
from dual_denoising.errors import InputError


@dataclass
class FeatureFile:
    """Cached features (n, variants, E) under their keys: names of classes or ids of shapes."""

    path: str
    kind: str = "name"  # the dataset that holds the keys, 'name' or 'id'

    def __post_init__(self):
        if not Path(self.path).exists():
            raise InputError(
                f"{self.path}: missing teacher features; set DUAL_DENOISING_DATA (data_root=...) "
                "to the folder that holds them, or choose teacher=standin, which means nothing"
            )
        try:
            with h5py.File(self.path) as file:
                group = file.get({"name": "text", "id": "images"}[self.kind], file)
                keys, features = group[self.kind].asstr()[()], group["feature"][()]
                state = group["state"][()] if "state" in group else None
                reasons = group["reason"].asstr()[()] if "reason" in group else [""] * len(keys)
                self.teacher = f"{file.attrs['model']}/{file.attrs['pretrained']}"
                self.weights = file.attrs.get("weights")
                stamps = group["stamp"].asstr()[()] if "stamp" in group else [None] * len(keys)
                prompts = np.atleast_1d(group.attrs.get("prompts", group.attrs.get("prompt", ())))
        except KeyError as error:
            raise InputError(
                f"{self.path}: no teacher feature file ({error.args[0]}); it needs '{self.kind}', "
                "'feature' and the attributes 'model' and 'pretrained'"
            ) from error
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.path}: not a whole HDF5 file of features ({error})") from error
        if features.ndim not in (2, 3) or len(features) != len(keys) or 0 in features.shape:
            raise InputError(
                f"{self.path}: 'feature' has shape {features.shape} for {len(keys)} keys; it must "
                "be (n, E) or (n, variants, E)"
            )
        done = np.ones(len(keys), bool) if state is None else state == 1
        self.features = features.reshape(len(keys), -1, features.shape[-1])
        self._check_rows(keys, done)
        self.rows = {key: row for row, key in enumerate(keys) if done[row]}
        self.stamps = dict(zip(keys, stamps, strict=True))
        self.reasons = {key: reason for key, reason in zip(keys, reasons, strict=True) if reason}
        self.prompts = [str(prompt).replace("{name}", "{}") for prompt in prompts]

    def _check_rows(self, keys: np.ndarray, done: np.ndarray) -> None:
        if self.features.dtype.kind != "f":
            raise InputError(f"{self.path}: 'feature' is of {self.features.dtype}; give numbers")
        sizes = np.abs(self.features).max(-1)
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

    @property
    def width(self) -> int:
        return self.features.shape[-1]

    def take(self, keys: Sequence[str]) -> Float[Tensor, "n v e"]:
        """Features of ``keys`` (n, variants, E), float32."""
        missing = [key for key in keys if key not in self.rows]
        if missing:
            why = self.reasons.get(missing[0])
            raise InputError(
                f"{self.path}: no feature for {len(missing)} of {len(keys)} keys, the first is "
                f"'{missing[0]}'{f' ({why})' if why else ''}; cache the features of this data set"
            )
        return torch.from_numpy(self.features[[self.rows[key] for key in keys]]).float()


def read_prompts(prompts: str) -> list[str]:
    """Templates with ``{}`` for the name: a set of data/prompts by its name, or a file's lines."""
    own = ASSETS / "prompts" / f"{prompts}.txt"
    path = own if own.exists() else Path(prompts)
    try:
        lines = [line.rstrip("\r\n") for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in own.parent.glob("*.txt")))
        raise InputError(
            f"prompts is '{prompts}': neither a set ({known}) nor a file that can be read"
        ) from error
    lines = [line for line in lines if line.strip()]
    wrong = next((line for line in lines if line.count("{}") != 1), None)
    if wrong is not None or not lines:
        raise InputError(f"{path}: '{wrong or ''}' must hold {{}} once, for the class name")
    return lines


class TextBank:
    """CLIP text features of class names from a cache file.

    A name the file lacks is looked up with spaces for underscores and then in data/aliases.yaml;
    one that is still unknown raises InputError with the nearest names. prompts: a set or a file, of
    which the cache must hold every one; None takes all that it holds.
    """

    def __init__(self, path: str, prompts: str | None = None):
        self.file = FeatureFile(path)
        self.teacher, self.width = self.file.teacher, self.file.width
        self.weights = self.file.weights
        self.aliases = yaml.safe_load((ASSETS / "aliases.yaml").read_text())
        self.prompts, self.variants = self.file.prompts, slice(None)
        if prompts is not None:
            self.prompts = read_prompts(prompts)
            missing = [prompt for prompt in self.prompts if prompt not in self.file.prompts]
            if missing:
                raise InputError(
                    f"{path}: has no features of the prompt '{missing[0]}' (of {prompts}); it "
                    f"holds {self.file.prompts}; encode them with teacher=open_clip"
                )
            self.variants = [self.file.prompts.index(prompt) for prompt in self.prompts]

    def lookup(
        self, names: Sequence[str], keep_underscores: bool = False
    ) -> Float[Tensor, "c p e"]:
        """Features of class names, one variant per prompt: (C, P, E). Underscores are kept where
        the file has the name so; ``keep_underscores`` is for banks that encode."""
        found = {name: self._spelling(name) for name in names}
        missing = [name for name, spelling in found.items() if spelling is None]
        if missing:
            plain = missing[0].replace("_", " ")
            near = difflib.get_close_matches(plain, self.file.rows, n=5, cutoff=0.5)
            raise InputError(
                f"{self.file.path}: has no text feature for {', '.join(map(repr, missing))}; "
                f"nearest to the first: {', '.join(near) or '-'}; rename the class, add the "
                "spelling to data/aliases.yaml, or encode the names (teacher=open_clip)"
            )
        return self.file.take(list(found.values()))[:, self.variants]

    def _spelling(self, name: str) -> str | None:
        plain = name.replace("_", " ")
        spellings = (name, plain, plain.lower(), *self.aliases.get(plain.lower(), ()))
        return next((spelling for spelling in spellings if spelling in self.file.rows), None)


class StandInBank:
    """Seeded random vectors in place of text features: they separate names and mean nothing.

    For runs without any CLIP. A model trained on it knows no word that it was not trained on.
    """

    def __init__(self, width: int = 512, seed: int = 0):
        self.width, self.seed = width, seed
        self.teacher = f"stand-in (random vectors {seed} of width {width}, no meaning)"

    prompts = ("{}",)

    def lookup(
        self, names: Sequence[str], keep_underscores: bool = False
    ) -> Float[Tensor, "c 1 e"]:
        """One vector per name, the same in every run: (C, 1, E)."""
        keys = [zlib.crc32(name.replace("_", " ").encode()) for name in names]
        return noise.gaussian(noise.key(self.seed, torch.tensor(keys)), 1, self.width)


class Targets:
    """Teacher features of a training set: {image, text} -> (B, F, E), a variant drawn per sample.

    text: a bank. images: the path of a cache of image features, needed where feature_types has
    'image'.
    """

    def __init__(
        self,
        feature_types: Sequence[str],
        source,
        text: TextBank | StandInBank,
        images: str | None = None,
    ):
        self.labels = torch.from_numpy(np.asarray(source.labels, np.int64))
        self.tables = [self._table(kind, source, text, images) for kind in feature_types]

    @property
    def nbytes(self) -> int:
        return self.labels.nbytes + sum(table.nbytes for table, _ in self.tables)

    @property
    def device(self) -> torch.device:
        """Where the features lie; indices and keys must lie there too."""
        return self.labels.device

    def to(self, device: torch.device) -> Targets:
        """Moves all features to ``device``."""
        self.labels = self.labels.to(device)
        self.tables = [(table.to(device), per_class) for table, per_class in self.tables]
        return self

    def _table(self, kind, source, text, images) -> tuple[Tensor, bool]:
        """(features (n, variants, E), whether its rows are classes rather than clouds)."""
        if kind == "text":
            return text.lookup(source.class_names), True
        if kind != "image":
            raise InputError(f"feature type '{kind}': choose from 'image' and 'text'")
        if images is None:
            raise InputError(
                "feature type 'image' needs cached image features: set teacher.images to their "
                "file, or model.feature_types=[text]"
            )
        file = FeatureFile(images, kind="id")
        if file.teacher != text.teacher:
            raise InputError(
                f"{images}: features of {file.teacher}, but the text features are of "
                f"{text.teacher}; both must come from one teacher"
            )
        weights = getattr(text, "weights", None)
        if None not in (file.weights, weights) and file.weights != weights:
            raise InputError(
                f"{images}: of other weights of {file.teacher} than the text features; cache both "
                "in one run"
            )
        features = file.take(source.ids)
        for index, key in enumerate(source.ids):
            if file.stamps[key] is not None and file.stamps[key] != stamp(source, index):
                raise InputError(
                    f"{images}: '{key}' was another shape when its features were cached (another "
                    "file, split, seed, up-axis or recipe); cache the features of this data set"
                )
        return features, False

    def __call__(self, indices: Int[Tensor, " b"], keys: Int[Tensor, " b"]) -> Tensor:
        """Targets of the clouds at ``indices`` (B,), variants drawn by ``keys`` (B,): (B, F, E)."""
        draws = noise.uniform(noise.key(keys, noise.TARGETS), len(self.tables))
        features = []
        for draw, (table, per_class) in zip(draws.unbind(-1), self.tables, strict=True):
            rows = self.labels[indices] if per_class else indices
            features.append(table[rows, (draw * table.shape[1]).long()])
        return torch.stack(features, dim=1)

    def statistics(self) -> tuple[Float[Tensor, "f e"], Float[Tensor, "f e"]]:
        """Mean and standard deviation of the targets over the training set, each (F, E)."""
        means, stds = [], []
        for table, per_class in self.tables:
            count = torch.bincount(self.labels, minlength=len(table)) if per_class else None
            share = torch.ones(len(table)) if count is None else count.float()
            share = (share / share.sum() / table.shape[1])[:, None, None]
            means.append((share * table).sum((0, 1)))
            stds.append((share * (table - means[-1]).square()).sum((0, 1)).sqrt())
        return torch.stack(means), torch.stack(stds)


def stamp(source, index: int) -> str:
    """A short hash of what a shape is made from: a file, points, or a recipe.

    A file is its name, size, and content: all of it up to 64 kB, of a larger one 4 kB of its start,
    middle and end. Materials and textures in files of their own are not looked at.
    """
    if hasattr(source, "places"):  # made of other sources
        return stamp(*source.places[index])
    if hasattr(source, "content"):  # drawn from recipes
        made_of = f"{source.content(index)} {source.ids[index]}".encode()
    elif hasattr(source, "files"):
        made_of = _file_stamp(Path(source.files[index]))
    else:
        made_of = np.ascontiguousarray(source.read(index)).tobytes()
    return hashlib.sha256(made_of + source.up.encode()).hexdigest()[:16]


def _file_stamp(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            starts = [0] if size <= 2**16 else [0, size // 2, size - 2**12]
            parts = []
            for start in starts:
                file.seek(start)
                parts.append(file.read(2**16 if len(starts) == 1 else 2**12))
    except OSError:  # who reads it will say why
        return f"{path.name} cannot be read".encode()
    return f"{path.name} {size} ".encode() + b"".join(parts)


def class_weights(features: Float[Tensor, "c p e"], lineage: bool = False) -> Float[Tensor, "c e"]:
    """Prompts normalised, averaged, normalised: (C, P, E) -> unit vectors (C, E).

    lineage: ReCon's form, the sum of the raw features, normalised at the end.
    """
    normal = torch.nn.functional.normalize
    return normal(features.sum(1) if lineage else normal(features, dim=-1).mean(1), dim=-1)
