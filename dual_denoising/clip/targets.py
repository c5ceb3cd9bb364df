"""Teacher features of a training set, one row per cloud and feature type."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.clip import cache
from dual_denoising.clip.features import Text, class_weights
from dual_denoising.data.feature_file import FeatureFile
from dual_denoising.data.sources import Source
from dual_denoising.errors import InputError, check

log = logging.getLogger(__name__)


class Targets:
    """Teacher features (B, F, E) of clouds, a variant of each drawn per sample.

    feature_types: of 'image' and 'text'. images: the file of image features, needed for 'image'.
    mix: share of a neighbouring name's text features in a cloud's, see ``mixed``.
    """

    def __init__(
        self,
        feature_types: Sequence[str],
        source: Source,
        text: Text,
        images: str | None = None,
        mix: float = 0.0,
    ):
        labels = torch.from_numpy(np.asarray(source.labels, np.int64))
        self.tables = [  # features (n, variants, E), and each cloud's row of them
            (mixed(text.lookup(source.class_names), mix), labels)
            if kind == "text"
            else (_image_features(source, text, images), torch.arange(len(source)))
            for kind in feature_types
        ]

    def to(self, device: torch.device) -> None:
        """Moves all features to ``device``."""
        self.tables = [(table.to(device), rows.to(device)) for table, rows in self.tables]

    def __call__(
        self, indices: Int[Tensor, " b"], keys: Int[Tensor, " b"]
    ) -> Float[Tensor, "b f e"]:
        """Targets of the clouds at ``indices``, variants drawn by ``keys``."""
        draws = keyed_random.uniform(keyed_random.key(keys, keyed_random.TARGETS), len(self.tables))
        features = []
        for draw, (table, rows) in zip(draws.unbind(-1), self.tables, strict=True):
            features.append(table[rows[indices], (draw * table.shape[1]).long()])
        return torch.stack(features, dim=1)

    def statistics(self) -> tuple[Float[Tensor, "f e"], Float[Tensor, "f e"]]:
        """Mean and standard deviation of the targets over the training set."""
        means, stds = [], []
        for table, rows in self.tables:
            count = torch.bincount(rows, minlength=len(table)).float()
            share = (count / count.sum() / table.shape[1])[:, None, None]
            means.append((share * table).sum((0, 1)))
            stds.append((share * (table - means[-1]).square()).sum((0, 1)).sqrt())
        return torch.stack(means), torch.stack(stds)


def prepare(
    settings: Mapping,
    feature_types: Sequence[str],
    source: Source,
    text: Text,
    mix: float,
    build: Callable,
    device: torch.device,
) -> Callable[[], Targets]:
    """Checks the settings of configs/teacher; returns a call that makes the targets.

    Call it after all other checks: with ``make`` it may render and encode every shape.
    """
    images = settings["images"]
    fix = "image features come from a file: name it, or set model.feature_types=[text]"
    check("teacher.images", images, images or "image" not in feature_types, fix)
    wanted = feature_types, source, text, images, mix
    if not settings["make"]:
        ready = Targets(*wanted)
        return lambda: ready
    _, _, fill = cache.prepare(settings["make"], source, build, device)

    def make() -> Targets:
        fill()
        return Targets(*wanted)

    return make


def mixed(features: Float[Tensor, "c p e"], share: float) -> Float[Tensor, "c variants e"]:
    """Text features, each moved by ``share`` of the way to each of the 4 nearest names'."""
    if share == 0 or len(features) == 1:
        return features
    units = class_weights(features)
    near = (units @ units.T).fill_diagonal_(-torch.inf).topk(min(4, len(units) - 1)).indices
    return torch.lerp(features[:, None], features[near], share).flatten(1, 2)


def _image_features(
    source: Source, text: Text, images: str | None
) -> Float[Tensor, "n variants e"]:
    """Image features of every cloud, of the text features' own teacher and of these very shapes."""
    file = FeatureFile(str(images), kind="id")
    other = None not in (file.weights, text.weights) and file.weights != text.weights
    if file.teacher != text.teacher or other:
        raise InputError(
            f"{images}: features of {file.teacher}, but the text features are of {text.teacher} or "
            "of other weights; both must come from one teacher: cache them in one run"
        )
    if file.whole_views:
        log.warning("%s: features of whole views; ReCon's are of random crops", images)
    features = file.take(source.ids)
    for index, key in enumerate(source.ids):
        stamp = file.fingerprints[key]
        if stamp is not None and stamp != source.fingerprint(index):
            raise InputError(
                f"{images}: '{key}' was another shape when its features were cached (another "
                "file, split, seed, up-axis or recipe); cache the features of this dataset"
            )
    return features
