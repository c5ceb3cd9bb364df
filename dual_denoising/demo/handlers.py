"""What the page's widgets call. Errors in the user's input become a sentence on the page."""

import html
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from dual_denoising.demo import answers
from dual_denoising.demo.reader import Reader
from dual_denoising.errors import InputError
from dual_denoising.evaluation.files import prepare_points, read_labels
from dual_denoising.evaluation.systems import System
from dual_denoising.reports.pictures import for_canvas

START = "Choose a sample or a file."
MOST_NAMES = 500
CLEARED = 7  # widgets that show something of the last cloud


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
        """A cloud in place of the last one, whose answers and attacks are cleared."""
        cloud = view = None
        try:
            if path is not None:
                points = self.read(Path(path), self.system.num_points)
                cloud = prepare_points(points, self.system.num_points, up, seed=0)
                view = for_canvas(cloud)
        except InputError as error:
            gr.Warning(_words_of(error), title="Not possible")
        return [cloud, view, view, START, *[None] * CLEARED]

    @_errors_on_page
    def name(self, cloud: np.ndarray | None, words: str, paths: int, t: int):
        """The answer, and the table of names."""
        names = self._names(words)
        if cloud is None:
            return START, None
        best, rows = answers.answer(self.system, cloud, names, paths, t)
        return f"## {best}", rows

    def denoise(self, cloud: np.ndarray | None, t: int):
        """The noised cloud and the rebuilt one."""
        if cloud is None:
            return None, None
        rebuilt = self.model.rebuild(torch.from_numpy(cloud)[None], t)
        return tuple(for_canvas(points[0].numpy()) for points in rebuilt)

    @_errors_on_page
    def attack(self, cloud, words, paths, t, kind, eps, steps, progress=gr.Progress()):  # noqa: B008
        """The adversarial cloud, the answers before and after, and how far the points moved."""
        if cloud is None:
            raise InputError("there is no shape yet: choose a sample or a file")

        def tell(step: int, _) -> None:
            progress((step, steps), desc=kind)

        found, before, after = answers.attack(
            self.system, cloud, self._names(words), (paths, t), kind, eps, steps, tell
        )
        moved = np.linalg.norm(found - cloud, axis=1)
        shades = moved / max(float(moved.max()), 1e-9)
        words = f"The points moved by at most {moved.max():.3f} (the unit sphere has radius 1)."
        return for_canvas(found, shades), before, after, words

    def _names(self, words: str) -> list[str]:
        names = read_labels(words.replace("\n", ",") + ",", self.text, ())
        if len(names) > MOST_NAMES or len(words) > 50 * MOST_NAMES:
            raise InputError(f"names are {len(names)}: give at most {MOST_NAMES} short ones")
        self.text.class_weights(names)  # raises for names without a feature
        return names
