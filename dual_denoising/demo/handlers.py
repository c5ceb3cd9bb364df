"""What the page's widgets call: names with their spread over noise, and attacks.

Errors in the user's input become a sentence on the page.
"""

import html
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from dual_denoising.attacks import APGD, PGD
from dual_denoising.demo.reader import Reader
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.files import decide, prepare_points, read_labels
from dual_denoising.evaluation.systems import System
from dual_denoising.reports.pictures import for_canvas

START = "Choose a sample or a file."
MOST_NAMES = 500
SEEDS = range(1, 6)  # noise seeds of a spread; 0 gives the answer itself
FRESH = range(100, 110)  # of the scores of an attack, which sees none of them
SHOWN = 8  # names in a table
PROGRESS = gr.Progress()  # gradio knows the argument by this default


def _words_of(error: InputError) -> str:
    return html.escape(str(error).replace("--labels", "names").replace("--open-clip", "CLIP"))


def _errors_on_page(job: Callable) -> Callable:
    """Makes a handler say an error in the user's input on the page."""

    @wraps(job)
    def call(*arguments):
        try:
            return job(*arguments)
        except InputError as error:
            words = _words_of(error)
            raise gr.Error(words, title="Not possible", print_exception=False) from error

    return call


class Handlers:
    """Each takes the values of widgets and returns those of others.

    cloud: the points (N, 3) of the shape that is shown, None before there is one.
    """

    def __init__(self, system: System, read: Reader):
        self.system, self.read = system, read
        self.text: Any = system.text
        self.model: Any = system.model

    def open_file(self, path: str | None, up: str):
        """A cloud in place of the last one: its points, two views of it, START, the rest empty."""
        cloud = view = None
        try:
            if path is not None:
                points = self.read(Path(path), self.system.training.num_points)
                cloud = prepare_points(points, self.system.training.num_points, up, seed=0)
                view = for_canvas(cloud)
        except InputError as error:
            gr.Warning(_words_of(error), title="Not possible")
        return cloud, view, view, START, *[None] * 7

    @_errors_on_page
    def name(self, cloud: np.ndarray | None, words: str, paths: int, t: int):
        """The answer, and of each name its probability, least and most over SEEDS."""
        names = self._names(words)
        if cloud is None:
            return START, None
        logits = _logits(self.system.classifier(names, paths, t), cloud, [0, *SEEDS])
        (shares, best, _), *others = [decide(row, names, self.system.calibration) for row in logits]
        rows = []
        for name, share in list(shares.items())[:SHOWN]:
            spread = [other[name] for other, *_ in others]
            rows.append([name, *(f"{100 * p:.1f}%" for p in (share, min(spread), max(spread)))])
        return f"## {best}", rows

    def denoise(self, cloud: np.ndarray | None, t: int):
        """The noised cloud and the rebuilt one."""
        if cloud is None:
            return None, None
        rebuilt = self.model.rebuild(torch.from_numpy(cloud)[None], t)
        return tuple(for_canvas(points[0].numpy()) for points in rebuilt)

    @_errors_on_page
    def attack(self, cloud, words, paths, t, kind, eps, steps, progress=PROGRESS):
        """The adversarial cloud, the answers before and after, and how far the points moved.

        kind: PGD (the paper's loss and target) or APGD (M = 4 draws, margin), away from the clean
        answer.
        """
        if cloud is None:
            raise InputError("there is no shape yet: choose a sample or a file")
        names = self._names(words)
        classifier = self.system.classifier(names, paths, t)
        before = _logits(classifier, cloud, FRESH)
        label = before.mean(0).argmax()[None]
        if kind == "PGD":
            attacker: PGD = PGD(classifier, eps, steps=steps, target="second_best")
        else:
            attacker = APGD(classifier, eps, steps=steps, loss="margin", draws=4)

        def tell(step: int, _) -> None:
            progress((step, steps), desc=kind)

        found = attacker(torch.from_numpy(cloud)[None], label, record=tell)[0].numpy()
        votes = [self._votes(x, names) for x in (before, _logits(classifier, found, FRESH))]
        moved = np.linalg.norm(found - cloud, axis=1)
        shades = moved / max(float(moved.max()), 1e-9)
        words = f"The points moved by at most {moved.max():.3f} (the unit sphere has radius 1)."
        return for_canvas(found, shades), *votes, words

    def _votes(self, logits: Tensor, names: Sequence[str]) -> dict[str, float]:
        """{answer: share of the rows}, most first."""
        found = (decide(row, names, self.system.calibration)[1] for row in logits)
        return {name: count / len(logits) for name, count in Counter(found).most_common()}

    def _names(self, words: str) -> list[str]:
        names = read_labels(words.replace("\n", ",") + ",", self.text, ())
        if len(names) > MOST_NAMES or len(words) > 50 * MOST_NAMES:
            raise InputError(f"names are {len(names)}: give at most {MOST_NAMES} short ones")
        self.text.class_weights(names)  # raises for names without a feature
        return names


def _logits(classifier: ZeroShotClassifier, cloud: np.ndarray, seeds: Sequence[int]) -> Tensor:
    """(R, C): of one cloud, a row per noise seed."""
    with torch.inference_mode():
        points = torch.from_numpy(cloud)[None]
        return classifier.draws(points, torch.zeros(1, dtype=torch.long), list(seeds))[:, 0]
