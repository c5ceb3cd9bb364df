import numpy as np
import pytest
import torch

from dual_denoising.evaluation import calibration


def drawn(scale, n=4000, classes=5):
    """Logits whose softmax is the truth, multiplied by ``scale``, and labels drawn from it."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
def test_the_temperature_undoes_a_scale_of_the_logits(scale):
    logits, labels = drawn(scale)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(scale, rel=0.05)


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy():
    right = np.array([1, 1, 1, 0])
    assert calibration.calibration_error(np.full(4, 0.75), right) == pytest.approx(0)
    assert calibration.calibration_error(np.full(4, 1.0), right) == pytest.approx(0.25)
    halves = np.array([0.2, 0.2, 0.9, 0.9])  # (|0.4 − 1| + |1.8 − 1|) / 4
    assert calibration.calibration_error(halves, np.array([1, 0, 1, 0])) == pytest.approx(0.35)


def test_scores_are_compared_by_pairs():
    known, unknown = np.array([1.0, 3.0, 2.0]), np.array([0.0, 2.0])
    pairs = [1.0 if k > u else 0.5 if k == u else 0.0 for k in known for u in unknown]
    assert calibration.auroc(known, unknown) == pytest.approx(np.mean(pairs))
    known, unknown = np.arange(100.0), np.arange(100.0) - 50
    found = calibration.figures(np.stack([known] * 4 + [unknown]), 0.0)
    assert found["fpr95"] == pytest.approx(0.45)  # 5 and above


@pytest.mark.parametrize("kind", ["max_logit", "energy"])
def test_names_that_are_not_offered_do_not_count(kind):
    few, labels = drawn(1.0, classes=4)
    gone = torch.cat([few, torch.full((len(few), 3), -torch.inf)], 1)
    found, again = (calibration.Calibration(2.0, kind, 0.0, {}).known(x) for x in (few, gone))
    torch.testing.assert_close(found, again)
    fitted = [calibration.fit_temperature(x, labels) for x in (few, gone)]
    assert fitted[0] == pytest.approx(fitted[1])


def test_names_offered_hold_the_own_name_or_not_and_are_few_or_many():
    labels = torch.arange(40).repeat(25)
    own, strange = calibration.offered(labels, 40)
    assert own[torch.arange(1000), labels].all()
    assert not strange[torch.arange(1000), labels].any()
    assert torch.equal(own.sum(1), strange.sum(1))
    counts = own.sum(1).float()
    assert (counts.min(), counts.max()) == (2, 39)
    assert counts.log().mean() == pytest.approx((np.log(2) + np.log(39)) / 2, abs=0.1)


@pytest.mark.parametrize("accepted", [0.95, 0.99])
def test_a_fit_accepts_the_share_asked_for_of_what_it_saw_and_says_how_it_does(accepted):
    logits, labels = drawn(10.0, classes=12)
    found = calibration.fit(logits, labels, "toy validation", accepted)
    report = found.validation
    assert report["n"] == 4000
    assert report["ece"] < 0.03 < report["ece_uncalibrated"]
    known, unknown = (
        found.known(logits.masked_fill(~rows, -torch.inf)).numpy()
        for rows in calibration.offered(labels, 12)
    )
    assert (known >= found.threshold).mean() == pytest.approx(accepted, abs=1e-3)
    assert report["false_accept"] == (unknown >= found.threshold).mean()
    assert report["auroc"][found.score] == max(report["auroc"].values())
    assert report["auroc"][found.score] == pytest.approx(calibration.auroc(known, unknown))


def test_figures_of_a_test_set_leave_the_own_name_out_for_those_without_an_answer():
    found = calibration.Calibration(2.0, "max_logit", 1.5, {})
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    values = calibration.confidence(logits, torch.tensor([0, 1]), found).numpy()
    plain, calibrated, right, known, unknown = values
    np.testing.assert_allclose(plain, logits.softmax(-1).amax(-1))
    np.testing.assert_allclose(calibrated, (logits / 2).softmax(-1).amax(-1))
    assert right.tolist() == [1, 0]
    assert known.tolist() == [2, 3]
    assert unknown.tolist() == [1, 3]
    figures = calibration.figures(values, found.threshold)
    assert (figures["false_accept"], figures["false_reject"]) == (0.5, 0.0)


@pytest.mark.parametrize("score", ["max_logit", "energy"])
def test_a_model_that_always_says_the_same_cannot_tell_what_it_knows(score):
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0)).expand(200, 20)
    found = calibration.Calibration(1.0, score, 0.0, {})
    values = calibration.confidence(logits, torch.arange(200) % 20, found).numpy()
    assert calibration.figures(values, 0.0)["auroc"] == pytest.approx(0.5, abs=0.03)
