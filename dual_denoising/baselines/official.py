"""Official checkpoint files: read without running them, renamed, loaded without a key left over."""

import argparse
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
HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath]
HARMLESS += [(made, name) for name, made in pickles.STANDINS.items()]


def read(path: str | Path, outer: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint: below the first key of ``outer`` that it has, or bare.

    Nothing in the file is executed. 'module.', which distributed training leaves in front, is cut.
    Raises InputError for anything that is not a whole file of finite tensors.
    """
    if path is None or not Path(path).is_file():
        raise InputError(
            f"checkpoint is {'not given' if path is None else f'{path}: no such file'}; "
            "dual_denoising/baselines/README.md says where each one is"
        )
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
    entries = []
    for key, value in state.items():
        pattern, ours = next((rule for rule in rules if re.match(rule[0], key)), ("", ""))
        if ours is not None:
            entries.append((re.sub(pattern, ours, key, count=1), value))
    return _unique(entries, where)


def load(model: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Loads renamed weights strictly; raises InputError that names every key that does not fit."""
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:  # torch lists the keys that are missing, unexpected, misshapen
        raise InputError(
            f"{where}: not a checkpoint of {type(model).__name__} as it is set "
            f"({' '.join(str(error).split())}); choose the baseline (baseline=...) and sizes of "
            "the file"
        ) from error


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
