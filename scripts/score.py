"""Scores anyone's clouds with fresh noise: adversarial=FILE.h5 checkpoint=DIR eps=0.025."""

from dual_denoising.run import main


def score(run, cfg):
    from dual_denoising.attacks.run import check_seeds
    from dual_denoising.data.datasets import choose_test, open_tests
    from dual_denoising.evaluation.robustness import score_file
    from dual_denoising.evaluation.systems import for_dataset, open_system
    from dual_denoising.reports.robustness import write_scores

    config = run.config
    seeds, system = check_seeds(config["seeds"], config["seed"]), open_system(config, run.build)
    tests, _ = open_tests(config["data"]["tests"], run.build, system.num_points)
    test = choose_test(tests, config["test_set"])
    system = for_dataset(system, config, run.build, test.source.name)
    results = score_file(
        system, test, config["adversarial"], config["settings"], config["eps"], config["norm"],
        seeds, run.device,
    )  # fmt: skip
    run.save_config()
    run.save_summary(results=[result.record() for result in results])
    write_scores(run.folder, config["adversarial"], config["eps"], config["norm"], results)


if __name__ == "__main__":
    main(score, "score")
