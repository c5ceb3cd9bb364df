"""Readers against files that independent libraries wrote, whole and damaged."""

import pickle
import struct

import numpy as np
import plyfile
import pytest
import trimesh

from dual_denoising.data import corruptions
from dual_denoising.data.datasets import CloudDataset, TestSet, open_tests
from dual_denoising.data.files import read_cloud
from dual_denoising.data.folder import Folder
from dual_denoising.data.modelnet import open_modelnet
from dual_denoising.data.pickles import load_arrays
from dual_denoising.data.points import normalise, y_up
from dual_denoising.data.scanobjectnn import ScanObjectNN
from dual_denoising.data.sources import known_names
from dual_denoising.errors import InputError
from tests.conftest import Evil, assert_refuses, write_h5

POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def box(scale=1.0):
    mesh = trimesh.creation.box(extents=[1, 2, 3])
    mesh.apply_scale(scale)
    return mesh


def write_ply(path, points=POINTS, text=False, order="<", kind="f4", extra=()):
    fields = [(a, kind) for a in "xyz"] + [(name, "u1") for name in extra]
    rows = np.zeros(len(points), fields)
    for axis, values in zip("xyz", points.T, strict=True):
        rows[axis] = values
    element = plyfile.PlyElement.describe(rows, "vertex")
    plyfile.PlyData([element], text=text, byte_order=order).write(path)


def write_pcd(path, points=POINTS, kind="ascii", bits="F 4 f"):
    """A PCD file written from its specification alone (version 0.7), with a colour column."""
    letter, size, code = bits.split()
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE {size} {size} {size} 4\n"
        f"TYPE {letter} {letter} {letter} U\nCOUNT 1 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {kind}\n"
    )
    if kind == "ascii":
        body = "".join(f"{x:.9g} {y:.9g} {z:.9g} 7\n" for x, y, z in points).encode()
    else:
        body = b"".join(struct.pack(f"<3{code}I", *map(float, p), 7) for p in points)
    path.write_bytes(header.encode() + body)


