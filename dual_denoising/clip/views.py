"""What the teacher sees of a shape: pictures from cameras around it, or the dataset's own.

Rendering is VTK's through pyvista, which needs no display: it draws through EGL, on a GPU where the
driver offers one and in software where Mesa does.
"""

import functools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from dual_denoising.data.files import MESHES
from dual_denoising.data.points import check_shape, y_up
from dual_denoising.data.sources import Source, Surface
from dual_denoising.errors import InputError, check, check_number, reading
from dual_denoising.keyed_random import Stream, generator

FILL = 0.95  # of the picture's height: the sphere around a shape
BALL = 0.03  # radius of the ball that stands for a point, in radii of its cloud
CLOUD_POINTS = 4096  # of a cloud that are drawn at most
LIGHTS = (((-1, 1.5, 1), 0.75), ((1, 0.3, 0.5), 0.35))  # from the left above, and from the right


@dataclass
class Renderer:
    """Draws a shape from every camera (azimuth, elevation), in degrees: size × size, on white.

    Azimuth 0 looks at the front (from +z), 90 from +x; y is up. The shape is centred by its box and
    scaled so that its sphere fills 95% of the picture. A cloud is drawn as small balls.
    """

    cameras: Sequence[tuple[float, float]] = field(
        default_factory=lambda: [(30 + 90 * turn, 20) for turn in range(4)]
    )
    size: int = 224
    field_of_view: float = 30.0

    def __post_init__(self):
        try:
            cameras = np.array([[float(a), float(e)] for a, e in self.cameras])
        except (TypeError, ValueError):
            cameras = np.full(1, np.nan)
        good = len(cameras) and np.isfinite(cameras).all()
        check("cameras", self.cameras, good, "give pairs [azimuth, elevation]")
        self.cameras = [(azimuth, elevation) for azimuth, elevation in cameras.tolist()]
        check_number("size", self.size, 8)
        check_number("field_of_view", self.field_of_view, whole=False, above=True, most=120)

    def __call__(self, shape: Sequence[Surface] | np.ndarray, up: str = "y") -> list[Image.Image]:
        """A picture per camera of surfaces, or of a cloud (N, 3)."""
        if isinstance(shape, np.ndarray):
            shape = [_balls(check_shape(shape, "a cloud to draw"))]
        corners = np.concatenate([s.vertices[np.unique(s.faces)] for s in shape])
        low, high = corners.min(0), corners.max(0)
        center = (low + high) / 2
        radius = np.linalg.norm(corners - center, axis=1).max()
        plotter = _plotter(self.size, self.field_of_view)
        plotter.clear_actors()
        for surface in shape:
            vertices = y_up((surface.vertices - center) / (radius or 1), up)
            _add(plotter, surface, vertices)
        views = [_take(plotter, camera) for camera in self.cameras]
        if all(np.asarray(view).min() > 250 for view in views):
            words = "no extent or area, transparent, or white; repair the mesh"
            raise InputError(f"a shape of which nothing is seen: {words}")
        return views


@functools.cache
def _plotter(size: int, field_of_view: float):
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    import pyvista  # not with the module: it takes half a second

    plotter = pyvista.Plotter(off_screen=True, window_size=[size] * 2, lighting="none")
    for place, strength in LIGHTS:
        light = pyvista.Light(position=place, light_type="camera light", intensity=strength)
        plotter.add_light(light)
    plotter.background_color = pyvista.Color("white")
    plotter.camera.view_angle = field_of_view
    plotter.enable_anti_aliasing("ssaa")
    return plotter


def _add(plotter, surface: Surface, vertices: np.ndarray) -> None:
    import pyvista

    mesh = pyvista.PolyData.from_regular_faces(vertices, surface.faces)
    look: dict[str, Any] = {"color": np.asarray(surface.color) / 255}
    if surface.texture is not None:
        mesh.active_texture_coordinates = np.asarray(surface.uv, np.float32)
        look = {"texture": pyvista.numpy_to_texture(surface.texture)}
    elif surface.vertex_colors is not None:
        mesh["colors"] = np.asarray(surface.vertex_colors, np.uint8)
        look = {"scalars": "colors", "rgb": True}
    look |= {"ambient": 0.3, "diffuse": 0.9, "specular": 0.0, "opacity": surface.opacity}
    plotter.add_mesh(mesh, **look)


