"""What is evaluated and attacked: a model of this project or a baseline, and its class weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dual_denoising import zeroshot
from dual_denoising.baselines.base import Baseline
from dual_denoising.errors import InputError
from dual_denoising.model import DualDenoising
from dual_denoising.tables import OURS
from dual_denoising.teacher import StandInBank, TextBank, class_weights

log = logging.getLogger(__name__)

MATCHED = 1024  # points at which all systems are compared


@dataclass
class Subject:
    """A model, what is known of its training, and the text features that it is compared with.

    title: the system's name in the paper's tables. origin: where its weights are from.
    """

    model: DualDenoising | Baseline
    training: dict
    text: TextBank | StandInBank | Baseline
    title: str
    origin: str

    def class_weights(self, names: Sequence[str]) -> Float[Tensor, "c e"]:
        """Unit vectors of class names: a baseline makes its own."""
        if isinstance(self.text, Baseline):
            return self.text.class_weights(names)
        return class_weights(self.text.lookup(names))


def open_subject(settings: Mapping, make: Callable) -> Subject:
    """The baseline of a script's settings, or else its checkpoint; ``make`` builds their parts."""
    if settings["baseline"]:
        chosen = settings["baseline"]
        return baseline(make(chosen["model"]), chosen["points"], settings["noise_scale"])
    text = make(settings["teacher"]["text"])
    return trained(settings["checkpoint"], text, settings["noise_scale"])


def for_dataset(subject: Subject, settings: Mapping, make: Callable, dataset: str) -> Subject:
    """The same subject, or the baseline with what its paper sets otherwise for this data set."""
    chosen = settings["baseline"] or {}
    own = (chosen.get("datasets") or {}).get(dataset)
    if not own:
        return subject
    model = make(dict(chosen["model"]) | dict(own))
    return baseline(model, chosen["points"], settings["noise_scale"])


def each(settings: Mapping) -> Iterator[tuple[str, dict]]:
    """Every system of a table, and a script's settings for it alone."""
    for name, system in settings["systems"].items():
        own = {"name": f"{settings['name']}/{name}", "systems": None, "baseline": dict(system)}
        if "checkpoint" in system:
            own["checkpoint"] = own["baseline"].pop("checkpoint")
        yield name, {**settings, **own}


def trained(checkpoint: str, text: TextBank | StandInBank, noise_scale: float | None) -> Subject:
    """A pre-trained model of this project; noise_scale: s at test time, None for its own."""
    model, training = zeroshot.load(checkpoint, text)
    model.noise_scale = model.noise_scale if noise_scale is None else noise_scale
    return Subject(model, training, text, OURS, str(checkpoint))


def baseline(model: Baseline, points: str | int, noise_scale: float | None) -> Subject:
    """A baseline at 'matched' (1024) or 'native' (its own paper's) points, or at any number.

    noise_scale: s of test-time noise around it, None for the model as it was published.
    """
    numbers = {"matched": MATCHED, "native": model.native_points}
    if points not in numbers and type(points) is not int:
        raise InputError(f"baseline.points is '{points}': choose matched, native or a number")
    if noise_scale is not None and not 0 < noise_scale < 1:
        raise InputError(f"noise_scale is {noise_scale}: choose one between 0 and 1")
    model.noise_scale = noise_scale
    training = {
        "dataset": "",
        "class_names": [],
        "num_points": numbers.get(points, points),
        "teacher": model.teacher,
        "note": model.origin + (f", noise s = {noise_scale:g} around it" if noise_scale else ""),
    }
    return Subject(model, training, model, model.title, model.origin)
