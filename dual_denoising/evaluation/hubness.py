"""Hubs: names that are near to every shape, and what is taken from their cosines (CSLS)."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dual_denoising.data.datasets import CloudDataset, loader
from dual_denoising.data.storage import atomic, fingerprint
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier

FILE = "references.safetensors"  # of a model's folder
PER_NAME = 8  # clouds of training that are looked at


def hubness(cosines: Float[Tensor, "m c"]) -> Float[Tensor, " c"]:
    """What is taken from the cosine of each of C names, of the cosines of M reference clouds.

    It is half of the largest: cross-domain similarity local scaling (CSLS, Conneau et al. 2018)
    with one neighbour. Its other half, which is of the cloud, is the same for all names.
    """
    return cosines.amax(0) / 2


@torch.inference_mode()
def references(
    classifier: ZeroShotClassifier, clouds: CloudDataset, device: torch.device
) -> Float[Tensor, "m f e"]:
    """Averaged, raw features of the training clouds that are the nearest to some name.

    Of the classifier's names; PER_NAME clouds of every name of training are looked at, evenly
    spread over those that it has.
    """
    labels = np.asarray(clouds.source.labels)
    of_names = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    places = [np.linspace(0, len(rows) - 1, min(PER_NAME, len(rows))) for rows in of_names]
    spread = [rows[at.round().astype(int)] for rows, at in zip(of_names, places, strict=True)]
    chosen, parts = np.concatenate(spread).tolist(), []
    for batch in loader(clouds, [chosen[i : i + 32] for i in range(0, len(chosen), 32)]):
        points, index = batch["points"].to(device), batch["index"].to(device)
        parts.append(classifier.features(points, index, [0])[0].cpu())
    features = torch.cat(parts)
    nearest = classifier.cosines(features.to(device)).argmax(0).unique()
    return features[nearest.cpu()]


def save(features: Float[Tensor, "m f e"], folder: Path) -> str:
    """Writes them in half precision; returns the file's SHA-256."""
    with atomic(folder / FILE) as temporary:
        save_file({"features": features.half().contiguous()}, temporary)
    return fingerprint(folder / FILE)


def load(folder: Path, sha256: str) -> Float[Tensor, "m f e"]:
    """What ``save`` wrote; raises InputError where it is not that file."""
    path = folder / FILE
    try:
        features = load_file(path)["features"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{path}: no reference features ({error}); copy it again") from error
    if fingerprint(path) != sha256:
        raise InputError(f"{path}: not the references that training.json names; copy both again")
    return features
