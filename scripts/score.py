"""Scores anyone's clouds: python scripts/score.py adversarial=FILE.h5 checkpoint=DIR eps=0.025"""

import time
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import one_line_errors


def score(cfg: DictConfig) -> None:
    # imported here, so that --help and --cfg need not wait for torch
    import torch

    from dual_denoising.attacks import plan as jobs
    from dual_denoising.attacks import run as campaign
    from dual_denoising.data.clouds import one_test, open_tests
    from dual_denoising.evaluation import classifier as zeroshot
    from dual_denoising.evaluation import systems as subjects
    from dual_denoising.reports import robustness
    from dual_denoising.reports import tables as report
    from dual_denoising.training import ranks as distributed

    started, folder, path = time.perf_counter(), Path("runs", str(cfg.name)), Path(cfg.adversarial)
    plain = OmegaConf.to_container(cfg, resolve=True)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    seeds, content = robustness.fresh_seeds(cfg.seeds, cfg.seed), campaign.load(path)
    settings = jobs.check_settings(OmegaConf.to_container(cfg.settings))
    campaign.check_ball(path, content, cfg.eps, cfg.norm)
    subject = subjects.open_subject(plain, instantiate)
    settings = [[1, 0]] if subject.model.noise_steps == 1 else settings
    num_points = zeroshot.num_points(subject.training, content["clean"].shape[1])
    tests, _ = open_tests(cfg.data.tests, instantiate, num_points)
    test = one_test(tests, cfg.test_set)
    subject = subjects.for_dataset(subject, plain, instantiate, test.source.name)
    weights = subject.class_weights(test.source.class_names)
    campaign.check_labels(path, content, len(weights))
    campaign.check_clean(path, content, test)
    tensors = [torch.as_tensor(content[k]) for k in ("clean", "adversarial", "label", "index")]
    results = []
    for paths, step in settings:
        classifier = zeroshot.ZeroShotClassifier(subject.model, weights, paths, step)
        fields, _ = campaign.score(classifier, *tensors, seeds, device)
        common = {"file": str(path), "model": subject.origin, "eps": cfg.eps, "norm": cfg.norm}
        results.append(common | {"num_noise": paths, "timestep": step} | fields)
    report.write_config(folder, plain)
    robustness.write_scores(folder, results)
    report.write_summary(folder, time.perf_counter() - started, device, results=results)


@hydra.main(version_base="1.3", config_path="../configs", config_name="score")
def main(cfg: DictConfig) -> None:
    one_line_errors(score, cfg)


if __name__ == "__main__":
    main()
