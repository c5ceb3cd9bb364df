import csv
import json
import logging
import os

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.multiprocessing as mp

from dual_denoising.clip.features import StandInBank
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.sources import ArraySource
from dual_denoising.errors import InputError
from dual_denoising.evaluation import metrics
from dual_denoising.evaluation import orientation as frames
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.grid import Evaluation
from dual_denoising.reports import paper as tables
from dual_denoising.reports import tables as report
from dual_denoising.training import ranks as distributed

CPU = torch.device("cpu")
TRAINING = {"dataset": "toy", "class_names": ["bed", "chair", "sofa"], "teacher": "x"}


@pytest.fixture
def source(modelnet_h5):
    return ModelNetH5(*modelnet_h5(), split="test", name="toy", up="y")


class ByIndex(ZeroShotClassifier):
    """Answers from a table: the first ``seed`` clouds are taken for the next class."""

    def grid(self, clouds, indices, num_noise, timestep, seeds):
        seeds = torch.tensor(seeds)[:, None]
        answers = (indices + (indices < seeds)) % 3  # (R, B)
        logits = torch.nn.functional.one_hot(answers, 3).float()
        return logits.expand(len(timestep), len(num_noise), -1, -1, -1)


def results_of(evaluation, classifier, test):
    predictions = evaluation.predict(classifier, test, CPU)
    seconds = np.zeros((len(evaluation.settings), len(evaluation.num_noise)))
    return evaluation.results(predictions, test.source, seconds)


def test_accuracies_are_counted_per_seed(toy, source):
    run = Evaluation([2], [7], [0, 3, 6], batch_size=5)
    (result,) = results_of(run, ByIndex(toy(), torch.eye(3, 12)), CloudDataset(source, 20))
    expected = [1.0, 9 / 12, 6 / 12]
    assert result["top1_mean"] == pytest.approx(np.mean(expected))
    assert result["top1_sd"] == pytest.approx(np.std(expected, ddof=1))
    assert result["top3_mean"] == result["top5_mean"] == 1.0  # of three classes
    confusion = np.array(result["confusion"])
    assert (confusion.sum(), np.trace(confusion)) == (36, 12 + 9 + 6)
    assert result["class_mean"] == pytest.approx((np.diag(confusion) / 12).mean())
    assert (result["dataset"], result["split"], result["n"]) == ("toy", "test", 12)


def test_cells_stand_in_order_and_say_what_was_seen(toy, source):
    run = Evaluation([1, 2], [0, 500], [0], batch_size=4, ensembles=[{0: 1.0, 500: 3.0}])
    model, test = toy(feature_types=["text"]), CloudDataset(source, 20)
    run.check(model)
    results, _ = run.run(model, TRAINING, StandInBank(12), test, CPU)
    cells = [(r["num_noise"], r["timestep"]) for r in results]
    assert cells == [(1, 0), (1, 500), (1, [0, 500]), (2, 0), (2, 500), (2, [0, 500])]
    assert results[2]["timestep_weights"] == [1.0, 3.0]
    assert report.timestep_words(results[2]) == "0, 500 (1:3)"
    assert results[0]["seen"] is True
    assert results[0]["note"] == "all names seen in training, same data set"
    assert all(r["seconds_per_cloud"] > 0 for r in results)


def test_ensembles_are_weighted_means_of_logits(toy, wake, source):
    model, test = wake(toy(feature_types=["text"])).eval(), CloudDataset(source, 20)
    weights = torch.nn.functional.normalize(torch.randn(3, 12), dim=-1)
    run = Evaluation([2], [0], [0], batch_size=12, ensembles=[{0: 1.0, 900: 3.0}])
    predictions = run.predict(ZeroShotClassifier(model, weights), test, CPU)
    points = torch.stack([test[i]["points"] for i in range(12)])
    logits = [ZeroShotClassifier(model, weights, 2, t)(points) for t in (0, 900)]
    expected = (logits[0] + 3 * logits[1]).argmax(1)
    assert predictions.predicted[1, 0, 0].tolist() == expected.tolist()


