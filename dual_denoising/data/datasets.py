"""One way from any source of clouds to batches: y-up, unit sphere, seeded draws."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dual_denoising.data.points import Augmentation, check_shape, draw_points, normalise, y_up
from dual_denoising.data.sources import Source, only, stratified
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import InputError, check, check_choice, check_number, one_line
from dual_denoising.keyed_random import Stream, generator

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """Clouds (n, N, 3) of a dataset, their labels (n,), and their indices (n,) in it."""

    clouds: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor

    def fingerprint(self) -> str:
        """Of all three, for the settings of a file of results."""
        return fingerprint(*(values.numpy() for values in self))


@dataclass
class CloudDataset(Dataset):
    """Items {'points' (N, 3) float32, 'label', 'index', 'epoch'} of a source.

    Points are drawn from the source's, anew in every epoch if ``resample``; ``fresh`` also takes
    other shapes of a recipe and other points of a mesh. Every draw is a function of (seed, epoch,
    index). Clouds are normalised after drawing and augmented after normalising. few: what to do
    with a cloud of less than num_points: 'refuse' it, 'repeat' its points, or 'keep' it as it is
    (then all must have one size). per_name: clouds of every class in an epoch: another part of
    large classes in each, small ones repeated; None takes every cloud once. more: another number
    for some classes.
    """

    source: Source
    num_points: int = 1024
    augmentation: Augmentation = field(default_factory=Augmentation)
    resample: bool = False
    seed: int = 0
    few: str = "refuse"
    unit_sphere: bool = True
    fresh: bool = False
    per_name: int | None = None
    more: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if self.per_name is not None:
            check_number("data.per_name", self.per_name, 1)
        check("data.more", self.more, self.per_name or not self.more, "it needs data.per_name")
        for name, count in self.more.items():
            known = name in self.source.class_names
            check("data.more", name, known, f"{self.source.name} has no such name")
            check_number(f"data.more '{name}'", count, 1)
        check_number("num_points (data.num_points in pre-training)", self.num_points, 1)
        check_choice("data.few", self.few, ("refuse", "repeat", "keep"))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int | tuple[int, int]) -> dict[str, Any]:
        """The item at an index, in the first epoch, or at (epoch, index)."""
        epoch, index = place if isinstance(place, tuple) else (0, place)
        where = f"{self.source.name} {self.source.split}, cloud '{self.source.ids[index]}'"
        drawn = epoch if self.resample or self.fresh else 0
        draw = generator(Stream.POINTS, self.seed, drawn, index)
        points = check_shape(self.source.read(index, draw if self.fresh else None), where)
        if len(points) < self.num_points and self.few == "refuse":
            raise InputError(
                f"{where}: has {len(points)} points, num_points={self.num_points} were asked for; "
                f"set num_points (data.num_points in pre-training) to {len(points)} or less"
            )
        if len(points) > self.num_points or self.few == "repeat":
            points = draw_points(points, self.num_points, draw)
        points = y_up(points, self.source.up)
        points = normalise(points) if self.unit_sphere else points
        augment = generator(Stream.AUGMENTATION, self.seed, epoch, index)
        augmented = torch.from_numpy(self.augmentation(points, augment).astype(np.float32))
        label = int(self.source.labels[index])
        return {"points": augmented, "label": label, "index": index, "epoch": epoch}

    def batches(
        self, indices: Sequence[int], device: torch.device, size: int = 32, workers: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Points (B, N, 3) and indices (B,) on the device, labels (B,) on the CPU."""
        places = [indices[i : i + size] for i in range(0, len(indices), size)]
        for batch in loader(self, places, workers):
            yield batch["points"].to(device), batch["index"].to(device), batch["label"]

    def sample(self, count: int | None, seed: int) -> Sample:
        """``count`` clouds with the classes' shares, the same for the same seed; None takes all."""
        indices = stratified(self.source.labels, count, seed)
        clouds = torch.stack([self[int(i)]["points"] for i in indices])
        return Sample(clouds, *map(torch.as_tensor, (self.source.labels[indices], indices)))

    def epoch_size(self) -> int:
        """Clouds of one epoch."""
        return len(self.epoch_order(0, 0))

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of an epoch's clouds, shuffled, the same on every rank."""
        draw, labels = generator(Stream.ORDER, seed, epoch), self.source.labels
        if self.per_name is None:
            return draw.permutation(len(self))
        kinds = []
        for label in np.unique(labels):
            count = self.more.get(self.source.class_names[label], self.per_name)
            kinds.append(np.resize(draw.permutation(np.flatnonzero(labels == label)), count))
        return draw.permutation(np.concatenate(kinds))

    def describe(self) -> str:
        """One line: what is read, from where, and what is done with it."""
        source, stored = self.source, len(self.source.read(0))
        frame = "y-up" if source.up == "y" else f"{source.up}-up turned to y-up"
        scale = "unit sphere" if self.unit_sphere else "scale as stored"
        return (
            f"{source.name} {source.split}: {len(self)} clouds of {len(source.class_names)} "
            f"classes, {self.num_points} of {stored} points, {frame}, {scale}, from {source.origin}"
        )


