"""The paper's figures of clouds: masked and noised (Fig. 1 and 3), over s and over t, rebuilt."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.evaluation.files import prepare
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.model.noising import Noising
from dual_denoising.model.tokens import Grouping, choose_centers, group

MESH = Path(__file__).parents[2] / "data/base_meshes/samples/small_plastic_chair.glb"
SCALES = 0.02, 0.04, 0.06, 0.08, 0.10, 0.12
TIMESTEPS = 0, 200, 400, 600, 800, 999


@dataclass
class Figure:
    """Clouds (N, 3) in rows, each with its words below it."""

    name: str
    title: str
    rows: list[list[tuple[str, np.ndarray]]]


def figures(model: DualDenoising) -> list[Figure]:
    """model: whose decoder rebuilds the noised clouds."""
    cloud = torch.as_tensor(prepare(MESH, num_points=1024, up="y", seed=0))[None]
    raw = ("raw, 1024 points", cloud[0].numpy())
    three = [
        raw,
        ("masked 80%, 128 tokens of 16 points", _masked(cloud, 128, 16, 0.8)),
        ("noised, s = 0.08, t = 600", _noised(cloud, 0.08, 600)),
    ]
    over_s = [(f"s = {s:g}", _noised(cloud, s, 999)) for s in SCALES]
    noised, rebuilt = [], []
    for t in TIMESTEPS:
        pair = [points[0].numpy() for points in model.rebuild(cloud, t)]
        noised.append((f"t = {t}", pair[0]))
        rebuilt.append((f"rebuilt from t = {t}", pair[1]))
    return [
        Figure("fig3", "Fig. 1 and 3: raw, masked and noised", [three]),
        Figure("scales", "Noise of scale s at t = 999", [over_s]),
        Figure("timesteps", "Noise at timestep t, and what PointDAE rebuilds", [noised, rebuilt]),
    ]


def _noised(cloud: Tensor, scale: float, timestep: int) -> np.ndarray:
    noising = Noising(scale, 1000, 100)
    keys = keyed_random.path_keys(0, torch.tensor([0]), 1)[:, 0]
    return noising.add_noise(cloud, torch.full_like(keys, timestep), keys)[0].numpy()


def _masked(cloud: Tensor, tokens: int, size: int, ratio: float) -> np.ndarray:
    """The points of the tokens that masking leaves."""
    indices = choose_centers(cloud, tokens)
    drawn = keyed_random.uniform(keyed_random.key(torch.tensor([0])), tokens).argsort(1)
    kept = indices.gather(1, drawn)[:, : round((1 - ratio) * tokens)]
    left = group(cloud, Grouping(kept), size)
    return (left.points + left.centers[:, :, None]).flatten(0, 2).numpy()
