"""Hubs: names that are near to every shape, and what is taken from their cosines (CSLS)."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.storage import atomic, fingerprint
from dual_denoising.errors import InputError, reading
from dual_denoising.evaluation.classifier import ZeroShotClassifier

FILE = "references.safetensors"  # of a model's folder
PER_NAME = 8  # at most so many training clouds of each name are looked at


def hubness(cosines: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """Half of each name's largest cosine with n reference clouds, to subtract from its cosines.

    That is cross-domain similarity local scaling (CSLS, Conneau et al. 2018) with one neighbour.
    Its term of the cloud is left out: it is the same for all names.
    """
    return cosines.amax(0) / 2


@torch.inference_mode()
def references(classifier: ZeroShotClassifier, clouds: CloudDataset) -> Float[Tensor, "n f e"]:
    """Averaged, raw features of the training clouds that are nearest to some name; n ≤ C.

    The C names, (S, t) and the comparison are the classifier's. Up to PER_NAME clouds of every name
    of training are looked at, evenly spread over its clouds and drawn as in the first epoch.
    """
    labels = np.asarray(clouds.source.labels)
    of_names = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    places = [np.linspace(0, len(rows) - 1, min(PER_NAME, len(rows))) for rows in of_names]
    spread = [rows[at.round().astype(int)] for rows, at in zip(of_names, places, strict=True)]
    chosen, parts = np.concatenate(spread).tolist(), []
    for points, index, _ in clouds.batches(chosen, classifier.device):
        parts.append(classifier.features(points, index, [0])[0].cpu())
    features = torch.cat(parts)
    nearest = classifier.cosines(features.to(classifier.device)).argmax(0).unique()
    return features[nearest.cpu()]


def save(features: Float[Tensor, "n f e"], folder: Path) -> str:
    """Writes them in half precision; returns the file's SHA-256."""
    with atomic(folder / FILE) as temporary:
        save_file({"features": features.half().contiguous()}, temporary)
    return fingerprint(folder / FILE)


def load(folder: Path, sha256: str) -> Float[Tensor, "n f e"]:
    """What ``save`` wrote, in float32; raises InputError where it is not that."""
    path = folder / FILE
    with reading(path, "file of reference features", "copy it again"):
        features = load_file(path)["features"].float()
        if fingerprint(path) != sha256:
            raise InputError(f"{path}: training.json names others; copy both again")
    return features
