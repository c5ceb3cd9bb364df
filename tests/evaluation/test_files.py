import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh

from dual_denoising.clip.features import StandInBank
from dual_denoising.evaluation import files as classify
from dual_denoising.evaluation import systems
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.training.record import TrainingRecord
from tests.conftest import assert_refuses


@pytest.fixture
def classifier(toy, wake):
    return ZeroShotClassifier(wake(toy(feature_types=["text"])).eval(), torch.eye(3, 12), 2, 500)


def name(classifier, files, labels=("a", "b", "c"), asked=(), **fields):
    """What the files are named, by a model whose record has these fields."""
    record = TrainingRecord("toy", "train", ["a", "b"], 64, "x", **fields)
    system = systems.System(classifier.model, StandInBank(12), record, "here")
    return classify.classify(classifier, files, labels, system, "y", asked)


def save(folder, count=1):
    """Files of random clouds."""
    files = [folder / f"{number}.npy" for number in range(count)]
    for seed, path in enumerate(files):
        np.save(path, np.random.default_rng(seed).normal(size=(90, 3)))
    return files


def test_labels_are_a_list_or_a_file(tmp_path):
    def read(labels):
        return classify.read_labels(labels, StandInBank(), ["bed"])

    assert read(" chair, table ,lamp") == ["chair", "table", "lamp"]
    (tmp_path / "names.txt").write_text("night stand\nbed\n")
    assert read(str(tmp_path / "names.txt")) == ["night stand", "bed"]
    (tmp_path / "line.txt").write_text("\ufeffnight stand, bed\n", encoding="utf-8")
    assert read(str(tmp_path / "line.txt")) == ["night stand", "bed"]
    assert len(read(",".join(f"name{i}" for i in range(200)))) == 200
    assert_refuses(r"gone\.txt", read, "gone.txt")
    for labels in ("", ",", "bed,bed", "night_stand,Night stand"):
        assert_refuses("labels", read, labels)
    assert read("all") == ["bed"]  # of a teacher of any words, those that were taught


def test_folders_are_searched_and_files_kept_in_order(tmp_path, caplog):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.PLY", "a.xyz", "notes.md", "deep/er/c.glb"):
        (tmp_path / name).write_text("")
    found = classify.find_files([tmp_path / "deep" / "er" / "c.glb", tmp_path])
    assert [p.name for p in found] == ["c.glb", "a.xyz", "b.PLY"]
    assert "1 files, the first is notes.md" in caplog.text
    (tmp_path / "none").mkdir()
    assert_refuses(r"\.ply", classify.find_files, [tmp_path / "none"])


def test_a_file_becomes_what_the_model_was_trained_on(tmp_path):
    million = np.random.default_rng(0).uniform(-1, 1, (1_000_000, 3)) * [1, 2, 30] + [5e5, 0, 7]
    np.save(tmp_path / "scan.npy", million)
    points = classify.prepare(tmp_path / "scan.npy", 512, "z", seed=0)
    assert points.shape == (512, 3)
    assert points.dtype == np.float32
    assert np.ptp(points, axis=0).argmax() == 1  # its height, z, points up
    assert np.isclose(np.linalg.norm(points, axis=1).max(), 1)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)
    np.savetxt(tmp_path / "few.xyz", million[:5])
    assert len(np.unique(classify.prepare(tmp_path / "few.xyz", 512, "y", 0), axis=0)) == 5


def test_an_interruption_keeps_what_is_done(tmp_path, classifier, monkeypatch):
    files, read = save(tmp_path, 3), classify.read_cloud

    def interrupted(path, *rest):
        if path == files[1]:
            raise KeyboardInterrupt
        return read(path, *rest)

    monkeypatch.setattr(classify, "read_cloud", interrupted)
    outcome = name(classifier, files)
    assert [named.file for named in outcome.named] == [str(files[0])]
    assert list(outcome.failed) == ["interrupted"]


