"""Downloads -> h5 and manifest: python scripts/prepare_data.py [check] data=NAME source=/path"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from dual_denoising import report
from dual_denoising.data import prepare
from dual_denoising.errors import InputError


def prepare_data(cfg: DictConfig, name: str) -> None:
    print(prepare.where_to_get(name), flush=True)
    if cfg.source is None:
        raise InputError(f"source is not given: say source=/path/of/the/downloaded/{name}")
    if not Path(cfg.source).is_dir():
        raise InputError(f"source={cfg.source}: no such folder")
    with open_dict(cfg):
        cfg.data.root = str(cfg.source)
        if cfg.check and name.startswith("shapenet55"):
            cfg.data.train.strict = False  # names every missing cloud, not the first
    tests = cfg.data.tests.values() if OmegaConf.is_dict(cfg.data.tests) else cfg.data.tests
    configs = [config for config in (cfg.data.train, *tests) if config is not None]
    if cfg.check:
        sources, wrong = prepare.open_sources(configs, instantiate, tolerant=True)
        wrong += prepare.problems(name, sources, cfg.workers)
        print("\n".join([*wrong, f"{len(wrong)} problems in {cfg.source}"]))
        sys.exit(1 if wrong else 0)
    prepare.check_convertible(name, cfg.data_root)
    for source in prepare.open_sources(configs, instantiate)[0]:
        entry = prepare.convert(source, Path(cfg.data_root, name), cfg.points, cfg.workers)
        print(f"{cfg.data_root}/{name}/{entry['file']}: {entry['clouds']} clouds, y-up")


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare_data")
def main(cfg: DictConfig) -> None:
    report.one_line_errors(prepare_data, cfg, HydraConfig.get().runtime.choices.data)


if __name__ == "__main__":
    sys.argv = ["check=true" if word == "check" else word for word in sys.argv]
    main()
