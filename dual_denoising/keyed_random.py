"""Random numbers that are a pure function of what they belong to.

A draw is keyed by what it is for and by integers (seed, index of the cloud in its dataset, path,
...), and by nothing else: no batch size, no number of devices (only drop-path's key has a rank).
Bits come from SplitMix64's finaliser over a counter (Steele, Lea and Flood, OOPSLA 2014), normals
from Box and Muller. Keys and bits are custom operators, because torch.compile's CPU code overflows
differently from int64 (torch 2.15).
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Stream(IntEnum):
    """What a draw is for, with the parts of its key: no two streams share a key.

    Where a key seeds torch's own generator, a CPU keeps 32 bits of it.
    """

    COLOR = 1  # of a procedural shape: its seed, split, class, number
    TRAINING = 2  # noise of a training step: seed, epoch, index
    INFERENCE = 3  # noise paths: seed, index, path
    POINTS = 4  # which points of a cloud are taken: seed, epoch, index
    AUGMENTATION = 5  # seed, epoch, index
    ORDER = 6  # of an epoch's clouds: seed, epoch
    WEIGHTS = 7  # initial ones: seed
    DROP_PATH = 8  # seed, step, rank
    SUBSET = 9  # clouds of a sample: seed
    ATTACK = 10  # starts of PGD and its family: seed, restart, index
    UNKEYED = 11  # a random model without ``draws``: seed
    FILE = 12  # points of a user's file: seed
    PICTURE = 13  # points of a cloud that is drawn: none
    CROPS = 14  # of a picture: index
    NAMES = 15  # stand-in text features: seed, name
    OFFERED = 16  # names that calibration offers: seed
    VIEWS = 17  # cameras of micro-CLIP's and the image tower's views: seed, index
    AS_CLOUD = 18  # whether such a view is of a cloud: seed, index
    CAPTIONS = 19  # micro-CLIP's test captions: seed
    PAIRS = 20  # micro-CLIP's training pairs: seed
    RANDOM_NOISE = 21  # the attack of that name: seed, index
    SQUARE = 22  # starts (step 0) and proposals of Square: seed, step, index
    SPSA = 23  # signs: seed, step, pair, index
    SEARCH = 24  # starts of C&W: seed, search, index
    TOWER = 25  # training pictures of the image tower: seed


class FirstSeed(IntEnum):
    """The first INFERENCE seed of each use. Evaluations take seeds below all of these."""

    ATTACK = 2**40  # noise that attacks see: PER_SEED for each attack seed, which is below 2**16
    RESTART = 2**41  # noise on which the best restart is chosen: PER_SEED for each attack seed
    JUDGE = 2**42  # noise on which C&W's successes are judged
    SCORE = 2**50  # noise on which adversarial clouds are scored; no attack saw it
    VOTE = 2**51  # votes of certificates: PER_SEED for each seed


PER_SEED = 2**24  # noise seeds reserved for each seed of attacks or votes


# appended to a key of TRAINING or INFERENCE: what the draw is for
POINT_NOISE, FEATURE_NOISE, TIMESTEP, MASK, TARGETS = range(5)

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's increment, as int64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))


def generator(stream: Stream, *parts: int) -> np.random.Generator:
    """NumPy's generator for a stream and at most four parts, each below 2³².

    The parts are padded to four and the stream is the fifth, because NumPy pads short seeds with
    zeros, and a procedural shape's own seed has four.
    """
    return np.random.default_rng((*parts, *[0] * (4 - len(parts)), stream))


def key(*parts: int | Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """One int64 key of integers and broadcastable tensors. Different parts give different keys."""
    tensors = [p for p in parts if isinstance(p, Tensor)]
    device = tensors[0].device if tensors else None
    # unlike torch.tensor, full copies nothing to a GPU, so a CUDA graph can capture it
    filled = [p if isinstance(p, Tensor) else torch.full((), p, device=device) for p in parts]
    return _fold([p.long() for p in filled])


def path_keys(
    seeds: int | Sequence[int], indices: Int[Tensor, " b"], num_noise: int
) -> Int[Tensor, "b *r s"]:
    """Keys (B, S) of S noise paths for every cloud, or (B, R, S) for several seeds."""
    paths = torch.arange(num_noise, device=indices.device)
    if not isinstance(seeds, Sequence):
        return key(Stream.INFERENCE, seeds, indices[:, None], paths)
    rows = torch.tensor(seeds, pin_memory=indices.is_cuda)  # copied without waiting for it
    rows = rows.to(indices.device, non_blocking=True)
    return key(Stream.INFERENCE, rows[:, None], indices[:, None, None], paths)


def uniform(keys: Int[Tensor, "..."], *shape: int) -> Float[Tensor, "..."]:
    """U(0, 1), open at both ends, of shape (*keys.shape, *shape)."""
    return _uniform(keys, math.prod(shape)).view(*keys.shape, *shape)


def gaussian(keys: Int[Tensor, "..."], *shape: int) -> Float[Tensor, "..."]:
    """N(0, 1) of shape (*keys.shape, *shape)."""
    count = math.prod(shape)
    radius, angle = uniform(keys, 2, (count + 1) // 2).unbind(-2)
    radius = (-2 * radius.log()).sqrt()
    angle = 2 * math.pi * angle
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return normal[..., :count].reshape(*keys.shape, *shape)


def _scramble(bits: Tensor) -> Tensor:
    for shift, factor in _MIX:
        logical = (bits >> shift) & ((1 << (64 - shift)) - 1)  # int64's >> copies the sign bit
        bits = (bits ^ logical) * factor
    return bits


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
