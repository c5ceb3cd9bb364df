import logging

import numpy as np
import pytest
import torch

from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.sources import ArraySource
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.orientation import orientation_warning, probe


class Upright(ZeroShotClassifier):
    """Knows a cloud by the axis along which it is longest: a stick along y is class 0, else 1."""

    def grid(self, clouds, indices, num_noise, timestep, seeds):
        along_y = clouds.abs().mean(1).argmax(-1) == 1
        logits = torch.stack([along_y, ~along_y], -1).float()
        return logits.expand(len(timestep), len(num_noise), len(seeds), -1, -1)


def sticks(up, axis, n=40):
    """Sticks along an axis, all of class 0, in a source that says ``up``."""
    points = np.random.default_rng(0).normal(size=(n, 30, 3)) * 0.1
    points[..., axis] *= 20
    labels, ids = np.zeros(n, int), [str(i) for i in range(n)]
    return ArraySource("sticks", "test", up, ["stick", "plate"], labels, ids, "here", points)


@pytest.mark.parametrize(("said", "true_axis"), [("y", 2), ("z", 1)])
def test_a_wrong_frame_raises_the_warning_and_names_the_right_one(toy, caplog, said, true_axis):
    test = CloudDataset(sticks(said, true_axis), 30)
    classifier = Upright(toy(), torch.eye(2, 12))
    message = orientation_warning(classifier, test, 0.0)
    other = {"y": "z", "z": "y"}[said]
    assert "sticks test" in message
    assert f"up={said}" in message
    assert f"100% with up={other}" in message
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_right_frame_raises_none(toy):
    classifier, test = Upright(toy(), torch.eye(2, 12)), CloudDataset(sticks("z", 2), 30)
    assert probe(classifier, test) == (1.0, 0.0)
    near = orientation_warning(classifier, test, 0.49)  # of two classes
    assert "49.0%" in near
    assert "up=" not in near
    assert orientation_warning(classifier, test, 0.5) is None
