"""Scoring: definitions, fresh noise, and files of anyone's making."""

import h5py
import numpy as np
import pytest
import scipy.spatial
import torch

from dual_denoising.attacks import EOTPGD
from dual_denoising.attacks import score as scoring
from dual_denoising.clip.features import StandInBank
from dual_denoising.data.datasets import CloudDataset, Sample
from dual_denoising.data.sources import ArraySource
from dual_denoising.errors import InputError
from dual_denoising.evaluation import robustness
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.robustness import compare_with_test_set, score_fields
from dual_denoising.evaluation.systems import System
from dual_denoising.run import Run
from tests.conftest import C, Curved, Linear, N, Noisy, assert_refuses, each


def test_scores_against_their_definitions(labelled):
    clouds, labels, _ = labelled
    moved = clouds + 0.03 * torch.randn(clouds.shape, generator=torch.Generator().manual_seed(0))
    found = scoring.score(Curved(), Sample(*labelled), moved, range(3))
    fields = score_fields(found, range(3))
    right = (Curved()(moved).argmax(1) == labels).double()
    assert fields["robust_mean"] == pytest.approx(right.mean().item())
    assert fields["robust_sd"] == 0  # of a model without noise
    assert found["robust"].mean(0).tolist() == right.tolist()
    gap = (moved - clouds).flatten(1).double()
    assert fields["linf_max"] == pytest.approx(gap.abs().max().item())
    assert fields["l2_mean"] == pytest.approx(gap.norm(dim=1).mean().item())
    for i in range(3):
        a, b = clouds[i].double().numpy(), moved[i].double().numpy()
        ways = [scipy.spatial.cKDTree(y).query(x)[0] for x, y in ((a, b), (b, a))]
        assert found["chamfer"][i] == pytest.approx(sum((w**2).mean() for w in ways), rel=1e-4)
        assert found["hausdorff"][i] == pytest.approx(max(w.max() for w in ways), rel=1e-4)


def test_scores_of_a_random_model_are_over_fresh_seeds(labelled):
    clouds, labels, indices = labelled
    seen = []

    class Watched(Noisy):
        def draws(self, clouds, indices, seeds):
            seen.extend(seeds)
            return super().draws(clouds, indices, seeds)

    model = Watched(scale=2.0)
    found = scoring.score(model, Sample(*labelled), clouds, range(10))
    assert score_fields(found, range(10))["robust_sd"] > 0
    scored = set(seen)
    assert len(scored) == 10
    seen.clear()
    EOTPGD(model, 0.05, steps=5, draws=3, restarts=2)(clouds, labels, indices)
    assert not scored & set(seen)


def test_nan_logits_are_no_robust_answers(labelled):
    class Breaks(Linear):
        def forward(self, clouds):
            return super().forward(clouds).index_fill(0, torch.tensor([2]), torch.nan)

    found = scoring.predictions(Breaks(), labelled[0], labelled[2], [0])
    assert (found[0] == -1).tolist() == [i == 2 for i in range(13)]


@pytest.fixture
def theirs(labelled, tmp_path):
    """A file of anyone's making, as it is loaded: theirs(entry=values, ...); None leaves it out."""

    def load(**changed):
        clean = labelled[0].numpy()
        entries = {"clean": clean, "adversarial": clean, "label": labelled[1]} | changed
        with h5py.File(tmp_path / "theirs.h5", "w") as file:
            file.create_group("notes")
            for key, values in entries.items():
                if values is not None:
                    file[key] = values
        return scoring.load(tmp_path / "theirs.h5")

    return load


def test_clouds_outside_the_stated_ball_are_refused(labelled, theirs, tmp_path):
    moved = labelled[0].numpy().copy()
    moved[5, 2, 1] += 0.051
    content = theirs(adversarial=moved)
    assert content["label"].shape == (13,)
    assert content["index"].tolist() == list(range(13))
    scoring.check_ball(tmp_path, content, 0.0511)
    assert_refuses(r"cloud 5 .*0\.05", scoring.check_ball, tmp_path, content, 0.05)


