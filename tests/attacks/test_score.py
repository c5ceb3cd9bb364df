"""Scoring: definitions, fresh noise, and files of anyone's making."""

import h5py
import numpy as np
import pytest
import scipy.spatial
import torch

from dual_denoising.attacks import EOTPGD, PGD, RandomNoise
from dual_denoising.attacks import score as scoring
from dual_denoising.data.datasets import CloudDataset, Sample
from dual_denoising.data.sources import ArraySource
from dual_denoising.errors import InputError
from dual_denoising.evaluation.robustness import compare_with_test_set, score_fields
from tests.conftest import C, Curved, Linear, N, Noisy


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
    with pytest.raises(InputError, match=r"cloud 5 .*0\.05"):
        scoring.check_ball(tmp_path, content, 0.05)


def test_entries_are_of_any_float_type_and_else_named(labelled, theirs):
    doubles = dict.fromkeys(("clean", "adversarial"), labelled[0].double())
    assert theirs(**doubles)["clean"].dtype == torch.float32
    for entries, words in (
        ({"index": np.arange(5)}, "shape"),
        ({"index": np.arange(13) + 0.5}, "index is"),
        ({"label": np.arange(13) + 0.5}, "label is"),
        ({"clean": None}, "'clean'"),
    ):
        with pytest.raises(InputError, match=words):
            theirs(**entries)


@pytest.mark.parametrize(
    ("eps", "norm"), [(float("nan"), "linf"), (None, "linf"), (0.1, "l3"), (-1, "l2")]
)
def test_balls_that_are_none_are_named(theirs, tmp_path, eps, norm):
    with pytest.raises(InputError, match=r"(eps|norm) is "):
        scoring.check_ball(tmp_path, theirs(), eps, norm)


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


def test_the_most_harmful_attack_is_chosen_for_every_cloud(labelled):
    model, (clouds, labels, indices) = Curved(), labelled
    strong = PGD(model, 0.2, target="best_wrong")(clouds, labels, indices)
    strong[:7] = clouds[:7]  # it left half of the clouds alone
    weak = RandomNoise(model, 0.2)(clouds, labels, indices)
    found = [strong, weak]
    chosen = scoring.right(model, Sample(*labelled), found, range(2)).mean(1).argmin(0)
    taken = torch.stack(found)[torch.as_tensor(chosen), torch.arange(13)]
    rights = [model(x).argmax(1) == labels for x in (strong, weak, taken)]
    assert torch.equal(rights[2], rights[0] & rights[1])


class Coin(Linear):
    """Answers by chance alone, anew for every cloud and seed."""

    def draws(self, clouds, indices, seeds):
        return torch.stack([self._flip(clouds, seed) for seed in seeds])

    def _flip(self, clouds, seed):
        keys = [hash((seed, cloud.sum().item())) % 2**62 for cloud in clouds]
        return torch.stack(
            [torch.randn(2, generator=torch.Generator().manual_seed(key)) for key in keys]
        )


def test_a_choice_is_scored_on_other_seeds(labelled):
    """Of forty equal attacks on a coin the luckiest looks far too strong on its own seeds."""
    model, (clouds, labels, indices) = Coin(classes=2), labelled
    found = [RandomNoise(model, 1e-3, seed=n)(clouds, labels % 2, indices) for n in range(40)]
    sample = Sample(clouds, labels % 2, indices)
    chosen = scoring.right(model, sample, found, range(10)).mean(1).argmin(0)
    taken = torch.stack(found)[torch.as_tensor(chosen), torch.arange(13)]
    for seeds, share in ((range(10), 0.1), (range(50, 60), 0.5)):
        right = scoring.predictions(model, taken, indices, seeds) == (labels % 2).numpy()
        assert right.mean() == pytest.approx(share, abs=0.2)