WRITERS = {
    "ascii.ply": lambda p: write_ply(p, text=True),
    "little.ply": lambda p: write_ply(p),
    "big.ply": lambda p: write_ply(p, order=">"),
    "double_colour.ply": lambda p: write_ply(p, kind="f8", extra=("red", "green", "blue")),
    "a.npy": lambda p: np.save(p, POINTS),
    "normals.npy": lambda p: np.save(p, np.hstack([POINTS, POINTS]).astype(np.float64)),
    "one.npz": lambda p: np.savez(p, anything=POINTS),
    "named.npz": lambda p: np.savez_compressed(p, colour=np.ones(3), points=POINTS),
    "ascii.pcd": lambda p: write_pcd(p),
    "binary.pcd": lambda p: write_pcd(p, kind="binary"),
    "double.pcd": lambda p: write_pcd(p, kind="binary", bits="F 8 d"),
    "blanks.xyz": lambda p: np.savetxt(p, POINTS),
    "commas.txt": lambda p: np.savetxt(p, np.hstack([POINTS, POINTS]), delimiter=","),
    "header.txt": lambda p: np.savetxt(p, POINTS, delimiter=";", header="x;y;z", comments=""),
    "crlf.xyz": lambda p: np.savetxt(p, POINTS, newline="\r\n", header="40", comments=""),
    "vertices.obj": lambda p: p.write_text("".join("v {} {} {}\n".format(*x) for x in POINTS)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_clouds_of_other_libraries_are_read_exactly(tmp_path, name):
    path = tmp_path / f"wölkchen {name}"
    WRITERS[name](path)
    np.testing.assert_allclose(read_cloud(path), POINTS, atol=1e-6)


@pytest.mark.parametrize("suffix", ["ply", "obj", "off", "stl", "glb", "gltf"])
def test_meshes_are_sampled_on_their_surface(tmp_path, suffix):
    path = tmp_path / f"kasten.{suffix}"
    if suffix == "gltf":
        for file, content in trimesh.exchange.gltf.export_gltf(trimesh.Scene(box())).items():
            (tmp_path / ("kasten.gltf" if file == "model.gltf" else file)).write_bytes(content)
    else:
        box().export(path)
    points = read_cloud(path, 6000, seed=3)
    assert points.shape == (6000, 3)
    half = np.array([0.5, 1, 1.5])
    on_face = np.isclose(np.abs(points), half, atol=1e-5)
    assert on_face.any(1).all()
    assert (np.abs(points) <= half + 1e-5).all()
    shares = on_face.mean(0)  # areas 12, 6 and 4 of 22
    np.testing.assert_allclose(shares, np.array([12, 6, 4]) / 22, atol=0.03)
    np.testing.assert_array_equal(points, read_cloud(path, 6000, seed=3))
    assert not np.array_equal(points, read_cloud(path, 6000, seed=4))


def test_an_off_file_may_have_colours(tmp_path):
    vertices = "".join("{} {} {} 255 0 0 255\n".format(*x) for x in np.eye(4)[:, :3])
    faces = "3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    (tmp_path / "a.off").write_text(f"COFF\n4 4 0\n{vertices}{faces}")
    assert read_cloud(tmp_path / "a.off", 9).shape == (9, 3)


def test_scenes_are_merged_where_their_nodes_are(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(box(), transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.add_geometry(box(), transform=trimesh.transformations.translation_matrix([0, 20, 0]))
    scene.export(tmp_path / "two.glb")
    points = read_cloud(tmp_path / "two.glb", 2000)
    right, above = points[:, 0] > 5, points[:, 1] > 10
    assert (right ^ above).all()
    assert 850 < right.sum() < 1150
    np.testing.assert_allclose(points[right].mean(0), [10, 0, 0], atol=0.2)


def test_units_and_huge_coordinates_do_not_matter(tmp_path):
    for scale, offset in ((1.0, 0.0), (1e-6, 0.0), (1000.0, 5e6), (1e150, 0.0)):
        np.save(tmp_path / "a.npy", POINTS.astype(np.float64) * scale + offset)
        same = normalise(read_cloud(tmp_path / "a.npy"))
        np.testing.assert_allclose(same, normalise(POINTS), atol=1e-5)
        mesh = box()
        mesh.vertices = mesh.vertices * scale + offset
        (tmp_path / "b.obj").write_text(
            "".join("v {!r} {!r} {!r}\n".format(*map(float, v)) for v in mesh.vertices)
            + "".join("f {} {} {}\n".format(*(f + 1)) for f in mesh.faces)
        )
        points = read_cloud(tmp_path / "b.obj", 500)
        assert np.isclose(np.abs((points - offset) / scale), [0.5, 1, 1.5], atol=1e-5).any(1).all()


BROKEN = {
    "leer.ply": (b"", ""),
    "one.xyz": (b"1 2 3\n", "1 point"),
    "same.txt": (b"1 2 3\n" * 9, "9 points"),
    "nan.xyz": (b"0 0 0\n1 nan 2\n", r"point 1 is \[1.0, nan, 2.0\]"),
    "words.txt": (b"once upon\n a time\n", ""),
    "flat.obj": (b"v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "1 faces"),
    "index.obj": (b"v 0 0 0\nv 1 1 1\nv 2 2 3\nf 1 2 9\n", ""),
    "a.step": (b"", r".*'\.step'.* \.ply \.obj"),
    "a.gltf": (b'{"extensionsRequired": ["KHR_draco_mesh_compression"]}', ".*KHR_draco"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert "\n" not in assert_refuses(rf"{name}: {message}", read_cloud, tmp_path / name)


def test_truncated_files_are_not_half_a_shape(tmp_path):
    write_ply(tmp_path / "cloud.ply", text=True)
    write_pcd(tmp_path / "cloud.pcd")
    box().export(tmp_path / "mesh.ply", encoding="ascii")
    box().export(tmp_path / "mesh.off")
    for name in ("cloud.ply", "cloud.pcd", "mesh.ply", "mesh.off"):
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:-5]))
        assert_refuses(f"{name}: ", read_cloud, tmp_path / name)


@pytest.mark.parametrize("text", ["1,5;-2;3,25\n0;0;1\n", "1,5 -2,0 3,25\n0,0 0,0 1,0\n"])
def test_decimal_commas(tmp_path, text):
    (tmp_path / "a.xyz").write_text(text)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.xyz"), [[1.5, -2, 3.25], [0, 0, 1]])


def test_pixels_without_a_measurement_are_left_out(tmp_path):
    points = POINTS.copy()
    points[3], points[9, 2] = np.nan, np.nan
    write_pcd(tmp_path / "a.pcd", points, kind="binary")
    expected = np.delete(POINTS, [3, 9], axis=0)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.pcd"), expected)


def test_arrays_of_objects_or_wrong_shape_are_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}, 1], object), allow_pickle=True)
    np.save(tmp_path / "two.npy", np.zeros((5, 2)))
    np.save(tmp_path / "turned.npy", POINTS.T)
    np.savez(tmp_path / "many.npz", a=POINTS, b=POINTS)
    for name in ("o.npy", "two.npy", "turned.npy", "many.npz"):
        assert_refuses(name, read_cloud, tmp_path / name)


