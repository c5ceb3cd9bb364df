"""Randomised smoothing: L2 radii in which moved points cannot change a vote (Cohen et al. 2019).

The smoothed classifier answers with the class that is most probable over Gaussian noise of standard
deviation σ on the points. Where its probability is p > 1/2, moving the points by an L2 norm below
σ·Φ⁻¹(p) over all coordinates does not change it. It holds for a base classifier that sees the
noised cloud and nothing else of the clean one; ε₂ is drawn beside it and counts as its own
randomness.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from dual_denoising import keyed_random
from dual_denoising.attacks import run as streaming
from dual_denoising.attacks.score import load
from dual_denoising.data.datasets import CloudDataset, Sample
from dual_denoising.data.sources import stratified
from dual_denoising.data.storage import RowFile
from dual_denoising.errors import InputError, check, check_number
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.systems import System
from dual_denoising.keyed_random import PER_SEED, FirstSeed

AT_ONCE = {"cpu": 32, "cuda": 1024}  # draws in a batch
ABSTAINS = -1


class SmoothedClassifier(nn.Module):
    """A classifier of single noise draws at timestep t. The noised cloud chooses its tokens, too.

    classifier: whose model and timestep these are. sigma: standard deviation of the noise on the
    points, in units of the unit sphere. Raises InputError where there is none.
    """

    def __init__(self, classifier: ZeroShotClassifier):
        super().__init__()
        noising, timestep = classifier.model.noising, classifier.timestep
        assert noising is not None  # Certification has raised
        self.classifier, self.noising, self.timestep = classifier, noising, timestep
        self.classes = classifier.class_weights.shape[1]
        self.sigma = self.noising.sigma(torch.tensor([timestep])).item()
        mend = "nothing is certified without noise; choose a larger timestep=, or noise_scale="
        check("timestep", timestep, self.sigma > 0, mend)

    def draws(
        self, clouds: Float[Tensor, "b n 3"], indices: Int[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "r b c"]:
        """Logits of one draw for each of R noise seeds."""
        keys = keyed_random.path_keys(seeds, indices, 1).flatten(0, 1)  # (B·R, 1)
        t = torch.full_like(keys[:, 0], self.timestep)
        noisy = self.noising.add_noise(clouds.repeat_interleave(len(seeds), 0), t, keys[:, 0])
        size = AT_ONCE[clouds.device.type]
        parts = zip(noisy.split(size), keys.split(size), strict=True)
        encode = self.classifier.model.encode_noisy
        features = torch.cat([encode(part, own, self.timestep)[:, 0] for part, own in parts])
        logits = self.classifier.logits(features)
        return logits.unflatten(0, (len(clouds), len(seeds))).transpose(0, 1)

    @torch.inference_mode()
    def votes(
        self,
        cloud: Float[Tensor, "n 3"],
        index: int,
        seeds: Sequence[int],
        clean_tokens: bool = False,
    ) -> Int[np.ndarray, " c"]:
        """How many draws answer with each class. Raises InputError for logits that are not finite.

        clean_tokens: take farthest points from the clean cloud, as inference otherwise does; that
        vote has no certificate.
        """
        model = self.classifier.draws if clean_tokens else self.draws
        here, place = cloud[None], torch.tensor([index], device=cloud.device)
        size = AT_ONCE[cloud.device.type]
        parts = [seeds[i : i + size] for i in range(0, len(seeds), size)]
        logits = torch.cat([model(here, place, part)[:, 0] for part in parts])
        if not logits.isfinite().all():
            raise InputError(f"cloud {index}: logits are not finite, so nothing is certified")
        return np.bincount(logits.argmax(-1).cpu().numpy(), minlength=self.classes)


def certify(
    choosing: Int[np.ndarray, "n c"], counted: Int[np.ndarray, "n c"], sigma: float, alpha: float
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Answers (n,), or ABSTAINS, and certified L2 radii (n,): CERTIFY of Cohen et al.

    The class is that of most ``choosing`` votes. Its probability is bounded from below, at
    confidence 1 − alpha (Clopper and Pearson), by other votes, those ``counted``.
    """
    answers = choosing.argmax(1)
    won, n = counted[np.arange(len(counted)), answers], counted.sum(1)
    lower = np.nan_to_num(stats.beta.ppf(alpha, won, n - won + 1))  # NaN where no vote counts it
    radii = sigma * stats.norm.ppf(np.maximum(lower, 0.5))
    return np.where(lower > 0.5, answers, ABSTAINS), radii


