"""Pre-trains Dual Denoising on a dataset against frozen CLIP features, then evaluates it."""

from dual_denoising.run import main


def pretrain(run, cfg):
    from dual_denoising.clip import targets
    from dual_denoising.data import datasets
    from dual_denoising.evaluation import finish
    from dual_denoising.reports import card, pictures, tables
    from dual_denoising.training import ranks, settings, trainer

    with ranks.process_group(run.device):
        loop, optim, evaluation = settings.Loop.of(cfg), run.build(cfg.optim), run.build(cfg.eval)
        source, text = datasets.training_source(cfg.data, run.build), run.build(cfg.teacher.text)
        model = trainer.seeded(loop.seed, run.build, cfg.model, feature_width=text.width)
        clouds = datasets.training_set(source, cfg.data, run.build, loop.seed)
        tests, validation, absent = datasets.held_out(run.config["data"], run.build, clouds)
        loop.check_start(optim, clouds, model, run.folder, run.config)
        evaluation.check(model, text, tests)
        taught = model.feature_types, source, text, cfg.mix_text
        make_targets = targets.prepare(cfg.teacher, *taught, run.build, run.device)
        datasets.read_first([clouds, *tests])
        aims = make_targets()
        place = run.folder, run.device, pictures.progress
        job = trainer.Trainer(model, clouds, aims, optim, *place, loop, run.config)
        run.save_config()
        job.logger = run.build(cfg.logger) if ranks.is_main() else None
        counts = job.fit()
        if not ranks.is_main():
            return
    own = run.folder / "model", evaluation, clouds, tests, validation, run.device
    results, found = finish.calibrate_and_evaluate(job.trained, text, job.save_model(text), *own)
    card.write_card(run.folder / "model")
    run.save_summary(**counts, **found)
    tables.write_accuracies(run.folder, results, absent)


if __name__ == "__main__":
    main(pretrain, "pretrain")
