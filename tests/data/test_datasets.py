import h5py
import numpy as np
import pytest
import torch
import trimesh

from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.folder import Folder
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.points import Augmentation, normalise, y_up
from dual_denoising.data.primitives import Primitives
from dual_denoising.data.shapenet import ShapeNet55
from dual_denoising.data.sources import ArraySource, Joined, without
from dual_denoising.errors import InputError
from tests.conftest import assert_refuses


def modelnet(paths, up="y"):
    return ModelNetH5(*paths, split="test", name="toy", up=up)


def test_normalise_centres_and_scales_to_the_unit_sphere():
    points = normalise(np.random.default_rng(0).normal(3, 5, (50, 3)))
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1).max(), 1)
    assert np.isfinite(normalise(np.ones((4, 3)))).all()


def test_z_up_turns_to_y_up_without_mirroring():
    turn = y_up(np.eye(3), "z")
    np.testing.assert_array_equal(turn[2], [0, 1, 0])  # what was up
    assert np.linalg.det(turn) == pytest.approx(1)
    assert_refuses("up is 'x'", y_up, np.eye(3), "x")


def test_real_raw_modelnet_lands_in_the_right_frame(data_root):
    folder = data_root / "modelnet40_sample"
    paths = str(folder / "modelnet40_sample.h5"), str(folder / "shape_names.txt")
    dataset = CloudDataset(modelnet(paths, up="z"), 1024)
    names = dataset.source.class_names
    clouds = {names[item["label"]]: item["points"] for item in dataset}
    assert all(c.norm(dim=1).max() == pytest.approx(1, abs=1e-5) for c in clouds.values())
    extents = {name: cloud.amax(0) - cloud.amin(0) for name, cloud in clouds.items()}
    for name in ("bottle", "lamp", "person", "bookshelf"):  # taller than wide
        assert extents[name][1] == extents[name].max()
    for name in ("bed", "keyboard", "airplane", "car"):  # flatter than wide
        assert extents[name][1] < 0.8 * extents[name].max()
    top = clouds["table"][:, 1] > 0  # the plate is above the middle
    assert top.float().mean() > 0.5


def test_items_are_functions_of_seed_epoch_and_index(source):
    twist = Augmentation(180, (0.8, 1.2), 0.1)
    first, again, other = (
        CloudDataset(source, 20, twist, resample=True, seed=seed) for seed in (1, 1, 2)
    )
    cloud = first[3, 4]["points"]
    assert torch.equal(cloud, again[3, 4]["points"])
    for changed in (other[3, 4], first[4, 4], first[4]):
        assert not torch.equal(cloud, changed["points"])
    plain, fixed = CloudDataset(source, 20, resample=True), CloudDataset(source, 20)
    assert not torch.equal(plain[0, 4]["points"], plain[1, 4]["points"])  # not augmented
    assert torch.equal(fixed[4]["points"], fixed[9, 4]["points"])


def test_drawn_points_are_the_clouds_own_without_repeats(source):
    drawn = CloudDataset(source, 40)[2]["points"].numpy()  # all of them: normalised as a whole
    expected = normalise(source.read(2))
    few = CloudDataset(source, 20)[2]["points"]  # normalised after drawing
    torch.testing.assert_close(few.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert few.norm(dim=1).max().item() == pytest.approx(1)
    assert len(np.unique(drawn.round(5), axis=0)) == 40
    np.testing.assert_allclose(np.sort(drawn, 0), np.sort(expected, 0), atol=1e-6)


def test_augmentation_turns_about_y_and_stays_in_its_ranges():
    points = np.random.default_rng(0).normal(size=(30, 3))
    turned = Augmentation(yaw_degrees=180)(points, np.random.default_rng(5))
    np.testing.assert_allclose(turned[:, 1], points[:, 1])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1))
    assert not np.allclose(turned, points)
    angles = [Augmentation(90)(np.eye(3), np.random.default_rng(i))[2, 0] for i in range(50)]
    assert min(angles) < -0.5 < 0.5 < max(angles)  # to both sides
    scaled = Augmentation(scale=(0.5, 2.0))(np.ones((1, 3)), np.random.default_rng(5))[0]
    assert ((scaled > 0.5) & (scaled < 2)).all()
    assert len(set(scaled)) == 3
    shifted = Augmentation(shift=0.2)(np.zeros((1, 3)), np.random.default_rng(5))
    assert np.abs(shifted).max() <= 0.2


