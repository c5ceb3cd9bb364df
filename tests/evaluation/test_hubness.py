import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from dual_denoising.clip.features import StandInBank
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.storage import fingerprint
from dual_denoising.evaluation import hubness, systems
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.evaluation.finish import calibrate_and_evaluate
from dual_denoising.evaluation.grid import Evaluation
from dual_denoising.training import checkpoint
from dual_denoising.training.record import TrainingRecord
from tests.conftest import assert_refuses

CPU = torch.device("cpu")
NAMES = ["bed", "chair", "sofa"]


@pytest.fixture
def clouds(modelnet_h5):
    """Eight clouds of each of three names."""
    data = np.random.default_rng(0).normal(size=(24, 40, 3)).astype(np.float32)
    source = ModelNetH5(*modelnet_h5(data), split="train", name="toy", up="y")
    return CloudDataset(source, 20)


@pytest.fixture
def pretrained(toy, wake, clouds, tmp_path):
    """Finishes a toy model as pre-training does; returns its folder."""

    def finished(**settings):
        model, folder = wake(toy()).eval(), tmp_path / "model"
        record = TrainingRecord("toy", "train", NAMES, 20, StandInBank(12).teacher)
        checkpoint.save_model(model, folder, record)
        calibrate_and_evaluate(
            model, StandInBank(12), record, folder, Evaluation(**settings), clouds, [], None, CPU
        )
        return folder

    return finished


def test_half_of_the_largest_cosine_of_a_training_cloud_is_taken_from_every_name(
    pretrained, clouds, toy, wake
):
    system = systems.ours(str(pretrained(csls=True)), StandInBank(12))
    weights = StandInBank(12).class_weights(NAMES)
    model = wake(toy()).eval()
    points = torch.stack([clouds[i]["points"] for i in range(24)])
    features = model.encode(points, 8, 500, 0)  # (24, F, E)
    cosines = cosine_similarity(features[:, :, None], weights[None, None], dim=-1).mean(1)
    expected = cosines.amax(0) / 2
    torch.testing.assert_close(system.classifier(NAMES).penalty, expected, atol=1e-3, rtol=0)
    assert system.classifier(NAMES, csls=False).penalty is None


def test_up_to_eight_clouds_of_a_name_are_looked_at_and_as_they_were_first_drawn(
    toy, wake, modelnet_h5
):
    data = np.random.default_rng(0).normal(size=(25, 40, 3)).astype(np.float32)
    labels = np.array([0] * 22 + [1] * 3)  # of the third name there is no cloud
    source = ModelNetH5(*modelnet_h5(data, labels), split="train", name="toy", up="y")
    clouds = CloudDataset(source, 20, resample=True)
    classifier = ZeroShotClassifier(wake(toy()).eval(), torch.randn(40, 12), 1, 500)
    kept = hubness.references(classifier, clouds)
    looked_at = [0, 3, 6, 9, 12, 15, 18, 21, 22, 23, 24]
    points = torch.stack([clouds[i]["points"] for i in looked_at])
    features = classifier.features(points, torch.tensor(looked_at), [0])[0]
    nearest = classifier.cosines(features).argmax(0).unique()
    assert len(nearest) > 5  # of eleven, so that a cloud that was not looked at would show
    torch.testing.assert_close(kept, features[nearest])


def test_a_model_is_compared_as_it_was_trained_unless_told_otherwise(pretrained, clouds):
    system = systems.ours(str(pretrained(csls=True)), StandInBank(12))
    plain = systems.ours(str(pretrained()), StandInBank(12))
    assert system.comparison["csls"]
    assert not plain.comparison["csls"]
    assert system.identity(NAMES) != plain.identity(NAMES)
    (own,), (other,) = (
        Evaluation([1], [0], [0], csls=csls).run(system, clouds)[0] for csls in (None, False)
    )
    assert "CSLS" in own.class_weights
    assert "CSLS" not in other.class_weights
    assert_refuses(r"eval\.csls", plain.classifier, NAMES, csls=True)


def test_references_that_are_missing_damaged_or_of_another_model_are_named(tmp_path):
    def refused(sha256):
        assert_refuses(r"references\.safetensors", hubness.load, tmp_path, sha256)

    refused("")  # it is missing
    hubness.save(torch.zeros(3, 2, 12), tmp_path)
    refused("of another file")
    (tmp_path / hubness.FILE).write_bytes(b"")
    refused(fingerprint(tmp_path / hubness.FILE))
