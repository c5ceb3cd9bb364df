"""What the teacher sees: cameras, colours, textures, clouds, files that cannot be drawn."""

import numpy as np
import pytest
import trimesh
from PIL import Image

from dual_denoising.clip import views
from dual_denoising.clip.cache import DatasetImages, Rendered
from dual_denoising.clip.views import Renderer
from dual_denoising.data.folder import Folder, spelled
from dual_denoising.data.primitives import COLORS, Primitives
from dual_denoising.data.sources import ArraySource, Joined, Surface
from dual_denoising.errors import InputError
from tests.conftest import assert_refuses, each

SIDES = {"+x": (220, 40, 40), "+y": (40, 220, 40), "+z": (40, 40, 220)}


def box(size=(1, 1, 1), at=(0, 0, 0), color=(200, 30, 30)):
    mesh = trimesh.creation.box(size)
    return Surface(mesh.vertices + at, mesh.faces, color)


def balls():
    """A red ball at +x, a green one at +y, a blue one at +z, and grey ones opposite."""
    ball = trimesh.creation.icosphere(2, 0.2)
    places = np.concatenate([np.eye(3), -np.eye(3)])
    colors = [*SIDES.values(), *[(120, 120, 120)] * 3]
    return [Surface(ball.vertices + p, ball.faces, c) for p, c in zip(places, colors, strict=True)]


def where(picture, channel):
    """Mean (column, row) of the pixels of a colour, from −1 to 1, rightwards and upwards."""
    pixels = np.asarray(picture).astype(int)
    others = [c for c in range(3) if c != channel]
    rows, columns = np.nonzero(pixels[..., channel] > pixels[..., others].max(-1) + 40)
    assert len(rows)
    half = len(pixels) / 2
    return columns.mean() / half - 1, 1 - rows.mean() / half


def test_cameras_stand_where_they_say():
    """By hand: from azimuth a, elevation e, the right is (cos a, 0, −sin a)."""
    cameras = [(0, 0), (90, 0), (0, 60), (30, 20), (210, -35), (60, 84.9), (60, -85.1), (40, 90)]
    renderer = Renderer(cameras, size=128, field_of_view=2)  # nearly parallel rays
    for (azimuth, elevation), picture in zip(cameras, renderer(balls()), strict=True):
        a, e = np.deg2rad([azimuth, elevation])
        right = np.array([np.cos(a), 0, -np.sin(a)])
        up = np.array([-np.sin(e) * np.sin(a), np.cos(e), -np.sin(e) * np.cos(a)])
        eye = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        for channel, axis in enumerate(np.eye(3)):
            if eye @ axis < -0.3:  # behind the grey one
                continue
            expected = np.array([right @ axis, up @ axis]) / 1.2 * views.FILL
            np.testing.assert_allclose(where(picture, channel), expected, atol=0.06)


def test_shapes_fill_the_picture_on_white():
    renderer = Renderer([(0, 0)], size=64, field_of_view=30)
    for scale, shift in ((1, 0), (1e4, 1e6), (1e-3, 5)):
        (picture,) = renderer([box(np.array([1, 2, 1]) * scale, np.full(3, shift))])
        assert picture.size == (64, 64)
        pixels = np.asarray(picture)
        assert (pixels[[0, -1]] == 255).all()
        drawn = (pixels < 250).any(-1)
        assert 40 <= drawn.any(1).sum() <= 62  # the box's diagonal fills 95%
        assert drawn.any(1).sum() > 1.5 * drawn.any(0).sum()


def test_what_points_up_is_up():
    tall = [box((1, 1, 4))]
    renderer = Renderer([(0, 0)], size=64)
    for up in ("y", "z"):
        (picture,) = renderer(tall, up)
        drawn = (np.asarray(picture) < 250).any(-1)
        assert (drawn.any(1).sum() > 2 * drawn.any(0).sum()) == (up == "z")


def test_textures_lie_the_right_way_up():
    """A plate whose texture is red above and blue below (v = 1 is above)."""
    corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4, :, 0], texture[4:, :, 2] = 255, 255
    plate = Surface(corners, np.array([[0, 1, 2], [0, 2, 3]]), uv=uv, texture=texture)
    (picture,) = Renderer([(0, 0)], size=64)([plate])
    assert where(picture, 0)[1] > 0.2
    assert where(picture, 2)[1] < -0.2


