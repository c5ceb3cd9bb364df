"""Scores adversarial clouds with fresh noise: adversarial=runs/NAME/adversarial/FILE.h5"""

from pathlib import Path

from dual_denoising.run import main

FOREIGN = {"norm": "linf", "settings": [[1, 0], [8, 0], [8, 500]]}  # of a file that says neither


def score(run, cfg):
    from dual_denoising.attacks.score import made_by
    from dual_denoising.evaluation.robustness import score_file
    from dual_denoising.evaluation.systems import open_with_test
    from dual_denoising.reports.robustness import write_scores

    run.fill_from_file(FOREIGN | made_by(Path(run.config["adversarial"])))
    run.fill_from_model()
    config = run.config
    system, test = open_with_test(config, run.build, run.device)
    results = score_file(system, test, config)
    run.save_summary(results=[result.record() for result in results])
    write_scores(run.folder, config["adversarial"], results)


if __name__ == "__main__":
    main(score, "score")
