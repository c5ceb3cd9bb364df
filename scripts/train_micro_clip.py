"""Trains the small CLIP of data/micro_clip again: python scripts/train_micro_clip.py"""

import time
from pathlib import Path

import hydra
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import one_line_errors


def train(cfg: DictConfig) -> None:
    # imported here, so that --help and --cfg need not wait for torch
    import torch

    from dual_denoising.clip import micro_clip
    from dual_denoising.clip.towers import OpenClip
    from dual_denoising.data import shipped
    from dual_denoising.data.primitives import Primitives
    from dual_denoising.data.recipes import known_classes
    from dual_denoising.reports import tables as report
    from dual_denoising.training import ranks as distributed

    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    torch.manual_seed(cfg.training.seed)
    config = shipped(cfg.config)
    model, content = micro_clip.create(config)
    size = content["model_cfg"]["vision_cfg"]["image_size"]
    mean, std = (content["preprocess_cfg"][key] for key in ("mean", "std"))
    seen = [name for name in known_classes() if name not in cfg.held_out]
    sources = {"seen classes": Primitives("test", cfg.test_per_class, classes=seen)}
    if cfg.held_out:
        held_out = Primitives("test", cfg.test_per_class, classes=list(cfg.held_out))
        sources |= {"held-out classes": held_out}
        sources |= {"all classes": Primitives("test", cfg.test_per_class)}
    source = Primitives("train", cfg.per_class, classes=seen, progress=True)
    views = micro_clip.Views(source, cfg.views, size)
    pictures = views.all(cfg.workers)
    drawn = time.perf_counter() - started
    tokenize = OpenClip(f"local-dir:{config.parent}").tokenize
    losses = micro_clip.train(
        model, tokenize, pictures, views, instantiate(cfg.training), mean, std, device
    )
    seconds = time.perf_counter() - started
    micro_clip.save(model, content, folder / "model")
    tower = OpenClip(f"local-dir:{folder / 'model'}").tower
    results = {}
    for name, test in sources.items():
        shown = micro_clip.Views(test, 1, size, seed=1)
        found = micro_clip.evaluate(tower, tokenize, shown.all(0), shown, mean, std)
        right = found.pop("right")
        cloud = np.array([shown.cloud(i) for i in range(len(right))])
        found |= {"meshes": float(right[~cloud].mean()), "clouds": float(right[cloud].mean())}
        if name == "all classes":
            new = np.isin([test.class_names[c] for c in test.labels], list(cfg.held_out))
            found |= {"of seen": float(right[~new].mean()), "of held out": float(right[new].mean())}
        results[name] = found
    report.write_config(folder, OmegaConf.to_container(cfg, resolve=True))
    report.write_summary(
        folder, time.perf_counter() - started, device, results=results, losses=losses[::50],
        parameters=sum(p.numel() for p in model.parameters()), shapes=len(source.labels),
        pictures=int(np.prod(pictures.shape[:2])), seconds_drawing=drawn, seconds_to_train=seconds,
    )  # fmt: skip
    report.write_micro_clip(folder, results)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_micro_clip")
def main(cfg: DictConfig) -> None:
    one_line_errors(train, cfg)


if __name__ == "__main__":
    main()
