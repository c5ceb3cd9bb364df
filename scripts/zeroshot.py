"""Zero-shot accuracy: python scripts/zeroshot.py checkpoint=runs/NAME/model [data=NAME ...]"""

import time
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising import checkpoint, distributed, report, zeroshot
from dual_denoising.model import DualDenoising


def evaluate(cfg: DictConfig) -> None:
    started, folder = time.perf_counter(), Path("runs", cfg.name)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    model = DualDenoising.from_pretrained(cfg.checkpoint)
    training = checkpoint.load_training(Path(cfg.checkpoint))
    text = instantiate(cfg.teacher.text)
    zeroshot.check_teacher(training, text, cfg.checkpoint)
    tests = [instantiate(test) for test in cfg.data.tests]
    results = zeroshot.evaluate_grid(
        model, training, tests, zeroshot.weights_for(text, tests), cfg.data.num_points, device,
        **cfg.eval,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    report.write_evaluation(folder, results)
    report.write_summary(folder, time.perf_counter() - started, device, results=results)


@hydra.main(version_base="1.3", config_path="../configs", config_name="zeroshot")
def main(cfg: DictConfig) -> None:
    report.one_line_errors(evaluate, cfg)


if __name__ == "__main__":
    main()