class Tried(Dataset):
    """(index, item, '') of a dataset, or (index, None, reason): one bad item stops no other."""

    def __init__(self, items: Any):
        self.items = items

    def __getitem__(self, index: int) -> tuple[int, Any, str]:
        try:
            return index, self.items[index], ""
        except InputError as error:
            return index, None, str(error)


@dataclass
class TestSet:
    """A source to evaluate on, or several, and how its clouds are read.

    points_ratio: points per cloud as a multiple of those the model was trained on.
    """

    __test__ = False  # pytest takes the name for a test

    source: Source | Sequence[Source]
    points_ratio: float = 1.0
    few: str = "refuse"
    unit_sphere: bool = True

    def datasets(self, num_points: int) -> list[CloudDataset]:
        """A dataset of ``num_points``·points_ratio points for each source."""
        sources = [self.source] if isinstance(self.source, Source) else self.source
        points = round(check_number("num_points", num_points, 1) * self.points_ratio)
        return [
            CloudDataset(source, points, few=self.few, unit_sphere=self.unit_sphere)
            for source in sources
        ]


def open_tests(
    configs: Mapping | Sequence, build: Callable, num_points: int, optional: bool = False
) -> tuple[list[CloudDataset], dict[str, str]]:
    """The test sets of each configuration, and {name: reason} of those that cannot be opened.

    Bad or missing data is an error unless ``optional``; then it is a reason. A configuration of
    None is skipped.
    """
    tests, absent = [], {}
    keyed, listed = isinstance(configs, Mapping), isinstance(configs, Sequence)
    good = keyed or (listed and all(isinstance(config, Mapping | None) for config in configs))
    check("data.tests", configs, good, "give a list of test sets; [] for none")
    named = dict(configs).items() if keyed else [(c and name_of(c), c) for c in configs]
    for name, config in named:
        if config is None:
            continue
        try:
            built = build(config)
            tests += (built if isinstance(built, TestSet) else TestSet(built)).datasets(num_points)
        except Exception as error:
            if not optional:
                raise
            absent[str(name)] = one_line(error)  # raises an error that is no bad input
            log.warning("%s is left out: %s", name, absent[str(name)])
    return tests, absent


def training_source(data: Mapping, build: Callable) -> Source:
    """The shapes of ``data.train``. Raises InputError where a dataset has none."""
    if data["train"] is None:
        raise InputError("data.train is null: this dataset is for tests alone; choose another")
    return build(data["train"])


def training_set(source: Source, data: Mapping, build: Callable, seed: int) -> CloudDataset:
    """The training clouds of a ``data`` configuration, drawn and augmented as it says."""
    facing, more, augmentation = (data[key] for key in ("facing", "more", "augmentation"))
    check("data.facing", facing, isinstance(facing, str | None), "give a sentence")
    check("data.more", more, isinstance(more, Mapping | None), "give {name: clouds}")
    check("data.augmentation", augmentation, augmentation, "give its settings")
    own = {key: data[key] for key in ("num_points", "resample", "fresh", "per_name")}
    return CloudDataset(source, augmentation=build(augmentation), seed=seed, more=more or {}, **own)


def name_of(config: Mapping) -> str:
    """The name and split of a test set that its configuration gives."""
    while "name" not in config and isinstance(config.get("source"), Mapping):
        config = config["source"]
    kind = str(config.get("_target_")).rpartition(".")[2]
    return " ".join(str(x) for x in (config.get("name", kind), config.get("split")) if x)


def held_out(
    data: Mapping, build: Callable, clouds: CloudDataset
) -> tuple[list[CloudDataset], CloudDataset | None, dict[str, str]]:
    """Test sets and validation set (None: none) of a training set's ``data`` configuration.

    Validation clouds are of names that are taught, and augmented as in training. Third: {name:
    reason} of the test sets that data.skip_missing left out.
    """
    skip = data.get("skip_missing", False)
    tests, absent = open_tests(data["tests"], build, clouds.num_points, skip)
    if data["validation"] is None:
        return tests, None, absent
    source = only(build(data["validation"]), clouds.source.class_names)
    return tests, CloudDataset(source, clouds.num_points, clouds.augmentation), absent


def read_first(tests: Sequence[CloudDataset]) -> None:
    """Reads the first cloud of every test set, so that bad data is found before any work."""
    for test in tests:
        log.info(test.describe())
        test[0]


def choose_test(tests: Sequence[CloudDataset], name: str | None = None) -> CloudDataset:
    """The test set whose name or split is ``name``; None takes the first and says so."""
    if not tests:
        raise InputError("data has no test split; choose another with data=NAME")
    titles = [f"{t.source.name} {t.source.split}" for t in tests]
    known, pairs = ", ".join(titles), zip(titles, tests, strict=True)
    chosen = [t for title, t in pairs if name in (None, title, *title.rsplit(" ", 1))]
    found = len(chosen) == 1 or (chosen and name is None)
    check("test_set", name or "null", found, f"choose one, by its name or split, of {known}")
    if len(chosen) > 1:
        log.info("the first of %s; test_set=NAME chooses another", known)
    return chosen[0]


def evenly_spaced(count: int, most: int) -> list[int]:
    """Up to ``most`` of the indices 0..count−1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()


def loader(
    dataset: Dataset, batches: Iterable[Any], workers: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Collated items of the given batches of indices, read by this process or by ``workers``."""
    pin = torch.cuda.is_available()
    return iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin))
