"""Trains every row of an ablation with every seed, and tabulates their accuracies."""

from pathlib import Path

from dual_denoising.run import main


def ablate(run, cfg):
    from dual_denoising.reports.tables import write_ablation
    from dual_denoising.training.ablation import train_all

    script = Path(__file__).with_name("pretrain.py")
    summaries = train_all(script, cfg.name, cfg.rows, cfg.common, cfg.seeds, cfg.processes)
    run.save_config()
    run.save_summary(rows=summaries)
    write_ablation(run.folder, summaries)


if __name__ == "__main__":
    main(ablate, "ablation")