@pytest.mark.parametrize("scale", [1.0, [0.5], [0, 1], [2, 1], ["a", "b"]])
def test_a_range_that_is_none_is_named(scale):
    assert_refuses(r"data\.augmentation\.scale", Augmentation, scale=scale)


def test_epochs_are_shuffled(source):
    clouds = CloudDataset(source, 8)
    order = clouds.epoch_order(seed=0, epoch=0)
    assert sorted(order) == list(range(len(clouds)))
    assert not np.array_equal(order, clouds.epoch_order(seed=0, epoch=1))
    assert not np.array_equal(order, clouds.epoch_order(seed=1, epoch=0))


def named(names, labels):
    """A cloud of each label, filled with its place."""
    clouds = [np.full((4, 3), place, float) for place in range(len(labels))]
    ids = [str(place) for place in range(len(labels))]
    return ArraySource("toy", "test", "y", names, np.array(labels), ids, "toy.h5", clouds)


def test_epochs_balanced_over_names_use_all_clouds_in_time():
    labels = np.array([0] * 10 + [1] * 2)
    dataset = CloudDataset(named(["many", "few"], labels), 8, per_name=4)
    assert dataset.epoch_size() == 8
    orders = [dataset.epoch_order(0, epoch) for epoch in range(10)]
    for order in orders:
        assert np.bincount(labels[order]).tolist() == [4, 4]
        assert len(set(order[labels[order] == 0])) == 4  # of more clouds none comes twice
        assert np.bincount(order)[10:].tolist() == [2, 2]  # fewer are repeated evenly
    assert set(np.concatenate(orders)) == set(range(12))
    dataset.more = {"few": 6}
    assert dataset.epoch_size() == 10
    assert np.bincount(labels[dataset.epoch_order(0, 0)]).tolist() == [4, 6]


def test_fresh_clouds_are_other_ones_in_every_epoch_and_the_same_when_repeated(tmp_path):
    (tmp_path / "box").mkdir()
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box" / "a.stl")
    folder = Folder(str(tmp_path), points_per_mesh=64)
    recipes = Primitives("train", 1, classes=["chair"], num_points=64, yaw={"chair": -90})
    both = Joined([folder, recipes])
    dataset = CloudDataset(both, 64, resample=True, fresh=True)
    first = [dataset[i]["points"] for i in range(2)]
    for index, cloud in enumerate(first):
        assert not torch.equal(dataset[1, index]["points"], cloud)
    assert all(torch.equal(dataset[i]["points"], cloud) for i, cloud in enumerate(first))
    box = folder.read(0, np.random.default_rng(0))
    assert np.isclose(np.abs(box), [0.5, 1, 1.5], atol=1e-5).any(1).all()
    backs = [recipes.read(0, np.random.default_rng(i)) for i in range(8)]
    assert all(cloud[cloud[:, 1] > 0.3, 0].mean() > 0 for cloud in backs)  # turned to +x as asked


def spoilt():
    """Nine clouds, of which one has a point that is no number and one a single place."""
    data = np.random.default_rng(0).normal(size=(9, 40, 3))
    data[2, 7], data[5] = np.nan, 1.5
    return data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label": np.full(12, 3)}, r"label\[0\] is 3,"),
        ({"label": np.zeros(5)}, "12 .*'data'.* 5 .*'label'"),
        ({"data": np.zeros((12, 40))}, r"\(12, 40\).*\(n, N, 3\)"),
        ({"data": spoilt()}, r"cloud 2: point 7 is \[nan"),
        ({"label": np.arange(12) / 2}, "label"),
        ({"label": ["bed"] * 12}, r"\.h5"),
        ({"name": ["a", "b"]}, "12 .* 2 ids"),
        ({"names": ("bed", "sofa", "bed")}, "'bed'"),
        ({"data": np.full((2, 4, 3), np.inf)}, "4 of 4 points"),
    ],
)
def test_bad_h5_content_is_named(modelnet_h5, content, message):
    assert_refuses(message, modelnet, modelnet_h5(**content))


