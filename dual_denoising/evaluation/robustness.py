"""Robust accuracy of a system: every attack of a plan, run, scored and summed up."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dual_denoising.attacks import Attack
from dual_denoising.attacks import run as streaming
from dual_denoising.attacks import score as scoring
from dual_denoising.attacks.plan import Job, build_attack, check_pairs, plan
from dual_denoising.data.datasets import CloudDataset, Sample
from dual_denoising.data.storage import RowFile, atomic, write_text
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.metrics import mean_sd, wilson_interval
from dual_denoising.evaluation.result import Result
from dual_denoising.evaluation.systems import System
from dual_denoising.training.record import portable

log = logging.getLogger(__name__)

ORIGIN = ("checkpoint", "baseline", "data", "teacher", "noise_scale", "num_points")


class Attacker(NamedTuple):
    """A job, the classifier that scores it, its attack (maybe made on another (S, t)), its file."""

    job: Job
    classifier: ZeroShotClassifier
    attack: Attack
    file: RowFile


class Robustness:
    """Attacks on a sample of a test set. All settings and files are checked before the first.

    config: of scripts/attack.py. Of it are read attack, subset (number of clouds, with the classes'
    shares; None takes all), subset_seed, attack_seed (of starts and of the noise that attacks
    see), score_seeds and score_seed (how many fresh noise seeds scores are means over, and the
    first); what opens the same system and test set goes into every file of clouds. ``build`` makes
    attacks of their configuration.
    """

    def __init__(
        self, system: System, test: CloudDataset, config: Mapping, folder: Path, build: Callable
    ):
        self.system, self.test, self.folder, source = system, test, folder, test.source
        self.seeds = streaming.check_seeds(config["score_seeds"], config["score_seed"], "score_")
        self.origin = portable({key: config[key] for key in ORIGIN}, config["data_root"])
        model = system.model.requires_grad_(False)
        self.sample = test.sample(config["subset"], config["subset_seed"])
        count = len(self.sample.clouds)
        print(f"{count} of {len(test)} clouds, sample seed {config['subset_seed']}")
        common = system.identity(source.class_names) | {"seed": config["attack_seed"]}
        common["of"] = self.sample.fingerprint()
        self.attackers = []
        classifiers: dict[tuple[int, int], ZeroShotClassifier] = {}
        for job in plan(config["attack"], model.keeps_tokens, model.noising is not None):
            for at in (job.setting, job.made_on):
                if at not in classifiers:
                    classifiers[at] = system.classifier(source.class_names, *at)
            attack = build_attack(job, classifiers[job.made_on], config["attack_seed"], build)
            file = RowFile(folder / "adversarial" / job.file, job.identity | common)
            self.attackers.append(Attacker(job, classifiers[job.setting], attack, file))

    def plan(self) -> list[dict]:
        """What will run: a row per attack, with the minutes it takes at most on this device.

        One gradient of each (S, t) is timed, on up to eight clouds.
        """
        rows, seconds = [], {}
        for job, _, attack, file in self.attackers:
            if job.made_on not in seconds:
                seconds[job.made_on] = self._seconds(attack)
            left = len(self.sample.clouds) - file.done
            minutes = left * attack.passes * seconds[job.made_on] / 60
            rows.append({"attack": job.title, "clouds": left, "minutes": minutes})
        return rows

    def _seconds(self, attack: Attack) -> float:
        """Of one gradient of a cloud's logits, in the attack's own model."""
        clouds, model = self.sample.clouds[:8].to(self.system.device), attack.model.eval()
        taken = []
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            points = clouds.clone().requires_grad_()
            torch.autograd.grad(model(points).sum(), points)[0].sum().item()
            taken.append(time.perf_counter() - started)
        return taken[-1] / len(clouds)

    def run(self, batch_size: int | None) -> Iterator[tuple[Attacker, list[Result]]]:
        """Every attack and its results: of the recorded steps, and of the last clouds.

        Files of an earlier run are resumed. Writes adversarial/*.h5 and per_cloud/*.csv.
        """
        for attacker in self.attackers:
            job, _, attack, file = attacker
            streaming.run(attack, self.sample, file, batch_size, job.record, job.title)
            scoring.write_made_by(file.path, self._made_by(attacker))
            yield attacker, self._score(attacker)

    def _made_by(self, attacker: Attacker) -> dict:
        job, source = attacker.job, self.test.source
        own = {"eps": job.eps, "norm": attacker.attack.norm, "settings": [list(job.setting)]}
        return self.origin | own | {"test_set": f"{source.name} {source.split}"}

    def _score(self, attacker: Attacker) -> list[Result]:
        job, classifier, attack, file = attacker
        content = scoring.load(file.path)
        scoring.check_ball(file.path, content, job.eps, attack.norm)
        stages = [(step, content["recorded"][i]) for i, step in enumerate(job.record)]
        stages = [stage for stage in stages if stage[0] != attack.stages]
        blind = attack.kind == "noise"  # it neither aims nor has a loss
        counts: dict[str, Any] = {flag: int(content[flag].sum()) for flag in streaming.FLAGS}
        results = []
        for step, adversarial in [*stages, (None, content["adversarial"])]:
            fields, table = self.score(classifier, adversarial)
            share = step / attack.stages if step else 1.0
            results.append(
                Result(
                    **fields,
                    track=job.track,
                    attack=job.name,
                    kind="transfer" if job.made_on != job.setting else attack.kind,
                    target="" if blind else attack.target,
                    loss="" if blind else attack.loss_words or attack.loss,
                    norm=attack.norm,
                    faithful=is_faithful(attack, job),
                    eps=job.eps,
                    steps=step or attack.steps or None,
                    last=step is None,
                    eot=attack.draws,
                    num_noise=job.setting[0],
                    timestep=job.setting[1],
                    seconds_per_cloud=float(content["seconds"].mean()) * share,
                    **counts,
                )
            )
        _write_per_cloud(self.folder, job.stem, {"failed": content["failed"].numpy(), **table})
        return results

    def score(self, classifier: ZeroShotClassifier, adversarial: Tensor) -> tuple[dict, dict]:
        """Fields of a Result, and the same per cloud."""
        found = scoring.score(classifier, self.sample, adversarial, self.seeds)
        fields = self.system.fields(self.test.source) | score_fields(found, self.seeds)
        sample = {"index": self.sample.indices.numpy(), "label": self.sample.labels.numpy()}
        right = {kind: found[kind].mean(0) for kind in ("clean", "robust")}
        return fields, sample | found | right

    def worst_cases(self, done: Sequence[tuple[Attacker, Result]]) -> list[Result]:
        """Of every cloud the most harmful of the adaptive attacks in one ball at one (S, t).

        It is chosen on other noise seeds than those it is then scored with.
        """
        rivals = defaultdict(list)
        for attacker, result in done:
            if result.track == "adaptive" and attacker.attack.norm == "linf":
                rivals[attacker.job.setting, attacker.job.eps].append((attacker, result))
        return [self._worst(group) for group in rivals.values() if len(group) > 1]

    def _worst(self, done: Sequence[tuple[Attacker, Result]]) -> Result:
        attackers, results = zip(*done, strict=True)
        classifier = attackers[0].classifier
        choosing = range(streaming.CHOOSING, streaming.CHOOSING + len(self.seeds))
        found = [scoring.load(a.file.path)["adversarial"] for a in attackers]
        chosen = scoring.right(classifier, self.sample, found, choosing).mean(1).argmin(0)
        adversarial = torch.stack(found)[torch.as_tensor(chosen), torch.arange(len(chosen))]
        fields, table = self.score(classifier, adversarial)
        title = f"worst of {len(done)}"
        stem = replace(attackers[0].job, name=title).stem
        path = self.folder / "adversarial" / f"{stem}.h5"
        arrays = zip(("clean", "label", "index"), self.sample, strict=True)
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            for key, values in (*arrays, ("adversarial", adversarial)):
                file[key] = values.numpy()
        scoring.write_made_by(path, self._made_by(attackers[0]))
        names = np.array([attacker.job.name for attacker in attackers])
        _write_per_cloud(self.folder, stem, {"attack": names[chosen], **table})
        return replace(
            results[0],
            attack=title,
            kind="worst",
            target="",
            loss="",
            faithful=False,
            steps=None,
            eot=None,
            seconds_per_cloud=sum(result.seconds_per_cloud for result in results),
            **{flag: max(getattr(r, flag) for r in results) for flag in streaming.FLAGS},
            **fields,
        )


def score_file(system: System, test: CloudDataset, config: Mapping) -> list[Result]:
    """Scores anyone's clouds at every (S, t). config: of scripts/score.py.

    Raises InputError for clouds outside the ball, and where labels are not the dataset's.
    """
    seeds = streaming.check_seeds(config["seeds"], config["seed"])
    settings = check_pairs(config["settings"]) if system.model.noising else [(1, 0)]
    file, source = Path(config["adversarial"]), test.source
    eps, norm = config["eps"], config["norm"]
    content = scoring.load(file)
    scoring.check_ball(file, content, eps, norm)
    compare_with_test_set(file, content, test)
    sample = Sample(content["clean"], content["label"], content["index"])
    results = []
    for paths, t in settings:
        classifier = system.classifier(source.class_names, paths, t)
        found = scoring.score(classifier, sample, content["adversarial"], seeds)
        results.append(
            Result(
                num_noise=paths,
                timestep=t,
                seconds_per_cloud=0.0,
                attack=file.name,
                norm=norm,
                eps=eps,
                **system.fields(source),
                **score_fields(found, seeds),
            )
        )
    return results


def compare_with_test_set(path: Path, content: Mapping[str, Tensor], test: CloudDataset) -> None:
    """Warns where some of the file's clean clouds or labels are not the dataset's.

    Raises InputError where no label is, and where one is none of the dataset's classes.
    """
    classes, low, high = len(test.source.class_names), *content["label"].aminmax()
    if low < 0 or high >= classes:
        words = f"there are {classes} classes; choose the dataset of the labels (data=...)"
        raise InputError(f"{path}: labels are {low} to {high}, but {words}")
    n, others = len(content["label"]), {"labels": 0, "clean clouds": 0}
    indices, labels = (content[key].tolist() for key in ("index", "label"))
    for index, label, cloud in zip(indices, labels, content["clean"], strict=True):
        known = 0 <= index < len(test)
        own = test[index]["points"] if known else cloud[:0]
        same = own.shape == cloud.shape and torch.allclose(own, cloud, atol=1e-4)
        others["labels"] += not known or test.source.labels[index] != label
        others["clean clouds"] += not same
    theirs = f"those of {test.source.name} {test.source.split} at 'index'"
    if others["labels"] == n:
        raise InputError(
            f"{path}: its labels are not {theirs}; choose the dataset it was made of (data=)"
        )
    for what, count in others.items():
        if count:
            log.warning(
                "%s: %d of %d %s are not %s; the file's own are taken", path, count, n, what, theirs
            )


def score_fields(found: Mapping[str, np.ndarray], seeds: Sequence[int]) -> dict:
    """Means, spread and interval of a score over these noise seeds, as a Result has them."""
    count = found["robust"].shape[1]
    robust, sd = mean_sd(found["robust"].mean(1).tolist())
    return {
        "n": count,
        "seeds": list(seeds),
        "clean_mean": float(found["clean"].mean()),
        "robust_mean": robust,
        "robust_sd": sd,
        "robust_interval": list(wilson_interval(robust, count)),
        "linf_max": float(found["linf"].max()),
    } | {f"{kind}_mean": float(found[kind].mean()) for kind in ("l2", "chamfer", "hausdorff")}


def is_faithful(attack: Attack, job: Job) -> bool:
    """Whether an attack is the paper's in all that ε, steps, (S, t) and dataset do not say."""
    like = {"target": "second_best", "draws": 1, "noise": "resampled", "grouping": "redone"}
    if attack.norm == "none":
        like |= {"loss": "clamped_margin", "kappa": 0, "searches": 10, "lr": 0.01, "weight": 10}
        like |= {"bounds": (0.0, 80.0), "judges": 0}
    else:
        like |= {"norm": "linf", "loss": "ce", "restarts": 1, "momentum": 0}
        like["alpha"] = (job.eps or 0.0) / 10
    same = all(getattr(attack, key, None) == value for key, value in like.items())
    return same and job.track == "paper" and job.made_on == job.setting


def _write_per_cloud(folder: Path, stem: str, table: Mapping) -> None:
    text = pd.DataFrame(table).to_csv(index=False)
    write_text(folder / "per_cloud" / f"{stem}.csv", text)
