"""What a saved model says of itself: ``training.json``, beside its weights."""

import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

import dual_denoising
from dual_denoising.clip.features import Text
from dual_denoising.data import ASSETS
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.storage import fingerprint, write_text
from dual_denoising.errors import InputError, check, check_number, reading
from dual_denoising.model.interface import locate

CALIBRATION = {"temperature", "score", "threshold", "validation"}
ROOT = "${data_root}"  # stands for the folder of all data in a record's paths


@dataclass
class TrainingRecord:
    """What a model was trained on, and all that is needed to use it.

    A file may lack the fields that have a default.
    """

    dataset: str
    split: str
    class_names: list  # of the training clouds
    num_points: int  # of each training cloud
    teacher: str  # of the targets
    text: dict | None = None  # settings ``teacher.text`` of a script, which give its text features
    prompts: list = field(default_factory=list)  # of the text features
    tests: list | dict = field(default_factory=list)  # settings ``data.tests`` of its training
    skip_missing: bool = False  # whether tests that are not there are left out
    frame: str = "y-up, mean-centred, largest radius 1"
    clouds: int = 0
    samples: int = 0
    seconds: float | int = 0.0
    seed: int = 0
    command: str = ""
    version: str = ""
    parameters: int = 0
    feature_noise: dict = field(default_factory=dict)  # how much ε₂ decides
    centre: bool = False  # this and the next: how features are compared with names
    taught_penalty: float | int = 0.0  # (evaluation/grid.py)
    results: list = field(default_factory=list)  # short rows of its accuracies
    calibration: dict | None = None  # see evaluation/calibration.py
    weights: str = ""  # SHA-256 of model.safetensors
    references: str = ""  # SHA-256 of references.safetensors, see evaluation/hubness.py

    @classmethod
    def of(cls, clouds: CloudDataset, text: Text, config: Mapping, **counts) -> Self:
        """The record of training on these clouds; config: the whole one of the script."""
        source = clouds.source
        root = str(config.get("data_root", ""))
        data = config.get("data", {})
        return cls(
            source.name,
            source.split,
            list(source.class_names),
            clouds.num_points,
            text.teacher,
            text=portable(config.get("teacher", {}).get("text"), root),
            prompts=list(text.prompts),
            tests=portable(data.get("tests", []), root),
            skip_missing=bool(data.get("skip_missing")),
            frame="; ".join(filter(None, (cls.frame, data.get("facing")))),
            clouds=len(source),
            command=shlex.join(["python", *sys.argv]),
            version=dual_denoising.__version__,
            **counts,
        )

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """The record of a saved model. Raises InputError where the weights are not its own."""
        folder = locate(name)
        path = folder / "training.json"
        with reading(path, "record of a training", "give a run's folder 'model'"):
            content = dict(json.loads(path.read_text()))
            record = cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})
        fix = "not as training writes it"
        for key, kind in get_type_hints(cls).items():  # a record can come from anywhere
            if not isinstance(value := getattr(record, key), kind):
                raise InputError(f"{path}: {key} is {str(value)[:60]}: {fix}")
        check_number(f"{path}: num_points", record.num_points, 1)
        check_number(f"{path}: taught_penalty", record.taught_penalty, whole=False, most=2)
        words = [*record.class_names, *record.prompts]
        check(f"{path}: class_names", words, all(isinstance(word, str) for word in words), fix)
        sets = record.tests.values() if isinstance(record.tests, dict) else record.tests
        check(f"{path}: tests", record.tests, all(isinstance(t, dict | None) for t in sets), fix)
        if (known := record.calibration) is not None:
            scored = known.keys() == CALIBRATION and known["score"] in ("max_logit", "energy")
            check(f"{path}: calibration", known, scored, fix)
            for key, low in (("temperature", 0), ("threshold", -math.inf)):
                check_number(f"{path}: calibration.{key}", known[key], low, whole=False, above=True)
        weights = folder / "model.safetensors"
        if record.weights and weights.is_file() and fingerprint(weights) != record.weights:
            raise InputError(f"{weights}: not the weights that {path} describes; copy both again")
        return record

    def save(self, folder: Path) -> None:
        """Writes training.json."""
        write_text(folder / "training.json", json.dumps(asdict(self), indent=1) + "\n")

    def text_settings(self, data_root: str) -> Any:
        """Settings that give the text features; raises InputError where none are on record."""
        words = f"the model does not say where text features of {self.teacher} are"
        fix = f"{words}; teacher=open_clip, or another of configs/teacher"
        check("teacher", None, self.text is not None, fix)
        return located(self.text, data_root)


def portable(node: Any, data_root: str) -> Any:
    """Settings with ROOT in place of the folder of all data, for use on another machine."""
    here, anywhere = (json.dumps(f"{root}/")[:-1] for root in (data_root, ROOT))
    return json.loads(json.dumps(node).replace(here, anywhere))


def located(node: Any, data_root: str) -> Any:
    """The settings that ``portable`` gave, with this folder of all data in place of ROOT.

    A file that only the repository has is taken from there.
    """
    if isinstance(node, Mapping):
        return {key: located(value, data_root) for key, value in node.items()}
    if isinstance(node, list):
        return [located(value, data_root) for value in node]
    if not isinstance(node, str) or not node.startswith(f"{ROOT}/"):
        return node
    below = node[len(ROOT) + 1 :]
    here = Path(data_root, below)
    return str(here if here.exists() or not (ASSETS / below).exists() else Path("data", below))
