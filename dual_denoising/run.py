"""What every script shares: configuration, folder, device, threads, summary, one-line errors."""

import argparse
import difflib
import functools
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, Self

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dual_denoising.errors import (
    InputError,
    brief,
    check,
    check_number,
    fields_of,
    input_error,
    one_line,
    reading,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT_MODEL = "primitives_clip"  # of data/models; classify.py and demo.py take shapes_clip
LEAST = {  # least values of settings that must be whole numbers, in any script
    0: "seed attack_seed subset_seed score_seed pictures workers crops attacked",
    1: "threads columns batch_size repeats processes port megabytes score_seeds choosing draws",
}
NULLABLE = "threads", "batch_size", "checkpoint", "folder"  # of these and TEXTS, may be null
TEXTS = "data_root adversarial output config checkpoint folder"  # paths, in any script
MOST = {"threads": 1024, "seed": 2**32 - 1, "subset_seed": 2**32 - 1, "attack_seed": 2**16 - 1}


class Run:
    """A script's run: ``config`` (plain data), ``folder``, ``device``, and how they are used.

    The folder runs/<name> is made by the first file that is written to it.
    """

    def __init__(self, config: Mapping):
        import torch

        name = config["name"]
        kind = isinstance(name, (str, int)) and not isinstance(name, bool)
        plain = kind and re.fullmatch(r"[^/\\.\s]([^/\\]*[^/\\\s])?", str(name))
        check("name", name, plain, "name one folder below runs/, with no dot first")
        for low, keys in LEAST.items():
            for key in keys.split():
                if key in config and not (config[key] is None and key in NULLABLE):
                    check_number(key, config[key], low, most=MOST.get(key, inf))
        for key in TEXTS.split():
            path = config.get(key, "")
            good = isinstance(path, str) or (path is None and key in NULLABLE)
            check(key, path, good, "give a path, as text")
        if config.get("threads") is not None:
            torch.set_num_threads(config["threads"])
        self.config, self.folder = dict(config), Path("runs", str(name))
        self.device = pick_device(config.get("device", "auto"))
        self.started = time.perf_counter()

    @staticmethod
    def build(node: Any, **more) -> Any:
        """What a configuration's ``_target_`` names, with the rest of it as arguments."""
        try:
            return instantiate(node, **more)
        except InstantiationException as error:
            if input_error(error) is not None:
                raise
            if str(error).startswith("Error locating target"):
                raise InputError(str(error).partition(", set env")[0]) from error
            wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))
            if wrong is None:  # whatever a constructor makes of values of another kind
                if "'dual_denoising." not in str(error):
                    raise  # of a user's own class: its traceback helps
                place = re.search(r"full_key: (\S+)", str(error))
                words = f"cannot be made of these settings ({brief(error.__cause__ or error)})"
                raise InputError(f"{place[1] if place else node['_target_']}: {words}") from error
            known = inspect.signature(get_object(node["_target_"])).parameters
            words = f"has no setting '{wrong[1]}'{_nearest(wrong[1], known)}"
            raise InputError(f"{node['_target_'].rpartition('.')[2]} {words}") from error

    def each_system(self, cfg: DictConfig, job: Callable[[Self], list]) -> tuple[list, dict]:
        """Results of ``job`` for every system of cfg.systems, in folders below this run's.

        And {system: reason} of those that could not be run. Raises InputError where none could.
        """
        common: Any = OmegaConf.to_container(cfg)
        whole = isinstance(common["systems"], dict)
        check("systems", common["systems"], whole, "choose experiment=table1_all or table2_all")
        results: list = []
        absent: dict[str, str] = {}
        for name, system in common["systems"].items():
            own = {"name": name, "systems": None, "baseline": dict(system)}
            if "checkpoint" in system:
                own["checkpoint"] = own["baseline"].pop("checkpoint")
            try:
                run = type(self)(_plain(OmegaConf.create({**common, **own})))
                run.folder = self.folder / name
                results += job(run)
            except Exception as error:
                absent[name] = one_line(error)  # raises an error that is no bad input
        if not results:
            raise InputError(f"no system could be run: {'; '.join(absent.values())}")
        self.save_summary(results=[result.record() for result in results], absent=absent)
        return results, absent

    def fill_from_file(self, made_by: Mapping) -> None:
        """Fills in settings that the command line leaves open, from those in an attack's file.

        Where the command line names a model, only data, ball and (S, t) are taken from the file.
        """
        from dual_denoising.training.record import located

        config = self.config
        own_model = config["checkpoint"] or config["baseline"]
        theirs = ("checkpoint", "baseline", "teacher", "noise_scale", "num_points")
        for key, value in check_targets(located(made_by, config["data_root"])).items():
            if config.get(key) in (None, {}) and not (own_model and key in theirs):
                config[key] = value

    def fill_from_model(self) -> None:
        """Fills in settings that the command line leaves open, from the record of the model.

        These are its text features and the test sets of its training. Without a checkpoint the
        model is DEFAULT_MODEL.
        """
        from dual_denoising.training.record import TrainingRecord, located

        config = self.config
        if config["baseline"]:
            if config["data"] is None:
                raise InputError("data is not given: name the test set of the baseline, data=NAME")
            return
        if config["checkpoint"] is None:
            config["checkpoint"] = DEFAULT_MODEL
            logging.info("no checkpoint is given: the model is data/models/%s", DEFAULT_MODEL)
        record = TrainingRecord.load(config["checkpoint"])
        if config["teacher"] is None:
            config["teacher"] = {"text": check_targets(record.text_settings(config["data_root"]))}
        if config["data"] is None:
            tests = check_targets(located(record.tests, config["data_root"]))
            fix = f"{config['checkpoint']} does not say what it was tested on; data=base_meshes"
            check("data", None, tests, fix)
            config["data"] = {"tests": tests, "skip_missing": record.skip_missing}

    def check_folder(self) -> None:
        """Raises InputError where the run's folder holds what another script has written."""
        path, fix = self.folder / "summary.json", "choose another name="
        if path.exists():
            with reading(path, "summary of a run", fix):
                script = Path(shlex.split(json.loads(path.read_text())["command"])[0]).name
            own = script == Path(sys.argv[0]).name
            check("name", self.config["name"], own, f"a run of {script}; {fix}")

    def save_config(self) -> None:
        """Writes the whole configuration to config.yaml."""
        from dual_denoising.data.storage import write_text

        text = OmegaConf.to_yaml(OmegaConf.create(self.config))
        write_text(self.folder / "config.yaml", text)

    def save_summary(self, **fields) -> None:
        """Writes summary.json: command, seconds, device, versions, and the script's own fields."""
        import torch

        from dual_denoising.data.storage import write_text

        device = f"{self.device.type}, {torch.get_num_threads()} threads of {platform.machine()}"
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        packages = ("dual-denoising", "torch", "timm", "numpy")  # they decide a number
        common = {
            "command": shlex.join(sys.argv),
            "seconds": round(time.perf_counter() - self.started, 2),
            "device": device,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in packages},
        }
        write_text(self.folder / "summary.json", json.dumps(common | fields, indent=1))
        self.save_config()


