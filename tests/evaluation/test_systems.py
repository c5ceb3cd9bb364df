import pytest
import torch

from dual_denoising.clip.features import StandInBank, TextBank
from dual_denoising.errors import InputError
from dual_denoising.evaluation import systems
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.model.noising import Noising
from dual_denoising.training.record import TrainingRecord
from tests.baselines.test_baselines import small
from tests.conftest import assert_refuses, each


@pytest.mark.parametrize(
    ("trained_on", "seen", "count"),
    [
        (["sofa", "car"], False, "1 of 3"),
        (["car"], False, "no name"),
        (["bed", "chair", "sofa"], True, "all names"),
    ],
)
def test_seen_names_are_counted(toy, source, trained_on, seen, count):
    record = TrainingRecord("shapenet55", "train", trained_on, 64, "x")
    system = systems.System(toy(), StandInBank(12), record, "here")
    found, note = system.seen(source)
    assert found is seen
    assert note.startswith(count)
    fields = system.fields(source)
    assert (fields["dataset"], fields["split"]) == ("toy", "test")
    assert (fields["seen"], fields["num_points"], fields["noise_scale"]) == (seen, 64, 0.08)


def test_another_teacher_or_a_model_that_is_not_there_is_refused(trained):
    assert_refuses(r"tiny/none.*stand-in", systems.ours, str(trained / "model"), StandInBank())
    assert_refuses(r"nowhere.*primitives_clip", systems.ours, "nowhere", StandInBank())
    system = systems.ours(str(trained / "model"), TextBank(str(trained / "bank.h5")), 0.03)
    assert system.model.noising.scale == 0.03


def test_noise_around_a_baseline_is_the_mean_over_its_paths(clouds):
    recon = small("recon")
    recon.noising = Noising(0.08)
    many = ZeroShotClassifier(recon, torch.eye(4, 16), 4, 500, seed=3)
    index = torch.tensor([5, 6, 7, 8, 9])
    features = many.features(clouds, index, [3])
    assert features.shape == (1, 5, 1, 16)
    alone = [many.features(clouds[i : i + 1], index[i : i + 1], [3]) for i in range(5)]
    torch.testing.assert_close(features, torch.cat(alone, 1))
    assert not torch.allclose(features, many.features(clouds, index, [4]))
    still = ZeroShotClassifier(recon, torch.eye(4, 16), 4, 0)
    torch.testing.assert_close(still.features(clouds, index, [3])[0, :, 0], recon.encode(clouds))
    grid = many.grid(clouds, index, [1, 4], [0, 500], [3])
    torch.testing.assert_close(grid[1, 1, 0], many(clouds, index))


def test_a_model_without_noise_knows_one_timestep(clouds):
    recon = small("recon")
    assert_refuses("timestep is 500", ZeroShotClassifier, recon, torch.eye(2, 16), 8, 500)
    with pytest.raises(InputError, match="grouping"):
        ZeroShotClassifier(recon, torch.eye(2, 16), 1, 0).frozen(clouds, torch.arange(5))


def test_points_are_matched_or_native():
    pointclip = small("pointclip")
    assert systems.baseline(pointclip, "matched").training.num_points == 1024
    pointclip.native_points = 8192
    system = systems.baseline(pointclip, "native", 0.05)
    assert system.training.num_points == 8192
    assert system.model.noising.scale == 0.05
    assert not system.comparable
    assert "0.05" in system.label


@pytest.mark.parametrize("wrong", each(points=[-5, "all"], noise_scale=["abc", 0, 2]))
def test_points_and_noise_that_are_none_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        systems.baseline(small("pointclip"), **{"points": "matched"} | wrong)


def test_settings_of_a_data_set_give_way_to_those_that_are_asked_for():
    model, built = {"_target_": "ReCon"}, []
    datasets = {"default": {"ratio": 0.2, "type": "full"}, "modelnet40": {"ratio": 0.25}}
    own = {"model": model, "points": 64, "datasets": datasets}
    settings = {"baseline": own, "noise_scale": None}

    def build(chosen):
        built.append(chosen["ratio"])
        return small("pointclip")

    system = systems.open_system(settings, build)
    systems.for_dataset(system, settings, build, "modelnet40")
    assert systems.for_dataset(system, settings, build, "modelnet10") is system
    model["ratio"] = 0.9
    systems.open_system(settings, build, "modelnet40")
    assert built == [0.2, 0.25, 0.9]
    assert system.settings == {"_target_": "ReCon", "ratio": 0.2, "type": "full"}
