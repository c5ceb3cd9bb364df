"""Trains every row of an ablation with every seed and tabulates: python scripts/ablate.py"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import InputError, one_line_errors

PRETRAIN = Path(__file__).with_name("pretrain.py")


def train(name: str, overrides: list[str]) -> dict:
    """Runs one pre-training (or resumes it) and returns its summary."""
    folder, arguments = Path("runs", name), [f"name={name}", "threads=1", *overrides]
    summary = folder / "summary.json"
    if summary.exists():
        if json.loads(summary.read_text())["command"].split()[1:] != arguments:
            raise InputError(f"{summary}: of a run with other settings; choose another name=...")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(PRETRAIN), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (folder / "output.log").open("w") as log:
            code = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
        if code:
            raise InputError(f"{folder}/output.log: the run ended with status {code}; see there")
    return json.loads(summary.read_text())


def ablate(cfg: DictConfig) -> None:
    # imported here, so that --help and --cfg need not wait for torch
    from dual_denoising.reports import tables as report
    from dual_denoising.training.ranks import pick_device

    started = time.perf_counter()
    with ThreadPoolExecutor(cfg.processes) as pool:
        runs = {
            row: [
                pool.submit(train, f"{cfg.name}/{row}_{s}", [*cfg.common, *overrides, f"seed={s}"])
                for s in cfg.seeds
            ]
            for row, overrides in cfg.rows.items()
        }
        try:
            summaries = {row: [run.result() for run in of_row] for row, of_row in runs.items()}
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    folder = Path("runs", str(cfg.name))
    report.write_config(folder, OmegaConf.to_container(cfg, resolve=True))
    report.write_ablation(folder, summaries)
    seconds = time.perf_counter() - started
    report.write_summary(folder, seconds, pick_device("cpu"), rows=summaries)


@hydra.main(version_base="1.3", config_path="../configs", config_name="ablation")
def main(cfg: DictConfig) -> None:
    one_line_errors(ablate, cfg)


if __name__ == "__main__":
    main()
