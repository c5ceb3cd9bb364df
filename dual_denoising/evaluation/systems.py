"""What is evaluated and attacked: a model of this project or a baseline, and its class weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from dual_denoising.baselines.base import Baseline
from dual_denoising.clip.features import StandInBank, TextBank, class_weights
from dual_denoising.errors import InputError
from dual_denoising.evaluation import classifier as zeroshot
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports.paper import OURS

log = logging.getLogger(__name__)

MATCHED = 1024  # points at which all systems are compared


@dataclass
class Subject:
    """A model, what is known of its training, and the text features that it is compared with.

    system: its name in the paper's tables. label: that and what distinguishes it here. settings:
    what a baseline was built from, which its tensors do not tell.
    """

    model: DualDenoising | Baseline
    training: dict
    text: TextBank | StandInBank | Baseline
    system: str
    label: str
    origin: str
    settings: dict = field(default_factory=dict)

    def class_weights(self, names: Sequence[str]) -> Float[Tensor, "c e"]:
        """Unit vectors of class names: a baseline makes its own."""
        if isinstance(self.text, Baseline):
            return self.text.class_weights(names)
        return class_weights(self.text.lookup(names))

    def fields(self) -> dict:
        """What every result says of it. comparable: with the paper's numbers, seen names apart."""
        return {
            "system": self.system,
            "label": self.label,
            "weights": self.origin,
            "num_points": self.training["num_points"],
            "noise_scale": self.model.noise_scale,
            "comparable": self.training.get("comparable", True),
        }


def open_subject(settings: Mapping, make: Callable, dataset: str = "default") -> Subject:
    """The baseline of a script's settings, or else its checkpoint; ``make`` builds their parts.

    settings: plain data, all interpolations resolved.
    dataset: whose settings a baseline takes where its paper sets some for it. What is given as
    ``baseline.model`` wins over them.
    """
    if not settings["baseline"]:
        text = make(settings["teacher"]["text"])
        return trained(settings["checkpoint"], text, settings["noise_scale"])
    chosen = settings["baseline"]
    own = chosen.get("datasets") or {}
    built = {**own.get("default", {}), **own.get(dataset, {}), **chosen["model"]}
    subject = baseline(make(built), chosen["points"], settings["noise_scale"])
    return replace(subject, settings=built)


def for_dataset(subject: Subject, settings: Mapping, make: Callable, dataset: str) -> Subject:
    """The same subject, or the baseline with what its paper sets otherwise for this data set."""
    own = (settings["baseline"] or {}).get("datasets") or {}
    return open_subject(settings, make, dataset) if dataset in own else subject


def each(settings: Mapping) -> Iterator[tuple[str, dict]]:
    """Every system of a table, and a script's settings for it alone."""
    for name, system in settings["systems"].items():
        own = {"name": f"{settings['name']}/{name}", "systems": None, "baseline": dict(system)}
        if "checkpoint" in system:
            own["checkpoint"] = own["baseline"].pop("checkpoint")
        yield name, {**settings, **own}


def trained(
    checkpoint: str | None, text: TextBank | StandInBank, noise_scale: float | None
) -> Subject:
    """A pre-trained model of this project; noise_scale: s at test time, None for its own."""
    if checkpoint is None:
        raise InputError("no checkpoint is given; checkpoint=runs/NAME/model, or baseline=NAME")
    model, training = zeroshot.load(checkpoint, text)
    model.noise_scale = model.noise_scale if noise_scale is None else noise_scale
    return Subject(model, training, text, OURS, OURS, str(checkpoint))


def baseline(model: Baseline, points: str | int, noise_scale: float | None) -> Subject:
    """A baseline at 'matched' (1024) or 'native' (its own paper's) points, or at any number.

    noise_scale: s of test-time noise around it, None for the model as it was published.
    """
    if points not in ("matched", "native") and not (type(points) is int and points > 0):
        raise InputError(f"baseline.points is {points}: choose matched, native or a number from 1")
    number = {"matched": MATCHED, "native": model.native_points}.get(str(points), points)
    if noise_scale is not None and not (
        isinstance(noise_scale, (int, float)) and 0 < noise_scale < 1
    ):
        raise InputError(f"noise_scale is {noise_scale}: choose one between 0 and 1")
    model.noise_scale = noise_scale
    around = f", noise s = {noise_scale:g}" if noise_scale else ""
    deviations = model.deviations()
    training = {
        "dataset": "",
        "class_names": [],
        "num_points": number,
        "teacher": model.teacher,
        "note": "; ".join([f"{model.origin}{around}", *deviations]),
        "comparable": not deviations and not noise_scale,
    }
    label = model.title + (f", {number} points" if number != MATCHED else "") + around
    return Subject(model, training, model, model.title, label, model.origin)
