"""One row of any table: an accuracy, clean or under attack, and all that it depends on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

OURS = "Dual Denoising"  # among the systems of the paper's tables


@dataclass
class Common:
    """What was measured, of which system.

    system: its name in the paper's tables. label: that name with what sets this one apart.
    comparable: whether the paper's numbers of that system may stand beside it. seen: whether all
    class names occurred in training; note: the same in words, or how a baseline differs from the
    paper's.
    """

    dataset: str
    split: str
    n: int
    num_noise: int
    timestep: int | list[int]
    seeds: list[int]
    seconds_per_cloud: float
    system: str = OURS
    label: str = OURS
    model: str = ""
    num_points: int = 0
    noise_scale: float | None = None
    comparable: bool = True
    seen: bool = False
    note: str = ""


@dataclass
class Clean:
    """Accuracies, a 95% interval over clouds, counts of predictions per true class.

    *_taught, *_untaught: of the clouds whose name did, and did not, occur in training, scored among
    all names. From ece_uncalibrated on it is of a calibrated model: expected calibration errors,
    and how its score tells clouds whose name is offered from the same clouds when it is not.
    """

    top1_mean: float = 0.0
    top1_sd: float = 0.0
    top1_interval: Sequence[float] = (0.0, 1.0)
    top3_mean: float = 0.0
    top5_mean: float = 0.0
    class_mean: float = 0.0
    n_taught: int = 0
    top1_taught: float | None = None
    top1_untaught: float | None = None
    timestep_weights: list[float] | None = None
    type_weights: list[float] | None = None
    class_names: list[str] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    class_weights: str = ""
    warning: str | None = None
    ece_uncalibrated: float | None = None
    ece: float | None = None
    auroc: float | None = None
    fpr95: float | None = None
    false_accept: float | None = None
    false_reject: float | None = None


@dataclass
class Attacked:
    """last: False for a step on the way.

    faithful: whether it is the paper's attack in all that ε, steps, (S, t) and dataset do not say.
    """

    attack: str = ""
    track: str = ""
    kind: str = ""
    target: str = ""
    loss: str = ""
    norm: str = ""
    eps: float | None = None
    steps: int | None = None
    eot: int | None = None
    last: bool = True
    faithful: bool = False
    failed: int = 0
    flat: int = 0
    unsuccessful: int = 0
    clean_mean: float = 0.0
    robust_mean: float = 0.0
    robust_sd: float = 0.0
    robust_interval: Sequence[float] = (0.0, 1.0)
    linf_max: float = 0.0
    l2_mean: float = 0.0
    chamfer_mean: float = 0.0
    hausdorff_mean: float = 0.0


@dataclass
class Result(Attacked, Clean, Common):
    """Accuracies are shares of n clouds, means over noise seeds; ``*_sd`` is their spread.

    ``attack`` is '' for clean ones.
    """

    def record(self) -> dict[str, Any]:
        """The fields of this kind of result, for summary.json and CSV."""
        others = {field.name for field in fields(Clean if self.attack else Attacked)}
        return {name: value for name, value in asdict(self).items() if name not in others}

    def short(self) -> dict[str, Any]:
        """A row for a model's record: an accuracy without its confusions."""
        kept = self.record() | {"names": len(self.class_names)}
        for key in ("system", "label", "model", "comparable", "class_names", "confusion"):
            del kept[key]
        return kept

    @property
    def setting(self) -> tuple[int, Any]:
        """(S, t)."""
        return self.num_noise, self.timestep
