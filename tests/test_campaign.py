"""Attacks on data sets: streaming, resuming, scoring, verdicts, tables."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.spatial
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import get_class
from omegaconf import OmegaConf

from dual_denoising.attacks import EOTPGD, PGD, RandomNoise
from dual_denoising.attacks import plan as jobs
from dual_denoising.attacks import run as campaign
from dual_denoising.data.clouds import CloudDataset
from dual_denoising.data.sources import ArraySource
from dual_denoising.errors import InputError, input_error
from dual_denoising.reports import robustness
from dual_denoising.reports import verdicts as sanity
from dual_denoising.training import checkpoint
from tests.test_attacks import C, Curved, Linear, N, Noisy

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def data():
    clouds = torch.rand(13, N, 3, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    return clouds, torch.arange(13) % C, torch.arange(13) * 3


def run(attack, data, path, **fields):
    settings = {"batch_size": 4, "record": [2]} | fields
    campaign.run(attack, *data, path, {"what": "test"}, device=CPU, **settings)
    return campaign.load(path)


def test_samples_keep_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    chosen = campaign.stratified(labels, 32, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [20, 10, 2]
    assert sorted(set(chosen)) == chosen.tolist()
    assert np.array_equal(chosen, campaign.stratified(labels, 32, seed=1))
    assert not np.array_equal(chosen, campaign.stratified(labels, 32, seed=2))
    assert len(campaign.stratified(labels, None)) == len(campaign.stratified(labels, 999)) == 160
    with pytest.raises(InputError, match="subset is 0"):
        campaign.stratified(labels, 0)


def test_files_hold_what_the_attack_gives(data, tmp_path):
    attack = PGD(Noisy(scale=0.2), 0.05, steps=3)
    content = run(attack, data, tmp_path / "a.h5")
    steps = {}
    whole = attack(*data, record=lambda step, x: steps.update({step: x.clone()}))
    np.testing.assert_allclose(content["adversarial"], whole, atol=1e-6)
    np.testing.assert_allclose(content["recorded"][0], steps[2], atol=1e-6)
    assert content["label"].tolist() == data[1].tolist()
    assert content["index"].tolist() == data[2].tolist()
    assert (content["seconds"] > 0).all()


def test_an_interrupted_attack_goes_on_with_the_clouds_that_are_left(data, tmp_path):
    class Dies(PGD):
        def __call__(self, clouds, labels, indices, record=None):
            if 15 in indices.tolist():
                raise KeyboardInterrupt
            return super().__call__(clouds, labels, indices, record)

    with pytest.raises(KeyboardInterrupt):
        run(Dies(Curved(), 0.05, steps=3), data, tmp_path / "a.h5")
    with pytest.raises(InputError, match="9 of 13 clouds are not attacked yet"):
        campaign.load(tmp_path / "a.h5")
    asked = []

    class Notes(PGD):
        def __call__(self, clouds, labels, indices, record=None):
            asked.extend(indices.tolist())
            return super().__call__(clouds, labels, indices, record)

    resumed = run(Notes(Curved(), 0.05, steps=3), data, tmp_path / "a.h5")
    assert asked == [index * 3 for index in range(4, 13)]
    fresh = run(PGD(Curved(), 0.05, steps=3), data, tmp_path / "b.h5")
    np.testing.assert_allclose(resumed["adversarial"], fresh["adversarial"], atol=1e-6)
    with pytest.raises(InputError, match=r"a\.h5: of other settings or clouds"):
        run(PGD(Curved()), data, tmp_path / "a.h5", record=[1])
    (tmp_path / "a.h5").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"a\.h5: damaged"):
        run(PGD(Curved()), data, tmp_path / "a.h5")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_halves_the_batch(data, tmp_path, caplog, error):
    sizes = []

    class Small(PGD):
        def __call__(self, clouds, labels, indices, record=None):
            sizes.append(len(clouds))
            if len(clouds) > 2:
                raise error
            return super().__call__(clouds, labels, indices, record)

    content = run(Small(Curved(), 0.05, steps=3), data, tmp_path / "a.h5", batch_size=8)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 1]
    assert content["done"].all()
    assert "out of memory, going on with batches of 4" in caplog.text


@pytest.mark.parametrize("free", [0, 50, 10**9])
def test_batches_fit_the_free_memory(data, tmp_path, monkeypatch, free):
    """A matrix product keeps its input alone: 4·3N bytes a cloud and draw, the weights are shared.

    Curved keeps tanh's output, which is the product's input.
    """
    sizes = []

    class Sizes(PGD):
        def __call__(self, clouds, *rest, **fields):
            sizes.append(len(clouds))
            return super().__call__(clouds, *rest, **fields)

    attack = Sizes(Curved(), 0.05, steps=3, draws=5)
    each = attack.bytes_per_cloud(data[0][:1], data[2][:1])
    assert each == 5 * 4 * 3 * N == attack.bytes_per_cloud(data[0], data[2])
    memory = type("Memory", (), {"available": 3 * 5 * each + free})
    monkeypatch.setattr(campaign.psutil, "virtual_memory", lambda: memory)
    run(attack, data, tmp_path / "a.h5", batch_size=None)
    assert sizes == ([13] if free > 50 else [5, 5, 3])
    with pytest.raises(InputError, match="batch_size is 0: choose at least 1"):
        run(attack, data, tmp_path / "a.h5", batch_size=0)


def test_scores_against_their_definitions(data):
    clouds, labels, indices = data
    moved = clouds + 0.03 * torch.randn(clouds.shape, generator=torch.Generator().manual_seed(0))
    fields, each = campaign.score(Curved(), clouds, moved, labels, indices, range(3), CPU)
    right = (Curved()(moved).argmax(1) == labels).double()
    assert fields["robust_mean"] == pytest.approx(right.mean().item())
    assert fields["robust_sd"] == 0  # of a model without noise
    assert each["robust"].tolist() == right.tolist()
    gap = (moved - clouds).flatten(1).double()
    assert fields["linf_max"] == pytest.approx(gap.abs().max().item())
    assert fields["l2_mean"] == pytest.approx(gap.norm(dim=1).mean().item())
    for i in range(3):
        a, b = clouds[i].double().numpy(), moved[i].double().numpy()
        ways = [scipy.spatial.cKDTree(y).query(x)[0] for x, y in ((a, b), (b, a))]
        assert each["chamfer"][i] == pytest.approx(sum((w**2).mean() for w in ways), rel=1e-4)
        assert each["hausdorff"][i] == pytest.approx(max(w.max() for w in ways), rel=1e-4)


def test_scores_of_a_random_model_are_over_fresh_seeds(data):
    clouds, labels, indices = data
    seen = []

    class Watched(Noisy):
        def draws(self, clouds, indices, seeds):
            seen.extend(seeds)
            return super().draws(clouds, indices, seeds)

    model = Watched(scale=2.0)
    fields, _ = campaign.score(model, clouds, clouds, labels, indices, range(10), CPU)
    assert fields["robust_sd"] > 0
    scored = set(seen)
    assert len(scored) == 10
    seen.clear()
    EOTPGD(model, 0.05, steps=5, draws=3, restarts=2)(clouds, labels, indices)
    assert not scored & set(seen)


def test_nan_logits_are_no_robust_answers(data):
    class Breaks(Linear):
        def forward(self, clouds):
            return super().forward(clouds).index_fill(0, torch.tensor([2]), torch.nan)

    found = campaign.predictions(Breaks(), data[0], data[2], [0], CPU)
    assert (found[0] == -1).tolist() == [i == 2 for i in range(13)]


def test_clouds_outside_the_stated_ball_are_refused(data, tmp_path):
    clouds = data[0].numpy()
    moved = clouds.copy()
    moved[5, 2, 1] += 0.051
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["clean"], file["adversarial"], file["label"] = clouds, moved, data[1]
    content = campaign.load(path)
    assert content["label"].shape == (13,)
    assert content["index"].tolist() == list(range(13))
    campaign.check_ball(path, content, 0.0511)
    with pytest.raises(InputError, match=r"cloud 5 moves by 0\.051 in linf, outside .* of 0\.05 "):
        campaign.check_ball(path, content, 0.05)
    with pytest.raises(InputError, match=r"label\[3\] is 3, but there are 3 classes"):
        campaign.check_labels(path, content, 3)
    with h5py.File(path, "r+") as file:
        file.create_group("notes")
        for key in ("clean", "adversarial"):  # NumPy's own type
            values = file[key][()].astype(np.float64)
            del file[key]
            file[key] = values
    assert campaign.load(path)["clean"].dtype == np.float32
    for key, values, words in (
        ("index", np.arange(5), "13 labels, 5 indices"),
        ("index", np.arange(13) + 0.5, "index is of float64; give integers"),
        ("label", np.arange(13) + 0.5, "label is of float64; give integers"),
    ):
        with h5py.File(path, "r+") as file:
            kept = file[key][()] if key in file else np.arange(13)
            file.pop(key, None)
            file[key] = values
        with pytest.raises(InputError, match=words):
            campaign.load(path)
        with h5py.File(path, "r+") as file:
            del file[key]
            file[key] = kept
    with h5py.File(path, "r+") as file:
        del file["clean"]
    with pytest.raises(InputError, match=r"theirs\.h5: holds no 'clean'"):
        campaign.load(path)


def test_labels_and_clouds_of_another_data_set_are_warned_of(data, tmp_path, caplog):
    source = ArraySource("set", "test", "y", list("abcde"), data[0].numpy(), data[1].numpy(),
                         [str(i) for i in range(13)], "here")  # fmt: skip
    test = CloudDataset(source, N)
    clean = np.stack([test[i]["points"].numpy() for i in range(13)])
    content = {"clean": clean, "label": data[1].numpy(), "index": np.arange(13)}
    campaign.check_clean(tmp_path, content, test)
    assert not caplog.text
    campaign.check_clean(tmp_path, content | {"label": (data[1].numpy() + 1) % C}, test)
    assert "13 of 13 labels are not those of set test" in caplog.text
    campaign.check_clean(tmp_path, content | {"clean": clean + 0.1}, test)
    assert "13 of 13 clean clouds are not those" in caplog.text


# ---- what is run, and what is said of it ----


def test_jobs_are_attacks_times_sizes_times_settings():
    config = {
        "settings": [[1, 0], [8, 500]], "eps": [0.01, 0.02], "record": [1],
        "jobs": {
            "A": {"track": "paper", "_target_": "x", "steps": 5},
            "C&W": {"track": "adaptive", "_target_": "y.CW", "eps": None, "record": [],
                    "settings": [[4, 0]], "surrogate": [1, 0]},
        },
    }  # fmt: skip
    found = list(jobs.plan(config))
    assert [(j.name, j.setting, j.eps, j.record) for j in found] == [
        ("A", (1, 0), 0.01, [1]), ("A", (1, 0), 0.02, [1]),
        ("A", (8, 500), 0.01, [1]), ("A", (8, 500), 0.02, [1]),
        ("C&W", (4, 0), None, []),
    ]  # fmt: skip
    assert found[0].spec == {"_target_": "x", "steps": 5, "eps": 0.01}
    assert "eps" not in found[4].spec
    assert (found[4].surrogate, found[0].surrogate) == ((1, 0), None)
    assert len({job.stem for job in found}) == 5
    config["jobs"]["A"]["track"] = "mine"
    with pytest.raises(InputError, match="track is mine; choose paper or adaptive"):
        list(jobs.plan(config))


def test_settings_that_mean_nothing_are_named(data, tmp_path):
    spec = {"track": "paper", "_target_": "dual_denoising.attacks.PGD"}
    with pytest.raises(InputError, match="'A': eps is null; only C&W knows no ball"):
        list(jobs.plan({"settings": [[1, 0]], "eps": None, "jobs": {"A": spec}}))
    with pytest.raises(InputError, match=r"settings is \[1, 0\]: give a list of \[S, t\]"):
        list(jobs.plan({"settings": [1, 0], "eps": 0.1, "jobs": {"A": spec}}))
    with pytest.raises(InputError, match="attack has no jobs"):
        list(jobs.plan({"settings": [[1, 0]], "eps": 0.1, "jobs": {}}))
    with pytest.raises(InputError, match=r"'A': eps is \[\]"):
        list(jobs.plan({"settings": [[1, 0]], "eps": [], "jobs": {"A": spec}}))
    for kind, fields, stages in (("PGD", {"steps": 3}, 3), ("PGD", {"restarts": 2}, 0),
                                 ("CW", {"searches": 4}, 4), ("RandomNoise", {}, 0)):  # fmt: skip
        spec = {"_target_": f"dual_denoising.attacks.{kind}"} | fields
        job = jobs.Job("A", "paper", (1, 0), 0.1, spec, [9])
        with pytest.raises(InputError, match=rf"record is \[9\], but it has {stages} steps"):
            jobs.build(job, Linear(), 0)
    content = {"clean": data[0].numpy(), "adversarial": data[0].numpy()}
    for eps, norm in ((float("nan"), "linf"), (None, "linf"), (0.1, "l3")):
        with pytest.raises(InputError, match=r"(eps|norm) is "):
            campaign.check_ball(tmp_path, content, eps, norm)


def test_steps_of_clouds_that_failed_are_clean_too(data, tmp_path):
    class Breaks(Curved):
        """Its gradient breaks at the third cloud once it has moved."""

        def forward(self, clouds):
            logits = super().forward(clouds)
            moved = (clouds - data[0][2]).abs().sum((1, 2)) < 0.7
            odd = moved & ((clouds - data[0][2]).abs().amax((1, 2)) > 0.015)
            return logits + torch.where(odd, 0 * clouds[:, 0, 0], 1).sqrt()[:, None]

    attack = PGD(Breaks(), 0.02, alpha=0.01, steps=4, start="clean")
    content = run(attack, data, tmp_path / "a.h5", record=[1])
    assert content["failed"].nonzero()[0].tolist() == [2]
    np.testing.assert_array_equal(content["recorded"][0, 2], content["clean"][2])
    assert (content["recorded"][0, 3] != content["clean"][3]).any()


def test_files_are_of_one_model(data, tmp_path, toy):
    first, second = toy(), toy()
    second.noise_scale = 0.0
    digests = {checkpoint.digest_state(m, torch.eye(3), [m.noise_scale]) for m in (first, second)}
    assert len(digests) == 2
    run(PGD(Curved(), steps=3), data, tmp_path / "a.h5")
    with pytest.raises(InputError, match="of other settings or clouds"):
        run(PGD(Curved(), steps=3), (data[0], data[1].flip(0), data[2]), tmp_path / "a.h5")


def test_attacks_that_do_not_exist_are_named():
    spec = {"_target_": "dual_denoising.attacks.PDG"}
    job = jobs.Job("A", "paper", (1, 0), 0.1, spec, [])
    with pytest.raises(InputError, match=r"attack\.jobs 'A': .*PDG"):
        jobs.build(job, Linear(), 0)
    job.spec["_target_"], job.spec["stepz"] = "dual_denoising.attacks.PGD", 3
    with pytest.raises(InputError, match=r"attack\.jobs 'A': .*stepz"):
        jobs.build(job, Linear(), 0)
    job.spec = {"_target_": "dual_denoising.attacks.PGD", "norm": "l1"}
    with pytest.raises(InstantiationException) as caught:
        jobs.build(job, Linear(), 0)
    assert str(input_error(caught.value)) == "norm is 'l1': choose one of linf, l2"
    job.spec = {}
    with pytest.raises(InputError, match="no _target_"):
        jobs.build(job, Linear(), 0)
    with pytest.raises(InputError, match="0 noise seeds from 0: score over at least 1"):
        robustness.fresh_seeds(0)


def test_the_worst_case_takes_for_every_cloud_what_harms_it_most(data, tmp_path):
    model, done = Curved(), []
    attacks = {"A": PGD(model, 0.2, target="best_wrong"), "B": RandomNoise(model, 0.2)}
    for number, (name, attack) in enumerate(attacks.items()):
        path = tmp_path / f"{name}.h5"
        content = run(attack, data, path, record=[])
        if number == 0:  # the strong one left half of the clouds alone
            with h5py.File(path, "r+") as file:
                file["adversarial"][:7] = content["clean"][:7]
        job = jobs.Job(name, "adaptive" if number else "paper", (1, 0), 0.2, {}, [])
        done += [(job, path, result(name, eps=0.2, num_noise=1, timestep=0))]
    (worst,) = robustness.worst_case(done, model, range(2), CPU, tmp_path)
    rights = [
        (model(torch.as_tensor(campaign.load(path)["adversarial"])).argmax(1) == data[1])
        for _, path, _ in done
    ]
    assert worst["robust_mean"] == pytest.approx((rights[0] & rights[1]).double().mean().item())
    assert worst["attack"] == "worst of 2"
    assert worst["linf_max"] <= 0.2 + 1e-6
    assert worst["seconds_per_cloud"] == pytest.approx(0.2)
    content = campaign.load(tmp_path / "adversarial" / "worst_of_2_eps0.2_S1_t0.h5")
    campaign.check_ball(tmp_path, content, 0.2)
    assert robustness.worst_case(done[:1], model, range(2), CPU, tmp_path) == []


def test_the_worst_case_is_not_chosen_on_the_seeds_that_score_it(data, tmp_path):
    """Of forty equal attacks on a coin the luckiest looks far too strong on its own seeds."""

    class Coin(Linear):
        """Answers by chance alone, anew for every cloud and seed."""

        def draws(self, clouds, indices, seeds):
            return torch.stack([self._flip(clouds, seed) for seed in seeds])

        def _flip(self, clouds, seed):
            keys = [hash((seed, cloud.sum().item())) % 2**62 for cloud in clouds]
            return torch.stack(
                [torch.randn(2, generator=torch.Generator().manual_seed(key)) for key in keys]
            )

    model, done, labels = Coin(classes=2), [], data[1] % 2
    for number in range(40):
        path = tmp_path / f"{number}.h5"
        attack = RandomNoise(model, 1e-3, seed=number)
        run(attack, (data[0], labels, data[2]), path, record=[])
        job = jobs.Job(str(number), "adaptive", (1, 0), 1e-3, {}, [])
        done += [(job, path, result("noise"))]
    (worst,) = robustness.worst_case(done, model, range(10), CPU, tmp_path)
    assert worst["robust_mean"] == pytest.approx(0.5, abs=0.2)  # 0.1 or less on the choosing seeds


def test_a_grid_of_settings_is_a_table_of_them(tmp_path):
    results = [
        result("PGD-10", r, eps=0.01, num_noise=s, timestep=t)
        for r, (s, t) in zip(
            (0.1, 0.2, 0.3, 0.4), ((1, 0), (1, 500), (8, 0), (8, 500)), strict=True
        )
    ]
    robustness.write(tmp_path, results)
    text = (tmp_path / "attack.md").read_text()
    assert "paper track, PGD-10, ε = 0.01: robust accuracy, S × t" in text
    rows = [line.replace(" ", "") for line in text.splitlines()]
    assert "|S=8|30.0|40.0|" in rows
    assert "|S=8|21.7|43.4|" in rows  # the paper's Table 5, adversarial
    assert "|S=8|8.3|-3.4|" in rows
    assert (tmp_path / "pictures" / "grid_paper_track_PGD-10_eps0.01.png").exists()
    robustness.write(tmp_path, results[1:])
    assert "S × t" not in (tmp_path / "attack.md").read_text()


def result(attack="PGD", robust=0.5, eps=0.05, steps=10, **fields):
    return {
        "dataset": "modelnet40", "split": "test", "track": "paper", "attack": attack, "n": 100,
        "kind": {"Square": "black", "noise": "noise", "FGM": "one step"}.get(attack, "white"),
        "eps": eps, "steps": steps, "last": True, "eot": 1, "num_noise": 8, "timestep": 500,
        "target": "second_best", "failed": 0, "flat": 0, "unsuccessful": 0,
        "norm": "none" if attack == "C&W" else "linf", "faithful": True,
        "seconds_per_cloud": 0.1, "seeds": list(range(10)),
        "clean_mean": 0.9, "robust_mean": robust, "robust_sd": 0.01,
        "robust_interval": [0.4, 0.6], "linf_max": 0.05, "l2_mean": 1.0,
    } | fields  # fmt: skip


def verdict(results, words):
    return next(v for k, v in sanity.verdicts(results).items() if words in k)


def test_verdicts_of_a_defence_that_hides_its_gradients():
    good = [result(robust=0.6, eps=0.01), result(robust=0.2), result(robust=0.0, eps=0.5),
            result("Square", 0.4), result("noise", 0.85), result("FGM", 0.5)]  # fmt: skip
    assert set(sanity.verdicts(good).values()) == {"pass"}
    masked = [result(robust=0.6, eps=0.01), result(robust=0.7, flat=12),
              result(robust=0.3, eps=0.5), result("Square", 0.4), result("noise", 0.5)]  # fmt: skip
    assert verdict(masked, "gradients are not zero") == "suspicious: zero on 12 of 100 clouds"
    assert "60.0% at eps 0.01, 70.0% at 0.05" in verdict(masked, "falls with ε")
    assert verdict(masked, "huge") == "suspicious: 30.0% survive ε=0.5"
    assert verdict(masked, "Square") == "suspicious: 30.0 points stronger"
    assert "20.0 points stronger" in verdict(masked, "noise")
    weak = [result(robust=0.7), result("noise", 0.75)]
    assert "takes 20.0 points, noise 15.0" in verdict(weak, "noise")
    for first, second in ((0.2, 0.0), (0.0, 0.2)):  # whichever stands first
        huge = [result("A", first, eps=0.5), result("B", second, eps=0.5)]
        assert verdict(huge, "huge") == "pass"
    other = [result(robust=0.8), result("L2", 0.1, norm="l2"), result("Square", 0.3)]
    assert "50.0 points stronger" in verdict(other, "Square")  # whatever another ball allows
    still = [result(robust=0.9, eps=0.01), result(robust=0.9)]
    assert "it stays, 90.0% at eps 0.01, 90.0% at 0.05" in verdict(still, "falls with ε")
    gone = [result(robust=0.0, eps=0.01), result(robust=0.0)]
    assert verdict(gone, "falls with ε") == "pass"
    nothing = [result(robust=0.9), result("noise", 0.9)]
    assert "takes 0.0 points, noise 0.0" in verdict(nothing, "noise")
    assert sanity.verdicts([result("noise", 0.8)]) == {}


def test_verdicts_about_steps():
    steps = [result(robust=r, steps=s, last=s == 50) for r, s in ((0.8, 1), (0.5, 10), (0.2, 50))]
    assert verdict(steps, "steps suffice") == "suspicious: still fell by 30.0 points at the end"
    steps[2]["robust_mean"] = 0.49
    assert verdict(steps, "steps suffice") == "pass"
    steps[2]["robust_mean"] = 0.6
    assert "falls with steps" in " ".join(sanity.verdicts(steps))
    assert "50.0% at steps 10, 60.0% at 50" in verdict(steps, "falls with steps")


def test_tables_keep_the_tracks_apart_and_set_the_papers_numbers_beside(tmp_path):
    results = [result(robust=0.25, steps=50), result("EOT", 0.1, track="adaptive"),
               result(robust=0.3, steps=5, last=False)]  # fmt: skip
    robustness.write(tmp_path, results)
    text = (tmp_path / "attack.md").read_text()
    paper, _, adaptive = text.partition("adaptive track")
    assert "EOT" not in paper
    assert "25.0 ± 1.0" in paper
    assert "30.0 ± 1.0" not in paper  # a step on the way is for the curves
    assert " 20.2 " in paper  # the paper's Table 2: PGD, ε = 0.05, N = 8, t = 500
    assert "10.0 ± 1.0" in adaptive.split("| check")[0]
    assert len(pd.read_csv(tmp_path / "attack_paper.csv")) == 2
    assert len(pd.read_csv(tmp_path / "attack_adaptive.csv")) == 1
    assert (tmp_path / "pictures" / "steps_paper.png").exists()
    assert not (tmp_path / "pictures" / "steps_adaptive.png").exists()
    results[0]["dataset"] = "modelnet10"
    robustness.write(tmp_path, results[:1])
    assert "20.2" not in (tmp_path / "attack.md").read_text()


def test_the_papers_numbers_stand_beside_what_it_did_alone():
    number = robustness.paper_number
    assert number(result(steps=50)) == 20.2  # Table 2: PGD, ε = 0.05, N = 8, t = 500
    assert number(result("C&W", eps=None, steps=500)) == 14.6
    assert number(result("PGD-10", eps=0.01)) == 43.4  # Table 5, adversarial: N = 8, t = 500
    assert number(result("PGD-10", eps=0.01, dataset="scanobjectnn_obj_only")) == 28.2
    for other in ({"steps": 49}, {"steps": 50, "faithful": False}, {"steps": 50, "num_noise": 4},
                  {"steps": 50, "dataset": "modelnet10"}, {"steps": 50, "eps": 0.02}):  # fmt: skip
        assert number(result(**other)) is None


def test_a_systems_own_numbers_of_table_2_stand_beside_it_alone():
    # Table 2: PGD at 0.025 leaves 13.3 of ReCon, 5.0 of ULIP
    recon = result(eps=0.025, steps=50, num_noise=1, timestep=0, system="ReCon")
    assert robustness.paper_number(recon) == 13.3
    assert robustness.paper_number(recon | {"system": "ULIP"}) == 5.0
    assert robustness.paper_number(recon | {"comparable": False}) is None
    assert robustness.paper_number(recon | {"num_noise": 8, "timestep": 500}) is None


def test_an_attack_is_the_papers_or_not():
    def faithful(kind="PGD", track="paper", surrogate=None, **fields):
        eps = {} if kind == "CW" else {"eps": 0.05}
        spec = {"_target_": f"dual_denoising.attacks.{kind}"} | eps | fields
        job = jobs.Job("A", track, (8, 500), eps.get("eps"), spec, [], surrogate)
        return robustness._faithful(jobs.build(job, Linear(), 0), job)

    assert faithful()
    assert faithful("IFGM")
    assert faithful("CW")
    for other in ({"target": "best_wrong"}, {"draws": 4}, {"alpha": 0.01}, {"loss": "margin"},
                  {"norm": "l2"}, {"noise": "fixed"}, {"momentum": 0.5}, {"restarts": 2},
                  {"track": "adaptive"}, {"surrogate": (1, 0)}):  # fmt: skip
        assert not faithful(**other)
    assert not faithful("IFGML2")
    assert not faithful("CW", searches=5)
    assert not faithful("CW", bounds=(10, 80))


def test_a_jobs_own_seed_counts():
    spec = {"_target_": "dual_denoising.attacks.PGD", "seed": 5}
    job = jobs.Job("A", "paper", (1, 0), 0.1, spec, [])
    assert jobs.build(job, Linear(), 0).seed == 5
    del job.spec["seed"]
    assert jobs.build(job, Linear(), 3).seed == 3
    job.spec["seed"] = 2**16
    with pytest.raises(InstantiationException) as caught:
        jobs.build(job, Linear(), 0)
    assert "seed is 65536" in str(input_error(caught.value))


class Offers(Linear):
    """A model that offers all that an attack may ask for."""

    frozen = features = None


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs" / "attack").glob("*")))
def test_every_attack_configuration_builds(name):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("attack", [f"attack={name}", "checkpoint=x"])
    for job in jobs.plan(OmegaConf.to_container(cfg.attack, resolve=True)):
        fields = {key: value for key, value in job.spec.items() if key != "_target_"}
        attack = get_class(job.spec["_target_"])(Offers(), **fields)
        assert all(step <= attack.stages for step in job.record)
        assert (job.track == "paper") <= (attack.target in ("second_best", "best_wrong"))


# ---- the scripts ----


@pytest.fixture
def arguments(trained, tmp_path):
    """What lets attack.py run on the trained toy and clouds of its three names."""
    for label, kind in enumerate(("bed", "chair", "lamp")):
        (tmp_path / "clouds" / kind).mkdir(parents=True)
        for number in range(4):
            rng = np.random.default_rng((label, number))
            np.save(tmp_path / "clouds" / kind / f"{number}.npy", rng.normal(size=(80, 3)))
    return ["checkpoint=model", "data=folder", f"data.root={tmp_path / 'clouds'}", "threads=1",
            f"teacher.text.path={trained / 'bank.h5'}"]  # fmt: skip


def script(name, *arguments, cwd):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def finished(job):
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output[-3000:]
    return output


def test_a_killed_attack_ends_in_the_table_of_one_that_was_not(arguments, tmp_path):
    options = [*arguments, "subset=9", "batch_size=1", "score_seeds=2", "pictures=1",
               "attack.settings=[[2,500]]", "attack.jobs.PGD-10.steps=30"]  # fmt: skip
    job = script("attack", *options, "name=killed", cwd=tmp_path)
    folder = tmp_path / "runs" / "killed" / "adversarial"
    while job.poll() is None and len(list(folder.glob("*.h5"))) < 2:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished(script("attack", *options, "name=killed", cwd=tmp_path))
    output = finished(script("attack", *options, "name=whole", cwd=tmp_path))
    assert "9 of 12 clouds, sample seed 0" in output
    fields = ("attack", "robust_mean", "robust_sd", "linf_max", "l2_mean", "clean_mean")
    tables = []
    for name in ("killed", "whole"):
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        tables.append([[r[field] for field in fields] for r in summary["results"]])
        assert (tmp_path / "runs" / name / "attack.md").exists()
    assert tables[0] == tables[1]
    per_cloud = list((tmp_path / "runs" / "whole" / "per_cloud").glob("*.csv"))
    assert len(per_cloud) == 4  # and the worst of the three
    assert len(list((tmp_path / "runs" / "whole" / "pictures").glob("PGD*.png"))) == 1
    keys = {"dataset", "split", "n", "model", "track", "attack", "target", "eps", "steps", "eot",
            "num_noise", "timestep", "seeds", "clean_mean", "robust_mean", "robust_sd", "linf_max",
            "l2_mean", "seconds_per_cloud"}  # fmt: skip
    assert keys <= set(summary["results"][0])

    made = next((tmp_path / "runs" / "whole" / "adversarial").glob("PGD*.h5"))
    options = [*arguments, f"adversarial={made}", "settings=[[2,500]]", "seeds=2"]
    output = finished(script("score", *options, "eps=0.025", cwd=tmp_path))
    again = json.loads((tmp_path / "runs" / "score" / "summary.json").read_text())["results"][0]
    first = summary["results"][0]
    assert again["robust_mean"] == first["robust_mean"]
    assert again["linf_max"] == first["linf_max"] <= 0.025 + 1e-6
    refused = script("score", *options, "eps=0.02", cwd=tmp_path)
    output, _ = refused.communicate()
    assert refused.returncode == 1
    assert "outside the stated ball of 0.02" in output.strip().splitlines()[-1]
