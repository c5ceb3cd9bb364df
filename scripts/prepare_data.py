"""Downloads -> h5 and manifest: python scripts/prepare_data.py [check] data=NAME source=/path"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from dual_denoising.errors import InputError, one_line_errors


def prepare_data(cfg: DictConfig, name: str | None) -> None:
    # imported here, so that --help and --cfg need not wait for torch
    from dual_denoising.data import prepare

    if not name:
        raise InputError("data is not given: say data=modelnet40, or another of configs/data")
    print(prepare.where_to_get(name), flush=True)
    if cfg.source is None:
        raise InputError(f"source is not given: say source=/path/of/the/downloaded/{name}")
    if not Path(cfg.source).is_dir():
        raise InputError(f"source={cfg.source}: no such folder")
    if "root" not in cfg.data:
        raise InputError(f"data={name} does not read one folder; choose a data set that does")
    with open_dict(cfg):
        cfg.data.root = str(cfg.source)
        if "points_per_mesh" in cfg.data:
            cfg.data.points_per_mesh = cfg.points
        if "strict" in cfg.data:
            cfg.data.strict = not cfg.check  # a check names all that is missing, not the first
    tests = cfg.data.tests.values() if OmegaConf.is_dict(cfg.data.tests) else cfg.data.tests
    configs = [config for config in (cfg.data.train, *tests) if config is not None]
    if cfg.check:
        sources, wrong = prepare.open_sources(configs, instantiate, tolerant=True)
        wrong += prepare.problems(name, sources, cfg.workers)
        print("\n".join([*wrong, f"{len(wrong)} problems in {cfg.source}"]))
        sys.exit(1 if wrong else 0)
    prepare.check_convertible(name, cfg.data_root)
    folder = Path(cfg.data_root, name)
    for source in prepare.open_sources(configs, instantiate)[0]:
        entry = prepare.convert(source, folder, cfg.points, cfg.workers, cfg.few)
        print(f"{folder}/{entry['file']}: {entry['clouds']} clouds of {cfg.points} points, y-up")


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare_data")
def main(cfg: DictConfig) -> None:
    one_line_errors(prepare_data, cfg, HydraConfig.get().runtime.choices.data)


if __name__ == "__main__":
    sys.argv = ["check=true" if word == "check" else word for word in sys.argv]
    main()
