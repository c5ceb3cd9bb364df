"""Official checkpoint files: read without running them, renamed, loaded without a key left over."""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dual_denoising.errors import InputError, brief

Rule = tuple[str, str | None]  # a pattern of official keys, and what it becomes; None: not used

# What training scripts leave beside the weights; holds plain values and cannot run code.
HARMLESS = [argparse.Namespace, pathlib.PosixPath]


def read(path: str | Path, outer: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint: below the first key of ``outer`` that it has, or bare.

    Nothing in the file is executed. 'module.', which distributed training leaves in front, is cut.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such checkpoint; data/checkpoints.md says where it is"
        ) from error
    except Exception as error:  # torch raises whatever a damaged or hostile file leads it to
        raise InputError(
            f"{path}: not a checkpoint of tensors ({brief(error)}); it is cut, or holds objects "
            "that are not loaded because they could run code; download it again"
        ) from error
    for key in outer:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        places = " or under ".join(["the top", *(f"'{key}'" for key in outer)])
        raise InputError(f"{path}: holds no weights; they are expected at {places}")
    return {
        re.sub(r"^(module\.)+", "", key): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Official keys to ours by the first rule that matches; None leaves them out."""
    renamed = {}
    for key, value in state.items():
        for pattern, ours in rules:
            if re.match(pattern, key):
                key = None if ours is None else re.sub(pattern, ours, key, count=1)
                break
        if key is not None:
            renamed[key] = value
    return renamed


def load(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads renamed weights strictly; raises InputError that names every key that does not fit."""
    own = model.state_dict()
    faults = {
        "missing": own.keys() - state.keys(),
        "unexpected": state.keys() - own.keys(),
        "misshapen": {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape},
    }
    if any(faults.values()):
        words = [
            f"{len(keys)} {kind}: {', '.join(gathered(keys))}"
            for kind, keys in faults.items()
            if keys
        ]
        raise InputError(
            f"{where}: not a checkpoint of {type(model).__name__} as it is set: "
            f"{'; '.join(words)}; choose the baseline (baseline=...) and sizes of the file"
        )
    model.load_state_dict(dict(state))


def gathered(keys: Sequence[str]) -> list[str]:
    """Keys in order, those that differ in numbers alone as one: 'blocks.{0-11}.norm1.weight'."""
    families: dict[str, list[tuple[int, ...]]] = {}
    for key in keys:
        numbers = tuple(int(n) for n in re.findall(r"(?<=\.)\d+(?=\.)", key))
        families.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "{}", key), []).append(numbers)
    said = []
    for family, numbers in families.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        said.append(family.format(*(_span(column) for column in columns)))
    return sorted(said)


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"


def count_blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in a pattern's group: the depth of a transformer."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def shape(state: Mapping[str, Tensor], key: str, where: str) -> torch.Size:
    """Shape of an official entry, from which sizes are read; raises InputError where it lacks."""
    if key not in state:
        raise InputError(
            f"{where}: has no '{key}'; it is a checkpoint of another model, or only part of one; "
            f"its first keys are {', '.join(list(state)[:3])}"
        )
    return state[key].shape
