"""What is attacked how: a configuration's attacks, each at one ε against one (S, t)."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from dual_denoising.attacks.base import Attack
from dual_denoising.errors import InputError, check_choice, check_number

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
        return {
            "attack": self.name,
            "setting": list(self.made_on),
            "spec": self.spec,
            "record": self.record,
        }

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


def plan(config: Mapping) -> Iterator[Job]:
    """Every attack × ε × (S, t) of an attack configuration.

    An attack's own eps, settings and record win over the configuration's.
    """
    missing = [key for key in ("settings", "eps", "jobs") if key not in config]
    if missing or not config["jobs"]:
        raise InputError(f"attack has no {(missing or ['jobs'])[0]}; see configs/attack/quick.yaml")
    own = {
        name: check_pairs(spec.get("settings", config["settings"]), f"attack.jobs '{name}': ")
        for name, spec in config["jobs"].items()
    }
    for setting in dict.fromkeys(setting for settings in own.values() for setting in settings):
        for name, spec in config["jobs"].items():
            if setting in own[name]:
                yield from _jobs(name, spec, setting, config)


def _jobs(name: str, spec: Mapping, setting: tuple[int, int], config: Mapping) -> Iterator[Job]:
    spec = {key: value for key, value in spec.items() if key != "settings"}
    track = spec.pop("track", None)
    check_choice(f"attack.jobs '{name}': track", track, ("paper", "adaptive"))
    record = spec.pop("record", config.get("record", []))
    made_on = tuple(spec.pop("surrogate", setting))
    sizes = spec.pop("eps", config["eps"])
    if sizes == []:
        raise InputError(f"attack.jobs '{name}': eps is []; give at least one")
    for eps in sizes if isinstance(sizes, list) else [sizes]:
        size = {} if eps is None else {"eps": eps}
        yield Job(name, track, setting, eps, spec | size, list(record), made_on)


def supported_attacks(config: Mapping, keeps_tokens: bool, has_noise: bool) -> dict:
    """The attacks of a configuration that work on a model which offers less than ours.

    Without noise all are at (1, 0), and those made on another (S, t) are left out; without tokens
    that can be kept so are those that keep them.
    """
    jobs = {}
    for name, spec in (config.get("jobs") or {}).items():
        frozen = spec.get("grouping") == "frozen" and not keeps_tokens
        if frozen or (spec.get("surrogate") and not has_noise):
            log.warning("attack '%s' is left out: it needs what only our own model offers", name)
            continue
        jobs[name] = {k: v for k, v in spec.items() if has_noise or k != "settings"}
    return dict(config) | {"jobs": jobs} | ({} if has_noise else {"settings": [[1, 0]]})


def check_pairs(settings, where: str = "") -> list[tuple[int, int]]:
    """A list of (S, t); raises InputError for anything else."""
    pairs = isinstance(settings, Sequence) and not isinstance(settings, str) and len(settings)
    if not pairs or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in settings):
        raise InputError(f"{where}settings is {settings}: give a list of [S, t], as [[8, 500]]")
    for paths, t in settings:
        check_number(f"{where}settings: S", paths, 1)
        check_number(f"{where}settings: t", t)
    return [(paths, t) for paths, t in settings]


def build_attack(job: Job, model: nn.Module, seed: int, build: Callable) -> Attack:
    """The job's attack; ``build`` makes it of its spec. seed: where the job itself gives none."""
    if "_target_" not in job.spec:
        raise InputError(
            f"attack.jobs '{job.name}': no _target_; dual_denoising.attacks.PGD is one"
        )
    attack = build({"seed": seed} | job.spec, model=model)
    if job.eps is None and attack.norm != "none":
        raise InputError(f"attack.jobs '{job.name}': eps is null; only C&W knows no ball")
    wrong = [step for step in job.record if not 1 <= step <= attack.stages]
    if wrong:
        raise InputError(
            f"attack.jobs '{job.name}': record is {job.record}, but it has {attack.stages} steps "
            "to record (C&W's are its searches; with restarts there are none)"
        )
    return attack
