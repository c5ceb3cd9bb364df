"""How much ε₂, the noise of feature denoising, decides of a model's answers."""

from typing import Any

import torch
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.data.datasets import CloudDataset, evenly_spaced
from dual_denoising.evaluation.systems import System
from dual_denoising.model.tokens import group

PATHS = 16  # draws of ε₂ for each cloud
CLOUDS = 1000  # at most, evenly spread over the test set


@torch.inference_mode()
def measure(system: System, test: CloudDataset) -> dict:
    """How much ε₂ decides in a model of ours, measured at t = 0, where no other noise is.

    token_std: standard deviation of the tokens that ε₂ becomes. output_share: share of the
    features' variance that lies between draws of ε₂ for the same cloud. agreement: share of the
    clouds to which two draws give the same answer. top1_s1, top1_s16: accuracy of one draw, and of
    the mean of 16. top1_without: accuracy at ε₂ = 0.
    """
    model: Any = system.model
    classifier = system.classifier(test.source.class_names, 1, 0)
    parts = []
    for clouds, index, labels in test.batches(evenly_spaced(len(test), CLOUDS), system.device):
        tokens = group(clouds, model.grouping(clouds), model.group_size)
        layers = model.encode_points(tokens, torch.zeros_like(index))
        zeros = clouds.new_zeros(len(clouds), 1, len(model.feature_types), model.feature_width)
        paths = model.denoise_features(layers, keyed_random.path_keys(0, index, PATHS))
        parts.append((paths, model.feature_denoiser(zeros, layers), labels.to(system.device)))
    drawn, still, label = map(torch.cat, zip(*parts, strict=True))
    features, quiet = (x * model.target_std + model.target_mean for x in (drawn, still[:, 0]))

    def right(averaged: Tensor) -> Tensor:
        return classifier.logits(averaged).argmax(-1) == label

    answers = classifier.logits(features[:, :2]).argmax(-1)  # (n, 2)
    within = features.var(1).mean()
    return {
        "on": f"{test.source.name} {test.source.split}, n = {len(label)}, t = 0",
        "token_std": model.feature_denoiser.token_std(),
        "output_share": float(within / (within + features.mean(1).var(0).mean())),
        "agreement": float((answers[:, 0] == answers[:, 1]).float().mean()),
        "top1_s1": float(right(features[:, 0]).float().mean()),
        "top1_s16": float(right(features.mean(1)).float().mean()),
        "top1_without": float(right(quiet).float().mean()),
    }
