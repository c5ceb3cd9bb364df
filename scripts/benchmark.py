"""Speed, side by side in one run: python scripts/benchmark.py [part=NAME] [field=value ...]"""

import time
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising import (
    benchmark,
    benchmark_attacks,
    benchmark_baselines,
    benchmark_teacher,
    distributed,
    report,
)
from dual_denoising.errors import InputError


def run(cfg: DictConfig) -> None:
    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    parts = (
        "ops",
        "train",
        "inference",
        "attack",
        "shapes",
        "teacher",
        "baselines",
        "memory",
        "all",
    )
    if cfg.part not in parts:
        raise InputError(f"part is '{cfg.part}': choose one of {', '.join(parts)}")
    report.write_config(folder, OmegaConf.to_container(cfg, resolve=True))
    tables = {}
    if cfg.part in ("all", "ops"):
        tables["ops"] = benchmark.point_ops(device, cfg.repeats, **cfg.ops)
    if cfg.part in ("all", "train"):
        model = instantiate(cfg.model)
        tables["train"] = benchmark.train_step(model, device, cfg.repeats, **cfg.train)
    if cfg.part in ("all", "shapes"):
        tables["shapes"] = benchmark.shapes(device, cfg.shapes.repeats, cfg.shapes.per_class)
    if cfg.part in ("all", "inference"):
        model = instantiate(cfg.model)
        tables["inference"] = benchmark.inference(model, device, cfg.repeats, **cfg.inference)
    if cfg.part in ("all", "attack"):
        model = instantiate(cfg.model).requires_grad_(False)
        tables["attack"] = benchmark_attacks.attacks(model, device, cfg.repeats, **cfg.attack)
    if cfg.part == "teacher":
        clip, renderer = instantiate(cfg.teacher.clip, device=str(device)), cfg.teacher.renderer
        tables["teacher"] = benchmark_teacher.teacher(
            clip, instantiate(renderer), device, cfg.repeats, cfg.teacher.shapes
        )
    if cfg.part == "baselines":
        ours, settings = instantiate(cfg.model), OmegaConf.to_container(cfg.baselines)
        tables["baselines"] = benchmark_baselines.baselines(ours, device, cfg.repeats, **settings)
    if cfg.part == "memory":  # minutes to hours
        tables["memory"] = benchmark.memory(instantiate(cfg.model), device, **cfg.memory)
    report.write_benchmark(folder, tables)
    report.write_summary(folder, time.perf_counter() - started, device, **tables)


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    report.one_line_errors(run, cfg)


if __name__ == "__main__":
    main()
