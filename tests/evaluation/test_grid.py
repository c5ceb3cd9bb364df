import numpy as np
import pytest
import torch

from dual_denoising.clip.features import StandInBank
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.grid import Evaluation
from dual_denoising.evaluation.systems import System
from dual_denoising.reports.tables import timestep_words
from dual_denoising.training.record import TrainingRecord
from tests.conftest import assert_refuses, each

NAMES = ["bed", "chair", "sofa"]


class ByIndex(ZeroShotClassifier):
    """Answers from a table: the first ``seed`` clouds are taken for the next class."""

    def grid(self, clouds, indices, num_noise, timestep, seeds):
        seeds = torch.tensor(seeds)[:, None]
        answers = (indices + (indices < seeds)) % 3  # (R, B)
        logits = torch.nn.functional.one_hot(answers, 3).float()
        return logits.expand(len(timestep), len(num_noise), -1, -1, -1)


TAUGHT = np.array([True, True, False])  # the first two of the three classes
OF = {"dataset": "toy", "split": "test"}


def test_accuracies_are_counted_per_seed(toy, source):
    run = Evaluation([2], [7], [0, 3, 6], batch_size=5)
    predictions = run.predict(ByIndex(toy(), torch.eye(3, 12)), CloudDataset(source, 20))
    (result,) = run.results(predictions, source, np.zeros((1, 1)), TAUGHT, **OF)
    expected = [1.0, 9 / 12, 6 / 12]
    assert result.top1_mean == pytest.approx(np.mean(expected))
    assert result.top1_sd == pytest.approx(np.std(expected, ddof=1))
    assert result.top3_mean == result.top5_mean == 1.0  # of three classes
    confusion = np.array(result.confusion)
    assert (confusion.sum(), np.trace(confusion)) == (36, 12 + 9 + 6)
    assert result.class_mean == pytest.approx((np.diag(confusion) / 12).mean())
    assert result.n == 12
    shares = np.diag(confusion) / 12  # of the three classes, 3 seeds × 4 clouds each
    assert (result.n_taught, result.top1_taught) == (8, pytest.approx(shares[:2].mean()))
    assert result.top1_untaught == pytest.approx(shares[2])


def test_a_penalty_keeps_taught_names_from_winning_and_a_centre_is_of_known_names(toy, source):
    model, test = toy(feature_types=["text"]), CloudDataset(source, 20)
    record = TrainingRecord("toy", "train", NAMES[:2], 20, "x")
    system = System(model, StandInBank(12), record, "here")
    (result,), predictions = Evaluation([1], [0], [0], taught_penalty=9).run(system, test)
    assert (predictions.predicted == NAMES.index("sofa")).all()  # the one that was not taught
    assert (result.top1_taught, result.top1_untaught) == (0, 1)
    assert "9" in result.class_weights
    record.taught_penalty = 9.0  # as training leaves it with a model: then it is everywhere
    (again,), _ = Evaluation([1], [0], [0]).run(system, test)
    assert (again.top1_taught, again.top1_untaught) == (0, 1)
    logits = system.classifier(NAMES, 1, 0)(test[0]["points"][None])
    plain = system.classifier(NAMES, 1, 0, taught_penalty=0)(test[0]["points"][None])
    torch.testing.assert_close(plain - logits, 900 * torch.tensor([[1.0, 1, 0]]))
    (other,), _ = Evaluation([1], [0], [0], taught_penalty=0).run(system, test)
    assert "9" not in other.class_weights
    center = system.classifier(NAMES, 1, 0, centre=True).center
    taught = StandInBank(12).class_weights(NAMES[:2])  # which has a feature for any words
    torch.testing.assert_close(center, taught.mean(0))
    bank = StandInBank(12)
    bank.names = ["lamp", "door", "cup"]  # of a bank it is that of all its names
    center = System(model, bank, record, "here").classifier(NAMES, 1, 0, centre=True).center
    torch.testing.assert_close(center, bank.class_weights(bank.names).mean(0))