def test_predictions_depend_on_neither_batch_size_nor_workers(toy, wake, source):
    model = wake(toy(feature_types=["text"]))
    classifier = ZeroShotClassifier(model, torch.nn.functional.normalize(torch.randn(3, 12))).eval()
    test = CloudDataset(source, 30)
    runs = [(1, 0), (7, 0), (64, 0), (5, 1)]
    found = [
        Evaluation([1, 3], [0, 500], [0, 1], size, workers=workers).predict(classifier, test, CPU)
        for size, workers in runs
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].predicted, other.predicted)
        np.testing.assert_array_equal(found[0].ranks, other.ranks)


def _rank_predicts(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "WORLD_SIZE": "2"}  # fmt: skip
    torch.set_num_threads(1)
    classifier, test = torch.load(folder / "job.pt", weights_only=False)
    with distributed.process_group(CPU):
        found = Evaluation([1, 3], [0, 500], [0, 1], 3).predict(classifier, test, CPU)
        np.savez(folder / f"{rank}.npz", predicted=found.predicted, ranks=found.ranks)


def test_two_ranks_predict_as_one(toy, wake, source, tmp_path, free_port):
    model = wake(toy(feature_types=["text"]))
    classifier = ZeroShotClassifier(model, torch.nn.functional.normalize(torch.randn(3, 12))).eval()
    test = CloudDataset(source, 30)
    torch.save((classifier, test), tmp_path / "job.pt")
    mp.spawn(_rank_predicts, (free_port, tmp_path), nprocs=2)
    alone = Evaluation([1, 3], [0, 500], [0, 1], 64).predict(classifier, test, CPU)
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_array_equal(found["predicted"], alone.predicted)
        np.testing.assert_array_equal(found["ranks"], alone.ranks)


def _rank_meets_a_bad_cloud(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "WORLD_SIZE": "2"}  # fmt: skip
    torch.set_num_threads(1)
    classifier, test = torch.load(folder / "job.pt", weights_only=False)
    good, bad = test, CloudDataset(test.source, 30)
    with distributed.process_group(CPU):
        bad.source.clouds[4] = 7.0  # of rank 1's first batch
        run = Evaluation([1], [0], [0], 3)
        with pytest.raises(InputError, match="cloud '4': 40 points, all equal"):
            run.predict(classifier, bad, CPU)
        good.source.clouds[4] = np.random.default_rng(0).normal(size=(40, 3))
        found = run.predict(classifier, good, CPU)
        np.save(folder / f"{rank}.npy", found.ranks)


def test_a_bad_cloud_of_one_rank_ends_the_set_on_all(toy, source, tmp_path, free_port):
    classifier = ZeroShotClassifier(toy(feature_types=["text"]), torch.eye(3, 12)).eval()
    test = CloudDataset(source, 30)
    torch.save((classifier, test), tmp_path / "job.pt")
    mp.spawn(_rank_meets_a_bad_cloud, (free_port, tmp_path), nprocs=2)
    assert np.array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))


class Broken(ZeroShotClassifier):
    def grid(self, clouds, indices, num_noise, timestep, seeds):
        logits = torch.zeros(len(timestep), len(num_noise), len(seeds), len(clouds), 3)
        logits[..., indices == 2, 1] = torch.nan
        return logits


def test_constant_and_broken_logits_earn_nothing(toy, source, caplog):
    test = CloudDataset(source, 20)
    run = Evaluation([1], [0], [0], 12)
    predictions = run.predict(Broken(toy(), torch.eye(3, 12)), test, CPU)
    assert (predictions.ranks == 0).sum() == 4  # class 0 alone: four of twelve clouds
    assert predictions.predicted[..., 2] == -1
    assert predictions.ranks[..., 2] == 3
    assert "logits of 1 clouds are not finite; counted as wrong" in caplog.text
    (result,) = run.results(predictions, source, np.zeros((1, 1)))
    assert np.array(result["confusion"]).sum() == 11


class BrokenAt500(ZeroShotClassifier):
    def grid(self, clouds, indices, num_noise, timestep, seeds):
        logits = torch.eye(3)[indices % 3].expand(len(timestep), 1, 1, -1, -1).clone()
        logits[list(timestep).index(500)] = torch.nan
        return logits