def _take(plotter, camera: tuple[float, float]) -> Image.Image:
    azimuth, elevation = np.deg2rad(camera)
    level, up = np.array([np.sin(azimuth), 0, np.cos(azimuth)]), np.array([0, 1, 0])
    view = plotter.camera
    distance = 1 / np.sin(np.deg2rad(view.view_angle / 2)) / FILL
    view.position = distance * (np.cos(elevation) * level + np.sin(elevation) * up)
    view.focal_point = (0, 0, 0)
    view.up = np.cos(elevation) * up - np.sin(elevation) * level
    view.clipping_range = (distance - 1.1, distance + 1.1)
    plotter.render()  # a screenshot alone shows the camera before
    return Image.fromarray(plotter.screenshot(return_img=True)[..., :3])


def _balls(points: np.ndarray) -> Surface:
    """A cloud as one mesh of small balls, nearer ones hiding those behind."""
    if len(points) > CLOUD_POINTS:
        points = points[generator(Stream.PICTURE).permutation(len(points))[:CLOUD_POINTS]]
    ball = trimesh.creation.icosahedron()
    radius = BALL * np.linalg.norm(points - points.mean(0), axis=1).max()
    vertices = points[:, None] + radius * ball.vertices
    faces = np.arange(len(points))[:, None, None] * len(ball.vertices) + ball.faces
    return Surface(vertices.reshape(-1, 3), faces.reshape(-1, 3))


def read_surfaces(path: Path) -> list[Surface]:
    """All meshes of a file, each where its node puts it, with their colours and textures.

    Returns [] for a file of points alone. Raises InputError for a file that cannot be read, or has
    numbers that are missing or not finite.
    """
    with reading(path, f"{path.suffix} file", "save or download it again"):
        scene = trimesh.load_scene(path, process=False)
        parts = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
        surfaces = [_surface(part) for part in parts]
    for surface in surfaces:
        faces, count = surface.faces, len(surface.vertices)
        extras = (surface.uv, surface.vertex_colors)
        rows = [surface.vertices, *(values for values in extras if values is not None)]
        whole = faces.min() >= 0 and faces.max() < count and {*map(len, rows)} == {count}
        if not whole or not all(np.isfinite(values[faces]).all() for values in rows):
            raise InputError(f"{path}: corners that are missing or not finite; repair the mesh")
    return surfaces


def _surface(mesh: trimesh.Trimesh) -> Surface:
    surface = Surface(np.asarray(mesh.vertices, float), np.asarray(mesh.faces))
    visual: Any = mesh.visual
    if visual.kind == "vertex":
        surface.vertex_colors = visual.vertex_colors[:, :3]
    elif visual.kind == "face":  # colours are a vertex's, so every face gets its own vertices
        surface.vertices = surface.vertices[surface.faces.reshape(-1)]
        surface.faces = np.arange(len(surface.vertices)).reshape(-1, 3)
        surface.vertex_colors = np.repeat(visual.face_colors[:, :3], 3, axis=0)
    if visual.kind != "texture":
        return surface
    material = visual.material
    gltf = isinstance(material, trimesh.visual.material.PBRMaterial)
    color = np.asarray(material.main_color, float)
    if gltf and material.baseColorFactor is None:
        color = np.full(4, 255.0)  # glTF's own default; trimesh has a grey of its own
    clear = material.alphaMode if gltf else "BLEND"  # None is opaque
    surface.color = color[:3].tolist()
    surface.opacity = color[3] / 255 if clear == "BLEND" else 1.0
    picture = material.baseColorTexture if gltf else getattr(material, "image", None)
    if picture is not None and visual.uv is not None:
        picture = on_white(picture) if clear in ("BLEND", "MASK") else picture.convert("RGB")
        tint = color[:3] / 255 if gltf else 1.0  # glTF multiplies the two
        surface.texture, surface.uv = (np.asarray(picture) * tint).astype(np.uint8), visual.uv
    return surface


def draw(renderer: Renderer, source: Source, index: int, cloud: bool = False) -> list[Image.Image]:
    """Pictures of a source's shape: of its meshes, or of its cloud if it has none or ``cloud``."""
    shape = None if cloud else source.drawable(index)
    surfaces = [shape] if isinstance(shape, Surface) else []
    if isinstance(shape, Path) and shape.suffix.lower() in MESHES:
        surfaces = read_surfaces(shape)
    return renderer(surfaces or np.asarray(source.read(index)), source.up)


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB, on white where it is transparent; InputError if missing or damaged."""
    whole = reading(path, "picture", "unpack the dataset's pictures again")
    with whole, warnings.catch_warnings(), Image.open(path) as picture:
        warnings.simplefilter("ignore")
        return on_white(picture)


def on_white(picture: Image.Image) -> Image.Image:
    """A picture as RGB, with white behind where it is transparent."""
    layers = picture.convert("RGBA")
    white = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(white, layers).convert("RGB")
