"""Reproduces the paper's tables, figures and claims at a scale, in one report."""

from dual_denoising.run import main


def reproduce(run, cfg):
    from dual_denoising.errors import InputError
    from dual_denoising.reproduction.plan import plan
    from dual_denoising.reproduction.report import sum_up
    from dual_denoising.reproduction.runs import Ledger, run_all
    from dual_denoising.reproduction.study import Study

    whole = Study(cfg)
    study, words = plan(whole, run.build)
    print(words)
    if cfg.plan_only:
        return
    if study.missing:
        raise InputError(study.missing)
    run.save_config()
    run_all(study.jobs, Ledger(run.folder / "runs.json"), cfg.processes)
    sum_up(study, whole, run.build, run.folder)
    print(f"\nwritten to {run.folder}: report.html, report.md, results.json")


if __name__ == "__main__":
    main(reproduce, "reproduce")
