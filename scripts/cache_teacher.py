"""Caches CLIP features of a dataset's pictures and class names in one file, for training."""

from dual_denoising.run import main


def cache_teacher(run, cfg):
    from dual_denoising.clip import cache
    from dual_denoising.data import datasets
    from dual_denoising.reports.pictures import cloud_grid

    source = datasets.training_source(cfg.data, run.build)
    clip, pictures, fill = cache.prepare(run.config, source, run.build, run.device)
    failed = fill()
    if pictures is not None and cfg.pictures:
        rows = cache.sheet(pictures, cfg.pictures)
        shown, names = [row for _, row in rows], [name[-40:] for name, _ in rows]
        cloud_grid(shown, run.folder / "pictures" / "views.png", names=names)
    shapes, names = len(source) if pictures else 0, len(source.class_names)
    counts = {"shapes": shapes, "failed": len(failed), "names": names}
    teacher = {"teacher": "/".join(clip.names), "weights": clip.weights_hash}
    first = dict(list(failed.items())[:20])
    run.save_summary(output=cfg.output, first_failures=first, **counts, **teacher)
    print(f"{cfg.output}: {names} names, {shapes - len(failed)} shapes, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    main(cache_teacher, "cache_teacher")
