"""Caches CLIP features of a data set: python scripts/cache_teacher.py data=NAME images=render"""

import time
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import InputError, one_line_errors


def cache(cfg: DictConfig) -> int:
    # imported here, so that --help and --cfg need not wait for torch
    from dual_denoising.clip import cache as caching
    from dual_denoising.clip.features import read_prompts
    from dual_denoising.reports import pictures as plots
    from dual_denoising.reports import tables as report
    from dual_denoising.training import ranks as distributed

    started, folder, output = time.perf_counter(), Path("runs", str(cfg.name)), Path(cfg.output)
    if cfg.pictures < 0:
        raise InputError(f"pictures is {cfg.pictures}: choose a number from 0")
    if cfg.data.train is None:
        raise InputError("data.train is null: this data set has no training split to cache")
    device, source = distributed.pick_device(cfg.clip.device), instantiate(cfg.data.train)
    prompts, pictures = read_prompts(cfg.prompts), caching.pictures_of(cfg, source)
    if pictures is not None and cfg.pictures:
        rows = caching.sheet(pictures, cfg.pictures)
        plots.picture_grid(rows, folder / "pictures" / "views.png")
    clip, failed = caching.make(cfg, source, pictures, str(device))
    report.write_config(folder, OmegaConf.to_container(cfg, resolve=True))
    shapes = len(source.ids) if pictures else 0
    report.write_summary(
        folder, time.perf_counter() - started, device, output=str(output), shapes=shapes,
        failed=len(failed), first_failures=dict(list(failed.items())[:20]),
        names=len(source.class_names), prompts=len(prompts), teacher="/".join(clip.names),
        weights=clip.weights_hash,
    )  # fmt: skip
    print(
        f"{output}: {len(source.class_names)} names × {len(prompts)} prompts, "
        f"{shapes - len(failed)} shapes, {len(failed)} failed"
    )
    return 1 if failed else 0


@hydra.main(version_base="1.3", config_path="../configs", config_name="cache_teacher")
def main(cfg: DictConfig) -> None:
    if one_line_errors(cache, cfg):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
