"""Pre-trains Dual Denoising: python scripts/pretrain.py [experiment=NAME] [field=value ...]"""

import time
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import one_line_errors


def pretrain(cfg: DictConfig) -> None:
    # imported here, so that --help and --cfg need not wait for torch
    import torch

    from dual_denoising.clip.features import Targets
    from dual_denoising.data.clouds import CloudDataset, open_tests
    from dual_denoising.evaluation import classifier as zeroshot
    from dual_denoising.reports import tables as report
    from dual_denoising.training import checkpoint
    from dual_denoising.training import ranks as distributed
    from dual_denoising.training import trainer as engine
    from dual_denoising.training.loggers import NoLogger

    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    source = instantiate(cfg.data.train)
    if cfg.teacher.get("make"):
        from dual_denoising import caching  # open_clip takes seconds to import

        pictures = caching.pictures_of(cfg.teacher.make, source)
        caching.make(cfg.teacher.make, source, pictures, str(device))
    text = instantiate(cfg.teacher.text)
    torch.manual_seed(cfg.seed)
    model = instantiate(cfg.model, feature_width=text.width)
    tests, _ = open_tests(cfg.data.tests, instantiate, cfg.data.num_points)
    evaluation = instantiate(cfg.eval)
    evaluation.check(model, text, tests)
    clouds = CloudDataset(
        source, cfg.data.num_points, instantiate(cfg.data.augmentation), cfg.data.resample, cfg.seed
    )
    targets = Targets(model.feature_types, source, text, cfg.teacher.images)
    with distributed.process_group(device):
        logger = instantiate(cfg.logger) if distributed.is_main() else NoLogger()
        trainer = engine.Trainer(
            model, clouds, targets, instantiate(cfg.optim), folder, device,
            logger=logger, settings=OmegaConf.to_container(cfg, resolve=True),
            **{key: cfg[key] for key in engine.LOOP_SETTINGS},
        )  # fmt: skip
        counts = trainer.fit()
        if not distributed.is_main():
            return
    training = zeroshot.training_record(clouds, text)
    checkpoint.save_model(trainer.trained, folder / "model", training)
    results = []
    for test in tests:
        results += evaluation.run(trainer.trained, training, text, test, device)[0]
    report.write_evaluation(folder, results)
    seconds = time.perf_counter() - started
    parameters = sum(p.numel() for p in model.parameters())
    report.write_summary(
        folder, seconds, device, parameters=parameters, **counts, evaluation=results
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    one_line_errors(pretrain, cfg)


if __name__ == "__main__":
    main()
