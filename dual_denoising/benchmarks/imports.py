"""How long a user waits before anything happens: imports, and every script's --help."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from dual_denoising.benchmarks.timing import medians

IMPORTS = (
    "dual_denoising",
    "dual_denoising.ops",
    "dual_denoising.model.dual_denoising",
    "dual_denoising.attacks",
)


def imports(scripts: Path, repeats: int) -> list[dict]:
    """Seconds of whole processes: ``import torch`` for comparison, our modules, the scripts."""
    codes = {f"import {name}": ("-c", f"import {name}") for name in ("torch", *IMPORTS)}
    files = sorted(scripts.glob("*.py"))
    codes |= {f"{file.parent.name}/{file.name} --help": (str(file), "--help") for file in files}
    run = partial(subprocess.run, check=True, capture_output=True)
    jobs = {name: partial(run, [sys.executable, *code]) for name, code in codes.items()}
    return [
        {"process": name, "s": timing.median, "min": timing.low, "max": timing.high}
        for name, timing in medians(jobs, torch.device("cpu"), repeats).items()
    ]
