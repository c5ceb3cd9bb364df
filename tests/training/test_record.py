import json
from dataclasses import replace

import pytest

from dual_denoising import DualDenoising
from dual_denoising.clip.features import StandInBank
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.model import interface
from dual_denoising.training import checkpoint
from dual_denoising.training.record import TrainingRecord, located
from tests.conftest import assert_refuses, each


def test_paths_of_a_record_move_with_the_data(source, tmp_path):
    config = {
        "data_root": "/here",
        "teacher": {"text": {"_target_": "bank", "path": "/here/clip/bank.h5"}},
        "data": {"tests": [{"path": "/here/a.h5"}, {"path": "/hereabouts/b.h5"}]},
    }
    record = TrainingRecord.of(CloudDataset(source, 20), StandInBank(), config, samples=7, seed=3)
    record.save(tmp_path)
    again = TrainingRecord.load(tmp_path)
    assert again == record
    assert (again.samples, again.seed, again.clouds) == (7, 3, len(source))
    assert again.text_settings("/there") == {"_target_": "bank", "path": "/there/clip/bank.h5"}
    assert located(again.tests, "x") == [{"path": "x/a.h5"}, {"path": "/hereabouts/b.h5"}]
    assert "/here/" not in (tmp_path / "training.json").read_text()


def test_what_only_the_repository_has_is_found_there(source, tmp_path):
    bank = "clip_text/clip_vitb32_openai_text.h5"
    config = {"data_root": "data", "teacher": {"text": {"path": f"data/{bank}"}}}
    record = TrainingRecord.of(CloudDataset(source, 20), StandInBank(), config)
    assert record.text_settings(str(tmp_path)) == {"path": f"data/{bank}"}
    (tmp_path / "clip_text").mkdir()
    (tmp_path / bank).write_bytes(b"")
    assert record.text_settings(str(tmp_path)) == {"path": str(tmp_path / bank)}


def test_a_record_that_lacks_text_features_or_a_teacher_says_so(tmp_path):
    old = {"dataset": "a", "split": "train", "class_names": ["bed"], "num_points": 64}
    (tmp_path / "training.json").write_text(json.dumps(old | {"teacher": "SigLIP/webli"}))
    assert_refuses(r"teacher.*SigLIP/webli", TrainingRecord.load(tmp_path).text_settings, "data")
    (tmp_path / "training.json").write_text(json.dumps(old))
    assert_refuses(r"training\.json.*teacher", TrainingRecord.load, tmp_path)


NO_SCALE = {"temperature": 0.0, "score": "energy", "threshold": 1.0, "validation": {}}


@pytest.mark.parametrize(
    "fields",
    each(num_points=["many", 0], class_names=[5, [1]], text=["hello"], tests=["hello", [5], None])
    + each(taught_penalty=[float("nan"), -5.0])
    + each(calibration=["hi", {"temperature": 1}, NO_SCALE], references=[5]),
)
def test_a_field_that_is_of_no_use_is_named(record, tmp_path, fields):
    record.save(tmp_path)
    path = tmp_path / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert_refuses(rf"training\.json: {next(iter(fields))}", TrainingRecord.load, tmp_path)


def test_weights_that_are_not_the_records_are_refused(trained):
    assert TrainingRecord.load(trained / "model").weights
    with (trained / "model" / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert_refuses(r"model\.safetensors", TrainingRecord.load, trained / "model")


def test_models_are_found_by_folder_name_and_hub_id(toy, record, tmp_path, monkeypatch):
    model = toy(feature_types=["text"])
    checkpoint.save_model(model, tmp_path / "folder", record)
    checkpoint.save_model(model, tmp_path / "shipped" / "small", replace(record, dataset="b"))
    monkeypatch.setattr(interface, "SHIPPED", tmp_path / "shipped")
    asked = []

    def download(name, **_):
        asked.append(name)
        if name != "user/model":
            raise OSError("404")
        return str(tmp_path / "folder")

    monkeypatch.setattr(interface, "snapshot_download", download)
    for name in (str(tmp_path / "folder"), "small", "user/model"):
        assert DualDenoising.from_pretrained(name).feature_types == ("text",)
    for name in ("smal", "nobody/nothing", "runs/gone/model"):
        assert_refuses(rf"{name}.*small", DualDenoising.from_pretrained, name)
    assert asked == ["user/model", "nobody/nothing"]
