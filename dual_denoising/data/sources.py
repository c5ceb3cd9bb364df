"""What readers give: who the clouds are, clouds in memory, and selections of other sources."""

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import yaml

from dual_denoising.data import ASSETS, shipped
from dual_denoising.data.feature_file import FeatureFile
from dual_denoising.data.points import check_shape
from dual_denoising.data.recipes import known_classes
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import InputError, check, check_number, reading
from dual_denoising.keyed_random import Stream, generator

log = logging.getLogger(__name__)


@dataclass
class Surface:
    """A mesh to draw: vertices (n, 3), faces (n, 3), and a colour (0 to 255) or a texture.

    uv: (n, 2) places of the vertices in the texture (H, W, 3). opacity: from 0 to 1.
    """

    vertices: np.ndarray
    faces: np.ndarray
    color: Sequence[int] = (160, 160, 165)
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    vertex_colors: np.ndarray | None = None
    opacity: float = 1.0


@dataclass(eq=False)
class Source(ABC):
    """Clouds of one split of a dataset, in its own frame.

    up: the axis that points up in that frame, 'y' or 'z'. labels (n,): rows of ``class_names``.
    ids (n,): a name for every cloud. origin: the file or folder, for messages. missing: folders
    that are not there, where the source tolerates it.
    """

    name: str
    split: str
    up: str
    class_names: Sequence[str]
    labels: np.ndarray
    ids: Sequence[str]
    origin: str
    missing: Sequence[str] = field(default=(), init=False)

    def __post_init__(self):
        for field_name in ("name", "split"):  # files of results are named after them
            value = getattr(self, field_name)
            plain = isinstance(value, str) and not re.search(r"[/\\\0]|^\.|^$", value)
            check(f"{self.origin}: {field_name}", value, plain, "give a word without a slash")
        self.labels = np.asarray(self.labels, np.int64)
        if len(self.labels) == 0:
            raise InputError(f"{self.origin}: holds no cloud of split '{self.split}'")
        if len(self.labels) != len(self.ids):
            raise InputError(f"{self.origin}: {len(self.labels)} labels, {len(self.ids)} ids")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(wrong):
            raise InputError(
                f"{self.origin}: label[{wrong[0]}] is {self.labels[wrong[0]]}, but there are "
                f"{len(self.class_names)} class names; give the list that belongs to the file"
            )

    @abstractmethod
    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Points (N, 3) of one cloud, any N. rng: draws them anew from a mesh or a recipe."""

    def drawable(self, index: int) -> Path | Surface | None:
        """The mesh, or its file, that this cloud was sampled from; None where there is none."""
        return None

    def fingerprint(self, index: int) -> str:
        """A short hash that differs where the cloud, its frame or its file do."""
        return fingerprint(np.asarray(self.read(index)), self.up)[:16]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(eq=False)
class ArraySource(Source):
    """Clouds in memory: ``clouds[i]`` is (N, 3)."""

    clouds: Sequence[np.ndarray] | np.ndarray

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        return self.clouds[index]


class Selection(Source):
    """Clouds of other sources of one up-axis, (source, index) each, under labels of its own."""

    def __init__(
        self,
        sources: Sequence[Source],
        places: Sequence[tuple[Source, int]],
        class_names: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        name: str | None = None,
        split: str | None = None,
    ):
        ups = sorted({source.up for source in sources})
        check("up", " and ".join(ups), len(ups) == 1, "join sources of one up-axis")
        self.places, ids = places, [source.ids[index] for source, index in places]
        name = name or "+".join(source.name for source in sources)
        split = split or "+".join(dict.fromkeys(source.split for source in sources))
        origin = ", ".join(source.origin for source in sources)
        super().__init__(name, split, ups[0], class_names, np.asarray(labels), ids, origin)

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        source, place = self.places[index]
        return source.read(place, rng)

    def drawable(self, index: int) -> Path | Surface | None:
        source, place = self.places[index]
        return source.drawable(place)

    def fingerprint(self, index: int) -> str:
        source, place = self.places[index]
        return source.fingerprint(place)


class Joined(Selection):
    """Several sources of one up-axis as one. Classes of one name are one class."""

    def __init__(self, sources: Sequence[Source] | Mapping[str, Source], name: str | None = None):
        sources = list(sources.values()) if isinstance(sources, Mapping) else sources
        names = list(dict.fromkeys(k for s in sources for k in s.class_names))
        places = [(source, i) for source in sources for i in range(len(source))]
        labels = [names.index(source.class_names[source.labels[i]]) for source, i in places]
        super().__init__(sources, places, names, labels, name)


class Renamed(Selection):
    """The clouds of the classes in ``names``, {old name: new name}, under their new names.

    Classes of one new name are one class.
    """

    def __init__(self, source: Source, names: Mapping[str, str]):
        old = [source.class_names[label] for label in source.labels]
        places = [(source, row) for row, name in enumerate(old) if name in names]
        new = list(dict.fromkeys(names[name] for name in source.class_names if name in names))
        super().__init__([source], places, new, [new.index(names[old[i]]) for _, i in places])


def stratified(labels: np.ndarray, count: int | None, seed: int = 0) -> np.ndarray:
    """Indices of ``count`` clouds, sorted; every class keeps its share of the dataset.

    The same for the same labels, count and seed; None takes all.
    """
    if count is None or check_number("subset", count, 1) >= len(labels):
        return np.arange(len(labels))
    shuffled = generator(Stream.SUBSET, seed).permutation(len(labels))
    place = np.empty(len(labels))
    for kind in np.unique(labels):
        mine = shuffled[labels[shuffled] == kind]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.sort(np.lexsort((shuffled, place))[:count])


class Part(Selection):
    """The same share of every class's clouds; or, if ``rest``, the other clouds.

    split: the name of this part.
    """

    def __init__(self, source: Source, share: float, rest: bool, split: str):
        check_number("share", share, whole=False, above=True)
        kept = stratified(source.labels, round(share * len(source)))
        rows = np.setdiff1d(np.arange(len(source)), kept) if rest else kept
        places = [(source, int(row)) for row in rows]
        super().__init__([source], places, source.class_names, source.labels[rows], split=split)


class Names(ArraySource):
    """Class names without a cloud, of a file with one a line or of a bank of text features."""

    name, split, up, clouds = "names", "all", "y", ()

    def __init__(self, path: str):
        bank = Path(path).suffix == ".h5"
        self.class_names = list(FeatureFile(path).rows) if bank else read_names(path)
        self.origin, self.labels, self.ids = path, np.zeros(0, np.int64), []


def without(source: Source, classes: Sequence[str], keep: int | None = None) -> Source:
    """A source without the clouds and the names of some of its classes.

    classes: their names, and files (.txt) with a name a line. keep: how many of the other classes
    stay. Which ones is the same in every run; a larger number keeps those and adds others.
    """
    names = _listed(classes)
    for name in names:
        if name not in source.class_names:
            raise InputError(f"{source.origin}: has no class '{name}' to leave out")
    left = [name for name in source.class_names if name not in names]
    if keep is not None:
        check_number("data.keep", keep, 1)
        order = sorted(left, key=lambda name: fingerprint(name.encode()))
        left = [name for name in left if name in order[:keep]]
    return Renamed(source, {name: name for name in left})


def only(source: Source, classes: Sequence[str]) -> Source:
    """The clouds of the classes that ``classes`` lists, names or files as in ``without``."""
    names = _listed(classes)
    return Renamed(source, {name: name for name in source.class_names if name in names})


def _listed(classes: Sequence[str]) -> list[str]:
    return [n for c in classes for n in (read_names(c) if c.endswith(".txt") else [c])]


def plainly_named(
    source: Source, synonyms: str, known: str = "data/clip_text/clip_vitb32_openai_text.h5"
) -> Source:
    """The clouds of a source whose class has a known name, under it; the others are left out.

    known: a bank of text features, or a folder with a recipe per name. synonyms: the section of
    data/synonyms.yaml that translates other names.
    """
    place = need(shipped(known))
    names = set(known_classes(place) if place.is_dir() else FeatureFile(known).rows)
    table = yaml.safe_load((ASSETS / "synonyms.yaml").read_text(encoding="utf-8"))[synonyms]
    plain = {name: name.replace("_", " ") for name in source.class_names}
    new = {name: table.get(word, word) for name, word in plain.items()}
    named = Renamed(source, {name: word for name, word in new.items() if word in names})
    share = f"{len(named)} of {len(source)} clouds have one of {len(named.class_names)} names"
    log.info("%s %s: %s of %s", source.name, source.split, share, known)
    return named


def need(path: Path) -> Path:
    """The path itself. Raises InputError where nothing is."""
    fix = "put the data there, or set DUAL_DENOISING_DATA (data_root=...) to the folder that has it"
    if not path.exists():
        raise InputError(f"{path}: missing; {fix}")
    return path


def read_names(path: str | Path) -> list[str]:
    """Class names, one a line."""
    with reading(path, "list of class names", "write one name a line"):
        lines = shipped(path).read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: holds no class name; write one a line")
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{path}: names '{name}' twice; write every class once")
    return names


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], str | None]:
    """``data`` (n, N, 3), ``label`` (n,), ids and the attribute ``up`` of an HDF5 file.

    Ids are ``name`` where the file has it, else row numbers. Raises InputError for any bad file.
    """
    fix = "it needs 'data' (n, N, 3) and 'label' (n,)"
    with reading(path, "HDF5 file of clouds", fix), h5py.File(need(shipped(path))) as file:
        data, labels = file["data"][()], file["label"][()].reshape(-1)
        ids = file["name"].asstr()[()] if "name" in file else map(str, range(len(data)))
        up = file.attrs.get("up")
    return data, check_clouds(data, labels, path), list(ids), up


def check_clouds(data: np.ndarray, labels: np.ndarray, path: Path) -> np.ndarray:
    """Raises InputError unless data is (n, N, 3), finite, with n whole labels; returns int64."""
    if labels.dtype.kind not in "iuf" or (labels % 1).any():
        raise InputError(f"{path}: 'label' is of {labels.dtype}; give whole numbers")
    if data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
        raise InputError(f"{path}: 'data' has shape {data.shape}; it must be (n, N, 3), n > 0")
    if len(labels) != len(data):
        raise InputError(f"{path}: {len(data)} clouds in 'data' but {len(labels)} in 'label'")
    for index, cloud in enumerate(data):  # one at a time: a second copy of a dataset is large
        check_shape(cloud, f"{path}: cloud {index}")
    return labels.astype(np.int64)


def known_names(dataset: str) -> list[str]:
    """The class names that the repository has of a dataset, in the order of its labels."""
    return read_names(ASSETS / "classes" / f"{dataset}.txt")
