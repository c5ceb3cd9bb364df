"""Draws clouds of every class of a data set: python scripts/contact_sheet.py [data=NAME ...]"""

import time
from pathlib import Path

import hydra
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import InputError, one_line_errors


def draw(cfg: DictConfig) -> None:
    # imported here, so that --help and --cfg need not wait for torch
    from dual_denoising.data.clouds import open_tests
    from dual_denoising.reports import pictures as plots
    from dual_denoising.reports import tables as report
    from dual_denoising.training.ranks import pick_device

    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    report.write_config(folder, OmegaConf.to_container(cfg, resolve=True))
    pictures = []
    tests, _ = open_tests(cfg.data.tests, instantiate, cfg.num_points)
    if not tests:
        raise InputError("this data set has no test split to draw; choose another with data=NAME")
    for dataset in tests:
        source, rows, names = dataset.source, [], []
        chosen = cfg.classes or source.class_names
        if unknown := set(chosen) - set(source.class_names):
            raise InputError(f"classes has '{unknown.pop()}': {source.name} has no such class")
        for name in chosen:
            label = list(source.class_names).index(name)
            of_class = np.flatnonzero(source.labels == label)[: cfg.columns]
            clouds = [dataset[i]["points"].numpy() for i in of_class]
            if clouds:
                rows.append(clouds + [np.zeros((0, 3))] * (cfg.columns - len(clouds)))
                names.append(name)
        path = folder / "pictures" / f"{source.name}_{source.split}.png"
        plots.cloud_grid(rows, path, names=names, size=1.2)
        print(f"{path}: {len(rows)} classes, {cfg.columns} clouds each at most")
        pictures.append(str(path))
    report.write_summary(
        folder, time.perf_counter() - started, pick_device("cpu"), pictures=pictures
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="contact_sheet")
def main(cfg: DictConfig) -> None:
    one_line_errors(draw, cfg)


if __name__ == "__main__":
    main()