def test_cells_stand_in_order_and_say_what_was_seen(toy, source):
    run = Evaluation([1, 2], [0, 500], [0], batch_size=4, ensembles=[{0: 1.0, 500: 3.0}])
    model, test = toy(feature_types=["text"]), CloudDataset(source, 20)
    run.check(model, StandInBank(12), [test])
    record = TrainingRecord("toy", "train", NAMES, 20, "x")
    results, _ = run.run(System(model, StandInBank(12), record, "here"), test)
    cells = [r.setting for r in results]
    assert cells == [(1, 0), (1, 500), (1, [0, 500]), (2, 0), (2, 500), (2, [0, 500])]
    assert results[2].timestep_weights == [1.0, 3.0]
    assert timestep_words(results[2].timestep, results[2].timestep_weights) == "0, 500 (1:3)"
    assert results[0].seen is True
    assert all(r.seconds_per_cloud > 0 for r in results)


def test_ensembles_are_weighted_means_of_logits(toy, wake, source):
    model, test = wake(toy(feature_types=["text"])).eval(), CloudDataset(source, 20)
    weights = torch.nn.functional.normalize(torch.randn(3, 12), dim=-1)
    run = Evaluation(2, 0, 0, batch_size=12, ensembles=[{0: 1.0, 900: 3.0}])
    predictions = run.predict(ZeroShotClassifier(model, weights), test)
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
        Evaluation([1, 3], [0, 500], [0, 1], size, workers=workers).predict(classifier, test)
        for size, workers in runs
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].predicted, other.predicted)
        np.testing.assert_array_equal(found[0].ranks, other.ranks)


def meets_a_bad_cloud(rank, classifier, test, folder):
    run, clouds = Evaluation([1], [0], [0], 3), test.source.clouds
    good = clouds[4].copy()
    clouds[4] = 7.0  # of rank 1's first batch
    assert_refuses("cloud '4'", run.predict, classifier, test)
    clouds[4] = good
    np.save(folder / f"{rank}.npy", run.predict(classifier, test).ranks)


def test_a_bad_cloud_of_one_rank_ends_the_set_on_all(toy, source, tmp_path, two_ranks):
    classifier = ZeroShotClassifier(toy(feature_types=["text"]), torch.eye(3, 12)).eval()
    two_ranks(meets_a_bad_cloud, classifier, CloudDataset(source, 30), tmp_path)
    assert np.array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))


class Broken(ZeroShotClassifier):
    """Its logits are zero, of the third cloud NaN; at t = 500 all are NaN."""

    def grid(self, clouds, indices, num_noise, timestep, seeds):
        logits = torch.zeros(len(timestep), len(num_noise), len(seeds), len(clouds), 3)
        logits[..., indices == 2, 1] = torch.nan
        logits[torch.tensor(timestep) == 500] = torch.nan
        return logits


def test_constant_and_broken_logits_earn_nothing(toy, source, caplog):
    test = CloudDataset(source, 20)
    run = Evaluation([1], [0], [0], 12)
    predictions = run.predict(Broken(toy(), torch.eye(3, 12)), test)
    assert (predictions.ranks == 0).sum() == 4  # class 0 alone: four of twelve clouds
    assert predictions.predicted[..., 2] == -1
    assert predictions.ranks[..., 2] == 3
    assert "1 clouds" in caplog.text
    (result,) = run.results(predictions, source, np.zeros((1, 1)), TAUGHT, **OF)
    assert np.array(result.confusion).sum() == 11
    several = Evaluation([1], [0, 500], [0], 12, ensembles=[{0: 1, 500: 1}])
    found = several.predict(Broken(toy(), torch.eye(3, 12)), test)
    assert (found.predicted >= 0).sum(-1).squeeze().tolist() == [11, 0, 0]


MIXTURES = [{}, {0: 0.0}, {0: 1.0, -5: 1.0}, {0: 2.0, 1: -1.0}, {0: "a"}, [0], {0: float("nan")}]


@pytest.mark.parametrize(
    "fields",
    each(num_noise=[[0], "8"], timestep=[[], [True]], seeds=[[-1], [0, 0]])
    + each(taught_penalty=[-1], csls=["maybe"], centre=["yes"], accepted=[1.5, -1])
    + each(ensembles=[[mixture] for mixture in MIXTURES]),
)
def test_impossible_grids_are_named(fields):
    assert_refuses(rf"eval\.{next(iter(fields))} (is|has) ", Evaluation, **fields)


def test_what_the_model_cannot_do_is_named_before_the_evaluation(toy):
    for field, fields in (
        ("timestep", {"ensembles": [{0: 1.0, 1000: 1.0}]}),
        ("type_weights", {"type_weights": [1.0, 1.0, 1.0]}),
    ):
        with pytest.raises(InputError, match=field):
            Evaluation(**fields).check(toy(), StandInBank(12))
