"""Pre-training runs of an ablation, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dual_denoising.errors import InputError


def train_all(
    script: Path,
    name: str,
    rows: Mapping,
    common: Sequence[str],
    seeds: Sequence[int],
    at_once: int,
) -> dict[str, list[dict]]:
    """{row: summaries of its runs}, one run for each seed. Finished runs are not run again."""
    with ThreadPoolExecutor(at_once) as pool:
        runs = {
            row: [
                pool.submit(train, script, f"{name}_{row}_{seed}", [*common, *own, f"seed={seed}"])
                for seed in seeds
            ]
            for row, own in rows.items()
        }
        try:
            return {row: [run.result() for run in of_row] for row, of_row in runs.items()}
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise


def train(script: Path, name: str, overrides: Sequence[str]) -> dict:
    """Runs one pre-training on one thread (or resumes it) and returns its summary."""
    folder, arguments = Path("runs", name), [f"name={name}", "threads=1", *overrides]
    summary = folder / "summary.json"
    if summary.exists():
        if json.loads(summary.read_text())["command"].split()[1:] != arguments:
            raise InputError(f"{summary}: of a run with other settings; choose another name=...")
    else:
        command = [sys.executable, str(script), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if folder.exists():  # a run that failed its checks leaves none
            (folder / "output.log").write_text(done.stdout)
        if done.returncode:
            last = (done.stdout.splitlines() or [f"status {done.returncode}"])[-1]
            raise InputError(f"{folder}: {last.removeprefix('error: ')}")
    return json.loads(summary.read_text())
