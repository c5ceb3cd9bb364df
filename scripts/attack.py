"""Measures adversarial accuracy: attacks a checkpoint, a baseline, or all systems of a table."""

from dual_denoising.run import main


def attack(run, cfg):
    from dual_denoising.reports import beside_paper

    if cfg.systems:
        beside_paper.write_table("table2", run.folder, *run.each_system(cfg, attack_one))
    else:
        attack_one(run)


def attack_one(run):
    from dual_denoising.evaluation import robustness, systems
    from dual_denoising.reports.robustness import draw_examples, print_plan, write_attacks

    run.fill_from_model()
    config, results, done = run.config, [], []
    system, test = systems.open_with_test(config, run.build, run.device)
    bench = robustness.Robustness(system, test, config, run.folder, run.build)
    print_plan(bench.plan())
    run.save_config()
    for attacker, found in bench.run(config["batch_size"]):
        results += found
        done.append((attacker, found[-1]))
        draw_examples(attacker, test.source.class_names, run.folder, config["pictures"])
        run.save_summary(results=[r.record() for r in results])
        write_attacks(run.folder, results, show=False)
    results += bench.worst_cases(done)
    run.save_summary(results=[r.record() for r in results])
    write_attacks(run.folder, results)
    return results


if __name__ == "__main__":
    main(attack, "attack")
