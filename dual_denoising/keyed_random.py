"""Noise of the paper's Eq. 2, and noise that is a pure function of what it belongs to.

A draw is keyed by integers (seed, index of the cloud in its data set, path, ...) and by nothing
else: no generator, no batch size, no number of devices. Bits come from SplitMix64's finaliser over
a counter (Steele, Lea and Flood, OOPSLA 2014), normals from Box and Muller. To torch.compile keys
and bits are opaque: its CPU code overflows in other ways than int64 does (torch 2.15).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

# streams: what a draw is for, part of its key
POINTS, FEATURES, TIMESTEP, MASK, TARGETS, DRAW, AUGMENT = range(7)

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's increment, as int64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def noise_scale(timestep: Int[Tensor, " b"], scale: float, steps: int = 1000) -> Tensor:
    """σ_t = s·t/(T−1), linear from 0 to s (Section 3.1). timestep: (B,) in 0..T−1 -> (B,)."""
    return scale * timestep / (steps - 1)


def corrupt(
    clean: Float[Tensor, "b n 3"], sigma: Float[Tensor, " b"], noise: Float[Tensor, "b n 3"]
) -> Float[Tensor, "b n 3"]:
    """z_t = z_0 + σ_t·ε, Eq. 2 with γ ≡ 1. Units are those of the unit sphere."""
    return clean + sigma.to(clean.dtype)[:, None, None] * noise


def _shift_xor(bits: Tensor, shift: int) -> Tensor:
    logical = (bits >> shift) & ((1 << (64 - shift)) - 1)  # int64's own shift drags the sign along
    return bits ^ logical


def _scramble(bits: Tensor) -> Tensor:
    bits = _shift_xor(bits, 30) * _MIX[0]
    bits = _shift_xor(bits, 27) * _MIX[1]
    return _shift_xor(bits, 31)


def key(*parts: int | Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Folds integers and broadcastable integer tensors into int64 keys that differ as they do."""
    tensors = [p for p in parts if isinstance(p, Tensor)]
    device = tensors[0].device if tensors else None
    # full, unlike tensor, copies nothing to a GPU: it may stand in a captured graph
    filled = [p if isinstance(p, Tensor) else torch.full((), p, device=device) for p in parts]
    return _fold([p.long() for p in filled])


@torch.library.custom_op(
    "dual_denoising::fold_keys", mutates_args=(), schema="(Tensor[] parts) -> Tensor"
)
def _fold(parts):
    state = torch.zeros((), dtype=torch.int64, device=parts[0].device)
    for part in parts:
        state = _scramble((state ^ _scramble(part + _GOLDEN)) + _GOLDEN)
    return state.contiguous()


@_fold.register_fake
def _(parts):
    shape = torch.broadcast_shapes(*(part.shape for part in parts))
    return parts[0].new_empty(shape, dtype=torch.int64)


def on_device(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Numbers as a tensor on a device, which is not waited for."""
    values = torch.as_tensor(values)
    if device.type == "cuda" and not values.is_cuda:
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def path_keys(
    seed: int | Int[Tensor, "..."], indices: Int[Tensor, "..."], num_noise: int
) -> Int[Tensor, "... s"]:
    """Keys of S noise paths, of seeds and indices of clouds whose shapes broadcast: (..., S)."""
    paths = torch.arange(num_noise, device=indices.device)
    return key(seed[..., None] if isinstance(seed, Tensor) else seed, indices[..., None], paths)


def uniform(keys: Int[Tensor, "..."], *shape: int) -> Float[Tensor, "..."]:
    """U(0, 1), open at both ends, of shape (*keys.shape, *shape), one key per leading element."""
    return _uniform(keys, math.prod(shape)).view(*keys.shape, *shape)


@torch.library.custom_op(
    "dual_denoising::uniform", mutates_args=(), schema="(Tensor keys, int count) -> Tensor"
)
def _uniform(keys, count):
    counter = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    bits = _scramble(keys[..., None] + counter)
    mantissa = (bits >> 40) & ((1 << 24) - 1)
    drawn = (mantissa.float() + 0.5) * 2.0**-24
    return drawn.clamp(max=1 - 2.0**-24)  # the last one rounds to 1


@_uniform.register_fake
def _(keys, count):
    return keys.new_empty((*keys.shape, count), dtype=torch.float32)


def gaussian(keys: Int[Tensor, "..."], *shape: int) -> Float[Tensor, "..."]:
    """N(0, 1) of shape (*keys.shape, *shape), from one key per leading element."""
    count = math.prod(shape)
    radius, angle = uniform(keys, 2, (count + 1) // 2).unbind(-2)
    radius = (-2 * radius.log()).sqrt()
    angle = 2 * math.pi * angle
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return normal[..., :count].reshape(*keys.shape, *shape)


def timesteps(keys: Int[Tensor, " b"], steps: int = 1000) -> Int[Tensor, " b"]:
    """t ~ U{0..T−1}, one per key: (B,) -> (B,)."""
    return (uniform(keys, 1)[..., 0] * steps).long().clamp(max=steps - 1)
