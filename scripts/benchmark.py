"""Times point operations, a training step, inference and attacks beside their alternatives."""

from functools import partial

from dual_denoising.run import main


def benchmark(run, cfg):
    from dual_denoising.benchmarks import parts
    from dual_denoising.benchmarks.timing import measure
    from dual_denoising.errors import InputError
    from dual_denoising.reports.tables import write_benchmark

    model = run.build(cfg.model)
    jobs = {
        "ops": parts.point_ops,
        "train": partial(parts.training_step, model),
        "infer": partial(parts.inference, model),
        "attack": partial(parts.attacks, model),
    }
    if cfg.part not in (*jobs, "all", "gpu"):
        raise InputError(f"part is '{cfg.part}': choose one of {', '.join(jobs)}, all, gpu")
    if cfg.part == "gpu":
        tables = {"gpu": parts.on_gpu(cfg.gpu)}
    else:
        machine = measure(run.device)
        tables = {"machine": machine.rows()} | {
            name: job(machine, cfg.repeats, **run.config[name])
            for name, job in jobs.items()
            if cfg.part in (name, "all")
        }
    run.save_summary(**tables)
    write_benchmark(run.folder, tables)


if __name__ == "__main__":
    main(benchmark, "benchmark")
