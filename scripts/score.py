"""Scores anyone's clouds with fresh noise: adversarial=FILE.h5 checkpoint=DIR eps=0.025."""

from dual_denoising.run import main


def score(run, cfg):
    from dual_denoising.attacks.run import check_seeds
    from dual_denoising.evaluation.robustness import score_file
    from dual_denoising.evaluation.systems import open_with_test
    from dual_denoising.reports.robustness import write_scores

    seeds, ball = check_seeds(cfg.seeds, cfg.seed), (cfg.eps, cfg.norm)
    system, test = open_with_test(run.config, run.build)
    settings = run.config["settings"]
    results = score_file(system, test, cfg.adversarial, settings, *ball, seeds, run.device)
    run.save_config()
    run.save_summary(results=[result.record() for result in results])
    write_scores(run.folder, cfg.adversarial, *ball, results)


if __name__ == "__main__":
    main(score, "score")
