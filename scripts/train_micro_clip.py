"""Trains the small CLIP of data/micro_clip again, on rendered procedural shapes and captions."""

from dual_denoising.run import main


def train_micro_clip(run, cfg):
    from dual_denoising.clip import micro_clip
    from dual_denoising.reports.tables import write_shares

    training, folder = run.build(cfg.training), run.folder / "model"
    results, fields = micro_clip.train_and_test(run.config, training, folder, run.device)
    run.save_summary(results=results, **fields)
    write_shares(run.folder, "micro_clip", results)


if __name__ == "__main__":
    main(train_micro_clip, "train_micro_clip")
