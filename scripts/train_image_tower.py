"""Trains a small image tower in CLIP's space, on views of named shapes against text features."""

from dual_denoising.run import main


def train_image_tower(run, cfg):
    from dual_denoising.clip import image_tower
    from dual_denoising.clip.micro_clip import Views
    from dual_denoising.data import datasets
    from dual_denoising.reports.tables import write_shares
    from dual_denoising.training.trainer import seeded

    source = datasets.training_source(cfg.data, run.build)
    text, training = run.build(cfg.teacher.text), run.build(cfg.training)
    skip = cfg.data.get("skip_missing", False)
    tests, absent = datasets.open_tests(run.config["data"]["tests"], run.build, 1, skip)
    tower = seeded(training.seed, run.build, cfg.tower, feature_width=text.width)
    taught = Views(source, cfg.views, tower.image_size, workers=cfg.workers)
    shapes, place = [test.source for test in tests], (run.folder / "model", run.device)
    results, counts = image_tower.train_and_test(tower, text, taught, shapes, training, *place)
    run.save_summary(results=results, absent=absent, **counts)
    write_shares(run.folder, "image_tower", results)


if __name__ == "__main__":
    main(train_image_tower, "train_image_tower")