def predict(counted: Int[np.ndarray, "n c"], alpha: float) -> Int[np.ndarray, " n"]:
    """Answers (n,) of the vote, or ABSTAINS: PREDICT of Cohen et al.

    It abstains unless the first class beats the second at significance alpha.
    """
    first, second = np.sort(counted, 1)[:, :-3:-1].T
    p_value = 2 * stats.binom.sf(first - 1, first + second, 0.5)  # two-sided
    return np.where(p_value <= alpha, counted.argmax(1), ABSTAINS)


@dataclass
class Certified:
    """What was certified at one timestep; arrays have a value per cloud.

    right: the vote certifies the label. vote_noised, vote_clean: accuracy of the ``choosing`` votes
    with tokens of the noised, and of the clean clouds. moved: the L2 norm of C&W's
    perturbation of each cloud: inf where the certified vote did not change, NaN where C&W was not
    tried or the vote was wrong before.
    """

    label: str
    model: str
    note: str
    dataset: str
    timestep: int
    sigma: float
    choosing: int
    draws: int
    alpha: float
    indices: np.ndarray
    labels: np.ndarray
    answers: np.ndarray
    radii: np.ndarray
    moved: np.ndarray
    vote_noised: float
    vote_clean: float

    @property
    def right(self) -> np.ndarray:
        return self.answers == self.labels

    @property
    def largest(self) -> float:
        """The radius of a cloud on which all votes agree: no more can be certified."""
        return float(self.sigma * stats.norm.ppf(self.alpha ** (1 / self.draws)))

    def accuracy(self, radius: float) -> float:
        """Share of the clouds that are certified as their label at this L2 radius."""
        return float((self.right & (self.radii >= radius)).mean())

    def record(self) -> dict[str, Any]:
        """All of it, for summary.json; ``moved`` is null where C&W changed or tried nothing."""
        fields = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return fields | {"moved": [d if np.isfinite(d) else None for d in self.moved]}


def check_config(config: Mapping) -> None:
    """Raises InputError for settings of scripts/certify.py that certify nothing."""
    limit = PER_SEED // 4 - 1  # so that the votes of one seed are apart from those of the next
    for name, low, most in (("seed", 0, 2**16 - 1), ("choosing", 1, limit), ("draws", 1, limit)):
        check_number(name, config[name], low, most=most)
    check_number("attacked", config["attacked"])
    alpha, draws = check_number("alpha", config["alpha"], whole=False, above=True), config["draws"]
    for name in ("timestep", "radii"):
        values = config[name]
        good = isinstance(values, list) and 0 < len(values) == len(set(map(str, values)))
        fix = f"give a list of different numbers, as [{500 if name == 'timestep' else 0.1}]"
        check(name, values, good, fix)
        for value in config[name]:
            check_number(name, value, whole=name == "timestep")
    check("alpha", alpha, alpha < 0.5, "choose one below 0.5")
    check("draws", draws, alpha ** (1 / draws) > 0.5, f"so few certify nothing at alpha {alpha:g}")