class Pointers:
    """An array of objects over bytes of the pickle's own choice: reading it follows pointers."""

    def __init__(self, path):
        pass

    def __reduce__(self):
        return np.ndarray, ((24,), np.dtype("O"), b"A" * 192)


@pytest.mark.parametrize(
    "around",
    [lambda x: x, lambda x: [[POINTS], [x]], lambda x: {"a": x}, lambda x: np.array([x, 1])],
)
@pytest.mark.parametrize("kind", [Evil, Pointers])
def test_a_pickle_can_neither_run_anything_nor_make_memory_be_read(tmp_path, kind, around):
    evil, path = kind(tmp_path / "executed"), tmp_path / "a.dat"
    path.write_bytes(pickle.dumps(around(evil)))
    assert_refuses(r"a\.dat: ", load_arrays, path)
    assert not (tmp_path / "executed").exists()


def test_the_evil_pickle_is_evil(tmp_path):
    assert pickle.loads(pickle.dumps(Evil(tmp_path / "executed"))) == 0
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_are_read_in_every_protocol(tmp_path, protocol):
    content = [[POINTS, POINTS.astype(">f8")], [np.array([3], np.int32), np.int64(2)]]
    (tmp_path / "a.dat").write_bytes(pickle.dumps(content, protocol))
    clouds, labels = load_arrays(tmp_path / "a.dat")
    np.testing.assert_array_equal(clouds[0], POINTS)
    np.testing.assert_array_equal(clouds[1], POINTS.astype(">f8"))
    assert [np.asarray(label).item() for label in labels] == [3, 2]


def damage(data: bytes, kind: int, rng: np.random.Generator) -> bytes:
    """One of four ways in which files go wrong: cut, overwritten, with a hole, with odd numbers."""
    place = int(rng.integers(0, len(data)))
    words = [b"nan", b"inf", b"-1e400", b"99999999999999999999", b"", b"-3"]
    new = [b"", rng.bytes(16), bytes(200), words[rng.integers(len(words))]][kind]
    return data[:place] + new + (data[place + max(len(new), 4) :] if kind else b"")