def test_what_is_broken_at_one_timestep_is_not_at_another(toy, source):
    run = Evaluation([1], [0, 500], [0], 12, ensembles=[{0: 1, 500: 1}])
    found = run.predict(BrokenAt500(toy(), torch.eye(3, 12)), CloudDataset(source, 20), CPU)
    assert (found.predicted >= 0).all(-1).squeeze().tolist() == [True, False, False]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_noise": [0]},
        {"timestep": []},
        {"seeds": [-1]},
        {"seeds": [0, 0]},
        {"timestep": [True]},
        {"num_noise": "8"},
    ],
)
def test_impossible_grids_are_named(fields):
    with pytest.raises(InputError, match=f"eval.{next(iter(fields))} is "):
        Evaluation(**fields)


@pytest.mark.parametrize(
    "mixture",
    [{}, {0: 0.0}, {0: 1.0, -5: 1.0}, {0: 2.0, 1: -1.0}, {0: "a"}, [0, 500], {0: float("nan")}],
)
def test_impossible_ensembles_are_named(mixture):
    with pytest.raises(InputError, match=r"eval\.ensembles has"):
        Evaluation(ensembles=[mixture])


def test_one_number_is_a_list_of_one():
    run = Evaluation(8, 500, 0)
    assert (run.num_noise, run.timestep, run.seeds) == ([8], [500], [0])


def test_what_the_model_cannot_do_is_named_before_the_evaluation(toy):
    with pytest.raises(InputError, match=r"eval\.timestep is 1000: the model knows 0 to 999"):
        Evaluation(ensembles=[{0: 1.0, 1000: 1.0}]).check(toy())
    with pytest.raises(InputError, match="type_weights"):
        Evaluation(type_weights=[1.0, 1.0, 1.0]).check(toy())


def test_label_ranks_against_sorting():
    logits = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    ranks, first = metrics.label_ranks(logits, labels)
    own = logits.gather(-1, labels.expand(2, -1)[..., None])
    torch.testing.assert_close(ranks, (logits > own).sum(-1))
    torch.testing.assert_close(first, logits.argmax(-1))
    ties, _ = metrics.label_ranks(torch.zeros(3, 4), torch.tensor([0, 2, 3]))
    assert ties.tolist() == [0, 2, 3]


def test_confusion_counts_rows_of_true_classes():
    counts = metrics.confusion_matrix(np.array([1, 3, 0, 0]), np.array([0, 3, 2, -1]), 4)
    assert (counts[1, 0], counts[3, 3], counts[0, 2], counts.sum()) == (1, 1, 1, 3)
    assert metrics.mean_sd([0.5]) == (0.5, 0.0)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (620, 908)])
def test_wilson_interval_is_scipys(hits, n):
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert metrics.wilson_interval(hits / n, n) == pytest.approx(tuple(expected), abs=1e-6)


class Upright(ZeroShotClassifier):
    """Knows a cloud by the axis along which it is longest: a stick along y is class 0, else 1."""

    def grid(self, clouds, indices, num_noise, timestep, seeds):
        along_y = clouds.abs().mean(1).argmax(-1) == 1
        logits = torch.stack([along_y, ~along_y], -1).float()
        return logits.expand(len(timestep), len(num_noise), len(seeds), -1, -1)


def sticks(up, axis, n=40):
    """Sticks along an axis, all of class 0, in a source that says ``up``."""
    points = np.random.default_rng(0).normal(size=(n, 30, 3)) * 0.1
    points[..., axis] *= 20
    labels, ids = np.zeros(n, int), [str(i) for i in range(n)]
    return ArraySource("sticks", "test", up, ["stick", "plate"], points, labels, ids, "here")


@pytest.mark.parametrize(("said", "true_axis"), [("y", 2), ("z", 1)])
def test_a_wrong_frame_raises_the_warning_and_names_the_right_one(toy, caplog, said, true_axis):
    test = CloudDataset(sticks(said, true_axis), 30)
    classifier = Upright(toy(), torch.eye(2, 12))
    message = frames.warn(classifier, test, 0.0, CPU)
    other = {"y": "z", "z": "y"}[said]
    assert message.startswith("WRONG FRAME? sticks test: accuracy is 0.0%")
    assert f"0% are right as read, with up={said}, and 100% with up={other}" in message
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_right_frame_raises_none(toy):
    classifier, test = Upright(toy(), torch.eye(2, 12)), CloudDataset(sticks("z", 2), 30)
    assert frames.probe(classifier, test, CPU) == (1.0, 0.0)
    assert "NEAR CHANCE" in frames.warn(classifier, test, 0.49, CPU)  # of two classes
    assert frames.warn(classifier, test, 0.5, CPU) is None


