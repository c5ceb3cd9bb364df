"""Times point operations, a training step, inference and attacks beside their alternatives."""

from dual_denoising.run import main


def benchmark(run, cfg):
    from dual_denoising.benchmarks import parts
    from dual_denoising.benchmarks.timing import measure
    from dual_denoising.errors import check_choice, check_number
    from dual_denoising.reports.tables import write_benchmark

    model, names = run.build(cfg.model), ("ops", "train", "infer", "attack")
    check_choice("part", cfg.part, (*names, "all", "gpu"))
    sizes = {f"{name}.{key}": run.config[name][key] for name in names for key in cfg[name]}
    for field, size in sizes.items():
        if isinstance(size, (int, float)):
            check_number(field, size, 1)
    if cfg.part == "gpu":
        tables = {"gpu": parts.on_gpu(cfg.gpu)}
        run.save_summary(**tables)
    else:
        benchmark = parts.Benchmark(model, measure(run.device), cfg.repeats)
        tables = {"machine": benchmark.machine.rows()}
        for name in names if cfg.part == "all" else [cfg.part]:
            tables[name] = getattr(benchmark, name)(**run.config[name])
            run.save_summary(**tables)
    write_benchmark(run.folder, tables)


if __name__ == "__main__":
    main(benchmark, "benchmark")
