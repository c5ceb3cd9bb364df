"""Zero-shot accuracy: python scripts/zeroshot.py checkpoint=runs/NAME/model [data=NAME ...]"""

import time
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising.errors import InputError, input_words, one_line_errors


def evaluate(cfg: DictConfig) -> tuple[list[dict], dict[str, str]]:
    # imported here, so that --help and --cfg need not wait for torch
    import torch

    from dual_denoising.data.clouds import open_tests
    from dual_denoising.evaluation import classifier as zeroshot
    from dual_denoising.evaluation import systems as subjects
    from dual_denoising.reports import paper as tables
    from dual_denoising.reports import tables as report
    from dual_denoising.training import ranks as distributed

    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    plain = OmegaConf.to_container(cfg, resolve=True)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    subject, evaluation = subjects.open_subject(plain, instantiate), instantiate(cfg.eval)
    if subject.model.noise_steps == 1:
        evaluation = evaluation.plain()
    points = zeroshot.num_points(subject.training, cfg.num_points)
    tests, absent = open_tests(cfg.data.tests, instantiate, points, optional=bool(cfg.table))
    if not tests and not absent:
        raise InputError("this data set has no test split; choose another with data=NAME")
    evaluation.check(subject.model, subject.text, () if cfg.table else tests)
    results = []
    with distributed.process_group(device):
        for test in tests:
            try:
                one = subjects.for_dataset(subject, plain, instantiate, test.source.name)
                found, predictions = evaluation.run(one.model, one.training, one.text, test, device)
            except InputError as error:
                if not cfg.table:
                    raise
                absent[test.source.name] = str(error)
                continue
            found = [one.fields() | result for result in found]
            results += found
            if distributed.is_main():  # after every data set: nothing computed is lost
                report.write_predictions(folder, test.source, found, predictions.predicted)
                report.write_config(folder, plain)
                seconds = time.perf_counter() - started
                report.write_summary(folder, seconds, device, results=results, absent=absent)
        if distributed.is_main():
            report.write_evaluation(folder, results, absent)
            tables.TABLES[cfg.table](folder, results, absent)
    if not results:
        raise InputError(f"no data set could be evaluated: {'; '.join(absent.values())}")
    return results, absent


def evaluate_all(cfg: DictConfig) -> None:
    """Every system of cfg.systems, each in a folder of its own, and one table of them."""
    # imported here, so that --help and --cfg need not wait for torch
    from dual_denoising.evaluation import systems as subjects
    from dual_denoising.reports import paper as tables
    from dual_denoising.training import ranks as distributed

    results, absent = [], {}
    for name, settings in subjects.each(OmegaConf.to_container(cfg)):
        try:
            found, missing = evaluate(OmegaConf.create(settings))
            results += found
            absent |= {f"{name}, {dataset}": reason for dataset, reason in missing.items()}
        except Exception as error:
            absent[name] = input_words(error)
    if distributed.is_main():
        tables.write_table1(Path("runs", str(cfg.name)), results, absent)
    if not results:
        raise InputError(f"no system could be evaluated: {'; '.join(absent.values())}")


@hydra.main(version_base="1.3", config_path="../configs", config_name="zeroshot")
def main(cfg: DictConfig) -> None:
    one_line_errors(evaluate_all if cfg.systems else evaluate, cfg)


if __name__ == "__main__":
    main()
