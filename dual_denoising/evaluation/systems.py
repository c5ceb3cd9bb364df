"""What is evaluated and attacked: a model with its text features, and what is known of it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dual_denoising.baselines.base import Baseline
from dual_denoising.clip.features import ClassNames, Text
from dual_denoising.data.datasets import CloudDataset, choose_test, open_tests, read_first
from dual_denoising.data.sources import Source
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import InputError, check_number
from dual_denoising.evaluation import hubness
from dual_denoising.evaluation.calibration import Calibration
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.result import OURS
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.model.interface import locate
from dual_denoising.model.noising import Noising
from dual_denoising.training.record import TrainingRecord

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
MATCHED = 1024  # points at which all systems are compared


@dataclass
class System:
    """A model, the text features it is compared with, and what is known of its training.

    training: its record; of a baseline only points and teacher are known. origin: of its weights.
    title: its name in the paper's tables. label: that and what distinguishes it here. note and
    comparable say whether and how a baseline differs from the model of the paper's tables.
    settings: what a baseline was built from, which its tensors do not tell. references (n, F, E):
    raw features of training clouds, which give a name's hubness (evaluation/hubness.py); None of a
    model without them. device: of its classifiers.
    """

    model: DualDenoising | Baseline
    text: ClassNames
    training: TrainingRecord
    origin: str
    title: str = OURS
    label: str = OURS
    note: str = ""
    comparable: bool = True
    settings: dict = field(default_factory=dict)
    references: Tensor | None = None
    device: torch.device = CPU

    @property
    def comparison(self) -> dict[str, Any]:
        """How it is compared with names, as its record says; evaluation/grid.py explains each."""
        own = {"centre": self.training.centre, "taught_penalty": self.training.taught_penalty}
        return own | {"csls": self.references is not None}

    @property
    def calibration(self) -> Calibration | None:
        fitted = self.training.calibration
        return Calibration(**fitted) if fitted else None

    def identity(self, names: Sequence[str]) -> dict:
        """What its answers depend on besides the clouds, for the settings of a file of results."""
        state = [tensor.cpu().numpy() for tensor in self.model.state_dict().values()]
        scale = self.model.noising.scale if self.model.noising else 0.0
        comparison = self.comparison
        if comparison.pop("csls"):
            comparison["references"] = self.training.references
        return {
            "model": fingerprint(*state, self.text.class_weights(names).numpy(), scale),
            "built from": self.settings,
            **(comparison if any(comparison.values()) else {}),
        }

    def classifier(
        self,
        names: Sequence[str],
        num_noise: int = 8,
        timestep: int = 500,
        seed: int = 0,
        type_weights: Sequence[float] | None = None,
        raw_sum: bool = False,
        **changed: Any,
    ) -> ZeroShotClassifier:
        """Eq. 1 with these class names. changed: entries of ``comparison`` with other values.

        Raises InputError for CSLS with a system that has no references.
        """
        compared = self.comparison | changed
        classifier = ZeroShotClassifier(
            self.model,
            self.text.class_weights(names, raw_sum),
            num_noise,
            timestep,
            seed,
            type_weights,
            self.text.center(self.training.class_names) if compared["centre"] else None,
        )
        penalty = compared["taught_penalty"] * torch.tensor(self.taught(names)).float()
        if compared["csls"]:
            if self.references is None:
                raise InputError("eval.csls is true: the model has no references; pre-train it so")
            penalty += hubness.hubness(classifier.cosines(self.references))
        classifier.penalty = penalty if compared["taught_penalty"] or compared["csls"] else None
        return classifier.to(self.device).eval()

    def seen(self, source: Source) -> tuple[bool, str]:
        """Whether all class names occurred in training, and a note that says how many did."""
        known = self.taught(source.class_names)
        if not any(known):
            return False, self.note or "no name seen in training"
        words = "all names" if all(known) else f"{sum(known)} of {len(known)} names"
        own = self.training.dataset
        here = "same dataset" if own == source.name else f"on {own}"
        return all(known), f"{words} seen in training, {here}"

    def taught(self, names: Sequence[str]) -> list[bool]:
        """Which names occurred in training, in whatever spelling the text features know."""
        taught = {self.text.spelling(name) for name in self.training.class_names}
        return [self.text.spelling(name) in taught for name in names]

    def points(self, asked: int | None) -> int:
        """Points per cloud: the system's own unless others are asked for, with a warning."""
        own = self.training.num_points
        if asked is None:
            return own
        if check_number("num_points", asked, 1) != own:
            log.warning("%d points, not the system's own %d", asked, own)
        return asked

    def fields(self, source: Source) -> dict:
        """What every Result on a dataset says of the system."""
        seen, note = self.seen(source)
        return {
            "dataset": source.name,
            "split": source.split,
            "system": self.title,
            "label": self.label,
            "model": self.origin,
            "num_points": self.training.num_points,
            "noise_scale": self.model.noising.scale if self.model.noising else None,
            "comparable": self.comparable,
            "seen": seen,
            "note": note,
        }