GREEN, RED, DARK = [30, 200, 30, 255], [255, 60, 60, 255], [10, 10, 10, 40]
TEXTURES = {
    name: {"baseColorTexture": Image.new("RGBA", (4, 4), color)}
    for name, color in (("green", (*GREEN,)), ("white", (255,) * 4), ("clear", (0,) * 4))
}
LOOKS = {  # baseColorFactor multiplies the texture; alpha counts where alphaMode says so
    "texture": (TEXTURES["green"], "green"),
    "material": ({"baseColorFactor": GREEN}, "green"),
    "tinted": (TEXTURES["white"] | {"baseColorFactor": RED}, "red"),
    "masked": (TEXTURES["clear"] | {"alphaMode": "MASK"}, "white"),
    "opaque": (TEXTURES["clear"], "dark"),
    "faint": ({"baseColorFactor": [0, 0, 0, 10], "alphaMode": "BLEND"}, "white"),
    "solid": ({"baseColorFactor": DARK}, "dark"),
}


def look(path):
    """The colour that a picture of a file has in its middle."""
    (picture,) = Renderer([(30, 20)], size=32)(views.read_surfaces(path))
    red, green, blue = np.asarray(picture)[16, 16].astype(int)
    if abs(red - green) < 20:
        return "white" if red > 120 else "dark"
    return "red" if red > green + 40 else "green" if green > max(red, blue) + 40 else "?"


@pytest.mark.parametrize("name", LOOKS)
def test_materials_look_as_gltf_says(tmp_path, name):
    fields, expected = LOOKS[name]
    mesh, material = trimesh.creation.box(), trimesh.visual.material.PBRMaterial(**fields)
    uv = np.full((8, 2), 0.5) if "baseColorTexture" in fields else None
    mesh.visual = trimesh.visual.TextureVisuals(uv, material=material)
    mesh.export(tmp_path / "a.glb")
    assert look(tmp_path / "a.glb") == expected


@pytest.mark.parametrize(("part", "name"), [("vertex", "a.glb"), ("face", "a.ply")])
def test_files_keep_colours_of_vertices_and_faces(tmp_path, part, name):
    mesh = trimesh.creation.box()
    setattr(mesh.visual, f"{part}_colors", GREEN)
    mesh.export(tmp_path / name)
    assert look(tmp_path / name) == "green"


def test_pictures_hold_nothing_of_the_shape_before():
    renderer = Renderer([(0, 0), (90, 0)], size=32)
    renderer([box((1, 9, 1)), box((1, 1, 9))])
    fresh = Renderer([(0, 0), (90, 0)], size=32)([box()])
    for mine, other in zip(renderer([box()]), fresh, strict=True):
        assert np.array_equal(mine, other)


def test_files_of_points_alone_are_drawn_as_clouds(tmp_path):
    points = np.random.default_rng(0).normal(size=(300, 3))
    trimesh.PointCloud(points).export(tmp_path / "cloud.ply")
    source = Folder(str(tmp_path), flat=True)
    renderer = Renderer([(0, 0)], size=32)
    (drawn,), (expected,) = views.draw(renderer, source, 0), renderer(points)
    assert abs(np.asarray(drawn).astype(int) - np.asarray(expected)).mean() < 1


def test_clouds_are_balls_that_hide_what_is_behind():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    (picture,) = Renderer([(0, 0)], size=64)(points)
    drawn = (np.asarray(picture) < 250).any(-1)
    rows, columns = np.mgrid[:64, :64] - 31.5
    disc = np.hypot(rows, columns) < 25
    assert drawn[disc].mean() > 0.9
    assert not drawn[np.hypot(rows, columns) > 33].any()


