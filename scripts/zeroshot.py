"""Zero-shot accuracy: python scripts/zeroshot.py checkpoint=runs/NAME/model [data=NAME ...]"""

import time
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dual_denoising import distributed, report, tables, zeroshot
from dual_denoising.data.clouds import open_tests
from dual_denoising.errors import InputError


def evaluate(cfg: DictConfig) -> None:
    started, folder = time.perf_counter(), Path("runs", str(cfg.name))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = distributed.pick_device(cfg.device)
    text, evaluation = instantiate(cfg.teacher.text), instantiate(cfg.eval)
    model, training = zeroshot.load(cfg.checkpoint, text)
    points = zeroshot.num_points(training, cfg.num_points)
    tests, absent = open_tests(cfg.data.tests, instantiate, points, optional=bool(cfg.table))
    if not tests and not absent:
        raise InputError("this data set has no test split; choose another with data=NAME")
    evaluation.check(model, text, () if cfg.table else tests)
    results = []
    with distributed.process_group(device):
        for test in tests:
            try:
                found, predictions = evaluation.run(model, training, text, test, device)
            except InputError as error:
                if not cfg.table:
                    raise
                absent[test.source.name] = str(error)
                continue
            results += found
            if distributed.is_main():  # after every data set: nothing computed is lost
                report.write_predictions(folder, test.source, found, predictions.predicted)
                report.write_config(folder, OmegaConf.to_container(cfg, resolve=True))
                seconds = time.perf_counter() - started
                report.write_summary(folder, seconds, device, results=results, absent=absent)
        if distributed.is_main():
            report.write_evaluation(folder, results, absent)
            tables.TABLES[cfg.table](folder, results, absent)
    if not results:
        raise InputError(f"no data set could be evaluated: {'; '.join(absent.values())}")


@hydra.main(version_base="1.3", config_path="../configs", config_name="zeroshot")
def main(cfg: DictConfig) -> None:
    report.one_line_errors(evaluate, cfg)


if __name__ == "__main__":
    main()