def test_answers_do_not_depend_on_the_other_files(tmp_path, classifier):
    files = save(tmp_path, 3)
    files[1].write_bytes(b"broken")
    both, alone = name(classifier, files), name(classifier, files[2:])
    assert list(both.failed) == [str(files[1])]
    assert both.named[1].probabilities == alone.named[0].probabilities
    shares = list(both.named[0].probabilities.values())
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_none_of_these_is_the_answer_below_the_threshold(tmp_path, classifier):
    save(tmp_path)
    np.savetxt(tmp_path / "two.xyz", np.random.default_rng(1).normal(size=(3, 3)))
    (tmp_path / "licence.txt").write_text("CC0, do what you like")
    files, labels, answers = sorted(tmp_path.iterdir()), ["a", "b", "zebra"], []
    for threshold in (-1000.0, 1000.0):
        calibration = {"temperature": 7.0, "score": "max_logit", "threshold": threshold}
        outcome = name(classifier, files, labels, calibration=calibration | {"validation": {}})
        assert not outcome.failed
        answers.append([named.answer for named in outcome.named])
    assert answers[1] == [classify.NONE] * 2
    assert classify.NONE not in answers[0]
    notes = " ".join(outcome.notes)
    for word in ("licence.txt", "3 points", "1000.00", "--up", "zebra"):
        assert word in notes
    with torch.no_grad():
        logits = classifier(torch.from_numpy(outcome.named[0].points)[None])[0]
    expected = (logits / 7).softmax(-1).max()
    assert max(outcome.named[0].probabilities.values()) == pytest.approx(float(expected))
    asked = name(classifier, files, labels, files)
    assert list(asked.failed) == [str(tmp_path / "licence.txt")]


@pytest.fixture
def line(trained):
    """The command, without the files to name."""
    own = f"--checkpoint {trained / 'model'} --text {trained / 'bank.h5'}"
    return f"classify --labels bed,chair,lamp {own} --num-noise 2 --name out"


def test_the_command_writes_table_json_and_pictures_and_reports_bad_files(trained, line, call):
    run = trained / "runs" / "out"
    kept = run / "pictures" / "mine.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("a user's own")
    (trained / "in" / "b").mkdir(parents=True)
    trimesh.creation.icosphere().export(trained / "in" / "kugel rund.stl")
    trimesh.creation.box().export(trained / "in" / "b" / "kugel rund.stl")
    trimesh.creation.box().export(trained / "in" / "$x_{$ 椅子.obj")
    (trained / "in" / "broken.ply").write_bytes(b"ply\nnonsense")
    call(line, trained / "in", status=1)
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["results"]) == 3
    result = summary["results"][2]
    assert result["file"].endswith("in/kugel rund.stl")
    assert set(result["probabilities"]) == {"bed", "chair", "lamp"}
    assert [path.rpartition("/")[2] for path in summary["failed"]] == ["broken.ply"]
    table = pd.read_csv(run / "classify.csv")
    assert table.loc[2, "chair"] == pytest.approx(result["probabilities"]["chair"])
    assert "b/kugel rund.stl" in (run / "classify.md").read_text()
    assert len(list((run / "pictures").glob("*.png"))) == 4  # and the sheet
    assert kept.exists()


def test_a_reader_that_leaves_early_costs_nothing(trained, line, call, monkeypatch):
    save(trained)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, pipe)
        call(line, "0.npy")
    assert (trained / "runs" / "out" / "summary.json").exists()


def test_bad_input_is_one_line(trained, line, call):
    save(trained)
    for wrong, words in (
        ("none.ply", "none.ply"),
        ("--labels bed,sofas", "--open-clip"),
        ("--text gone.h5", "gone.h5"),
        ("--checkpoint nowhere", "primitives_clip"),
        ("--weights clip.pt", "--weights"),
        ("--top 0", "--top"),
        ("--seed -1", "--seed"),
        ("--device cuda", "device"),
        ("--timestep 1000", "timestep is 1000"),
        ("--prompts recon60", "recon60"),
    ):
        assert words in call(f"{line} 0.npy {wrong}", status=1)[1]