def test_what_cannot_be_drawn_is_named(tmp_path):
    assert_refuses(r"none\.glb", views.read_surfaces, tmp_path / "none.glb")
    mesh = trimesh.creation.box()
    ply = mesh.export(file_type="ply", encoding="ascii").decode()
    rows = "".join(f"v nan {y} {z}\n" for _, y, z in mesh.vertices)
    for name, content in (
        ("bad.glb", "glTF nothing"),
        ("far.ply", ply.replace("3 1 3 0", "3 1 3 9")),
        ("nan.obj", rows + "f 1 2 3\n"),
    ):
        (tmp_path / name).write_text(content)
        assert_refuses(name, views.read_surfaces, tmp_path / name)
    for cloud in (np.zeros((5, 3)), np.zeros((0, 3)), np.full((5, 3), np.nan)):
        with pytest.raises(InputError):
            Renderer()(cloud)
    for fields in (
        *each(cameras=[[], [(1, 2, 3)], [1, 2], [(0, float("nan"))]], size=[0, 64.5, "64", True]),
        *each(field_of_view=["30", 0, 150]),
    ):
        assert_refuses(next(iter(fields)), Renderer, **fields)


def test_primitives_are_drawn_as_their_clouds_stand():
    source = Primitives("train", 2, classes=["chair", "sofa"], yaw={"sofa": -90}, num_points=512)
    for index in range(4):
        shape = source.drawable(index)
        mesh = trimesh.Trimesh(shape.vertices, shape.faces, process=False)
        assert shape.color in COLORS.values()
        cloud = source.read(index)
        own = mesh.extents / np.linalg.norm(mesh.extents)
        np.testing.assert_allclose(
            np.ptp(cloud, axis=0) / np.linalg.norm(np.ptp(cloud, axis=0)), own, atol=0.06
        )
    other = Primitives("train", 2, seed=1, classes=["chair", "sofa"], num_points=512)
    assert source.fingerprint(0) != other.fingerprint(0)
    alone = Primitives("train", 2, classes=["chair"], num_points=512)
    assert source.fingerprint(1) == alone.fingerprint(1)  # the other classes do not matter


def test_flat_folders_are_named_by_their_files(tmp_path):
    for name in ("chairDesk.glb", "chair_desk2.obj", "bedBunk.ply"):
        trimesh.creation.box().export(tmp_path / name)
    source = Folder(str(tmp_path), flat=True)
    assert source.class_names == ["bed bunk", "chair desk"]
    assert source.labels.tolist() == [0, 1, 1]
    assert spelled("Night-Stand 3") == "night stand"
    both = Joined([source, Primitives("train", 1, classes=["chair"], num_points=64)])
    assert both.class_names == ["bed bunk", "chair desk", "chair"]
    assert both.labels.tolist() == [0, 1, 1, 2]
    assert both.read(3).shape == (64, 3)
    rendered = Rendered(both, Renderer([(0, 0)], size=32))
    assert len(rendered[0]) == len(rendered[3]) == rendered.views == 1
    assert_refuses("up is 'y and z", Joined, [source, Folder(str(tmp_path), flat=True, up="z")])


def test_the_data_sets_own_pictures(tmp_path):
    clouds = np.random.default_rng(0).normal(size=(3, 5, 3))
    source = ArraySource("x", "train", "y", ["a"], np.zeros(3, int), list("abc"), "here", clouds)
    layers = np.full((4, 4, 4), 0, np.uint8)
    Image.fromarray(layers, "RGBA").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    pictures = DatasetImages(source, str(tmp_path))
    (picture,) = pictures[0]
    assert picture.mode == "RGB"
    assert (np.asarray(picture) == 255).all()  # transparent is white
    with pytest.raises(InputError, match=r"b\.png"):
        pictures[1]
    with pytest.raises(InputError, match=r"c\.png"):
        pictures[2]
    assert_refuses("images=render", DatasetImages, source, str(tmp_path / "none"))


def test_nothing_to_be_seen_is_no_picture():
    line = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], float)
    flat, point = (Surface(line * size, np.array([[0, 1, 2]])) for size in (1, 0))
    clear = Surface(trimesh.creation.box().vertices, trimesh.creation.box().faces, opacity=0.0)
    renderer = Renderer([(0, 0)], size=32)
    for surface in (clear, flat, point):
        assert_refuses("shape", renderer, [surface])
