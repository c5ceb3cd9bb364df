"""Zero-shot classification: clouds -> logits, all that metrics and attacks see."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from dual_denoising.data.clouds import CloudDataset, in_order, loader
from dual_denoising.errors import InputError
from dual_denoising.metrics import confusion_matrix, mean_sd, topk_correct
from dual_denoising.model import DualDenoising
from dual_denoising.teacher import StandInBank, TextBank, class_weights


class ZeroShotClassifier(nn.Module):
    """Cosine similarity of the averaged features to the class weights, times 100.

    class_weights: (C, E) unit vectors, the same for every feature type, or (F, C, E). Feature types
    are normalised one by one and added with ``type_weights``, 1:1 if not given.
    """

    def __init__(
        self,
        model: DualDenoising,
        class_weights: Float[Tensor, "*f c e"],
        num_noise: int = 8,
        timestep: int = 500,
        seed: int = 0,
        type_weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.model, self.num_noise, self.timestep, self.seed = model, num_noise, timestep, seed
        types = len(model.feature_types)
        type_weights = type_weights or [1.0] * types
        if len(type_weights) != types:
            raise ValueError(f"{len(type_weights)} type_weights for {types} feature types")
        self.register_buffer("class_weights", class_weights.expand(types, -1, -1))
        self.register_buffer("type_weights", torch.tensor(type_weights) / sum(type_weights))

    def forward(
        self, clouds: Float[Tensor, "b n 3"], indices: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c"]:
        """Logits (B, C) of clouds (B, N, 3); ``indices`` (B,) key the noise, 0..B−1 if None."""
        features = self.model.encode(clouds, self.num_noise, self.timestep, self.seed, indices)
        return self.logits(features)

    def logits(self, features: Float[Tensor, "b f e"]) -> Float[Tensor, "b c"]:
        """Logits of averaged, raw features."""
        cosine = torch.einsum("bfe,fce->bfc", normalize(features, dim=-1), self.class_weights)
        return 100 * torch.einsum("bfc,f->bc", cosine, self.type_weights)


@torch.inference_mode()
def evaluate(
    classifier: ZeroShotClassifier,
    dataset: CloudDataset,
    seeds: Sequence[int],
    device: torch.device,
    batch_size: int = 64,
) -> dict:
    """Accuracy of a classifier on a data set, once per noise seed.

    Returns the fields of ``summary.json``'s results; 'confusion' (C, C) counts over all seeds.
    """
    classifier.eval().to(device)
    names = list(dataset.source.class_names)
    top1, top5, confusion, seconds = [], [], np.zeros((len(names), len(names)), int), 0.0
    for seed in seeds:
        classifier.seed = seed
        logits, labels = [], []
        for batch in loader(dataset, in_order(len(dataset), batch_size)):
            started = time.perf_counter()
            points, index = batch["points"].to(device), batch["index"].to(device)
            logits.append(classifier(points, index).cpu())  # the copy waits for the device
            seconds += time.perf_counter() - started
            labels.append(batch["label"])
        logits, labels = torch.cat(logits), torch.cat(labels)
        top1.append(topk_correct(logits, labels, 1).double().mean().item())
        top5.append(topk_correct(logits, labels, 5).double().mean().item())
        confusion += confusion_matrix(labels, logits.argmax(1), len(names))
    mean, sd = mean_sd(top1)
    return {
        "dataset": dataset.source.name,
        "split": dataset.source.split,
        "n": len(dataset),
        "num_noise": classifier.num_noise,
        "timestep": classifier.timestep,
        "seeds": list(seeds),
        "top1_mean": mean,
        "top1_sd": sd,
        "top5_mean": mean_sd(top5)[0],
        "seconds_per_cloud": seconds / (len(dataset) * len(seeds)),
        "class_names": names,
        "confusion": confusion.tolist(),
    }


def training_record(clouds: CloudDataset, text: TextBank | StandInBank) -> dict:
    """What is kept beside a model so that an evaluation can tell what it has seen."""
    return {
        "dataset": clouds.source.name,
        "split": clouds.source.split,
        "class_names": list(clouds.source.class_names),
        "num_points": clouds.num_points,
        "teacher": text.teacher,
    }


def check_teacher(training: dict, text: TextBank | StandInBank, checkpoint: str) -> None:
    """Raises InputError where the model's and the text features are of different teachers."""
    if training["teacher"] != text.teacher:
        raise InputError(
            f"{checkpoint}: learned from {training['teacher']}, but the text features are of "
            f"{text.teacher}; choose the teacher it learned from (teacher=...)"
        )


def seen(training: dict, source) -> tuple[bool, str]:
    """Whether all class names occurred in training, and in words what did."""
    names = {name.replace("_", " ") for name in training["class_names"]}
    known = [name.replace("_", " ") in names for name in source.class_names]
    if not any(known):
        return False, "no name seen in training"
    words = "all names" if all(known) else f"{sum(known)} of {len(known)} names"
    here = "same data set" if training["dataset"] == source.name else "data set not"
    return all(known), f"{words} seen in training, {here}"


@dataclass
class Evaluation:
    """A grid of inference settings (S, t); every cell is evaluated with every noise seed."""

    num_noise: Sequence[int] = (8,)
    timestep: Sequence[int] = (500,)
    seeds: Sequence[int] = (0, 1, 2)
    batch_size: int = 32
    type_weights: Sequence[float] | None = None

    def __post_init__(self):
        for name, low in (("num_noise", 1), ("timestep", 0), ("seeds", 0)):
            values = getattr(self, name)
            good = isinstance(values, Sequence) and len(values) > 0 and not isinstance(values, str)
            if not good or any(not isinstance(v, int) or v < low for v in values):
                raise InputError(
                    f"eval.{name} is {values}: give a list of whole numbers from {low}, as [{low}]"
                )

    def prepare(
        self, model: DualDenoising, text: TextBank | StandInBank, tests: Sequence[CloudDataset]
    ) -> list[Tensor]:
        """Class weights (C, E) of every test set; finds what would fail after the training."""
        if max(self.timestep) >= model.noise_steps:
            raise InputError(
                f"eval.timestep is {list(self.timestep)}: the model knows 0 to "
                f"{model.noise_steps - 1}"
            )
        for test in tests:
            test[0]
        return [class_weights(text.lookup(test.source.class_names)) for test in tests]

    def run(
        self,
        model: DualDenoising,
        training: dict,
        tests: Sequence[CloudDataset],
        weights: Sequence[Tensor],
        device: torch.device,
    ) -> list[dict]:
        """Results of every test set in every cell; see ``evaluate``."""
        cells = [
            (test, weight, paths, step)
            for test, weight in zip(tests, weights, strict=True)
            for paths in self.num_noise
            for step in self.timestep
        ]
        results = []
        for test, weight, paths, step in tqdm(cells, "evaluating", unit="setting"):
            classifier = ZeroShotClassifier(
                model, weight, paths, step, type_weights=self.type_weights
            )
            result = evaluate(classifier, test, self.seeds, device, self.batch_size)
            known, note = seen(training, test.source)
            results.append(result | {"seen": known, "note": note})
        return results