def check_targets(node: Any) -> Any:
    """Settings from a model's record or an attack's file, which may come from anywhere.

    ``build`` calls what they name. So only targets that our own configs name are allowed, and no
    references, which could resolve to others. Raises InputError for any other.
    """
    mend = "give teacher= and data= yourself"
    for field, value in fields_of(node):
        ours = field.rpartition(".")[2] != "_target_" or str(value) in _targets()
        check(f"{field} of a model or file", value, ours, f"no class of ours; {mend}")
        plain = not (isinstance(value, str) and "${" in value)
        check(f"{field} of a model or file", value, plain, f"it refers to other settings; {mend}")
    return node


@functools.cache
def _targets() -> set[str]:
    """All that our own configs name as a target."""
    texts = [path.read_text(encoding="utf-8") for path in CONFIGS.rglob("*.yaml")]
    return set(re.findall(r"_target_: *([\w.]+)", "\n".join(texts)))


def main(job: Callable[[Run, DictConfig], int | None], config: str) -> None:
    """Runs a script: job(run, cfg) with configs/<config>.yaml and the command line's overrides.

    Exits with what the job returns, or with one line for bad input.
    """
    description = inspect.getdoc(sys.modules[job.__module__]) or ""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=_groups(config),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="settings, as name=mine threads=1")
    parser.add_argument("--cfg", choices=["job"], help="print all settings and stop")
    arguments = parser.parse_args()

    def start() -> int | None:
        cfg = _checked_config(config, arguments.overrides)
        if arguments.cfg:
            print(OmegaConf.to_yaml(cfg))
            return 0
        run = Run(_plain(cfg))
        run.check_folder()
        return job(run, cfg)

    sys.exit(guarded(start))


def guarded(start: Callable[[], int | None]) -> int:
    """Calls a script's body; returns its exit status. Bad input is one line on standard error."""
    sys.stdout, sys.stderr = ClosableOutput(sys.stdout), ClosableOutput(sys.stderr)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    if not sys.stderr.isatty():  # tqdm reads these: a line every 30 seconds in place of a bar
        line = "{desc}: {n_fmt}/{total_fmt}, {elapsed}, {remaining} left, {rate_fmt}{postfix}\n"
        for key, value in (("MININTERVAL", "30"), ("MAXINTERVAL", "30"), ("BAR_FORMAT", line)):
            os.environ.setdefault(f"TQDM_{key}", value)
    try:
        return start() or 0
    except MissingMandatoryValue as error:
        print(f"error: {error.full_key} is not given: add {error.full_key}=...", file=sys.stderr)
    except OmegaConfBaseException as error:  # of a reference to what is not there
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        known = input_error(error)
        return known.status if known else 1
    return 1


