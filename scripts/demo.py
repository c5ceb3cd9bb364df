"""Serves a web page that names shapes, rebuilds them from noise, and attacks them."""

import tempfile
from pathlib import Path

from dual_denoising.run import check_targets, main


def demo(run, cfg):
    from dual_denoising.demo.serve import serve
    from dual_denoising.evaluation import systems
    from dual_denoising.training.record import TrainingRecord

    checkpoint = str(cfg.checkpoint)
    record = TrainingRecord.load(checkpoint)
    text = run.build(check_targets(record.text_settings(cfg.data_root)))
    system = systems.ours(checkpoint, text)
    with tempfile.TemporaryDirectory(prefix="dual_denoising_demo_") as uploads:
        serve(system, Path(uploads), cfg.host, cfg.port, cfg.megabytes)


if __name__ == "__main__":
    main(demo, "demo")