def test_entries_are_of_any_float_type_and_else_named(labelled, theirs):
    doubles = dict.fromkeys(("clean", "adversarial"), labelled[0].double())
    assert theirs(**doubles)["clean"].dtype == torch.float32
    for entries, words in (
        ({"index": np.arange(5)}, "shape"),
        ({"index": np.arange(13) + 0.5}, "index is"),
        ({"label": np.arange(13) + 0.5}, "label is"),
        ({"clean": None}, "'clean'"),
    ):
        assert_refuses(words, theirs, **entries)


@pytest.mark.parametrize("wrong", each(eps=[float("nan"), None, -1], norm=["l3"]))
def test_balls_that_are_none_are_named(theirs, tmp_path, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is "):
        scoring.check_ball(tmp_path, theirs(), **{"eps": 0.1} | wrong)


def test_labels_and_clouds_of_another_data_set_are_warned_of(labelled, tmp_path, caplog):
    labels, ids = labelled[1], [str(i) for i in range(13)]
    source = ArraySource(
        "set", "test", "y", list("abcde"), labels.numpy(), ids, "here", labelled[0].numpy()
    )
    test = CloudDataset(source, N)
    clean = torch.stack([test[i]["points"] for i in range(13)])
    content = {"clean": clean, "label": labels, "index": torch.arange(13)}
    compare_with_test_set(tmp_path, content, test)
    assert not caplog.text
    others = (labels + 1) % C
    some = torch.where(torch.arange(13) < 5, others, labels)
    compare_with_test_set(tmp_path, content | {"label": some}, test)
    assert "5 of 13 labels" in caplog.text
    with pytest.raises(InputError, match="labels"):  # of another dataset altogether
        compare_with_test_set(tmp_path, content | {"label": others}, test)
    with pytest.raises(InputError, match="labels are 1 to 5"):
        compare_with_test_set(tmp_path, content | {"label": labels + 1}, test)
    compare_with_test_set(tmp_path, content | {"clean": clean + 0.1}, test)
    assert "13 of 13 clean clouds" in caplog.text


def test_each_clouds_most_harmful_attack_is_chosen_on_other_seeds(
    toy, source, record, tmp_path, monkeypatch
):
    test, asked = CloudDataset(source, 20), []
    clean, labels, _ = test.sample(None, 0)

    def draws(self, clouds, indices, seeds):
        """Right where the first point is not moved to the right."""
        asked.append(set(seeds))
        answers = (labels[indices] + (clouds[:, 0, 0] > clean[indices, 0, 0])) % 3
        return torch.eye(3)[answers].expand(len(seeds), -1, -1)

    monkeypatch.setattr(ZeroShotClassifier, "draws", draws)
    noise = {"track": "adaptive", "_target_": "dual_denoising.attacks.RandomNoise"}
    jobs = {"A": noise | {"seed": 1}, "B": noise | {"seed": 2}}
    config = dict.fromkeys(robustness.ORIGIN) | {"data_root": "", "subset": None, "subset_seed": 0}
    config |= {"attack_seed": 0, "score_seeds": 2, "score_seed": 0}
    config |= {"attack": {"settings": [[1, 0]], "eps": 0.1, "jobs": jobs}}
    system = System(toy(feature_types=["text"]), StandInBank(12), record, "here")
    build = Run({"name": "test"}).build
    attacks = robustness.Robustness(system, test, config, tmp_path, build)
    done = [(attacker, results[-1]) for attacker, results in attacks.run(None)]
    asked.clear()
    (worst,) = attacks.worst_cases(done)
    found = [scoring.load(attacker.file.path)["adversarial"][:, 0, 0] for attacker, _ in done]
    fooled = torch.stack(found) > clean[:, 0, 0]
    assert worst.robust_mean == pytest.approx(1 - fooled.any(0).double().mean().item())
    assert worst.robust_mean < min(result.robust_mean for _, result in done)
    assert not asked[0] & asked[-1]