class ClosableOutput:
    """A stream whose reader may leave early (… | head): what follows is dropped."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def load_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes configs/<name>.yaml; raises InputError where Hydra cannot.

    Arguments that no file states are filled in from the class of a group in DEFAULTED.
    """
    given = [f"++{o}" if o.partition(".")[0] in DEFAULTED else o for o in overrides]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose(name, given, return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
    except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
        words = " ".join(re.split("To append|Config search path", str(error))[0].split())
        words = words.replace("'++", "'")
        raise InputError(f"{' '.join(overrides)}: {words} (--help lists the choices)") from error
    with open_dict(cfg):
        del cfg["hydra"]
        for group in DEFAULTED & cfg.keys():
            target = cfg[group].get("_target_") if OmegaConf.is_dict(cfg[group]) else None
            if target in _targets():
                own = inspect.signature(get_object(target)).parameters.items()
                defaults = {name: p.default for name, p in own if name != FROM_TEXT}
                cfg[group] = OmegaConf.merge(defaults, cfg[group])
    return cfg


DEFAULTED = {"model", "optim", "eval", "tower", "training"}  # whose defaults are their classes'
NEEDED = DEFAULTED | {"teacher.text", "renderer", "gpu"}  # settings that may not be null
FROM_TEXT = "feature_width"  # an argument of these that is no setting: the text features tell it
KINDS: Any = {bool: "true or false", (int, float): "a number", DictConfig: "its settings"}


def _checked_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration that the command line asks for.

    Raises InputError for a setting that does not exist, or whose value is of another kind. '+'
    may add arguments of a ``_target_``, or one more to a list of them, such as attack.jobs: nothing
    would read others.
    """
    chosen = [o for o in overrides if (CONFIGS / re.split("[@=]", o.lstrip("+~/"))[0]).is_dir()]
    before = load_config(name, chosen)
    known = dict(fields_of(OmegaConf.to_container(before)))
    fields = {o.partition("=")[0]: o.partition("=")[2] for o in overrides if o not in chosen}
    for field, given in fields.items():
        bare, group = field.lstrip("+~"), re.split(r"[+~.]+", field.lstrip("+~"))[0]
        parents = [bare.rsplit(".", i)[0] for i in range(1, bare.count(".") + 1)]
        nodes = [known[p] for p in parents if isinstance(known.get(p), dict)]
        kinds = nodes[0].values() if nodes else ()
        listed = kinds and all(isinstance(node, dict) and "_target_" in node for node in kinds)
        built = any("_target_" in node for node in nodes)
        added = field[0] == "+" and (built or listed)
        if group in ("data", "teacher") and group in known and before[group] is None:
            raise InputError(f"{bare} needs {group}=NAME: without it {group} is the model's own")
        if bare not in known and (not added or bare.endswith(f".{FROM_TEXT}")):
            raise InputError(f"there is no setting '{bare}'{_nearest(bare, known)}")
        if (field[0] == "~" or group in DEFAULTED) and re.search(r"\.\d", bare):
            raise InputError(f"{field}: an entry of a list; give the whole list")
        fix = f"that merges nothing; leave an entry out with ~{bare}.NAME"
        check(field, {}, given != "{}" or not OmegaConf.select(before, bare), fix)
    cfg = load_config(name, overrides)
    for field in fields:
        old, new = (OmegaConf.select(c, field, throw_on_missing=False) for c in (before, cfg))
        kind = next((kind for kind in KINDS if isinstance(old, kind)), None)
        if kind and (new is not None or kind is bool or field in NEEDED):
            good = isinstance(new, kind) and isinstance(new, bool) == isinstance(old, bool)
            check(field, new, good, f"give {KINDS[kind]}")
    return cfg


def _plain(cfg: DictConfig) -> Any:
    """The configuration as plain data, every reference resolved."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; nearest: {', '.join(near)}" if near else "; --cfg job prints all settings"


def _groups(config: str) -> str:
    """The script's configuration groups and what can be chosen of each."""
    groups = list(_group_names(config))
    lines = []
    for group in groups:
        names = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
        if group == "experiment":  # those of this script's groups alone
            names = [name for name in names if {*_group_names(f"{group}/{name}")} <= {*groups}]
        lines.append(f"  {group}={'|'.join(names)}")
    return "\n".join(["choices:", *lines]) if lines else ""


def _group_names(config: str) -> Iterator[str]:
    """The groups in the defaults of configs/<config>.yaml, and of the files it begins with."""
    path = CONFIGS / f"{config}.yaml"
    settings: Any = OmegaConf.load(path)
    for entry in settings.get("defaults", []):
        if not isinstance(entry, str):
            yield from (re.sub("^(override )?/|@.*", "", key) for key in entry)
        elif entry != "_self_":
            yield from _group_names(str(path.with_name(entry).relative_to(CONFIGS)))


def pick_device(name: str):
    """The torch device called ``name``; 'auto' is this rank's GPU, or the CPU where none is."""
    import torch

    found = torch.cuda.device_count()
    name = str(name) if name != "auto" else "cuda" if found else "cpu"
    known = re.fullmatch(r"cpu|cuda(:\d+)?", name)
    check("device", name, known, "choose auto, cpu, cuda or cuda:<number>")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    there = (device.index or 0) < found
    check("device", name, there, f"torch finds {found} GPUs; choose another, or cpu")
    own = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", own if device.index is None else device.index)
