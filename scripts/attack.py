"""Adversarial accuracy: python scripts/attack.py checkpoint=runs/NAME/model attack=table2"""

import time
from collections import defaultdict
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising import checkpoint, distributed, report, robustness, zeroshot
from dual_denoising.attacks import campaign, jobs
from dual_denoising.data.clouds import one_test, open_tests
from dual_denoising.teacher import class_weights


def attack(cfg: DictConfig) -> None:
    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    text = instantiate(cfg.teacher.text)
    model, training = zeroshot.load(cfg.checkpoint, text)
    model.requires_grad_(False)
    model.noise_scale = model.noise_scale if cfg.noise_scale is None else cfg.noise_scale
    tests, _ = open_tests(
        cfg.data.tests, instantiate, zeroshot.num_points(training, cfg.num_points)
    )
    test = one_test(tests, cfg.test_set)
    sample = campaign.sample(test, cfg.subset, cfg.subset_seed)
    weights = class_weights(text.lookup(test.source.class_names))
    common = {"dataset": test.source.name, "split": test.source.split, "model": cfg.checkpoint}
    seeds = robustness.fresh_seeds(cfg.score_seeds, cfg.score_seed)
    digest = checkpoint.digest_state(model, weights, [model.noise_scale])
    common_settings = {"seed": cfg.attack_seed, "model": digest}
    attackers = []
    for job in jobs.plan(OmegaConf.to_container(cfg.attack, resolve=True)):
        classifier, attacked = (
            zeroshot.ZeroShotClassifier(model, weights, *setting).to(device)
            for setting in (job.setting, job.made_on)
        )
        attackers.append((job, classifier, jobs.build(job, attacked, cfg.attack_seed)))
        path, settings = folder / "adversarial" / job.file, job.settings | common_settings
        campaign.check(path, *sample, settings, job.record)
    report.write_config(folder, OmegaConf.to_container(cfg, resolve=True))
    results, rivals = [], defaultdict(list)
    for job, classifier, attacker in attackers:
        path, settings = folder / "adversarial" / job.file, job.settings | common_settings
        campaign.run(
            attacker, *sample, path, settings, cfg.batch_size, device, job.record, job.title
        )
        found = robustness.score_file(path, classifier, seeds, device, attacker, job, folder)
        results += [common | result for result in found]
        if job.track == "adaptive" and attacker.norm == "linf":
            rivals[job.setting, job.eps].append((job, path, results[-1]))
        picture = folder / "pictures" / f"{job.stem}.png"
        robustness.draw_examples(path, classifier, test.source.class_names, picture, cfg.pictures)
        seconds = time.perf_counter() - started
        report.write_summary(folder, seconds, device, results=results)
    for (setting, _), done in rivals.items():
        classifier = zeroshot.ZeroShotClassifier(model, weights, *setting).to(device)
        results += robustness.worst_case(done, classifier, seeds, device, folder)
    report.write_summary(folder, time.perf_counter() - started, device, results=results)
    robustness.write(folder, results)


@hydra.main(version_base="1.3", config_path="../configs", config_name="attack")
def main(cfg: DictConfig) -> None:
    report.one_line_errors(attack, cfg)


if __name__ == "__main__":
    main()
