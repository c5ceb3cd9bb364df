"""What is attacked how: a configuration's attacks, each at one ε against one (S, t)."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import nn

from dual_denoising.attacks.base import Attack
from dual_denoising.errors import InputError, check, check_choice, check_number

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One attack at one ε against one (S, t); made_on: the (S, t) that it is made on."""

    name: str
    track: str
    setting: tuple[int, int]
    eps: float | None
    spec: dict
    record: list[int]
    made_on: tuple[int, int]

    @property
    def identity(self) -> dict:
        """All that its adversarial clouds depend on, besides the model and the clean clouds."""
        own = {"attack": self.name, "spec": self.spec, "record": self.record}
        return own | {"setting": list(self.made_on)}

    @property
    def title(self) -> str:
        size = "" if self.eps is None else f" ε={self.eps:g}"
        return f"{self.name}{size} S={self.setting[0]} t={self.setting[1]}"

    @property
    def stem(self) -> str:
        return re.sub(r"[^\w.-]+", "_", self.title.replace("ε=", "eps").replace("=", ""))

    @property
    def file(self) -> str:
        """Name of its clouds' file: those of one surrogate are made once."""
        return f"{replace(self, setting=self.made_on).stem}.h5"


def plan(config: Mapping, keeps_tokens: bool = True, has_noise: bool = True) -> list[Job]:
    """Every attack × ε × (S, t) of an attack configuration, one (S, t) after the other.

    An attack's own eps, settings and record win over the configuration's. On a model without noise
    every attack runs at (1, 0), and attacks with a surrogate are left out. So are attacks with
    grouping=frozen where the model cannot keep its tokens.
    """
    missing = [key for key in ("settings", "eps", "jobs") if key not in config]
    if missing:
        raise InputError(f"attack has no {missing[0]}; see configs/attack/quick.yaml")
    jobs: list[Job] = []
    for name, spec in (config["jobs"] or {}).items():
        check(f"attack.jobs '{name}'", spec, isinstance(spec, Mapping), "give its settings")
        frozen = spec.get("grouping") == "frozen" and not keeps_tokens
        if frozen or (spec.get("surrogate") and not has_noise):
            log.warning("attack '%s' is left out: it needs what only our own model offers", name)
        else:
            jobs += _jobs(name, spec if has_noise else {**spec, "settings": [[1, 0]]}, config)
    check("attack.jobs", config["jobs"], jobs, "give one that this model can do")
    order = list(dict.fromkeys(job.setting for job in jobs))
    return sorted(jobs, key=lambda job: order.index(job.setting))


def _jobs(name: str, spec: Mapping, config: Mapping) -> Iterator[Job]:
    field, spec = f"attack.jobs '{name}': ", dict(spec)
    track = spec.pop("track", None)
    check_choice(f"{field}track", track, ("paper", "adaptive"))
    settings = check_pairs(spec.pop("settings", config["settings"]), field)
    record, surrogate = spec.pop("record", config.get("record", [])), spec.pop("surrogate", None)
    check(f"{field}record", record, isinstance(record, list), "give a list of steps, as [10]")
    made_on = check_pairs([surrogate], f"{field}surrogate: ")[0] if surrogate else None
    sizes = spec.pop("eps", config["eps"])
    check(f"{field}eps", sizes, sizes != [], "give at least one")
    for setting, eps in product(settings, sizes if isinstance(sizes, list) else [sizes]):
        size = {} if eps is None else {"eps": eps}
        yield Job(name, track, setting, eps, spec | size, list(record), made_on or setting)


def check_pairs(settings, where: str = "") -> list[tuple[int, int]]:
    """A list of (S, t); raises InputError for anything else."""
    pairs = isinstance(settings, Sequence) and not isinstance(settings, str) and len(settings)
    if not pairs or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in settings):
        raise InputError(f"{where}settings is {settings}: give a list of [S, t], as [[8, 500]]")
    for paths, t in settings:
        check_number(f"{where}settings: S", paths, 1)
        check_number(f"{where}settings: t", t)
    return list(dict.fromkeys((paths, t) for paths, t in settings))


def build_attack(job: Job, model: nn.Module, seed: int, build: Callable) -> Attack:
    """The job's attack; ``build`` makes it of its spec. seed: where the job itself gives none."""
    field, spec = f"attack.jobs '{job.name}': ", {"seed": seed} | job.spec
    check(f"{field}_target_", None, "_target_" in spec, "give one, as dual_denoising.attacks.PGD")
    attack = build(spec, model=model)
    ball = job.eps is not None or attack.norm == "none"
    check(f"{field}eps", job.eps, ball, "give one; only C&W knows no ball")
    good = all(1 <= step <= attack.stages for step in job.record)
    fix = f"it has {attack.stages} steps to record (C&W's are its searches; with restarts, none)"
    check(f"{field}record", job.record, good, fix)
    return attack
