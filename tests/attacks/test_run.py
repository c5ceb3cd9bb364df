"""Attacks on many clouds: samples, streaming, resuming."""

import numpy as np
import pytest
import torch

from dual_denoising.attacks import PGD
from dual_denoising.attacks import run as streaming
from dual_denoising.attacks import score as scoring
from dual_denoising.data.datasets import Sample
from dual_denoising.data.sources import stratified
from dual_denoising.data.storage import RowFile
from tests.conftest import Curved, Noisy, assert_refuses


def run(attack, labelled, path, **fields):
    options = {"batch_size": 4, "record": [2]} | fields
    settings = {"what": "test", "record": options["record"]}
    sample = Sample(*labelled)
    file = RowFile(path, settings | {"of": sample.fingerprint()})
    streaming.run(attack, sample, file, **options)
    return scoring.load(path)


def watched(watch):
    """A PGD that shows ``watch`` the indices of every batch first."""

    class Watched(PGD):
        def __call__(self, clouds, labels, indices, record=None):
            watch(indices.tolist())
            return super().__call__(clouds, labels, indices, record)

    return Watched(Curved(), 0.05, steps=3)


def test_samples_keep_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    chosen = stratified(labels, 32, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [20, 10, 2]
    assert sorted(set(chosen)) == chosen.tolist()
    assert np.array_equal(chosen, stratified(labels, 32, seed=1))
    assert not np.array_equal(chosen, stratified(labels, 32, seed=2))
    assert len(stratified(labels, None)) == len(stratified(labels, 999)) == 160
    assert_refuses("subset is 0", stratified, labels, 0)


def test_files_hold_what_the_attack_gives(labelled, tmp_path):
    attack = PGD(Noisy(scale=0.2), 0.05, steps=3)
    content = run(attack, labelled, tmp_path / "a.h5")
    steps = {}
    whole = attack(*labelled, record=lambda step, x: steps.update({step: x.clone()}))
    np.testing.assert_allclose(content["adversarial"], whole, atol=1e-6)
    np.testing.assert_allclose(content["recorded"][0], steps[2], atol=1e-6)
    assert content["label"].tolist() == labelled[1].tolist()
    assert content["index"].tolist() == labelled[2].tolist()
    assert (content["seconds"] > 0).all()


def test_an_interrupted_attack_goes_on_with_the_clouds_that_are_left(labelled, tmp_path):
    def die(indices):
        if 15 in indices:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(watched(die), labelled, tmp_path / "a.h5")
    assert_refuses("9 of 13", scoring.load, tmp_path / "a.h5")
    asked = []
    resumed = run(watched(asked.extend), labelled, tmp_path / "a.h5")
    assert asked == [index * 3 for index in range(4, 13)]
    fresh = run(PGD(Curved(), 0.05, steps=3), labelled, tmp_path / "b.h5")
    np.testing.assert_allclose(resumed["adversarial"], fresh["adversarial"], atol=1e-6)
    assert_refuses(r"a\.h5", run, PGD(Curved()), labelled, tmp_path / "a.h5", record=[1])
    others = labelled[0], labelled[1].flip(0), labelled[2]
    assert_refuses(r"a\.h5", run, PGD(Curved()), others, tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes(b"broken")
    assert_refuses(r"a\.h5", run, PGD(Curved()), labelled, tmp_path / "a.h5")


def test_a_full_disk_is_named(labelled, tmp_path, monkeypatch):
    def full(self, rows, **values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowFile, "finish", full)
    words, attack = r"a\.h5: not written .*No space", PGD(Curved(), 0.05, steps=3)
    assert_refuses(words, run, attack, labelled, tmp_path / "a.h5")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_halves_the_batch(labelled, tmp_path, caplog, error):
    sizes = []

    def fill(indices):
        sizes.append(len(indices))
        if len(indices) > 2:
            raise error

    content = run(watched(fill), labelled, tmp_path / "a.h5", batch_size=8)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 1]
    assert content["done"].all()
    assert "batches of 4" in caplog.text


def test_steps_of_clouds_that_failed_are_clean_too(labelled, tmp_path):
    class Breaks(Curved):
        """Its gradient breaks at the third cloud once it has moved."""

        def forward(self, clouds):
            logits = super().forward(clouds)
            moved = (clouds - labelled[0][2]).abs().sum((1, 2)) < 0.7
            odd = moved & ((clouds - labelled[0][2]).abs().amax((1, 2)) > 0.015)
            return logits + torch.where(odd, 0 * clouds[:, 0, 0], 1).sqrt()[:, None]

    attack = PGD(Breaks(), 0.02, alpha=0.01, steps=4, start="clean")
    content = run(attack, labelled, tmp_path / "a.h5", record=[1])
    assert content["failed"].nonzero().tolist() == [[2]]
    np.testing.assert_array_equal(content["recorded"][0, 2], content["clean"][2])
    assert (content["recorded"][0, 3] != content["clean"][3]).any()


@pytest.mark.parametrize(("count", "first"), [(0, 0), (1, -1), (5, 10**6)])
def test_seeds_of_a_scoring_are_checked(count, first):
    assert streaming.check_seeds(3, 7) == range(7, 10)
    assert_refuses("seed", streaming.check_seeds, count, first)
