"""What the teacher sees of a shape: pictures from cameras around it, or the dataset's own.

Rendering is VTK's through pyvista, which needs no display: it draws through EGL, on a GPU where the
driver offers one and in software where Mesa does.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from dual_denoising.data.files import MESHES
from dual_denoising.data.points import check_shape, y_up
from dual_denoising.data.sources import Source, Surface
from dual_denoising.errors import InputError, check_number, reading
from dual_denoising.keyed_random import Stream, generator

FILL = 0.95  # of the picture, by the sphere around a shape
BALL = 0.03  # radius of a drawn point, in radii of its cloud
CLOUD_POINTS = 4096  # that are drawn of a cloud at most
CLOUDS_TOO = (".ply", ".obj")  # formats whose files may hold points alone
LIGHTS = (((-1, 1.5, 1), 0.75), ((1, 0.3, 0.5), 0.35))  # from the left above, and from the right


@dataclass
class Renderer:
    """Pictures (size, size) of a shape from all (azimuth, elevation) in degrees, on white.

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
            cameras = np.array([list(camera) for camera in self.cameras], float)
        except (TypeError, ValueError):
            cameras = np.empty(0)
        if cameras.ndim != 2 or cameras.shape[1] != 2 or not np.isfinite(cameras).all():
            raise InputError(f"cameras is {self.cameras}: give pairs [azimuth, elevation]")
        self.cameras = [tuple(camera) for camera in cameras.tolist()]
        check_number("size", self.size, 8)
        check_number("field_of_view", self.field_of_view, whole=False, above=True)
        if self.field_of_view > 120:
            raise InputError(f"field_of_view is {self.field_of_view}: choose at most 120 degrees")

    def __call__(self, shape: Sequence[Surface] | np.ndarray, up: str = "y") -> list[Image.Image]:
        """A picture per camera of surfaces, or of a cloud (N, 3)."""
        if isinstance(shape, np.ndarray):
            shape = [self._balls(check_shape(shape, "a cloud to draw"))]
        corners = np.concatenate([s.vertices[np.unique(s.faces)] for s in shape])
        low, high = corners.min(0), corners.max(0)
        center = (low + high) / 2
        radius = np.linalg.norm(corners - center, axis=1).max()
        if not radius > 0 or not np.isfinite(radius):
            raise InputError(
                "a shape without extent, or with coordinates that are not finite; repair the mesh"
            )
        plotter = self._plotter
        plotter.clear_actors()
        for surface in shape:
            self._add(surface, center, radius, up)
        views = [self._take(camera) for camera in self.cameras]
        if all(np.asarray(view).min() > 250 for view in views):
            raise InputError(
                "a shape of which nothing is seen: no area, transparent, or white; repair the mesh"
            )
        return views

    @cached_property
    def _plotter(self):
        if "DISPLAY" not in os.environ:
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        import pyvista  # not with the module: it takes half a second

        plotter = pyvista.Plotter(off_screen=True, window_size=[self.size] * 2, lighting="none")
        for place, strength in LIGHTS:
            light = pyvista.Light(position=place, light_type="camera light", intensity=strength)
            plotter.add_light(light)
        plotter.background_color = pyvista.Color("white")
        plotter.camera.view_angle = self.field_of_view
        plotter.enable_anti_aliasing("ssaa")
        return plotter

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_plotter"}

    def _add(self, surface: Surface, center: np.ndarray, radius: float, up: str) -> None:
        import pyvista

        vertices = y_up((surface.vertices - center) / radius, up)
        mesh = pyvista.PolyData.from_regular_faces(vertices, surface.faces)
        look: dict[str, Any] = {"ambient": 0.3, "diffuse": 0.9, "specular": 0.0}
        look["opacity"] = surface.opacity
        if surface.texture is not None and surface.uv is not None:
            mesh.active_texture_coordinates = np.asarray(surface.uv, np.float32)
            look["texture"] = pyvista.numpy_to_texture(surface.texture)
        elif surface.vertex_colors is not None:
            mesh["colors"] = np.asarray(surface.vertex_colors, np.uint8)
            look |= {"scalars": "colors", "rgb": True}
        else:
            look["color"] = np.asarray(surface.color) / 255
        self._plotter.add_mesh(mesh, **look)

    def _take(self, camera: tuple[float, float]) -> Image.Image:
        azimuth, elevation = np.deg2rad(camera)
        level, up = np.array([np.sin(azimuth), 0, np.cos(azimuth)]), np.array([0, 1, 0])
        view, distance = self._plotter.camera, 1 / np.sin(np.deg2rad(self.field_of_view / 2)) / FILL
        view.position = distance * (np.cos(elevation) * level + np.sin(elevation) * up)
        view.focal_point = (0, 0, 0)
        view.up = np.cos(elevation) * up - np.sin(elevation) * level
        view.clipping_range = (distance - 1.1, distance + 1.1)
        self._plotter.render()  # a screenshot alone shows the camera before
        return Image.fromarray(self._plotter.screenshot(return_img=True)[..., :3])

    def _balls(self, points: np.ndarray) -> Surface:
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

    Returns [] for a .ply or .obj file of points alone. Raises InputError for a mesh without faces,
    and for vertices that are not finite numbers or not there.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing, or not a file")
    with reading(path, f"{path.suffix} file", "save or download it again"):
        scene = trimesh.load_scene(path, process=False)
        parts = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
        surfaces = [_surface(part) for part in parts]
    if not surfaces and path.suffix.lower() not in CLOUDS_TOO:
        raise InputError(f"{path}: a mesh without faces; there is nothing to draw")
    for surface in surfaces:
        if surface.faces.min() < 0 or surface.faces.max() >= len(surface.vertices):
            raise InputError(f"{path}: a face of vertices that are not there; repair the mesh")
        if not np.isfinite(surface.vertices[surface.faces]).all():
            raise InputError(f"{path}: vertices that are not finite numbers; repair the mesh")
        extras = {"texture coordinates": surface.uv, "colours": surface.vertex_colors}
        for name, values in extras.items():
            whole = values is None or len(values) == len(surface.vertices)
            if not whole or (values is not None and not np.isfinite(values).all()):
                raise InputError(f"{path}: {name} that do not fit its vertices; repair the mesh")
    return surfaces


