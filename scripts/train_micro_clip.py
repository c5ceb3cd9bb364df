"""Trains the small CLIP of data/micro_clip again, on rendered procedural shapes and captions."""

from dual_denoising.run import main


def train_micro_clip(run, cfg):
    from dual_denoising.clip import micro_clip
    from dual_denoising.reports.tables import write_shares

    names = ("classes", "held_out", "per_class", "views", "test_per_class")
    options = {name: run.config[name] for name in names}
    training = run.build(cfg.training)
    results, fields = micro_clip.train_and_test(
        cfg.config, training, run.folder / "model", run.device, cfg.workers, **options
    )
    run.save_summary(results=results, **fields)
    write_shares(run.folder, "micro_clip", results)


if __name__ == "__main__":
    main(train_micro_clip, "train_micro_clip")