def open_system(
    settings: Mapping, build: Callable, device: torch.device = CPU, dataset: str = "default"
) -> System:
    """The baseline of a script's settings, or else the model of its checkpoint.

    dataset: the test set; a baseline whose paper has settings of its own for it takes them. What
    is given as ``baseline.model`` wins over them.
    """
    scale = settings["noise_scale"]
    if not settings["baseline"]:
        system = ours(settings["checkpoint"], build(settings["teacher"]["text"]), scale)
        return replace(system, device=device)
    chosen = settings["baseline"]
    own = chosen.get("datasets") or {}
    built = {**own.get("default", {}), **own.get(dataset, {}), **chosen["model"]}
    system = baseline(build(built), chosen["points"], scale)
    return replace(system, settings=built, device=device)


def for_dataset(system: System, settings: Mapping, build: Callable, dataset: str) -> System:
    """The same system; a baseline is built anew where its paper has other settings here."""
    own = (settings["baseline"] or {}).get("datasets") or {}
    return open_system(settings, build, system.device, dataset) if dataset in own else system


def open_with_test(
    settings: Mapping, build: Callable, device: torch.device
) -> tuple[System, CloudDataset]:
    """The system and the one test set of a script's settings, with the system's settings for it."""
    system = open_system(settings, build, device)
    points = system.points(settings["num_points"])
    skip = settings["data"].get("skip_missing", False)
    tests, _ = open_tests(settings["data"]["tests"], build, points, skip)
    test = choose_test(tests, settings["test_set"])
    read_first([test])
    system.model.grouping(test[0]["points"][None])  # raises for too few points
    return for_dataset(system, settings, build, test.source.name), test


def ours(checkpoint: str, text: Text, noise_scale: float | None = None) -> System:
    """A pre-trained model of this project; noise_scale: s at test time, None for its own."""
    folder = locate(checkpoint)
    training = TrainingRecord.load(folder)
    if training.teacher != text.teacher:
        raise InputError(
            f"{checkpoint}: learned from {training.teacher}, but the text features are of "
            f"{text.teacher}; name no text features and it takes its own"
        )
    model = DualDenoising.from_pretrained(folder)
    if noise_scale is not None:
        check_number("noise_scale", noise_scale, whole=False)
        model.noising.scale = noise_scale
    system = System(model, text, training, str(checkpoint))
    if training.references:
        system.references = hubness.load(folder, training.references)
    return system


def baseline(model: Baseline, points: str | int, noise_scale: float | None = None) -> System:
    """A baseline at 'matched' (1024) or 'native' (its own paper's) points, or at any number.

    noise_scale: s of test-time noise around it, None for the model as it was published.
    """
    known = {"matched": MATCHED, "native": model.native_points}
    number = known.get(points, points) if isinstance(points, str) else points
    number = check_number("baseline.points (matched, native or a number)", number, 1)
    around = ""
    if noise_scale is not None:
        check_number("noise_scale", noise_scale, whole=False, above=True, most=1)
        model.noising, around = Noising(noise_scale), f", noise s = {noise_scale:g}"
    deviations = model.deviations()
    return System(
        model,
        model,
        TrainingRecord("not known", "", [], number, model.teacher),
        model.origin,
        model.title,
        model.title + (f", {number} points" if number != MATCHED else "") + around,
        note="; ".join([f"{model.origin}{around}", *deviations]),
        comparable=not deviations and not around,
    )
