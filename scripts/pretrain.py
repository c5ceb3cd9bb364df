"""Pre-trains Dual Denoising on a data set against frozen CLIP features, then evaluates it."""

from dual_denoising.run import main


def pretrain(run, cfg):
    from dual_denoising.clip import cache
    from dual_denoising.clip.targets import Targets
    from dual_denoising.data.datasets import CloudDataset, open_tests, read_first
    from dual_denoising.evaluation.systems import trained
    from dual_denoising.reports.tables import write_accuracies
    from dual_denoising.training import ranks
    from dual_denoising.training.checkpoint import TrainingRecord, save_model
    from dual_denoising.training.trainer import Loop, Trainer, seeded

    data, folder = cfg.data, run.folder
    with ranks.process_group(run.device):
        loop, optim = (
            Loop(**{key: cfg[key] for key in Loop.__dataclass_fields__}),
            run.build(cfg.optim),
        )
        evaluation, source = run.build(cfg.eval), run.build(data.train)
        text, augmentation = run.build(cfg.teacher.text), run.build(data.augmentation)
        model = seeded(loop.seed, run.build, cfg.model, feature_width=text.width)
        clouds = CloudDataset(source, data.num_points, augmentation, data.resample, loop.seed)
        tests, _ = open_tests(data.tests, run.build, data.num_points)
        loop.check(optim, source)
        evaluation.check(model, text, tests)
        read_first([clouds, *tests])
        if "make" in cfg.teacher:
            cache.make(cfg.teacher.make, source, run.build, run.device)
        targets = Targets(model.feature_types, source, text, cfg.teacher.images)
        trainer = Trainer(
            model, clouds, targets, optim, folder, run.device, loop, config=run.config
        )
        if ranks.is_main():
            run.save_config()
            trainer.logger = run.build(cfg.logger)
        counts = trainer.fit()
        if not ranks.is_main():
            return
    record = TrainingRecord.of(clouds, text)
    save_model(trainer.trained, folder / "model", record)
    system = trained(trainer.trained, text, record, str(folder / "model"))
    results = [r for test in tests for r in evaluation.run(system, test, run.device)[0]]
    run.save_summary(
        parameters=sum(p.numel() for p in model.parameters()), **counts,
        evaluation=[result.record() for result in results],
    )  # fmt: skip
    write_accuracies(folder, results)


if __name__ == "__main__":
    main(pretrain, "pretrain")
