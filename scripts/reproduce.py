"""Reproduces the paper's tables, figures and claims at a scale, in one report."""

from dual_denoising.run import main


def reproduce(run, cfg):
    from dual_denoising.errors import InputError
    from dual_denoising.reproduction.plan import plan
    from dual_denoising.reproduction.report import sum_up
    from dual_denoising.reproduction.runs import Ledger, run_all
    from dual_denoising.reproduction.study import Study

    whole, ledger = Study(cfg), Ledger(run.folder / "runs.json")
    study, words = plan(whole, run.build, run.folder, ledger, run.device)
    print(words)
    if cfg.plan_only:
        return
    if study.missing:
        raise InputError(study.missing)
    pending, run.config = ledger.pending(study.jobs), study.settings
    run.save_config()
    run_all(pending, ledger, cfg.processes, cfg.data_root)
    sum_up(study, whole, run.build, run.folder)
    run.save_summary(runs=[job.name for job in study.jobs])
    print(f"\nwritten to {run.folder}: report.html, report.md, results.json")


if __name__ == "__main__":
    main(reproduce, "reproduce")
