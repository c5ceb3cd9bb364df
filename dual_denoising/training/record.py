"""What a saved model says of itself: ``training.json``, beside its weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import dual_denoising
from dual_denoising.clip.features import Text
from dual_denoising.data import ASSETS
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.storage import fingerprint, write_text
from dual_denoising.errors import InputError

ROOT = "${data_root}"  # stands for the folder of all data in a record's paths
OLD_TEXTS = {  # teachers of models whose record does not say where text features are
    "ViT-B-32/openai": {
        "_target_": "dual_denoising.clip.features.TextBank",
        "path": "data/clip_text/clip_vitb32_openai_text.h5",
    },
    "micro_clip": {
        "_target_": "dual_denoising.clip.towers.OpenClipText",
        "model": "local-dir:data/micro_clip",
        "prompts": "micro",
    },
}


@dataclass
class TrainingRecord:
    """What a model was trained on, and all that is needed to use it.

    dataset, split, class_names: of the training clouds, of ``num_points`` points each. teacher: of
    the targets. text: the settings ``teacher.text`` of a script, which give its text features;
    prompts: theirs. tests: the settings ``data.tests`` of its training; skip_missing: whether those
    that are not there are left out. results: short rows of its accuracies. calibration: see
    evaluation/calibration.py. weights: SHA-256 of model.safetensors. Fields with a default are
    missing in models of the first version. feature_noise: what of the answers ε₂ decides.
    """

    dataset: str
    split: str
    class_names: Sequence[str]
    num_points: int
    teacher: str
    text: dict | None = None
    prompts: Sequence[str] = field(default_factory=list)
    tests: Any = field(default_factory=list)
    skip_missing: bool = False
    frame: str = "y-up, mean-centred, largest radius 1"
    clouds: int = 0
    samples: int = 0
    seconds: float = 0.0
    seed: int = 0
    command: str = ""
    version: str = ""
    parameters: int = 0
    feature_noise: dict = field(default_factory=dict)
    results: list[dict] = field(default_factory=list)
    calibration: dict | None = None
    weights: str = ""

    @classmethod
    def of(
        cls, clouds: CloudDataset, text: Text, config: Mapping | None = None, **counts
    ) -> TrainingRecord:
        """The record of training on these clouds; config: the whole one of the script."""
        source, config = clouds.source, config or {}
        root = str(config.get("data_root", ""))
        data = config.get("data", {})
        return cls(
            source.name,
            source.split,
            list(source.class_names),
            clouds.num_points,
            text.teacher,
            text=_paths(config.get("teacher", {}).get("text"), lambda p: _abstract(p, root)),
            prompts=list(text.prompts),
            tests=_paths(data.get("tests", []), lambda p: _abstract(p, root)),
            skip_missing=bool(data.get("skip_missing")),
            frame="; ".join(filter(None, (cls.frame, data.get("facing")))),
            clouds=len(source),
            command=" ".join(["python", *sys.argv]),
            version=dual_denoising.__version__,
            **counts,
        )

    @classmethod
    def load(cls, folder: Path) -> TrainingRecord:
        """The record of a saved model. Raises InputError where the weights are not its own."""
        path = folder / "training.json"
        try:
            content = dict(json.loads(path.read_text()))
            known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
            record = cls(**known)
        except TypeError as error:
            raise InputError(f"{path}: {error}; give a run's folder 'model'") from error
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: missing; train the model first, or give a run's folder 'model'"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); give a run's folder 'model'"
            ) from error
        weights = folder / "model.safetensors"
        if record.weights and weights.exists() and fingerprint(weights) != record.weights:
            raise InputError(f"{weights}: not the weights that {path} describes; copy both again")
        return record

    def save(self, folder: Path) -> None:
        """Writes training.json."""
        write_text(folder / "training.json", json.dumps(asdict(self), indent=1) + "\n")

    def text_settings(self, data_root: str) -> Any:
        """Settings that give the text features; raises InputError where none are on record."""
        settings = self.text or OLD_TEXTS.get(self.teacher)
        settings = settings or OLD_TEXTS.get(self.teacher.partition("/")[0])
        if settings is None:
            raise InputError(f"teacher is not given: the model learned from {self.teacher}")
        return _paths(settings, lambda p: _concrete(p, data_root))

    def test_settings(self, data_root: str) -> Any:
        """Settings of the test sets of its training."""
        return _paths(self.tests, lambda p: _concrete(p, data_root))


def _paths(node: Any, change: Callable[[str], str]) -> Any:
    """Settings with every text in them changed."""
    if isinstance(node, Mapping):
        return {key: _paths(value, change) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_paths(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def _abstract(path: str, data_root: str) -> str:
    """A path below the folder of all data, wherever that is."""
    return f"{ROOT}{path[len(data_root) :]}" if path.startswith(f"{data_root}/") else path


def _concrete(path: str, data_root: str) -> str:
    """The path below this folder of all data, or the repository's where only that has the file."""
    if not path.startswith(f"{ROOT}/"):
        return path
    below = path[len(ROOT) + 1 :]
    here = Path(data_root, below)
    return str(here if here.exists() or not (ASSETS / below).exists() else Path("data", below))