def test_three_hundred_damaged_files_are_errors_or_clouds(tmp_path):
    """The files of all writers, meshes and pickles, each damaged in many seeded ways."""
    rng, whole = np.random.default_rng(0), []
    for name, write in WRITERS.items():
        write(tmp_path / name)
        whole.append(tmp_path / name)
    for suffix in ("ply", "obj", "off", "stl", "glb"):
        box().export(tmp_path / f"mesh.{suffix}")
        whole.append(tmp_path / f"mesh.{suffix}")
    mark = tmp_path / "executed"
    (tmp_path / "a.dat").write_bytes(pickle.dumps([[POINTS], [np.array([1])]]))
    (tmp_path / "evil.dat").write_bytes(pickle.dumps([[POINTS], [Evil(mark)]]))
    whole += [tmp_path / "a.dat", tmp_path / "evil.dat"]
    outcomes = []
    for number in range(312):
        source = whole[number % len(whole)]
        path = tmp_path / f"{number:03d} beschädigt{source.suffix}"
        path.write_bytes(damage(source.read_bytes(), number // len(whole) % 4, rng))
        try:
            points = load_arrays(path) and POINTS if source.suffix == ".dat" else read_cloud(path)
        except InputError as error:
            outcomes.append((path, str(error)))
            continue
        assert points.shape[1] == 3
        assert np.isfinite(points).all()
        assert (points != points[0]).any()
    for path, message in outcomes:
        assert str(path) in message
        assert "\n" not in message
    assert not mark.exists()
    assert 100 < len(outcomes) < 262


# ---- datasets ----


def stick(n, axis, seed=0):
    """Clouds of different length along one axis, thin along the others: an up-axis to recognise."""
    points = np.random.default_rng(seed).normal(size=(n, 64, 3)) * 0.05
    points[:, :, axis] = np.linspace(-1, 1, 64)
    return points.astype(np.float32)


def upright(source, index=0):
    """The extent of a cloud, as evaluation sees it, is along y."""
    item = CloudDataset(source, 32, few="repeat")[index]
    return int(np.ptp(item["points"].numpy(), axis=0).argmax()) == 1


def ply_hdf5(root):
    folder = root / "modelnet40_ply_hdf5_2048"
    for part, label in (("test0", [[0], [39]]), ("test1", [[7]])):
        write_h5(folder / f"ply_data_{part}.h5", stick(len(label), 1), np.array(label, np.uint8))
    (folder / "test_files.txt").write_text(
        "data/modelnet40_ply_hdf5_2048/ply_data_test0.h5\n"
        "data/modelnet40_ply_hdf5_2048/ply_data_test1.h5\n"
    )
    (folder / "shape_names.txt").write_text("\n".join(known_names("modelnet40")))


def normal_resampled(root):
    folder = root / "modelnet40_normal_resampled"
    rows = ["airplane_0627", "xbox_0104", "bowl_0065"]
    (folder / "x").mkdir(parents=True)
    (folder / "modelnet40_test.txt").write_text("\n".join(rows) + "\n")
    for row, cloud in zip(rows, stick(3, 1), strict=True):
        (folder / row.rpartition("_")[0]).mkdir()
        path = folder / row.rpartition("_")[0] / f"{row}.txt"
        np.savetxt(path, np.hstack([cloud, cloud]), delimiter=",", fmt="%.6f")


def fps_dat(root):
    clouds = [np.hstack([cloud, cloud]) for cloud in stick(3, 1)]
    labels = [np.array([0], np.int32), np.array([39], np.int32), np.array([6], np.int32)]
    with open(root / "modelnet40_test_8192pts_fps.dat", "wb") as file:
        pickle.dump([clouds, labels], file)


def off_tree(root):
    for kind in known_names("modelnet40"):
        folder = root / "ModelNet40" / kind / "test"
        folder.mkdir(parents=True)
        mesh = trimesh.creation.box(extents=[1, 1, 9])
        text = mesh.export(file_type="off")
        glued = text.replace("OFF\n", "OFF", 1)  # as many of Princeton's files are
        (folder / f"{kind}_0001.off").write_text(glued if kind == "bed" else text)


@pytest.mark.parametrize(
    ("write", "labels"),
    [
        (ply_hdf5, [0, 39, 7]),
        (normal_resampled, [0, 39, 6]),
        (fps_dat, [0, 39, 6]),
        (off_tree, list(range(40))),
    ],
)
def test_every_layout_of_modelnet_is_found_and_stands_upright(tmp_path, write, labels):
    write(tmp_path)
    source = open_modelnet(str(tmp_path), "test", 40)
    assert source.labels.tolist() == labels
    assert len(set(source.ids)) == len(labels)
    assert all(upright(source, i) for i in range(min(4, len(labels))))
    turned = open_modelnet(str(tmp_path), "test", 40, up="z" if source.up == "y" else "y")
    assert not upright(turned)
    assert_refuses("modelnet40 train", open_modelnet, str(tmp_path), "train", 40)


def test_scanobjectnns_three_splits(tmp_path):
    for number, (variant, path) in enumerate(
        {
            "obj_only": "main_split_nobg/test_objectdataset.h5",
            "obj_bg": "main_split/test_objectdataset.h5",
            "pb_t50_rs": "main_split/test_objectdataset_augmentedrot_scale75.h5",
        }.items()
    ):
        write_h5(tmp_path / path, stick(2, 1, number), np.array([14, 0]), mask=np.zeros((2, 64)))
        source = ScanObjectNN(str(tmp_path), variant)
        assert source.name == f"scanobjectnn_{variant}"
        assert [source.class_names[i] for i in source.labels] == ["toilet", "bag"]
        np.testing.assert_array_equal(source.read(1), stick(2, 1, number)[1])
        assert upright(source)
    assert_refuses(r"test_objectdataset\.h5", ScanObjectNN, str(tmp_path / "none"), "obj_bg")
    assert_refuses(r"variant.*'hardest'", ScanObjectNN, str(tmp_path), "hardest")


def test_scale_as_stored_is_an_option(tmp_path):
    write_h5(tmp_path / "main_split/test_objectdataset.h5", 5 + stick(2, 1), np.array([1, 0]))
    source = ScanObjectNN(str(tmp_path), "obj_bg")
    (raw,) = TestSet(source, points_ratio=2, unit_sphere=False).datasets(32)
    np.testing.assert_array_equal(raw[0]["points"].numpy(), source.read(0))
    (unit,) = TestSet(source).datasets(64)
    np.testing.assert_allclose(unit[0]["points"].norm(dim=1).max(), 1, atol=1e-6)


def test_corrupted_modelnets(tmp_path):
    for stem, n in (("clean", 64), ("scale_0", 64), ("scale_4", 64), ("dropout_global_4", 16)):
        write_h5(tmp_path / f"{stem}.h5", stick(3, 1)[:, :n], np.array([[0], [5], [39]]))
    sources = corruptions.modelnet_c(str(tmp_path), ["clean", "scale"], [0, 4])
    assert [s.name for s in sources] == [f"modelnet_c_{x}" for x in ("clean", "scale_0", "scale_4")]
    (dropped,) = corruptions.modelnet_c(str(tmp_path), ["dropout_global"], [4])
    (test,) = TestSet(dropped, few="keep").datasets(64)
    assert test[2]["points"].shape == (16, 3)
    np.save(tmp_path / "label.npy", np.array([[0], [5], [39]]))
    np.save(tmp_path / "data_original.npy", stick(3, 1))
    np.save(tmp_path / "data_lidar_3.npy", stick(3, 1)[:, :20])
    sources = corruptions.modelnet40_c(str(tmp_path), ["original", "lidar"], [3])
    assert [s.name for s in sources] == ["modelnet40_c_original", "modelnet40_c_lidar_3"]
    assert sources[1].labels.tolist() == [0, 5, 39]
    assert upright(sources[1])


def test_a_folder_per_class_of_any_format(tmp_path):
    for kind, name in (("lamp", "ascii.ply"), ("chair", "a.npy"), ("chair", "blanks.xyz")):
        (tmp_path / kind).mkdir(exist_ok=True)
        WRITERS[name](tmp_path / kind / name)
    box().export(tmp_path / "lamp" / "b.glb")
    (tmp_path / "lamp" / "notes.md").write_text("not a cloud")
    source = Folder(str(tmp_path), up="z")
    assert source.class_names == ["chair", "lamp"]
    assert source.ids == ["chair/a.npy", "chair/blanks.xyz", "lamp/ascii.ply", "lamp/b.glb"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    item = CloudDataset(source, 40)[0]["points"].numpy()
    np.testing.assert_allclose(item, normalise(y_up(POINTS, "z")), atol=1e-6)
    repeated = CloudDataset(source, 100, few="repeat")[0]["points"]
    _, counts = np.unique(repeated.numpy(), axis=0, return_counts=True)
    assert (len(counts), counts.min(), counts.max()) == (40, 2, 3)
    assert_refuses("sofa", Folder, str(tmp_path), class_names=["sofa"])


def test_absent_test_sets_are_reasons_where_that_is_allowed(tmp_path, caplog):
    write_h5(tmp_path / "main_split/test_objectdataset.h5", stick(2, 1), np.array([1, 0]))

    def make(variant):
        return ScanObjectNN(str(tmp_path), variant)

    assert open_tests([None], make, 32) == open_tests({"bg": None}, make, 32) == ([], {})
    configs = {"bg": "obj_bg", "only": "obj_only"}
    tests, absent = open_tests(configs, make, 32, optional=True)
    assert [test.source.name for test in tests] == ["scanobjectnn_obj_bg"]
    assert "test_objectdataset.h5" in absent["only"]
    with pytest.raises(InputError):
        open_tests(configs, make, 32)
    words = tests[0].describe()
    assert all(said in words for said in ("obj_bg test", "2 cl", "15 cl", "32 of 64", "y-up"))
