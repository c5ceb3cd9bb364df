"""Accuracy over a grid of inference settings and noise seeds, on one rank or many."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dual_denoising.baselines.base import Baseline
from dual_denoising.clip.features import StandInBank, TextBank, class_weights
from dual_denoising.data.clouds import CloudDataset, in_order, loader
from dual_denoising.errors import InputError
from dual_denoising.evaluation import orientation as frames
from dual_denoising.evaluation.classifier import ZeroShotClassifier, seen
from dual_denoising.evaluation.metrics import (
    confusion_matrix,
    label_ranks,
    mean_sd,
    wilson_interval,
)
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training import ranks as distributed

log = logging.getLogger(__name__)


@dataclass
class Predictions:
    """What every cell of a grid said of every cloud; M timestep settings, S's, R seeds, n clouds.

    predicted (M, S, R, n): classes, −1 where a logit was not finite. ranks (M, S, R, n): how many
    classes come before the label. labels (n,).
    """

    predicted: np.ndarray
    ranks: np.ndarray
    labels: np.ndarray


@dataclass
class Evaluation:
    """A grid of inference settings (S, t); every cell is evaluated with every noise seed.

    type_weights: of the model's feature types, 1:1 if None. ensembles: lists of {t: weight}, each
    one more setting, whose logits are the weighted mean over its timesteps. lineage: class weights
    as ReCon makes them (raw sum of the prompts' features, underscores kept).
    """

    num_noise: Sequence[int] | int = (8,)
    timestep: Sequence[int] | int = (500,)
    seeds: Sequence[int] | int = (0, 1, 2)
    batch_size: int = 32
    type_weights: Sequence[float] | None = None
    ensembles: Sequence[Mapping[int, float]] = ()
    lineage: bool = False
    workers: int = 0
    settings: list[dict[int, float]] = field(init=False)

    def __post_init__(self):
        for name, low in (("num_noise", 1), ("timestep", 0), ("seeds", 0)):
            values = getattr(self, name)
            values = [values] if isinstance(values, int) else values
            good = isinstance(values, Sequence) and len(values) > 0 and not isinstance(values, str)
            if not good or any(type(v) is not int or v < low for v in values):
                raise InputError(
                    f"eval.{name} is {values}: give whole numbers from {low}, as {low} or [{low}]"
                )
            if len(set(values)) < len(values):
                raise InputError(f"eval.{name} is {list(values)}: give every number once")
            setattr(self, name, list(values))
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise InputError(f"eval.batch_size is {self.batch_size}: it must be at least 1")
        for mixture in self.ensembles:
            if not _is_mixture(mixture):
                raise InputError(
                    f"eval.ensembles has {mixture}: give timesteps and weights, {{0: 1, 500: 1}}"
                )
        self.settings = [{t: 1.0} for t in self.timestep] + [dict(m) for m in self.ensembles]

    def check(
        self,
        model: DualDenoising | Baseline,
        text: TextBank | StandInBank | Baseline | None = None,
        tests: Sequence[CloudDataset] = (),
    ) -> None:
        """Raises InputError where the model cannot do these settings, or names lack a feature."""
        largest = max(t for setting in self.settings for t in setting)
        if largest >= model.noise_steps:
            known = f"0 to {model.noise_steps - 1}" if model.noise_steps > 1 else "0 alone"
            raise InputError(f"eval.timestep is {largest}: the model knows {known}")
        self._classifier(model, torch.eye(1, model.feature_width))
        if self.lineage and isinstance(text, Baseline):
            raise InputError("eval.lineage is true: a baseline makes class weights in its own way")
        for test in tests:
            self.weights(text, test)

    def plain(self) -> Evaluation:
        """The one setting of a model that has no noise: S = 1, t = 0, whatever else is the same."""
        return replace(self, num_noise=[1], timestep=[0], seeds=[0], ensembles=())

    def weights(self, text: TextBank | StandInBank | Baseline, test: CloudDataset) -> Tensor:
        """Class weights (C, E) of a test set's names; a baseline makes its own."""
        if isinstance(text, Baseline):
            return text.class_weights(test.source.class_names)
        features = text.lookup(test.source.class_names, keep_underscores=self.lineage)
        return class_weights(features, self.lineage)

    def run(
        self,
        model: DualDenoising | Baseline,
        training: dict,
        text: TextBank | StandInBank | Baseline,
        test: CloudDataset,
        device: torch.device,
    ) -> tuple[list[dict], Predictions]:
        """Results of a test set in every cell, and the predictions for each of its clouds.

        A result has the fields of ``summary.json``'s; 'confusion' (C, C) counts over all seeds.
        Warns where the test set's frame looks wrong. Under torchrun every rank has the results.
        """
        weights = self.weights(text, test)
        classifier = self._classifier(model, weights).eval().to(device)
        predictions = self.predict(classifier, test, device)
        seconds = self.seconds_per_cloud(classifier, test, device)
        known, note = seen(training, test.source)
        results = self.results(predictions, test.source, seconds)
        warning = frames.warn(classifier, test, max(r["top1_mean"] for r in results), device)
        words = f"{len(text.prompts)} prompt{'s' * (len(text.prompts) > 1)} of {text.teacher}"
        if isinstance(text, Baseline):
            words += f", {text.class_words}"
        words += ", raw sum (lineage)" if self.lineage else ""
        more = {"seen": known, "note": note, "warning": warning, "class_weights": words}
        return [result | more for result in results], predictions

    def _classifier(self, model: DualDenoising | Baseline, weights: Tensor) -> ZeroShotClassifier:
        """For grids: its own setting is not used."""
        return ZeroShotClassifier(model, weights, 1, 0, type_weights=self.type_weights)

    @torch.inference_mode()
    def predict(
        self, classifier: ZeroShotClassifier, test: CloudDataset, device: torch.device
    ) -> Predictions:
        """The whole grid in one pass over the clouds, each rank taking its share of the batches."""
        shape = (len(self.settings), len(self.num_noise), len(self.seeds), len(test))
        predicted = torch.zeros(shape, dtype=torch.int32)
        ranks = torch.zeros(shape, dtype=torch.int32)
        title, failure = f"{test.source.name} {test.source.split}", None
        try:
            self._predict_share(classifier, test, device, predicted, ranks, title)
        except InputError as error:  # all ranks must leave together
            failure = str(error)
        failure = distributed.first_said(failure)
        if failure:
            raise InputError(failure)
        predicted, ranks = (distributed.sum_over_ranks(x, device) for x in (predicted, ranks))
        broken = int((predicted < 0).any(0).any(0).any(0).sum())
        if broken:
            log.warning("%s: logits of %d clouds are not finite; counted as wrong", title, broken)
        return Predictions(predicted.numpy(), ranks.numpy(), np.asarray(test.source.labels))

    def _predict_share(self, classifier, test, device, predicted, ranks, title: str) -> None:
        """Fills in the clouds of this rank's batches."""
        steps = sorted({t for setting in self.settings for t in setting})
        labels = torch.from_numpy(np.asarray(test.source.labels, np.int64))
        batches = in_order(len(test), self.batch_size)
        batches = batches[distributed.rank() :: distributed.world_size()]
        read = loader(test, batches, self.workers)
        hide = not distributed.is_main()
        for batch in tqdm(read, title, len(batches), disable=hide, unit="batch"):
            points, index = batch["points"].to(device), batch["index"].to(device)
            logits = classifier.grid(points, index, self.num_noise, steps, self.seeds)
            by_step = dict(zip(steps, logits, strict=True))
            mixed = torch.stack([
                sum(weight * by_step[t] for t, weight in setting.items()) / sum(setting.values())
                for setting in self.settings
            ])  # fmt: skip
            here = batch["index"]
            rank, first = label_ranks(mixed.cpu(), labels[here])
            ranks[..., here], predicted[..., here] = rank.int(), first.int()

    @torch.inference_mode()
    def seconds_per_cloud(
        self, classifier: ZeroShotClassifier, test: CloudDataset, device: torch.device
    ) -> np.ndarray:
        """(M, S) seconds of each setting by itself on the first batch, median of three runs."""
        batch = next(loader(test, in_order(len(test), self.batch_size)[:1]))
        points, index = batch["points"].to(device), batch["index"].to(device)
        taken = np.empty((len(self.settings), len(self.num_noise)))
        for m, setting in enumerate(self.settings):
            for s, paths in enumerate(self.num_noise):
                runs = []
                for _ in range(3):
                    started = time.perf_counter()
                    classifier.grid(points, index, [paths], list(setting), [0]).cpu()
                    runs.append(time.perf_counter() - started)
                taken[m, s] = statistics.median(runs) / len(points)
        return taken

    def results(self, predictions: Predictions, source, seconds: np.ndarray) -> list[dict]:
        """One result per (S, t) in the order of num_noise, then timestep, then ensembles."""
        return [
            self._result(predictions, source, m, s) | {"seconds_per_cloud": float(seconds[m, s])}
            for s in range(len(self.num_noise))
            for m in range(len(self.settings))
        ]

    def _result(self, predictions: Predictions, source, m: int, s: int) -> dict:
        ranks, predicted = predictions.ranks[m, s], predictions.predicted[m, s]  # (R, n)
        names, labels = list(source.class_names), predictions.labels
        top = {k: mean_sd((ranks < k).mean(1).tolist()) for k in (1, 3, 5)}
        confusion = sum(confusion_matrix(labels, row, len(names)) for row in predicted)
        counts = np.bincount(labels, minlength=len(names)) * len(ranks)
        recalls = np.diag(confusion)[counts > 0] / counts[counts > 0]
        setting = self.settings[m]
        return {
            "dataset": source.name,
            "split": source.split,
            "n": len(labels),
            "num_noise": self.num_noise[s],
            "timestep": next(iter(setting)) if len(setting) == 1 else list(setting),
            "timestep_weights": list(setting.values()) if len(setting) > 1 else None,
            "type_weights": list(self.type_weights) if self.type_weights else None,
            "seeds": list(self.seeds),
            "top1_mean": top[1][0],
            "top1_sd": top[1][1],
            "top1_interval": list(wilson_interval(top[1][0], len(labels))),
            "top3_mean": top[3][0],
            "top5_mean": top[5][0],
            "class_mean": float(recalls.mean()),
            "class_names": names,
            "confusion": confusion.tolist(),
        }


def _is_mixture(mixture: Mapping) -> bool:
    """Whether it maps timesteps to weights from 0 that are finite, one above 0."""
    if not isinstance(mixture, Mapping) or not all(type(t) is int and t >= 0 for t in mixture):
        return False
    weights = list(mixture.values())
    if not all(isinstance(w, (int, float)) and 0 <= w < math.inf for w in weights):
        return False
    return sum(weights) > 0