def result(dataset="toy", paths=8, step=500, top1=0.625, **fields):
    low, high = metrics.wilson_interval(top1, 4)
    return {
        "dataset": dataset, "split": "test", "n": 4, "num_noise": paths, "timestep": step,
        "timestep_weights": None, "seeds": [0, 1], "top1_mean": top1, "top1_sd": 0.125,
        "top1_interval": [low, high], "top3_mean": 1.0, "top5_mean": 1.0, "class_mean": 0.625,
        "seconds_per_cloud": 0.002, "seen": False, "warning": None, "note": "no name seen",
        "class_weights": "1 prompt of tiny",
        "class_names": ["bed", "sofa"], "confusion": [[3, 1], [2, 2]],
    } | fields  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_name_split_n_settings_seeds_intervals_and_confusions():
    row = cells(report.accuracy_table([result()]).splitlines()[2])
    assert row == ["toy test", "4", "8", "500", "2", "62.5 ± 12.5", "21.9 to 90.8", "100.0",
                   "100.0", "62.5", "2.0", "no name seen"]  # fmt: skip
    lines = report.class_table(result()).splitlines()
    assert cells(lines[2]) == ["bed", "75.0", "sofa 25"]


def test_table1_sets_the_paper_beside_ours_and_says_what_is_absent(tmp_path):
    results = [
        result("modelnet40", step=500, top1=0.60),
        result("modelnet40", step=100, top1=0.70),
        result("modelnet40", paths=1, step=0, top1=0.99),  # the table is of S = 8
        result("modelnet10", step=500, top1=0.90, seen=True),
    ]
    tables.write_table1(tmp_path, results, {"scanobjectnn_obj_bg": "x.h5: missing"})
    lines = (tmp_path / "table1.md").read_text().splitlines()
    assert cells(lines[0])[1:4] == ["ModelNet10", "ModelNet40", "S-OBJ_ONLY"]
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert rows[7] == ["paper: Ours", "79.5", "69.0", "52.7", "48.7", "39.8"]
    assert rows[8][:4] == ["here: (8, 500)", "90.0 ± 12.5, seen", "60.0 ± 12.5", "absent"]
    assert rows[9][:3] == ["minus paper's Ours", "(seen)", "-9.0"]
    assert rows[10][2] == "70.0 ± 12.5 at 100"
    assert rows[11][2] == "+1.0"
    assert "scanobjectnn_obj_bg: absent: x.h5: missing" in lines
    table = pd.read_csv(tmp_path / "table1.csv").set_index(["dataset", "choice"])
    assert table.loc[("modelnet40", "(8, 500)"), "difference"] == pytest.approx(-9.0)
    assert np.isnan(table.loc[("modelnet10", "(8, 500)"), "difference"])


def test_table5_writes_differences_and_a_heat_map(tmp_path):
    results = [result("modelnet40", s, t, 0.5) for s in (1, 8) for t in (0, 500)]
    tables.TABLES["table5"](tmp_path, results, {"scanobjectnn_obj_only": "gone"})
    rows = list(csv.DictReader((tmp_path / "table5.csv").open()))[:4]
    found = {(int(r["num_noise"]), int(r["timestep"])): float(r["difference"]) for r in rows}
    assert found == pytest.approx({(1, 0): -7.7, (1, 500): -10.1, (8, 0): -16.5, (8, 500): -18.9})
    assert (tmp_path / "pictures" / "table5_modelnet40_test.png").stat().st_size > 5000
    text = (tmp_path / "table5.md").read_text()
    assert "| scanobjectnn_obj_only | absent: gone |" in text
    assert "| S = 8        | 66.5 |  68.9 |" in text


def test_what_was_not_run_or_was_seen_is_not_compared(tmp_path):
    only = [result("modelnet40", paths=4, step=500), result("modelnet10", step=100)]
    tables.write_table1(tmp_path, only, {})
    lines = (tmp_path / "table1.md").read_text().splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert rows[8][:4] == ["here: (8, 500)", "not run", "not run", "absent"]
    known = [result("modelnet40", s, 0, 0.5, seen=True) for s in (1, 8)]
    tables.write_table5(tmp_path, known, {})
    assert "difference" not in (tmp_path / "table5.md").read_text()
    table = pd.read_csv(tmp_path / "table5.csv")
    assert table["difference"].isna().all()
    assert table["seen"].all()
    tables.write_table5(tmp_path, [result("modelnet40", 8, 500, 0.5)], {"x": "gone"})
    table = pd.read_csv(tmp_path / "table5.csv")
    assert table["difference"].tolist()[0] == pytest.approx(-18.9)
    assert table.loc[1, ["dataset", "n", "note"]].tolist() == ["x", 0, "gone"]


