"""Speed, side by side in one run: python scripts/benchmark.py [part=NAME] [field=value ...]"""

import time
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import InputError, one_line_errors

PARTS = ("ops", "train", "infer", "attack")
MORE = ("scaling", "imports", "shapes", "teacher", "baselines", "memory")


def run(cfg: DictConfig) -> None:
    # imported here, so that --help and --cfg need not wait for torch
    import torch

    from dual_denoising.benchmarks import parts
    from dual_denoising.reports import tables as report
    from dual_denoising.training import ranks as distributed

    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    if cfg.part not in (*PARTS, *MORE, "all"):
        raise InputError(f"part is '{cfg.part}': choose one of {', '.join((*PARTS, *MORE, 'all'))}")
    settings = OmegaConf.to_container(cfg, resolve=True)
    with distributed.process_group(device):
        if distributed.is_main():
            report.write_config(folder, settings)
        tables = parts.measured(
            PARTS if cfg.part == "all" else [cfg.part], settings, lambda: instantiate(cfg.model),
            device, folder, lambda kind, **more: instantiate(cfg.teacher[kind], **more),
        )  # fmt: skip
        if distributed.is_main():
            report.write_benchmark(folder, tables)
            report.write_summary(folder, time.perf_counter() - started, device, **tables)


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    one_line_errors(run, cfg)


if __name__ == "__main__":
    main()
