"""Zero-shot classification: clouds -> logits, all that metrics and attacks see."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from dual_denoising import keyed_random as noise
from dual_denoising.baselines.base import Baseline
from dual_denoising.clip.features import StandInBank, TextBank
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.errors import InputError
from dual_denoising.graphs import Captured
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.model.numpy_io import Array, check_batch, on_arrays
from dual_denoising.training.checkpoint import load_training

log = logging.getLogger(__name__)


class ZeroShotClassifier(nn.Module):
    """Cosine similarity of the averaged features to the class weights, times the model's scale.

    model: DualDenoising, or a Baseline in its place. class_weights: (C, E) unit vectors, the same
    for every feature type, or (F, C, E). Feature types are normalised one by one and added with
    ``type_weights``, 1:1 if not given. captured: batches of the same shape are one CUDA graph each
    where no gradient is asked for.
    """

    def __init__(
        self,
        model: DualDenoising | Baseline,
        class_weights: Float[Array, "*f c e"],
        num_noise: int = 8,
        timestep: int = 500,
        seed: int = 0,
        type_weights: Sequence[float] | None = None,
        captured: bool = False,
    ):
        super().__init__()
        self.model, self.num_noise, self.timestep, self.seed = model, num_noise, timestep, seed
        types = len(model.feature_types)
        type_weights = [1.0] * types if type_weights is None else list(type_weights)
        if len(type_weights) != types:
            raise InputError(
                f"type_weights is {list(type_weights)}: the model has {types} feature types, "
                f"{', '.join(model.feature_types)}; give one weight for each"
            )
        if min(type_weights) < 0 or not sum(type_weights) > 0:
            raise InputError(f"type_weights is {list(type_weights)}: give weights from 0, one > 0")
        if not 0 <= timestep < model.noise_steps:
            raise InputError(
                f"timestep is {timestep}: choose one from 0 to {model.noise_steps - 1}"
            )
        if num_noise < 1:
            raise InputError(f"num_noise is {num_noise}: choose at least 1 noise path")
        class_weights = torch.as_tensor(class_weights, dtype=torch.float32)
        if class_weights.shape[-1] != model.feature_width:
            raise InputError(
                f"class weights are {class_weights.shape[-1]} wide, the model's features "
                f"{model.feature_width}; take them from the teacher it learned from"
            )
        self._graph = Captured(self._paths) if captured else None
        self.register_buffer("class_weights", class_weights.expand(types, -1, -1))
        self.register_buffer("type_weights", torch.tensor(type_weights) / sum(type_weights))

    def forward(
        self, clouds: Float[Array, "b n 3"], indices: Int[Array, " b"] | None = None
    ) -> Float[Array, "b c"]:
        """Logits (B, C) of clouds (B, N, 3); ``indices`` (B,) key the noise, 0..B−1 if None.

        NumPy in gives NumPy out, without gradients.
        """
        if isinstance(clouds, np.ndarray):
            return on_arrays(self.forward, self.class_weights, clouds, indices=indices)
        check_batch(clouds)
        if indices is None:
            indices = torch.arange(len(clouds), device=clouds.device)
        return self.draws(clouds, indices, [self.seed])[0]

    def draws(
        self,
        clouds: Float[Tensor, "b n 3"],
        indices: Int[Tensor, " b"],
        seeds: Sequence[int] | Int[Tensor, " m"],
    ) -> Float[Tensor, "m b c"]:
        """Logits of M noise seeds in one graph: (M, B, C); what attacks on this defence ask for."""
        return self.logits(self.features(clouds, indices, seeds))

    def features(
        self,
        clouds: Float[Tensor, "b n 3"],
        indices: Int[Tensor, " b"],
        seeds: Sequence[int] | Int[Tensor, " m"],
        grouping: Sequence[Tensor] = (),
    ) -> Float[Tensor, "m b f e"]:
        """Averaged, raw features of M noise seeds in one graph: (M, B, F, E).

        grouping: indices of centres and of neighbours, to keep instead of searching them.
        """
        seeds = noise.on_device(seeds, clouds.device)
        keys = noise.path_keys(seeds, indices[:, None], self.num_noise)  # (B, M, S)
        if self._graph and not torch.is_grad_enabled():
            return self._graph(clouds, keys, *grouping)[0]
        return self._paths(clouds, keys, *grouping)[0]

    def _paths(self, clouds: Tensor, keys: Int[Tensor, "b m s"], *grouping: Tensor):
        """Averages over S paths of the features of given keys, alone in a tuple: (M, B, F, E)."""
        paths = self.model.encode_keys(clouds, keys.flatten(1), self.timestep, *grouping)
        return (paths.unflatten(1, keys.shape[1:]).mean(2).transpose(0, 1),)

    def frozen(self, clouds: Float[Tensor, "b n 3"], indices: Int[Tensor, " b"]) -> FrozenGrouping:
        """The same defence with the tokens of these clouds kept, whatever becomes of the points."""
        return FrozenGrouping(self, clouds, indices)

    def logits(self, features: Float[Tensor, "*b f e"]) -> Float[Tensor, "*b c"]:
        """Logits of averaged, raw features."""
        cosine = torch.einsum("...fe,fce->...fc", normalize(features, dim=-1), self.class_weights)
        return self.model.logit_scale * torch.einsum("...fc,f->...c", cosine, self.type_weights)

    def grid(
        self,
        clouds: Float[Tensor, "b n 3"],
        indices: Int[Tensor, " b"],
        num_noise: Sequence[int],
        timestep: Sequence[int],
        seeds: Sequence[int],
    ) -> Float[Tensor, "t s r b c"]:
        """Logits of T timesteps × S numbers of paths × R seeds: (T, S, R, B, C).

        The same as a classifier of each setting gives, at the cost of the largest S: fewer paths
        are the first of the most, farthest points are found once, and where there is no noise on
        the points the encoder runs once for all paths and seeds.
        """
        keys = noise.path_keys(
            noise.on_device(seeds, clouds.device), indices[:, None], max(num_noise)
        )  # (B, R, S)
        grouping = self.model.grouping(clouds)
        logits = []
        for step in timestep:
            features = self.model.encode_keys(clouds, keys.flatten(1), step, *grouping)
            features = features.unflatten(1, keys.shape[1:])  # (B, R, S, F, E)
            means = [features[:, :, :paths].mean(2).transpose(0, 1) for paths in num_noise]
            logits.append(self.logits(torch.stack(means)))
        return torch.stack(logits)


class FrozenGrouping(nn.Module):
    """A classifier whose farthest points and neighbours are those of given clouds, by index."""

    def __init__(self, classifier: ZeroShotClassifier, clouds: Tensor, indices: Tensor):
        super().__init__()
        self.classifier = classifier
        self.grouping = classifier.model.grouping(clouds, neighbours=True)
        self.indices, self.order = indices.sort()

    def draws(self, clouds: Tensor, indices: Tensor, seeds: Sequence[int]) -> Tensor:
        """Logits (M, B, C) of clouds among those that were given, moved or not."""
        return self.classifier.logits(self.features(clouds, indices, seeds))

    def features(self, clouds: Tensor, indices: Tensor, seeds: Sequence[int]) -> Tensor:
        rows = self.order[torch.searchsorted(self.indices, indices)]
        grouping = [part[rows] for part in self.grouping]
        return self.classifier.features(clouds, indices, seeds, grouping)


def training_record(clouds: CloudDataset, text: TextBank | StandInBank) -> dict:
    """What is kept beside a model so that an evaluation can tell what it has seen."""
    return {
        "dataset": clouds.source.name,
        "split": clouds.source.split,
        "class_names": list(clouds.source.class_names),
        "num_points": clouds.num_points,
        "teacher": text.teacher,
    }


def load(folder: str, text: TextBank | StandInBank) -> tuple[DualDenoising, dict]:
    """A saved model and what it was trained on; raises InputError if on another teacher's text."""
    training = load_training(Path(folder))
    check_teacher(training, text, folder)
    return DualDenoising.from_pretrained(folder), training


def check_teacher(training: dict, text: TextBank | StandInBank, checkpoint: str) -> None:
    """Raises InputError where the model's and the text features are of different teachers."""
    if training["teacher"] != text.teacher:
        raise InputError(
            f"{checkpoint}: learned from {training['teacher']}, but the text features are of "
            f"{text.teacher}; choose the teacher it learned from (teacher=...)"
        )


def num_points(training: dict, asked: int | None) -> int:
    """Points per cloud: those of the training unless others are asked for, with a warning."""
    if asked in (None, training["num_points"]) or "note" in training:
        return asked or training["num_points"]
    log.warning("%d points, but trained on %d", asked, training["num_points"])
    return asked


def seen(training: dict, source) -> tuple[bool, str]:
    """Whether all class names occurred in training, and in words what did."""
    if "note" in training:  # a model of others, whose training is not on record
        return False, training["note"]
    names = {name.replace("_", " ") for name in training["class_names"]}
    known = [name.replace("_", " ") in names for name in source.class_names]
    if not any(known):
        return False, "no name seen in training"
    words = "all names" if all(known) else f"{sum(known)} of {len(known)} names"
    here = "same data set" if training["dataset"] == source.name else "data set not"
    return all(known), f"{words} seen in training, {here}"
