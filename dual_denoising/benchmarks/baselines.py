"""What every system of the paper's tables costs: parameters, operations, clouds per second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import open_clip
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dual_denoising.baselines.base import RANDOM, Baseline
from dual_denoising.baselines.clip2point import CLIP2Point
from dual_denoising.baselines.pointclip import PointCLIP
from dual_denoising.baselines.pointclip_v2 import PointCLIPV2
from dual_denoising.baselines.recon import ReCon
from dual_denoising.baselines.ulip import ULIP, ULIP2
from dual_denoising.baselines.uni3d import EVA, Uni3D
from dual_denoising.benchmarks.timing import medians
from dual_denoising.clip.towers import quiet
from dual_denoising.errors import InputError
from dual_denoising.model.dual_denoising import DualDenoising


def _uni3d(width: int) -> Uni3D:
    return Uni3D.from_checkpoint(RANDOM, eva=EVA[width])


def _depth(system: type, clip: str) -> Baseline:
    """On a CLIP of random weights: it costs what the trained one costs."""
    with quiet():
        tower = open_clip.create_model(clip, force_quick_gelu=True).eval()
    return system(tower, None, "a {}").requires_grad_(False)


SYSTEMS = {
    "ReCon": partial(ReCon.from_checkpoint, RANDOM),
    "ULIP": partial(ULIP.from_checkpoint, RANDOM),
    "ULIP-2": partial(ULIP2.from_checkpoint, RANDOM),
    "Uni3D-B": partial(_uni3d, 768),
    "Uni3D-L": partial(_uni3d, 1024),
    "CLIP2Point, ViT-B/32": partial(_depth, CLIP2Point, "ViT-B-32"),
    "PointCLIP, ViT-B/16": partial(_depth, PointCLIP, "ViT-B-16"),
    "PointCLIP V2, ViT-B/16": partial(_depth, PointCLIPV2, "ViT-B-16"),
}


def baselines(
    ours: DualDenoising, device: torch.device, repeats: int, clouds: int, systems: Sequence[str]
) -> list[dict]:
    """Clouds per second forward, and with the gradient to the points, at 1024 and at native points.

    Parameters are those that a cloud's features depend on; GFLOP of one cloud, counted by torch.
    """
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown:
        raise InputError(f"baselines.systems has '{unknown[0]}'; there is {', '.join(SYSTEMS)}")
    ours = ours.eval().requires_grad_(False).to(device)
    rows = []
    for paths, step in ((1, 0), (8, 0), (8, 500)):
        encode = partial(ours.encode, num_noise=paths, timestep=step)
        rows += [
            _row(f"ours, S = {paths}, t = {step}", encode, ours, 1024, device, repeats, clouds)
        ]
    for name in systems:
        model = SYSTEMS[name]().to(device)
        for points in sorted({1024, model.native_points}):
            rows += [_row(name, model.encode, model, points, device, repeats, clouds)]
    return rows


def _row(name, encode, model: nn.Module, points: int, device, repeats: int, clouds: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(clouds, points, 3, generator=generator)
    cloud = (cloud / cloud.norm(dim=-1, keepdim=True)).to(device)  # on the unit sphere

    def forward() -> Tensor:
        with torch.no_grad():
            return encode(cloud)

    def backward() -> Tensor:
        moved = cloud.clone().requires_grad_()
        return torch.autograd.grad(encode(moved).sum(), moved)[0]

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encode(cloud[:1])
    times = medians({"forward": forward, "backward": backward}, device, repeats)
    return {
        "of": name,
        "points": points,
        "M parameters": _parameters(model, encode, cloud[:1]) / 1e6,
        "GFLOP": counter.get_total_flops() / 1e9,
        "clouds/s": clouds / times["forward"].median,
        "min": clouds / times["forward"].high,
        "max": clouds / times["forward"].low,
        "with gradient": clouds / times["backward"].median,
        "gradient min": clouds / times["backward"].high,
        "gradient max": clouds / times["backward"].low,
    }


def _parameters(model: nn.Module, encode: Callable, cloud: Tensor) -> int:
    """Of those that a cloud's features depend on."""
    parameters = list(model.requires_grad_(True).parameters())
    slopes = torch.autograd.grad(encode(cloud).sum(), parameters, allow_unused=True)
    model.requires_grad_(False)
    return sum(p.numel() for p, slope in zip(parameters, slopes, strict=True) if slope is not None)
