"""One cloud from any common file, mesh or points, in the file's own frame and units."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pypcd4
import trimesh

from dual_denoising.data.clouds import check_points
from dual_denoising.errors import InputError, MissingError

ARRAYS = ("points", "xyz", "pc", "data", "pos", "vertices")  # names of an .npz's cloud, in order


def read_cloud(path: Path, num_points: int = 8192, seed: int = 0) -> np.ndarray:
    """Points (M, 3) float64 of a .ply .obj .off .stl .glb .gltf .npy .npz .pcd .xyz .txt file.

    A mesh is sampled on its surface, ``num_points`` points, area-uniform, a function of ``seed``;
    the meshes of a scene are merged, each where its node puts it. Of a cloud all points are given:
    the first three columns; colours and normals are ignored. Raises InputError for a file that is
    missing, damaged, empty, of one point or of equal ones, or not finite.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: no reader for '{path.suffix}'; convert it to one of {' '.join(READERS)}"
        )
    if not path.is_file():
        raise MissingError(f"{path}: missing, or not a file")
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            points = reader(path, num_points, seed)
    except InputError:
        raise
    except Exception as error:  # parsers of damaged files raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: not a whole {path.suffix} file ({reason})") from error
    points = check_points(points, str(path))
    if (points == points[0]).all():
        raise InputError(
            f"{path}: {len(points)} point{'s, all equal' * (len(points) > 1)}: no shape; give at "
            "least two different points"
        )
    return points


def _mesh(path: Path, num_points: int, seed: int) -> np.ndarray:
    scene = trimesh.load_scene(path, process=False, **_options(path))
    meshes = [g for g in scene.geometry.values() if isinstance(g, trimesh.Trimesh)]
    if not any(len(mesh.faces) for mesh in meshes):
        return _vertices(scene, path)
    mesh = scene.to_mesh()
    corners = check_points(mesh.vertices[np.unique(mesh.faces)], str(path))
    center, scale = corners.mean(0), np.ptp(corners, axis=0).max() or 1.0
    mesh.vertices = (mesh.vertices - center) / scale  # areas of huge coordinates would overflow
    area = mesh.area_faces
    if not area.sum() > 0:
        raise InputError(f"{path}: {len(mesh.faces)} faces without any area; mend the mesh")
    sampled, _ = trimesh.sample.sample_surface(mesh, num_points, face_weight=area, seed=seed)
    return sampled * scale + center


def _vertices(scene: trimesh.Scene, path: Path) -> np.ndarray:
    """Points of a file without faces."""
    clouds = [g for g in scene.dump() if getattr(g, "vertices", None) is not None]
    points = np.concatenate([g.vertices for g in clouds]) if clouds else np.empty((0, 3))
    if path.suffix.lower() == ".ply":  # the parser takes a truncated list for a whole one
        header = path.read_bytes()[:4096].decode("latin-1")
        promised = int((re.findall(r"element vertex (\d+)", header) or [0])[0])
        if promised > len(points):
            raise InputError(f"{path}: truncated, {len(points)} of {promised} vertices")
    return points


def _options(path: Path) -> dict:
    return {"skip_materials": True} if path.suffix.lower() == ".obj" else {}


def _npy(path: Path, num_points: int, seed: int) -> np.ndarray:
    return _columns(np.load(path, allow_pickle=False), path)


def _npz(path: Path, num_points: int, seed: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        known = [name for name in ARRAYS if name in arrays.files]
        if not known and len(arrays.files) != 1:
            raise InputError(
                f"{path}: holds {', '.join(arrays.files) or 'nothing'}; name the cloud 'points'"
            )
        return _columns(arrays[(known or arrays.files)[0]], path)


def _text(path: Path, num_points: int, seed: int) -> np.ndarray:
    """Numbers in columns, by blanks, commas or semicolons, after any header lines."""
    lines = re.sub(r"[,;\t]", " ", path.read_text(encoding="utf-8-sig")).splitlines()
    header = next((i for i, line in enumerate(lines) if _is_point(line.split())), None)
    if header is None:
        raise InputError(f"{path}: holds no line of three numbers")
    return np.loadtxt(lines[header:], comments=("#", "//"), usecols=(0, 1, 2), ndmin=2)


def _is_point(words: list[str]) -> bool:
    try:
        return len([float(word) for word in words[:3]]) == 3
    except ValueError:
        return False


def _pcd(path: Path, num_points: int, seed: int) -> np.ndarray:
    cloud = pypcd4.PointCloud.from_path(path)
    points = np.stack(
        [np.asarray(cloud.pc_data[axis], np.float64).ravel() for axis in "xyz"], axis=1
    )
    return points[~np.isnan(points).all(1)]  # organised clouds mark absent pixels so


def _columns(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] < 3:
        raise InputError(
            f"{path}: array of type {array.dtype}, shape {array.shape}; it must be numbers, (N, 3) "
            "or wider"
        )
    return array[:, :3]


Reader = Callable[[Path, int, int], np.ndarray]
READERS: dict[str, Reader] = dict.fromkeys((".ply", ".obj", ".off", ".stl", ".glb", ".gltf"), _mesh)
READERS |= {".npy": _npy, ".npz": _npz, ".pcd": _pcd, ".xyz": _text, ".txt": _text}
logging.getLogger("trimesh").setLevel(logging.ERROR)
