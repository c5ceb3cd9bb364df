import numpy as np
import pytest
import torch

from dual_denoising import metrics, report, zeroshot
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.errors import InputError
from dual_denoising.teacher import StandInBank
from dual_denoising.zeroshot import ZeroShotClassifier

CPU = torch.device("cpu")


@pytest.fixture
def source(modelnet_h5):
    return ModelNetH5(*modelnet_h5(), split="test", name="toy", up="y")


def test_logits_are_100_times_the_cosine(toy):
    weights = torch.nn.functional.normalize(torch.randn(4, 12), dim=-1)
    classify = ZeroShotClassifier(toy(), weights)
    features = torch.randn(3, 2, 12)
    cosine = torch.nn.functional.cosine_similarity(
        features[:, :, None], weights[None, None], dim=-1
    )
    torch.testing.assert_close(classify.logits(features), 100 * cosine.mean(1))
    image_only = ZeroShotClassifier(toy(), weights, type_weights=[1.0, 0.0])
    torch.testing.assert_close(image_only.logits(features), 100 * cosine[:, 0])


def test_forward_is_encode_then_logits(toy, wake, clouds):
    model = wake(toy()).eval()
    classify = ZeroShotClassifier(model, torch.eye(4, 12), num_noise=3, timestep=200, seed=5)
    indices = torch.tensor([9, 4, 1, 0, 7])
    features = model.encode(clouds, 3, 200, 5, indices)
    torch.testing.assert_close(classify(clouds, indices), classify.logits(features))


def test_type_weights_must_fit(toy):
    with pytest.raises(ValueError, match="3 type_weights for 2 feature types"):
        ZeroShotClassifier(toy(), torch.eye(4, 12), type_weights=[1.0, 1.0, 1.0])


class ByIndex(ZeroShotClassifier):
    """Answers from a table: which class each cloud of each seed is taken for."""

    def forward(self, clouds, indices=None):
        answers = (indices + (indices < self.seed)) % 3  # the first ``seed`` clouds are wrong
        return torch.nn.functional.one_hot(answers, 3).float()


def test_evaluation_counts_per_seed(toy, source):
    classify = ByIndex(toy(), torch.eye(3, 12), num_noise=2, timestep=7)
    result = zeroshot.evaluate(classify, CloudDataset(source, 20), [0, 3, 6], CPU, batch_size=5)
    expected = [1.0, 9 / 12, 6 / 12]
    assert result["top1_mean"] == pytest.approx(np.mean(expected))
    assert result["top1_sd"] == pytest.approx(np.std(expected, ddof=1))
    assert result["top5_mean"] == 1.0  # three classes: all are among the top five
    assert np.array(result["confusion"]).sum() == 36
    assert np.trace(result["confusion"]) == 12 + 9 + 6
    assert (result["dataset"], result["split"], result["n"]) == ("toy", "test", 12)


def test_predictions_do_not_depend_on_the_batch_size(toy, wake, source):
    model = wake(toy(feature_types=["text"]))
    test = CloudDataset(source, 30)
    (weights,) = zeroshot.Evaluation().prepare(model, StandInBank(12), [test])
    classify = ZeroShotClassifier(model, weights, 2, 500)
    tables = [
        zeroshot.evaluate(classify, test, [0, 1], CPU, size)["confusion"] for size in (1, 7, 12)
    ]
    assert tables[0] == tables[1] == tables[2]


def test_grid_covers_every_setting_and_says_what_was_seen(toy, source):
    training = {"dataset": "toy", "class_names": ["bed", "chair", "sofa"], "teacher": "x"}
    evaluation = zeroshot.Evaluation([1, 2], [0, 500], [0], batch_size=4)
    model, tests = toy(feature_types=["text"]), [CloudDataset(source, 20)]
    weights = evaluation.prepare(model, StandInBank(12), tests)
    results = evaluation.run(model, training, tests, weights, CPU)
    cells = [(r["num_noise"], r["timestep"]) for r in results]
    assert cells == [(1, 0), (1, 500), (2, 0), (2, 500)]
    assert results[0]["seen"] is True
    assert results[0]["note"] == "all names seen in training, same data set"


@pytest.mark.parametrize("fields", [{"num_noise": [0]}, {"timestep": []}, {"seeds": [-1]}])
def test_impossible_grids_are_named(fields):
    with pytest.raises(InputError, match=f"eval.{next(iter(fields))} is "):
        zeroshot.Evaluation(**fields)


def test_what_would_fail_after_training_fails_before(toy, source):
    model, bank = toy(), StandInBank(12)
    with pytest.raises(InputError, match="knows 0 to 999"):
        zeroshot.Evaluation(timestep=[1000]).prepare(model, bank, [CloudDataset(source, 20)])
    with pytest.raises(InputError, match="has 40 points"):
        zeroshot.Evaluation().prepare(model, bank, [CloudDataset(source, 64)])


def test_seen_names_are_counted(source):
    training = {"dataset": "shapenet55", "class_names": ["sofa", "car"]}
    seen, note = zeroshot.seen(training, source)
    assert not seen
    assert note == "1 of 3 names seen in training, data set not"
    assert (
        zeroshot.seen(training | {"class_names": ["car"]}, source)[1] == "no name seen in training"
    )


def test_another_teacher_is_refused():
    with pytest.raises(InputError, match=r"learned from ViT-B-32/openai, but .* stand-in"):
        zeroshot.check_teacher({"teacher": "ViT-B-32/openai"}, StandInBank(), "runs/x/model")


def test_topk_and_confusion():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 3, 2, 0]])
    labels = torch.tensor([1, 3, 0])
    assert metrics.topk_correct(logits, labels, 1).tolist() == [False, True, False]
    assert metrics.topk_correct(logits, labels, 2).tolist() == [True, True, False]
    assert metrics.topk_correct(logits, labels, 9).all()
    counts = metrics.confusion_matrix(labels, torch.tensor([0, 3, 2]), 4)
    assert (counts[1, 0], counts[3, 3], counts[0, 2], counts.sum()) == (1, 1, 1, 3)
    assert metrics.mean_sd([0.5]) == (0.5, 0.0)


def test_tables_name_split_n_settings_seeds_and_confusions():
    result = {
        "dataset": "toy", "split": "test", "n": 4, "num_noise": 8, "timestep": 500, "seeds": [0, 1],
        "top1_mean": 0.625, "top1_sd": 0.125, "top5_mean": 1.0, "seconds_per_cloud": 0.002,
        "note": "all names seen in training, same data set", "class_names": ["bed", "sofa"],
        "confusion": [[3, 1], [2, 2]],
    }  # fmt: skip
    row = report.accuracy_table([result]).splitlines()[2]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "toy test", "4", "8", "500", "2", "62.5 ± 12.5", "100.0", "2.0", result["note"],
    ]  # fmt: skip
    lines = report.class_table(result).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["bed", "75.0", "sofa 25"]
