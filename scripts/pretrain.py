"""Pre-trains Dual Denoising on a data set against frozen CLIP features, then evaluates it."""

from dual_denoising.run import main


def pretrain(run, cfg):
    from dual_denoising.clip import cache, targets
    from dual_denoising.data import datasets
    from dual_denoising.evaluation.systems import trained
    from dual_denoising.reports.tables import write_accuracies
    from dual_denoising.training import ranks, trainer

    with ranks.process_group(run.device):
        loop, optim = trainer.Loop.of(cfg), run.build(cfg.optim)
        evaluation, source, text = map(run.build, (cfg.eval, cfg.data.train, cfg.teacher.text))
        model = trainer.seeded(loop.seed, run.build, cfg.model, feature_width=text.width)
        clouds = datasets.training_set(source, cfg.data, run.build, loop.seed)
        tests, _ = datasets.open_tests(cfg.data.tests, run.build, cfg.data.num_points)
        loop.check(optim, source)
        evaluation.check(model, text, tests)
        datasets.read_first([clouds, *tests])
        if cfg.teacher.make:
            cache.make(cfg.teacher.make, source, run.build, run.device)
        aims = targets.Targets(model.feature_types, source, text, cfg.teacher.images)
        job = trainer.Trainer(model, clouds, aims, optim, run.folder, run.device, loop, run.config)
        if ranks.is_main():
            run.save_config()
            job.logger = run.build(cfg.logger)
        counts = job.fit()
        if not ranks.is_main():
            return
    system = trained(job.trained, text, job.save_model(text), str(run.folder / "model"))
    results = [r for test in tests for r in evaluation.run(system, test, run.device)[0]]
    run.save_summary(**counts, evaluation=[result.record() for result in results])
    write_accuracies(run.folder, results)


if __name__ == "__main__":
    main(pretrain, "pretrain")
