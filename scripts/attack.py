"""Measures adversarial accuracy: attacks a checkpoint, a baseline, or all systems of a table."""

from dual_denoising.run import main


def attack(run, cfg):
    from dual_denoising.reports.paper import write_table2

    if cfg.systems:
        write_table2(run.folder, *run.each_system(cfg, attack_one))
    else:
        attack_one(run)


def attack_one(run):
    from dual_denoising.attacks.run import check_seeds
    from dual_denoising.data.datasets import choose_test, open_tests, read_first
    from dual_denoising.evaluation.robustness import Robustness
    from dual_denoising.evaluation.systems import for_dataset, open_system
    from dual_denoising.reports.robustness import draw_examples, write_attacks

    config = run.config
    seeds, system = (
        check_seeds(config["score_seeds"], config["score_seed"]),
        open_system(config, run.build),
    )
    tests, _ = open_tests(config["data"]["tests"], run.build, system.points(config["num_points"]))
    test = choose_test(tests, config["test_set"])
    read_first([test])
    system = for_dataset(system, config, run.build, test.source.name)
    options = {key: config[key] for key in ("subset", "subset_seed", "attack_seed")}
    robustness = Robustness(
        system, test, config["attack"], run.folder, run.device, run.build, seeds=seeds, **options
    )
    run.save_config()
    results, done = [], []
    for attacker, found in robustness.run(config["batch_size"]):
        results += found
        done.append((attacker, found[-1]))
        draw_examples(attacker, test.source.class_names, run.folder, config["pictures"], run.device)
        run.save_summary(results=[r.record() for r in results])
    results += robustness.worst_cases(done)
    run.save_summary(results=[r.record() for r in results])
    write_attacks(run.folder, results)
    return results


if __name__ == "__main__":
    main(attack, "attack")
