"""Certifies answers by randomised smoothing: L2 radii within which moved points keep the vote."""

from dual_denoising.run import main


def certify(run, cfg):
    from dual_denoising.evaluation.certificate import Certification
    from dual_denoising.evaluation.systems import open_with_test
    from dual_denoising.reports.certificate import read_tables, write_certificates

    run.fill_from_model()
    config = run.config
    beside = read_tables(run.folder.parent, config["beside"])
    system, test = open_with_test(config, run.build, run.device)
    bench = Certification(system, test, config, run.folder, run.build)
    run.save_config()
    results = []
    for found in bench:
        results.append(found)
        run.save_summary(results=[result.record() for result in results])
        write_certificates(run.folder, results, config["radii"], beside)


if __name__ == "__main__":
    main(certify, "certify")
