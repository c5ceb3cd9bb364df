"""Converts a downloaded dataset to one h5 file per split: [check] data=NAME source=/path"""

import sys
from pathlib import Path

from dual_denoising.run import main


def prepare_data(run, cfg):
    from dual_denoising.data import prepare

    name, source = cfg.dataset, cfg.source
    print(prepare.where_to_get(name), flush=True)
    if source is None:
        return int(cfg.check)  # nothing is checked
    prepare.read_from(cfg.data, name, source, cfg.points, checks=cfg.check)
    if cfg.check:
        sources, wrong = prepare.open_sources(cfg.data, run.build, tolerant=True)
        wrong += prepare.problems(name, sources, cfg.workers)
        print("\n".join([*wrong, f"{len(wrong)} problems in {source}"]))
        return int(bool(wrong))
    folder, entries = Path(cfg.data_root, cfg.data.get("prepared", name)), []
    for split in prepare.open_sources(cfg.data, run.build)[0]:
        entry = prepare.convert(split, folder, cfg.points, cfg.workers, cfg.few)
        print(f"{folder}/{entry['file']}: {entry['clouds']} clouds of {cfg.points} points, y-up")
        entries.append(entry)
    run.save_summary(files=entries)


if __name__ == "__main__":
    sys.argv = ["check=true" if word == "check" else word for word in sys.argv]
    main(prepare_data, "prepare_data")