def _surface(mesh: trimesh.Trimesh) -> Surface:
    surface = Surface(np.asarray(mesh.vertices, float), np.asarray(mesh.faces))
    visual: Any = mesh.visual
    if isinstance(visual, trimesh.visual.ColorVisuals):
        if visual.kind == "vertex":
            surface.vertex_colors = visual.vertex_colors[:, :3]
        elif visual.kind == "face":  # colours are a vertex's, so every face gets its own vertices
            surface.vertices = surface.vertices[surface.faces.reshape(-1)]
            surface.faces = np.arange(len(surface.vertices)).reshape(-1, 3)
            surface.vertex_colors = np.repeat(visual.face_colors[:, :3], 3, axis=0)
        return surface
    material, uv = visual.material, visual.uv
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    color = np.asarray(material.main_color, float)
    if getattr(material, "baseColorFactor", color) is None:
        color = np.full(4, 255.0)  # glTF's own default; trimesh has a grey of its own
    clear = getattr(material, "alphaMode", "BLEND")  # glTF's; None there is opaque
    surface.opacity = float(color[3]) / 255 if clear == "BLEND" else 1.0
    if picture is not None and uv is not None:
        picture = on_white(picture) if clear in ("BLEND", "MASK") else picture.convert("RGB")
        factor = getattr(material, "baseColorFactor", None)  # glTF multiplies the two
        tint = np.ones(3) if factor is None else np.asarray(factor[:3], float) / 255
        surface.texture = (np.asarray(picture) * tint).astype(np.uint8)
        surface.uv = uv
    else:
        surface.color = color[:3].tolist()
    return surface


def draw(renderer: Renderer, source: Source, index: int) -> list[Image.Image]:
    """Pictures of a source's shape: of its meshes where it has any, else of its cloud."""
    shape = source.drawable(index)
    if isinstance(shape, Surface):
        return renderer([shape], source.up)
    if shape is not None and shape.suffix.lower() in MESHES:
        surfaces = read_surfaces(shape)
        if surfaces:
            return renderer(surfaces, source.up)
    return renderer(np.asarray(source.read(index)), source.up)


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
