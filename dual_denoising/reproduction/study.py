"""What a reproduction trains and measures: commands, what they cost, and what a budget cuts."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dual_denoising.attacks.plan import build_attack, plan
from dual_denoising.errors import InputError, check, check_choice, check_number
from dual_denoising.reproduction.costs import Costs
from dual_denoising.run import Run, load_config

CUT = "seeds", "clouds", "epochs", "steps"  # of a scale, by a budget


@dataclass(frozen=True)
class Job:
    """One command. measure: what it measures of its model; '' for the training itself.

    trained: the run that trains the model, which must be first; '' for one of data/models.
    """

    name: str  # of its run's folder
    script: str
    model: str
    seed: int
    measure: str
    trained: str
    overrides: tuple[str, ...]
    threads: int = 1

    @property
    def checkpoint(self) -> str:
        return f"runs/{self.trained}/model" if self.trained else self.model

    @property
    def arguments(self) -> list[str]:
        own = f"checkpoint={self.checkpoint}" if self.measure else f"seed={self.seed}"
        return [f"name={self.name}", f"threads={self.threads}", own, *self.overrides]

    @property
    def command(self) -> str:
        return shlex.join(["python", f"scripts/{self.script}.py", *self.arguments])


class Study:
    """A scale of configs/scale with its dataset chosen: all jobs, in the order they run in."""

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg = cfg.copy()
        for name in ("processes", "threads", *CUT):
            if cfg[name] is not None or name not in CUT[1:]:
                check_number(name, cfg[name], 1)
        there = [data for data in cfg.choices if all(Path(root).exists() for root in data.roots)]
        cfg.data = (there or cfg.choices)[0]
        absent = [root for root in cfg.data.roots if not Path(root).exists()]
        self.missing = f"{absent[0]}: not there; see data/README.md" if absent else None
        check("tables", cfg.tables, cfg.tables, "give at least one")
        only = cfg.only if OmegaConf.is_list(cfg.only) else [cfg.only] if cfg.only else cfg.tables
        check("only", only, len(only), "give at least one table")
        for name in only:
            check_choice("only", name, cfg.tables)
            check(f"tables.{name}", None, cfg.tables[name], "give its models and measures")
        self.tables = {name: self.settings["tables"][name] for name in only}
        for name, table in self.tables.items():
            if isinstance(table["models"], dict):  # {model: its words}; null leaves one out
                table["models"] = {m: words for m, words in table["models"].items() if words}
            for part in ("models", "measures"):
                for word in table[part]:
                    check_choice(f"tables.{name}.{part}", word, cfg[part])
                    whole = part == "models" or cfg.measures[word]
                    check(f"measures.{word}", None, whole, "give its script and overrides")

    @cached_property
    def jobs(self) -> list[Job]:
        """Every command once, however many tables need it: models first, seed by seed."""
        plain = self.settings
        study, threads, trained, measured = plain["name"], plain["threads"], [], []
        device = [] if plain["device"] == "auto" else [f"device={plain['device']}"]
        for seed, table in product(range(plain["seeds"]), self.tables.values()):
            for model in sorted(table["models"], key=list(plain["models"]).index):
                own, of, run = plain["models"][model], f"{model}_{seed}", ""
                if own is not None:
                    run = f"{study}_{of}"
                    own = (*plain["data"]["overrides"], *plain["training"], *device, *own)
                    trained.append(Job(run, "pretrain", model, seed, "", run, own, threads))
                for name in table["measures"]:
                    spec = plain["measures"][name]
                    there = Path(spec.get("needs", ".")).exists()
                    if there and seed < spec.get("seeds", plain["seeds"]):
                        # OmegaConf turns clouds: null into the word None
                        own = (o.replace("=None", "=null") for o in (*spec["overrides"], *device))
                        where = f"{study}_{name}_{of}", spec["script"], model, seed, name, run
                        measured.append(Job(*where, tuple(own), threads))
        return list(dict.fromkeys([*trained, *measured]))

    @property
    def settings(self) -> dict[str, Any]:
        """All of them, as plain data."""
        plain: Any = OmegaConf.to_container(self.cfg, resolve=True)
        return plain

    @property
    def sizes(self) -> dict[str, int | None]:
        """What a budget cuts."""
        return {name: self.cfg[name] for name in CUT}

    def sized(self, sizes: Mapping[str, int | None]) -> Self:
        """The same with other sizes."""
        cfg = self.cfg.copy()
        cfg.merge_with(dict(sizes))
        return type(self)(cfg)

    def within(self, hours: float, costs: Costs) -> Self:
        """The largest study whose runs take at most ``hours``; all sizes are cut alike, to ≥ 1."""
        check_number("budget_hours", hours, whole=False, above=True)
        for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05):
            sizes = {name: n and max(1, round(share * n)) for name, n in self.sizes.items()}
            study = self.sized(sizes)
            if (least := study.hours(costs)) <= hours:
                return study
        fix = f"choose {least:.2f} or more, or fewer tables (only=)"
        raise InputError(f"budget_hours is {hours:g}: {fix}")

    def hours(self, costs: Costs) -> float:
        """Of wall time."""
        kinds = self.by_kind().values()
        seconds = sum(len(jobs) * float(self.work(jobs[0]) @ costs) for jobs in kinds)
        return seconds / 3600 / self.cfg.processes

    def work(self, job: Job) -> np.ndarray:
        """What a job computes (3,), from its whole configuration: samples, paths, gradients.

        These are samples of training, noise paths of a cloud, and their gradients. At t = 0 the
        encoder runs once: that is a path in attacks, and left out in evaluations.
        """
        cfg = load_config(job.script, [f"name={job.name}", *job.overrides])
        data = self.cfg.data
        if job.script == "pretrain":
            return np.array([cfg.optim.epochs * data.training, _accuracies(cfg, data.test), 0])
        clouds = self.cfg.measures[job.measure].get("test", data.test)
        if job.script == "zeroshot":
            return np.array([0, _accuracies(cfg, clouds), 0])
        if job.script == "certify":  # votes, and C&W's gradients
            votes = len(cfg.timestep) * (cfg.subset or clouds) * (2 * cfg.choosing + cfg.draws)
            steps = cfg.attack.searches * cfg.attack.steps * cfg.attack.draws
            return np.array([0, votes, len(cfg.timestep) * cfg.attacked * steps])
        return _attacks(cfg, cfg.subset or clouds)

    @property
    def words(self) -> str:
        """Data and sizes in a sentence."""
        cfg, scripts = self.cfg, {measure.script for measure in self.cfg.measures.values()}
        sample = "all" if cfg.clouds is None else cfg.clouds
        trained = f"; training seeds: {cfg.seeds}, epochs: {cfg.epochs}" if cfg.epochs else ""
        attacked = f", attacked clouds: {sample}" if "attack" in scripts else ""
        return f"{cfg.data.words}{trained}{attacked}"

    def cut_words(self, whole: Self) -> str:
        """What a budget cut of the whole study, in a sentence; empty where nothing was."""
        cut = [
            f"{name} from {n} to {self.sizes[name]}"
            for name, n in whole.sizes.items()
            if self.sizes[name] != n
        ]
        return f"budget_hours={self.cfg.budget_hours:g} cut {', '.join(cut)}." if cut else ""

    def by_kind(self) -> dict[str, list[Job]]:
        """Jobs of the same measure and model, which differ in the seed."""
        kinds: dict[str, list[Job]] = {}
        for job in self.jobs:
            kinds.setdefault(f"{job.measure or 'training'} {job.model}", []).append(job)
        return kinds


def _accuracies(cfg: DictConfig, clouds: int) -> int:
    """How many noise paths an evaluation computes."""
    noised = sum(t > 0 for t in cfg.eval.timestep)
    return clouds * noised * sum(cfg.eval.num_noise) * len(cfg.eval.seeds)


def _attacks(cfg: DictConfig, clouds: int) -> np.ndarray:
    """Gradients of every attack, and its scores on fresh noise at every recorded step."""
    config: Any = OmegaConf.to_container(cfg)
    total = np.zeros(3)
    for job in plan(config["attack"]):
        attack = build_attack(job, nn.Identity(), 0, Run.build)
        paths = clouds * (job.setting[0] if job.setting[1] else 1)
        total += [0, paths * cfg.score_seeds * (1 + len(job.record)), paths * attack.passes]
    return total
