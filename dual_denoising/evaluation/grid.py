"""Accuracy over a grid of inference settings and noise seeds, on one rank or many."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from tqdm import tqdm

from dual_denoising.baselines.base import Baseline
from dual_denoising.clip.features import ClassNames
from dual_denoising.data.datasets import CloudDataset, open_tests, read_first
from dual_denoising.data.sources import Source
from dual_denoising.errors import InputError, check, check_number
from dual_denoising.evaluation import metrics
from dual_denoising.evaluation.calibration import ACCEPTED, Calibration, confidence, figures
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.orientation import orientation_warning
from dual_denoising.evaluation.result import Result
from dual_denoising.evaluation.systems import System, for_dataset, open_system
from dual_denoising.keyed_random import FirstSeed
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training import ranks

log = logging.getLogger(__name__)


@dataclass
class Predictions:
    """What every setting said of every cloud. Axes: timesteps, path counts S, R noise seeds, n.

    predicted (·, ·, R, n): classes, −1 where a logit was not finite. ranks (·, ·, R, n): how many
    classes come before the label. confidence (5, ·, ·, R, n): of a calibrated model, see
    calibration.confidence; zeros of any other.
    """

    predicted: np.ndarray
    ranks: np.ndarray
    confidence: np.ndarray


@dataclass
class Evaluation:
    """A grid of inference settings (S, t); every cell is evaluated with every noise seed.

    type_weights: of the model's feature types, 1:1 if None. ensembles: each is a {t: weight} and
    one more setting, whose logits are the weighted mean over its timesteps. raw_sum: class weights
    as ReCon makes them (raw sum of the prompts' features, underscores kept). centre: subtract the
    mean of all names of the bank before vectors are compared. taught_penalty: subtracted from the
    cosine of names that were taught (calibrated stacking, Chao et al. 2016). csls: subtract from
    the cosines of a name its hubness. For these three, None is what the model was trained with,
    which is in its record. accepted: share of the validation shapes that a model's 'none of these'
    lets through, when it is calibrated.
    """

    num_noise: Sequence[int] = (8,)
    timestep: Sequence[int] = (500,)
    seeds: Sequence[int] = (0, 1, 2)
    batch_size: int = 32
    type_weights: Sequence[float] | None = None
    ensembles: Sequence[Mapping[int, float]] = ()
    raw_sum: bool = False
    centre: bool | None = None
    taught_penalty: float | None = None
    csls: bool | None = None
    accepted: float = ACCEPTED
    workers: int = 0
    settings: list[dict[int, float]] = field(init=False)

    def __post_init__(self):
        for name, low in (("num_noise", 1), ("timestep", 0), ("seeds", 0)):
            values = getattr(self, name)
            values = list(values) if isinstance(values, (list, tuple)) else [values]
            for value in values:
                check_number(f"eval.{name}", value, low, most=FirstSeed.ATTACK - 1)
            good = 0 < len(values) == len(set(values))
            check(f"eval.{name}", values, good, f"give different whole numbers, as [{low}]")
            setattr(self, name, values)
        check_number("eval.batch_size", self.batch_size, 1)
        check_number("eval.workers", self.workers)
        check_number("eval.taught_penalty", self.taught_penalty or 0, whole=False)
        check_number("eval.accepted", self.accepted, whole=False, most=1)
        for name in ("centre", "csls"):
            value = getattr(self, name)
            check(f"eval.{name}", value, value in (True, False, None), "choose true or false")
        weights = self.type_weights
        good = weights is None or isinstance(weights, (list, tuple))
        check("eval.type_weights", weights, good, "give a list, as [1, 1]")
        for weight in weights or ():
            check_number("eval.type_weights", weight, whole=False)
        for mixture in self.ensembles:
            good = isinstance(mixture, Mapping) and all(
                type(t) is int and t >= 0 and isinstance(w, (int, float)) and 0 <= w < math.inf
                for t, w in mixture.items()
            )
            good = good and sum(mixture.values()) > 0
            check("eval.ensembles", mixture, good, "give {timestep: weight}, as {0: 1, 500: 1}")
        self.settings = [{t: 1.0} for t in self.timestep] + [dict(m) for m in self.ensembles]

    def check(
        self,
        model: DualDenoising | Baseline,
        text: ClassNames,
        tests: Sequence[CloudDataset] = (),
    ) -> None:
        """Raises InputError where the model cannot do these settings, or names lack a feature."""
        for t in {t for setting in self.settings for t in setting}:
            weights = torch.eye(1, model.feature_width)
            ZeroShotClassifier(model, weights, timestep=t, type_weights=self.type_weights)
        for test in tests:
            text.class_weights(test.source.class_names, self.raw_sum)
            if self.centre:
                text.center(test.source.class_names)

    def run(self, system: System, test: CloudDataset) -> tuple[list[Result], Predictions]:
        """A Result per cell, in the order of num_noise, then timestep, then ensembles.

        Warns where the test set's frame looks wrong. Under torchrun every rank has the results.
        """
        source = test.source
        taught = np.array(system.taught(source.class_names))
        changed = {k: v for k in system.comparison if (v := getattr(self, k)) is not None}
        compared = system.comparison | changed
        classifier = system.classifier(
            source.class_names, 1, 0, 0, self.type_weights, self.raw_sum, **changed
        )
        calibration = system.calibration if compared == system.comparison else None
        predictions = self.predict(classifier, test, calibration)
        seconds = self.seconds_per_cloud(classifier, test)
        text = system.text
        words = f"{len(text.prompts)} prompt{'s' * (len(text.prompts) > 1)} of {text.teacher}"
        words += text.class_words + (", raw sum" if self.raw_sum else "")
        words += ", centred" if compared["centre"] else ""
        words += ", CSLS" if compared["csls"] else ""
        penalty = compared["taught_penalty"]
        words += f", taught names −{penalty:g}" if penalty else ""
        common = system.fields(source) | {"class_weights": words}
        results = self.results(predictions, source, seconds, taught, calibration, **common)
        best = max(result.top1_mean for result in results)
        warning = orientation_warning(classifier, test, best)
        return [replace(result, warning=warning) for result in results], predictions

    @torch.inference_mode()
    def predict(
        self,
        classifier: ZeroShotClassifier,
        test: CloudDataset,
        calibration: Calibration | None = None,
    ) -> Predictions:
        """The whole grid in one pass over the clouds, each rank taking its share of them."""
        shape = (len(self.settings), len(self.num_noise), len(self.seeds), len(test))
        predicted, place = (torch.zeros(shape, dtype=torch.int32) for _ in range(2))
        sure = torch.zeros(5, *shape)
        steps = sorted({t for setting in self.settings for t in setting})
        labels = torch.from_numpy(np.asarray(test.source.labels, np.int64))
        mine = range(len(test))[ranks.rank() :: ranks.world_size()]
        read = test.batches(mine, classifier.device, self.batch_size, self.workers)
        title, failure = f"{test.source.name} {test.source.split}", None
        try:
            count, hide = math.ceil(len(mine) / self.batch_size), not ranks.is_main()
            for points, index, _ in tqdm(read, title, count, disable=hide, unit="batch"):
                here = index.cpu()
                logits = classifier.grid(points, index, self.num_noise, steps, self.seeds)
                by_step = dict(zip(steps, logits, strict=True))
                mixed = [
                    sum(share * by_step[t] for t, share in setting.items()) / sum(setting.values())
                    for setting in self.settings
                ]
                answered = torch.stack(mixed).cpu()  # (·, S, R, B, C)
                rank, first = metrics.label_ranks(answered, labels[here])
                place[..., here], predicted[..., here] = rank.int(), first.int()
                if calibration:
                    sure[..., here] = confidence(answered, labels[here], calibration)
        except InputError as error:  # all ranks must leave together
            failure = str(error)
        ranks.fail_together(failure)
        found = [
            ranks.sum_over_ranks(x, classifier.device).numpy() for x in (predicted, place, sure)
        ]
        broken = int((found[0] < 0).any((0, 1, 2)).sum())
        if broken:
            log.warning("%s: logits of %d clouds are not finite; counted as wrong", title, broken)
        return Predictions(*found)

    @torch.inference_mode()
    def seconds_per_cloud(self, classifier: ZeroShotClassifier, test: CloudDataset) -> np.ndarray:
        """Seconds of each setting by itself on the first batch, medians of three runs."""
        first = range(min(self.batch_size, len(test)))
        points, index, _ = next(test.batches(first, classifier.device, self.batch_size))
        taken = np.empty((len(self.settings), len(self.num_noise), 3))
        for m, s, run in np.ndindex(taken.shape):
            started = time.perf_counter()
            classifier.grid(points, index, [self.num_noise[s]], list(self.settings[m]), [0]).cpu()
            taken[m, s, run] = time.perf_counter() - started
        return np.median(taken, -1) / len(points)

    def results(
        self,
        predictions: Predictions,
        source: Source,
        seconds: np.ndarray,
        taught: np.ndarray,
        calibration: Calibration | None = None,
        **common,
    ) -> list[Result]:
        """A Result per cell. taught (C,): names of training. common: fields that all share."""
        names, labels = list(source.class_names), np.asarray(source.labels)
        counts = np.bincount(labels, minlength=len(names)) * len(self.seeds)
        results = []
        for s, m in product(range(len(self.num_noise)), range(len(self.settings))):
            place, predicted = predictions.ranks[m, s], predictions.predicted[m, s]  # (R, n)
            top = {k: metrics.mean_sd((place < k).mean(1).tolist()) for k in (1, 3, 5)}
            mine, right = taught[labels], place < 1
            shares = [float(right[:, at].mean()) if at.any() else None for at in (mine, ~mine)]
            truth = np.broadcast_to(labels, predicted.shape)
            confusion = metrics.confusion_matrix(truth, predicted, len(names))
            recalls = np.diag(confusion)[counts > 0] / counts[counts > 0]
            steps, weights = list(self.settings[m]), list(self.settings[m].values())
            sure = predictions.confidence[:, m, s].reshape(5, -1)
            results.append(
                Result(
                    n=len(labels),
                    num_noise=self.num_noise[s],
                    timestep=steps[0] if len(steps) == 1 else steps,
                    timestep_weights=weights if len(steps) > 1 else None,
                    type_weights=list(self.type_weights) if self.type_weights else None,
                    seeds=list(self.seeds),
                    seconds_per_cloud=float(seconds[m, s]),
                    top1_mean=top[1][0],
                    top1_sd=top[1][1],
                    top1_interval=list(metrics.wilson_interval(top[1][0], len(labels))),
                    top3_mean=top[3][0],
                    top5_mean=top[5][0],
                    class_mean=float(recalls.mean()),
                    n_taught=int(mine.sum()),
                    top1_taught=shares[0],
                    top1_untaught=shares[1],
                    class_names=names,
                    confusion=confusion.tolist(),
                    **(figures(sure, calibration.threshold) if calibration else {}),
                    **common,
                )
            )
        return results


def evaluate_all(
    settings: Mapping, absent: dict[str, str], build: Callable, device: torch.device
) -> Iterator[tuple[Source, list[Result], np.ndarray]]:
    """Source, results and predicted classes of every test set of a script's settings.

    For a table of the paper, and where data.skip_missing says so, a test set that cannot be
    evaluated joins ``absent``, {name: reason}; otherwise it is an error. Raises InputError where
    none could be evaluated.
    """
    evaluation: Evaluation = build(settings["eval"])
    system = open_system(settings, build, device)
    table, done = settings["table"], 0
    points = system.points(settings["num_points"])
    optional = bool(table) or settings["data"].get("skip_missing", False)
    tests, missing = open_tests(settings["data"]["tests"], build, points, optional)
    absent |= missing
    if not tests and not absent:
        raise InputError("data has no test split; choose another with data=NAME")
    if not system.model.noising:
        evaluation = replace(evaluation, num_noise=[1], timestep=[0], seeds=[0], ensembles=())
    evaluation.check(system.model, system.text, () if optional else tests)
    for test in tests:
        try:
            read_first([test])
            one = for_dataset(system, settings, build, test.source.name)
            results, predictions = evaluation.run(one, test)
        except InputError as error:
            if not optional:
                raise
            absent[test.source.name] = str(error)
            continue
        done += 1
        yield test.source, results, predictions.predicted
    if not done:
        raise InputError(f"no dataset could be evaluated: {'; '.join(absent.values())}")
