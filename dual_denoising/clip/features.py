"""Text features of class names: from a file, or seeded vectors in their place."""

import difflib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.data import ASSETS
from dual_denoising.data.feature_file import FeatureFile
from dual_denoising.errors import InputError, check, check_number, reading
from dual_denoising.keyed_random import Stream


class ClassNames(ABC):
    """What features are compared with: unit vectors of class names.

    teacher: model and weights in words, whose text features they are.
    """

    teacher: str
    prompts: Sequence[str]
    names: Sequence[str] = ()  # all names that it has; empty where it takes any words
    class_words = ""  # how class weights are made, where that is special

    def spelling(self, name: str) -> str:
        """The spelling under which a class's name is looked up."""
        return name.replace("_", " ")

    @abstractmethod
    def class_weights(self, names: Sequence[str], raw_sum: bool = False) -> Float[Tensor, "c e"]:
        """Unit vectors of class names; ``raw_sum`` as the function class_weights has it."""

    @abstractmethod
    def center(self, taught: Sequence[str]) -> Float[Tensor, " e"]:
        """Mean unit vector of all names, or of ``taught`` where it takes any words."""


class Text(ClassNames):
    """Text features of class names. width: E. weights: a hash of the teacher's, where known."""

    width: int
    weights: str | None = None

    @abstractmethod
    def lookup(self, names: Sequence[str], underscores: bool = False) -> Float[Tensor, "c p e"]:
        """Features of class names, one per prompt, not normalised.

        Underscores count as spaces, unless ``underscores`` and the teacher encodes anew.
        """

    def class_weights(self, names: Sequence[str], raw_sum: bool = False) -> Float[Tensor, "c e"]:
        return class_weights(self.lookup(names, underscores=raw_sum), raw_sum)

    def center(self, taught: Sequence[str]) -> Float[Tensor, " e"]:
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
            fix = f"{path} holds {self.file.prompts}; encode others with teacher=open_clip"
            for prompt in self.prompts:
                check(f"a prompt of {prompts}", prompt, prompt in self.file.prompts, fix)
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
        self.width, self.seed = check_number("width", width, 1), seed
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
    path = own if own.exists() else Path(str(prompts))
    known = ", ".join(sorted(p.stem for p in (ASSETS / "prompts").glob("*.txt")))
    with reading(path, "file of prompts", f"name a set ({known}), or a file of your own"):
        lines = [x for x in path.read_text(encoding="utf-8").splitlines() if x.strip()]
    wrong = next((line for line in lines if line.count("{}") != 1), None)
    if wrong is not None or not lines:
        raise InputError(f"{path}: '{wrong or ''}' must hold {{}} once, for the class name")
    return lines
