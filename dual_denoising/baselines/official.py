"""Official checkpoint files: read without running them, renamed, loaded without a key left over."""

from __future__ import annotations

import argparse
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dual_denoising.clip.towers import is_torchscript
from dual_denoising.data import pickles
from dual_denoising.errors import InputError, brief

Rule = tuple[str, str | None]  # a pattern of official keys, and what it becomes; None: not used

# What training scripts leave beside the weights: plain values, without a way to run code. NumPy's
# own constructors would read memory where a file points: stand-ins build its numbers and arrays.
HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath, *pickles.standins()]


def read(path: str | Path, outer: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint: below the first key of ``outer`` that it has, or bare.

    Nothing in the file is executed. 'module.', which distributed training leaves in front, is cut.
    Raises InputError for anything that is not a whole file of finite tensors.
    """
    if path is None:
        raise InputError(
            "checkpoint is not given; dual_denoising/baselines/README.md says where each one is"
        )
    if not Path(path).exists():
        raise InputError(
            f"{path}: no such checkpoint; dual_denoising/baselines/README.md says where it is"
        )
    if not Path(path).is_file():
        raise InputError(f"{path}: not a file; give the checkpoint itself")
    if is_torchscript(path):
        raise InputError(
            f"{path}: a TorchScript archive, which only OpenAI's CLIP comes as; give it as the "
            "weights of the CLIP (baseline.model.clip.weights=...)"
        )
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged or hostile file leads it to
        named = re.search(r"(?:GLOBAL|class|operand) ([\w.]+) was not", str(error))
        why = f"asks for {named[1]}" if named else brief(error)
        raise InputError(
            f"{path}: not a checkpoint of tensors ({why}); it is cut, or holds objects that are "
            "not loaded because they could run code; download it again, or save its tensors alone"
        ) from error
    state = next(
        (content[key] for key in outer if isinstance(content, Mapping) and key in content), content
    )
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        places = " or under ".join(["the top", *(f"'{key}'" for key in outer)])
        raise InputError(f"{path}: holds no weights; they are expected at {places}")
    other = [str(key) for key, v in state.items() if not (isinstance(key, str) and _is_weight(v))]
    if other:
        raise InputError(
            f"{path}: {len(other)} entries beside the weights are no finite, dense tensors: "
            f"{', '.join(other)}; it is another file, or damaged"
        )
    return _unique(
        ((re.sub(r"^(module\.)+", "", key), value) for key, value in state.items()), path
    )


def _is_weight(value) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
        return False
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _unique(entries: Iterable[tuple[str, Tensor]], where: str | Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in entries:
        if key in state:
            raise InputError(f"{where}: holds '{key}' twice, under two prefixes; which is meant?")
        state[key] = value
    return state


def rename(
    state: Mapping[str, Tensor], rules: Sequence[Rule], where: str | Path
) -> dict[str, Tensor]:
    """Official keys to ours by the first rule that matches; None leaves them out."""
    return _unique(
        ((ours, value) for key, value in state.items() if (ours := _renamed(key, rules))), where
    )


def _renamed(key: str, rules: Sequence[Rule]) -> str | None:
    for pattern, ours in rules:
        if re.match(pattern, key):
            return None if ours is None else re.sub(pattern, ours, key, count=1)
    return key


def load(model: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Loads renamed weights strictly; raises InputError that names every key that does not fit."""
    own = model.state_dict()
    both = own.keys() & state.keys()
    faults = {
        "missing": own.keys() - state.keys(),
        "unexpected": state.keys() - own.keys(),
        "misshapen": {key for key in both if own[key].shape != state[key].shape},
        "of another type": {
            key for key in both if own[key].is_floating_point() != state[key].is_floating_point()
        },
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


def gathered(keys: Iterable[str]) -> list[str]:
    """Keys in order, a whole range of numbers as one: 'blocks.{0-11}.norm1.weight'."""
    families: dict[str, set[tuple[int, ...]]] = {}
    for key in keys:
        places = tuple(int(n) for n in re.findall(r"(?<=\.)\d+(?=\.)", key))
        families.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "{}", key), set()).add(places)
    said = []
    for family, numbers in families.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        whole = math.prod(map(len, columns)) == len(numbers)
        spans: Any = [[_span(column) for column in columns]] if whole else sorted(numbers)
        said += [family.format(*span) for span in spans]
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


def shape(state: Mapping[str, Tensor], key: str, where: str | Path, axes: int) -> torch.Size:
    """Shape of an entry that tells sizes; raises InputError where it has not ``axes`` of them."""
    if key not in state:
        raise InputError(
            f"{where}: has no '{key}'; it is a checkpoint of another model, or only part of one; "
            f"its first keys are {', '.join(list(state)[:3])}"
        )
    found = state[key].shape
    if len(found) != axes:
        raise InputError(f"{where}: '{key}' is misshapen, {tuple(found)}; it must have {axes} axes")
    return found