def test_bad_h5_files_are_named(modelnet_h5, tmp_path):
    path, names = modelnet_h5()
    assert_refuses(r"none\.h5.*DUAL_DENOISING_DATA", modelnet, (str(tmp_path / "none.h5"), names))
    whole = (tmp_path / "clouds.h5").read_bytes()
    for size in (0, 100, len(whole) // 2):
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        assert_refuses(r"cut\.h5", modelnet, (str(tmp_path / "cut.h5"), names))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["points"] = np.zeros(3)
    assert_refuses(r"other\.h5.*'data'", modelnet, (str(tmp_path / "other.h5"), names))
    assert_refuses(r"none\.txt", modelnet, (path, str(tmp_path / "none.txt")))


def test_shapenet_rows_split_at_the_first_dash_and_malformed_ones_are_named(shapenet, caplog):
    source = ShapeNet55(str(shapenet))
    assert list(source.ids) == ["02691156-abc", "03001627-a-b-c", "04379243-t"]
    assert [source.class_names[i] for i in source.labels] == ["airplane", "chair", "table"]
    assert "04379243-.npy, x y.npy" in caplog.text
    assert source.split == "train+test"
    assert CloudDataset(source, 32)[1]["points"].shape == (32, 3)


def test_bad_shapenet_folders_are_named(shapenet, tmp_path):
    assert_refuses("experiment=quickstart", ShapeNet55, str(tmp_path / "nowhere"))
    path = shapenet / "shapenet_pc" / "02691156-abc.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    dataset = CloudDataset(ShapeNet55(str(shapenet)), 32)
    with pytest.raises(InputError, match=r"02691156-abc\.npy"):
        dataset[0]
    path.unlink()
    assert_refuses(r"1 of 3.*02691156", ShapeNet55, str(shapenet))


@pytest.mark.parametrize("name", ["a/b", "../a", "", 5])
def test_a_name_that_would_be_a_path_is_refused(name, unchecked):
    """Files of results are named after a source, whose name may come with a stranger's model."""
    for field in ("name", "split"):
        fields = {"name": "toy", "split": "test"} | {field: name}
        rest = "y", ["bed"], np.zeros(1), ["0"], "toy.h5", np.ones((1, 4, 3))
        assert_refuses(f"toy.h5: {field} is", ArraySource, *fields.values(), *rest)


def test_classes_left_out_of_a_source_leave_the_others_as_they_are():
    source = named(["bed", "mug", "sofa"], [0, 1, 2, 1, 0, 2])
    left = without(source, ["mug"])
    assert left.class_names == ["bed", "sofa"]
    assert left.labels.tolist() == [0, 1, 0, 1]
    assert left.ids == ["0", "2", "4", "5"]
    assert [left.read(i)[0, 0] for i in range(4)] == [0, 2, 4, 5]
    assert_refuses(r"toy.h5.*'cup'", without, source, ["cup"])


def test_a_number_of_names_is_kept_and_a_larger_one_keeps_them_too():
    names = [f"name {i}" for i in range(9)]
    source = named(names, range(9))
    kept = [set(without(source, ["name 4"], keep).class_names) for keep in (1, 3, 8, 100)]
    assert [len(k) for k in kept] == [1, 3, 8, 8]
    assert kept[0] <= kept[1] <= kept[2] == kept[3]
    three = without(source, ["name 4"], 3)
    assert [names[int(three.read(i)[0, 0])] for i in range(3)] == list(three.class_names)
    assert_refuses(r"data\.keep", without, source, [], 0)


def test_what_is_left_of_meshes_is_still_meshes(tmp_path):
    for name in ("bed", "mug"):
        trimesh.creation.box().export(tmp_path / f"{name}.glb")
    whole = Folder(str(tmp_path), flat=True)
    left = without(whole, ["mug"])
    assert left.drawable(0) == tmp_path / "bed.glb"
    assert left.fingerprint(0) == whole.fingerprint(0)
    size, before = (tmp_path / "bed.glb").stat().st_size, whole.fingerprint(0)
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "bed.glb")
    assert (tmp_path / "bed.glb").stat().st_size == size
    assert whole.fingerprint(0) != before  # the same name and size, another content