class Certification:
    """Certificates of a sample of a test set, at several timesteps, streamed to disk and resumed.

    config: of scripts/certify.py. ``build`` makes the attack of its configuration. All settings and
    files are checked before the first vote.
    """

    def __init__(
        self, system: System, test: CloudDataset, config: Mapping, folder: Path, build: Callable
    ):
        check_config(config)
        self.system, self.test, self.config, source = system, test, config, test.source
        self.sample = test.sample(config["subset"], config["subset_seed"])
        self.labels, self.moved_rows = self.sample.labels.numpy(), np.empty(0, int)
        if config["attacked"]:
            self.moved_rows = stratified(self.labels, config["attacked"], config["subset_seed"])
        self.to_move = Sample(*(values[self.moved_rows] for values in self.sample))
        if len(source.class_names) < 2:
            raise InputError(f"{source.name} has one class: there is nothing to vote on")
        noising, mend = system.model.noising, "this system has no noise; give it noise_scale=0.08"
        check("noise_scale", None, noising is not None, mend)
        system.model.requires_grad_(False)
        own = ("choosing", "draws", "seed", "attack", "attacked", "subset_seed")
        common = system.identity(source.class_names) | {key: config[key] for key in own}
        common["clouds"] = self.sample.fingerprint()
        self.jobs = []
        for t in config["timestep"]:
            smoothed = SmoothedClassifier(system.classifier(source.class_names, 1, t))
            attack = build(config["attack"], model=smoothed.eval())
            redone = "certificates are of tokens that are searched anew; leave it out"
            check("attack.grouping", attack.grouping, attack.grouping == "redone", redone)
            settings = common | {"timestep": t, "sigma": smoothed.sigma}
            votes = RowFile(folder / f"votes_t{t}.h5", settings)
            settings = settings | {"of": self.to_move.fingerprint()}
            clouds = RowFile(folder / "adversarial" / f"CW_t{t}.h5", settings)
            self.jobs.append((smoothed, attack, clouds, votes))

    def __iter__(self) -> Iterator[Certified]:
        """What was certified, one timestep after the other."""
        config, system, source, labels = self.config, self.system, self.test.source, self.labels
        alpha = config["alpha"]
        for smoothed, attack, clouds, votes in self.jobs:
            adversarial: dict[int, Tensor] = {}
            if len(self.moved_rows):
                title = f"C&W at t = {smoothed.timestep}"
                streaming.run(attack, self.to_move, clouds, title=title)
                moved_clouds = load(clouds.path)["adversarial"]
                adversarial = dict(zip(self.moved_rows.tolist(), moved_clouds, strict=True))
            found = self._votes(smoothed, votes, adversarial)
            answers, radii = certify(found["choosing"], found["counted"], smoothed.sigma, alpha)
            tried = ~np.isnan(found["moved"]) & (answers == labels)
            after = predict(found["attacked"][tried], alpha)
            unchanged = (after == ABSTAINS) | (after == answers[tried])
            moved = np.where(tried, found["moved"], np.nan)
            moved[tried] = np.where(unchanged, np.inf, moved[tried])
            yield Certified(
                label=system.label,
                model=system.origin,
                note=system.seen(source)[1],
                dataset=f"{source.name} {source.split}",
                timestep=smoothed.timestep,
                sigma=smoothed.sigma,
                choosing=config["choosing"],
                draws=config["draws"],
                alpha=alpha,
                indices=self.sample.indices.numpy(),
                labels=labels,
                answers=answers,
                radii=radii,
                moved=moved,
                vote_noised=float((found["choosing"].argmax(1) == labels).mean()),
                vote_clean=float((found["clean"].argmax(1) == labels).mean()),
            )

    def _votes(
        self, smoothed: SmoothedClassifier, file: RowFile, adversarial: Mapping[int, Tensor]
    ) -> dict[str, np.ndarray]:
        """Votes (n, C) on every cloud, and on those that C&W moved, with how far it did (n,)."""
        config, n, device = self.config, len(self.labels), self.system.device
        empty = np.zeros((n, len(self.test.source.class_names)), np.int64)
        names = ("choosing", "counted", "clean", "attacked")
        arrays = {**dict.fromkeys(names, empty), "moved": np.full(n, np.nan)}
        first = FirstSeed.VOTE + config["seed"] * PER_SEED
        choosing = range(first, first + config["choosing"])
        counting = range(choosing.stop, choosing.stop + config["draws"])
        judging = range(counting.stop, counting.stop + config["draws"])
        words = f"votes at t = {smoothed.timestep}"
        with file.opened(n, **arrays):
            for row in tqdm(file.pending, words, unit="cloud"):
                cloud, index = self.sample.clouds[row].to(device), int(self.sample.indices[row])
                values = {
                    "choosing": smoothed.votes(cloud, index, choosing),
                    "counted": smoothed.votes(cloud, index, counting),
                    "clean": smoothed.votes(cloud, index, choosing, clean_tokens=True),
                }
                if row in adversarial:
                    points = adversarial[row].to(device)
                    values["attacked"] = smoothed.votes(points, index, judging)
                    values["moved"] = (points - cloud).norm().cpu().numpy()
                rows = {name: value[None] for name, value in values.items()}
                file.finish(np.array([row]), **rows)
            return {name: file.file[name][()] for name in arrays}
