"""Measures the zero-shot accuracy of a checkpoint, a baseline, or all systems of a table."""

from dual_denoising.run import main


def zeroshot(run, cfg):
    from dual_denoising.reports import beside_paper
    from dual_denoising.training import ranks

    if not cfg.systems:
        evaluate(run)
        return
    results, absent = run.each_system(cfg, evaluate)
    if ranks.is_main():
        beside_paper.write_table("table1", run.folder, results, absent)


def evaluate(run):
    from dual_denoising.evaluation.grid import evaluate_all
    from dual_denoising.reports.beside_paper import writer
    from dual_denoising.reports.tables import write_accuracies, write_predictions
    from dual_denoising.training import ranks

    write_table = writer(run.config["table"])
    run.fill_from_model()
    results, absent = [], {}
    with ranks.process_group(run.device):
        for source, found, predicted in evaluate_all(run.config, absent, run.build, run.device):
            results += found
            if ranks.is_main():  # after every dataset: nothing computed is lost
                write_predictions(run.folder, source, found, predicted)
                run.save_summary(results=[r.record() for r in results], absent=absent)
        if ranks.is_main():
            write_accuracies(run.folder, results, absent)
            write_table(run.folder, results, absent)
    return results


if __name__ == "__main__":
    main(zeroshot, "zeroshot")