def test_predictions_are_saved_per_cloud(tmp_path, source):
    results = [result("toy", s, t) for s in (1, 8) for t in (0, 500)]
    predicted = np.random.default_rng(0).integers(-1, 3, (2, 2, 2, 12))
    report.write_predictions(tmp_path, source, results, predicted)
    table = pd.read_csv(tmp_path / "predictions" / "toy_test.csv", keep_default_na=False)
    names = np.array(["bed", "chair", "sofa", ""])
    assert table["label"].tolist() == names[source.labels].tolist()
    assert table["S8_t0_seed1"].tolist() == names[predicted[0, 1, 1]].tolist()
    assert table["S1_t500_seed0"].tolist() == names[predicted[1, 0, 0]].tolist()
    assert list(table.columns[:3]) == ["index", "id", "label"]


def test_the_papers_numbers_are_kept_whole():
    paper = tables.paper_results()
    assert paper["table1_zero_shot"]["Ours"] == [79.5, 69.0, 52.7, 48.7, 39.8]
    grid = tables.paper_grid("modelnet40")
    assert (len(grid), grid[1, 0], grid[16, 900]) == (50, 57.7, 68.9)
    assert json.dumps(paper).count("arXiv 2407.00905")


def test_every_system_has_a_row_of_its_own_in_table1(tmp_path):
    recon = {"system": "ReCon", "label": "ReCon", "weights": "a", "comparable": True}
    noisy = {"label": "ReCon, noise s = 0.08", "noise_scale": 0.08, "comparable": False}
    results = [
        result("modelnet40", 1, 0, 0.60, **recon),
        result("modelnet40", 1, 0, 0.90, **recon | {"weights": "b", "comparable": False}),
        result("modelnet40", 8, 500, 0.50, **recon | noisy),
    ]
    tables.write_table1(tmp_path, results, {})
    rows = [
        cells(line) for line in (tmp_path / "table1.md").read_text().splitlines() if "|" in line
    ]
    found = {tuple(row[:1] + row[2:3]) for row in rows[8:]}
    assert found == {
        ("here: ReCon, without noise", "60.0 ± 12.5"), ("minus paper's ReCon", "-1.7"),
        ("here: ReCon, without noise", "90.0 ± 12.5 (!)"),
        ("minus paper's ReCon", "(not comparable)"),
        ("here: ReCon, noise s = 0.08, (8, 500)", "50.0 ± 12.5 (!)"),
        ("here: ReCon, noise s = 0.08, best t per test set", "50.0 ± 12.5 at 500 (!)"),
    }  # fmt: skip


def test_table2_has_a_column_for_every_system_and_its_weights(tmp_path):
    def attacked(robust, **fields):
        return {
            "track": "paper", "last": True, "attack": "PGD", "eps": 0.05, "steps": 50, "n": 4,
            "num_noise": 1, "timestep": 0, "dataset": "modelnet40", "split": "test",
            "clean_mean": 0.9, "robust_mean": robust, "robust_sd": 0.0, "system": "ReCon",
            "label": "ReCon", "weights": "a", "num_points": 1024, "comparable": True, "note": "",
        } | fields  # fmt: skip

    ours = {"system": tables.OURS, "label": tables.OURS, "num_noise": 8, "timestep": 500}
    results = [attacked(0.1), attacked(0.2, weights="b", comparable=False), attacked(0.3, **ours)]
    tables.write_table2(tmp_path, results, {"uni3d": "x.pt: no such checkpoint"})
    lines = (tmp_path / "table2.md").read_text().splitlines()
    assert cells(lines[0]) == ["here", "ReCon", "ReCon #2", "Ours(N=8,t=500)"]
    assert cells(lines[3]) == ["PGD@0.05", "10.0 ± 0.0", "20.0 ± 0.0 (!)", "30.0 ± 0.0"]
    assert "uni3d: absent: x.pt: no such checkpoint" in lines
