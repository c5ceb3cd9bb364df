"""Official checkpoint files: read without running them, renamed, loaded without a key left over."""

import argparse
import pathlib
import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dual_denoising.clip.towers import is_torchscript
from dual_denoising.data import pickles
from dual_denoising.errors import InputError, check, reading

Rule = tuple[str, str | None]  # a pattern of official keys, and what it becomes; None: not used

# What training scripts leave beside the weights: plain values, without a way to run code. NumPy's
# own constructors would read memory where a file points: stand-ins build its numbers and arrays.
HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath]
HARMLESS += [(made, name) for name, made in pickles.STANDINS.items()]


def fitting(path: str) -> AbstractContextManager[None]:
    """Raises InputError for what fails while a file is read and loaded; names every odd key."""
    fix = "choose the baseline (baseline=...) and sizes of the file, or download it again: "
    fix += "dual_denoising/baselines/README.md says where each one is"
    return reading(path, "checkpoint of this baseline at these sizes", fix, limit=10**5)


def read(path: str, rules: Sequence[Rule], outer: Sequence[str] = ()) -> dict[str, Tensor]:
    """Weights of a checkpoint, below the first key of ``outer`` that it has, or bare.

    Nothing in the file is executed. 'module.', which distributed training leaves in front, is cut;
    then the first rule that matches a key renames it, or leaves it out.
    """
    with fitting(path), torch.serialization.safe_globals(HARMLESS):
        if is_torchscript(path):
            raise InputError(
                f"{path}: a TorchScript archive, as OpenAI's CLIP; no baseline's weights"
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's words say: trust the file
            asked = re.search(r"(?:GLOBAL|class|operand) ([\w.]+) was not", str(error))
            why = f"it asks for {asked[1]}" if asked else "it is cut or damaged"
            raise InputError(f"{path}: not a checkpoint of tensors alone; {why}") from error
        state = next((content[key] for key in outer if key in content), content)
        renamed: dict[str, Tensor] = {}
        for long, value in state.items():
            key = re.sub(r"^(module\.)+", "", long)
            pattern, ours = next((rule for rule in rules if re.match(rule[0], key)), ("", ""))
            if ours is not None:
                key = re.sub(pattern, ours, key, count=1)
                check(f"{path}: '{key}'", "twice", key not in renamed, "which prefix is meant?")
                whole = not value.is_floating_point() or bool(value.isfinite().all())
                check(f"{path}: '{key}'", "not finite", whole, "download it again")
                renamed[key] = value
    return renamed


def count_blocks(state: Mapping[str, Tensor], blocks: str) -> int:
    """How many different numbers follow a name: the depth of a transformer."""
    start = f"{blocks}."
    return len({key[len(start) :].split(".")[0] for key in state if key.startswith(start)})
