"""Pre-trains Dual Denoising: python scripts/pretrain.py [experiment=NAME] [field=value ...]"""

import logging
import time
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising import checkpoint, distributed, engine, report, zeroshot
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.teacher import Targets


def pretrain(cfg: DictConfig) -> None:
    started, folder = time.perf_counter(), Path("runs", cfg.name)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    source, text = instantiate(cfg.data.train), instantiate(cfg.teacher.text)
    tests = [instantiate(test) for test in cfg.data.tests]
    classifiers = zeroshot.weights_for(text, tests)  # before an hour of training, not after
    torch.manual_seed(cfg.seed)
    model = instantiate(cfg.model, feature_width=text.width)
    settings = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: settings[key] for key in ("model", "data", "teacher", "optim", "seed")}
    settings["data"].pop("tests")  # what is tested does not change what is trained
    dataset = CloudDataset(
        source, cfg.data.num_points, instantiate(cfg.data.augmentation), cfg.data.resample, cfg.seed
    )
    with distributed.process_group(device):
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        trainer = engine.Trainer(
            model, dataset, Targets(model.feature_types, source, text, cfg.teacher.images),
            instantiate(cfg.optim), folder, device, logger=instantiate(cfg.logger),
            settings=settings,
            **{key: cfg[key] for key in engine.LOOP_SETTINGS},
        )  # fmt: skip
        counts = trainer.fit()
        if not distributed.is_main():
            return
    training = zeroshot.training_record(source, text)
    checkpoint.save_model(trainer.trained, folder / "model", training)
    logging.info("saved %s", folder / "model")
    results = zeroshot.evaluate_grid(
        trainer.trained, training, tests, classifiers, cfg.data.num_points, device, **cfg.eval
    )
    parameters = sum(p.numel() for p in trainer.trained.parameters())
    seconds = time.perf_counter() - started
    report.write_evaluation(folder, results)
    report.write_summary(
        folder, seconds, device, parameters=parameters, **counts, evaluation=results
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    report.one_line_errors(pretrain, cfg)


if __name__ == "__main__":
    main()
