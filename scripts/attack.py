"""Adversarial accuracy: python scripts/attack.py checkpoint=runs/NAME/model attack=table2"""

import time
from collections import defaultdict
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import InputError, input_words, one_line_errors


def attack(cfg: DictConfig) -> list[dict]:
    # imported here, so that --help and --cfg need not wait for torch
    import torch

    from dual_denoising.attacks import plan as jobs
    from dual_denoising.attacks import run as campaign
    from dual_denoising.data.clouds import one_test, open_tests
    from dual_denoising.evaluation import classifier as zeroshot
    from dual_denoising.evaluation import systems as subjects
    from dual_denoising.reports import robustness
    from dual_denoising.reports import tables as report
    from dual_denoising.training import checkpoint
    from dual_denoising.training import ranks as distributed

    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    plain = OmegaConf.to_container(cfg, resolve=True)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    subject = subjects.open_subject(plain, instantiate)
    points = zeroshot.num_points(subject.training, cfg.num_points)
    tests, _ = open_tests(cfg.data.tests, instantiate, points)
    test = one_test(tests, cfg.test_set)
    subject = subjects.for_dataset(subject, plain, instantiate, test.source.name)
    model = subject.model.requires_grad_(False)
    sample = campaign.sample(test, cfg.subset, cfg.subset_seed)
    weights = subject.class_weights(test.source.class_names)
    common = {"dataset": test.source.name, "split": test.source.split, "model": subject.origin}
    common |= subject.fields() | {"note": zeroshot.seen(subject.training, test.source)[1]}
    seeds = robustness.fresh_seeds(cfg.score_seeds, cfg.score_seed)
    digest = checkpoint.digest_state(model, weights, [model.noise_scale or 0.0])
    common_settings = {"seed": cfg.attack_seed, "model": digest, "built from": subject.settings}
    attackers = []
    plan = OmegaConf.to_container(cfg.attack, resolve=True)
    if subject.settings:  # a baseline
        plan = jobs.for_baseline(plan, noise=model.noise_steps > 1)
    for job in jobs.plan(plan):
        classifier, attacked = (
            zeroshot.ZeroShotClassifier(model, weights, *setting).to(device)
            for setting in (job.setting, job.made_on)
        )
        attackers.append((job, classifier, jobs.build(job, attacked, cfg.attack_seed)))
        path, settings = folder / "adversarial" / job.file, job.settings | common_settings
        campaign.check(path, *sample, settings, job.record)
    report.write_config(folder, plain)
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
    return results


def attack_all(cfg: DictConfig) -> None:
    """Every system of cfg.systems, each in a folder of its own, and one table of them."""
    # imported here, so that --help and --cfg need not wait for torch
    from dual_denoising.evaluation import systems as subjects
    from dual_denoising.reports import paper as tables

    results, absent = [], {}
    for name, settings in subjects.each(OmegaConf.to_container(cfg)):
        try:
            results += attack(OmegaConf.create(settings))
        except Exception as error:
            absent[name] = input_words(error)
        tables.write_table2(Path("runs", str(cfg.name)), results, absent)
    if not results:
        raise InputError(f"no system could be attacked: {'; '.join(absent.values())}")


@hydra.main(version_base="1.3", config_path="../configs", config_name="attack")
def main(cfg: DictConfig) -> None:
    one_line_errors(attack_all if cfg.systems else attack, cfg)


if __name__ == "__main__":
    main()
