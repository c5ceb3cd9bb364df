import numpy as np
import pytest
from scipy.spatial import cKDTree

from dual_denoising.data import ASSETS, solids
from dual_denoising.data.primitives import Primitives, scan
from dual_denoising.data.recipes import Recipe, known_classes
from dual_denoising.data.sources import known_names, read_names
from tests.conftest import assert_refuses

MODELNET10 = known_names("modelnet10")


def area(mesh):
    a, b, c = (mesh[0][mesh[1][:, i]] for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def test_solids_have_their_analytic_areas():
    assert area(solids.box((1, 2, 3))) == pytest.approx(22)
    cylinder = solids.loft([[0, 1, 1], [2, 1, 1]], segments=256)
    assert area(cylinder) == pytest.approx(2 * np.pi + 4 * np.pi, rel=1e-3)
    cone = solids.loft([[0, 1, 1], [1, 0, 0]], segments=256, caps=False)
    assert area(cone) == pytest.approx(np.pi * 2**0.5, rel=1e-3)
    bar = solids.tube([[0, 0, 0], [0, 0, 5]], 0.1, segments=256)
    assert area(bar) == pytest.approx(2 * np.pi * 0.1 * 5 + 2 * np.pi * 0.01, rel=1e-3)


def test_solids_are_closed():
    for mesh in (
        solids.box((1, 1, 1), taper=(0.5, 0.5), shear=(0.2, 0)),
        solids.loft([[0, 1, 1], [2, 0.5, 0.5], [2, 0.3, 0.3], [1, 0.2, 0.2]], exponent=4),
        solids.tube(solids.bend([[0, 0, 0], [1, 1, 0], [2, 0, 1]]), 0.1),
    ):
        edges = np.concatenate([mesh[1][:, [i, (i + 1) % 3]] for i in range(3)])
        _, counts = np.unique(np.sort(edges, 1), axis=0, return_counts=True)
        assert (counts == 2).all()  # every edge belongs to two faces


def test_samples_lie_on_the_surface_in_proportion_to_area():
    rng = np.random.default_rng(0)
    points = solids.sample_surface(solids.box((1, 1, 4)), 20_000, rng)
    on_face = np.isclose(np.abs(points[:, 2]), 2) | np.isclose(np.abs(points[:, 0]), 0.5)
    on_face |= np.isclose(points[:, 1], 0) | np.isclose(points[:, 1], 1)
    assert on_face.all()
    ends = np.isclose(np.abs(points[:, 2]), 2).mean()
    assert ends == pytest.approx(2 / 18, abs=0.005)


def test_spread_is_far_more_even_than_chance():
    rng = np.random.default_rng(0)
    dense = solids.sample_surface(solids.box((1, 1, 1)), 3072, rng)

    def unevenness(points):
        gaps = cKDTree(points).query(points, 2)[0][:, 1]
        return gaps.std() / gaps.mean()

    chosen = solids.thin_out(dense, 1024, rng)
    assert len(np.unique(chosen, axis=0)) == 1024
    assert unevenness(chosen) < 0.6 * unevenness(dense[rng.permutation(3072)[:1024]])


def test_recipes_cover_modelnet40_and_more():
    known = known_classes()
    names = (ASSETS / "classes" / "modelnet40.txt").read_text().split()
    assert set(MODELNET10) | set(names) <= set(known)
    assert len(known) >= 160
    first = read_names("data/classes/primitives76.txt")
    words = [word for name in first for word in (name.replace("_", " "), *Recipe(name).synonyms)]
    assert len(set(words)) == len(words)  # no word means two classes
    for name in known:
        recipe = Recipe(name)
        assert recipe.synonyms
        assert recipe.path.stat().st_size < 5000
        for style in range(len(recipe.styles)):
            vertices, faces = recipe.build(np.random.default_rng(style), style)
            assert np.isfinite(vertices).all()
            assert faces.max() < len(vertices)


def test_clouds_are_functions_of_seed_split_class_and_number():
    few = Primitives("train", 2, seed=3, num_points=64, classes=["sofa", "bed"])
    three = ["lamp", "bed", "sofa"]
    many = Primitives("train", 5, seed=3, num_points=64, classes=three)
    assert np.array_equal(
        few.clouds[2:], many.clouds[many.labels == many.class_names.index("bed")][:2]
    )
    other = Primitives("test", 2, seed=3, num_points=64, classes=["sofa", "bed"])
    assert not np.allclose(few.clouds, other.clouds)
    reseeded = Primitives("train", 2, seed=4, num_points=64, classes=["sofa", "bed"])
    assert not np.allclose(few.clouds, reseeded.clouds)


def test_clouds_are_normalised_and_stand_upright():
    source = Primitives("test", 4, num_points=512, classes=["chair", "lamp", "bed"])
    assert np.linalg.norm(source.clouds, axis=2).max(1) == pytest.approx(1, abs=1e-5)
    chairs = source.clouds[:4]
    back = [c[c[:, 1] > np.quantile(c[:, 1], 0.9), 2].mean() for c in chairs]
    assert np.mean(back) < -0.1  # a chair's back is at −z: its front looks along +z


def test_yaw_turns_named_classes_alone():
    plain = Primitives("test", 2, num_points=64, classes=["sofa", "bed"])
    turned = Primitives("test", 2, num_points=64, classes=["sofa", "bed"], yaw={"sofa": -90})
    assert np.allclose(turned.clouds[2:], plain.clouds[2:])
    np.testing.assert_allclose(
        turned.clouds[:2, :, 0], -plain.clouds[:2, :, 2], atol=1e-5
    )  # the back, at −z, comes to +x


def test_scan_sees_one_side_only():
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(8000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    for _ in range(5):
        seen = scan(ball, 1024, rng)
        near = seen[np.abs(np.linalg.norm(seen, axis=1) - 1) < 0.05]
        direction = near.mean(0) / np.linalg.norm(near.mean(0))
        assert (near @ direction > -0.35).mean() > 0.95  # the far side is hidden
        assert len(near) < len(seen)  # clutter
        assert 0.002 < np.std(np.linalg.norm(near, axis=1)) < 0.03  # sensor noise


def test_styles_are_drawn_by_weight_and_tubes_may_taper(tmp_path):
    (tmp_path / "macros.yaml").write_text("{}")
    (tmp_path / "thing.yaml").write_text(
        "styles:\n"
        "  - {weight: 9, parts: [{box: {size: [1, 1, 1]}}]}\n"
        "  - {parts: [{tube: {path: [[0, 0, 0], [0, 1, 0], [0, 2, 0]], radius: [0.1, 0.5],"
        " bend: true}}]}\n"
    )
    recipe, rng = Recipe("thing", tmp_path), np.random.default_rng(0)
    boxes = np.mean([len(recipe.build(rng)[0]) == 8 for _ in range(500)])
    assert boxes == pytest.approx(0.9, abs=0.04)
    tube = recipe.build(rng, style=1)[0].reshape(-1, 8, 3)
    radii = np.linalg.norm(tube[:, :, [0, 2]], axis=2).mean(1)
    assert (radii[0], radii[-1]) == (pytest.approx(0.1), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "val"}, "split.*'val'.*train, test, scan"),
        ({"classes": ["dragon"]}, "'dragon'"),
        ({"classes": ["mug"], "more": {"mug": 0}}, "per_class is 0"),
        ({"classes": ["mug"], "more": {"mugs": 3}}, "'mugs'"),
    ],
)
def test_bad_requests_are_named(fields, message):
    assert_refuses(message, Primitives, **{"split": "test", "per_class": 1} | fields)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{box: {size: [w, 1, 1]}}", "style 0: .*'w'"),
        ("{boxx: {size: [1, 1, 1]}}", "'boxx'"),
        ("{box: {sizes: [1, 1, 1]}}", "sizes"),
        ("{box: {size: [1, '().__class__', 1]}}", "__class__"),
        ("{box: {size: [1, 'f\"{U.__globals__}\"', 1]}}", "__globals__"),
        ("{box: {size: [1, '__import__(1)', 1]}}", "'__import__'"),
        ("{box: {size: [1, 1 +, 1]}}", "style 0"),
    ],
)
def test_bad_recipes_are_named_and_run_no_code(tmp_path, part, message):
    (tmp_path / "macros.yaml").write_text("{}")
    (tmp_path / "thing.yaml").write_text(f"styles:\n  - parts:\n      - {part}\n")
    rng = np.random.default_rng(0)
    assert "thing.yaml" in assert_refuses(message, lambda: Recipe("thing", tmp_path).build(rng))


def test_some_classes_may_have_more_shapes_and_the_first_are_the_same():
    few = Primitives("train", 2, classes=["mug", "bowl", "rocket"])
    more = Primitives("train", 2, classes=["mug", "bowl", "rocket"], more={"bowl": 5})
    bowls = [f"bowl_{number:04d}" for number in range(5)]
    assert more.ids == ["mug_0000", "mug_0001", *bowls, "rocket_0000", "rocket_0001"]
    assert more.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    for key in few.ids:
        there, here = few.read(few.ids.index(key)), more.read(more.ids.index(key))
        np.testing.assert_array_equal(there, here)
