"""Converts a downloaded data set to one h5 file per split: [check] data=NAME source=/path"""

import sys
from pathlib import Path

from dual_denoising.run import main


def prepare_data(run, cfg):
    from dual_denoising.data import prepare
    from dual_denoising.errors import InputError

    name, source = cfg.dataset, cfg.source
    if cfg.data is None:
        raise InputError("data is not given: say data=modelnet40, or another of configs/data")
    print(prepare.where_to_get(name), flush=True)
    if source is None:
        return 0
    if not Path(source).is_dir():
        raise InputError(f"source is {source}: no such folder; give that of the downloaded {name}")
    if "root" not in cfg.data:
        raise InputError(f"data={name} does not read one folder; choose a data set that does")
    # a check names all that is missing, not the first
    own = {"root": str(source), "points_per_mesh": cfg.points, "strict": not cfg.check}
    cfg.data.update({key: value for key, value in own.items() if key in cfg.data})
    if cfg.check:
        sources, wrong = prepare.open_sources(cfg.data, run.build, tolerant=True)
        wrong += prepare.problems(name, sources, cfg.workers)
        print("\n".join([*wrong, f"{len(wrong)} problems in {source}"]))
        return int(bool(wrong))
    prepare.check_convertible(name, cfg.data_root)
    for split in prepare.open_sources(cfg.data, run.build)[0]:
        folder = Path(cfg.data_root, cfg.data.get("prepared", name))
        entry = prepare.convert(split, folder, cfg.points, cfg.workers, cfg.few)
        print(f"{folder}/{entry['file']}: {entry['clouds']} clouds of {cfg.points} points, y-up")


if __name__ == "__main__":
    sys.argv = ["check=true" if word == "check" else word for word in sys.argv]
    main(prepare_data, "prepare_data")
