"""One cloud from any common file, mesh or points, in the file's own frame and units."""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pypcd4
import trimesh

from dual_denoising.data.points import check_shape
from dual_denoising.errors import InputError, NoShapeError, reading

log = logging.getLogger(__name__)
logging.getLogger("trimesh").setLevel(logging.ERROR)

MESHES = (".ply", ".obj", ".off", ".stl", ".glb", ".gltf")
ARRAYS = ("points", "xyz", "pc", "data", "pos", "vertices")  # names of an .npz's cloud, in order


def read_cloud(path: Path, num_points: int = 8192, seed: int = 0) -> np.ndarray:
    """Points (N, 3) of a .ply .obj .off .stl .glb .gltf .npy .npz .pcd .xyz .txt file.

    A mesh is sampled on its surface, ``num_points`` points, area-uniform, a function of ``seed``;
    the meshes of a scene are merged, each where its node puts it. Of a cloud all points are given:
    the first three columns; colours and normals are ignored. Raises InputError for a file that is
    missing, damaged, empty, of one point or of equal ones, or not finite.
    """
    kind = path.suffix.lower()
    if kind not in READERS:
        raise InputError(f"{path}: no reader for '{kind}'; convert it to {' '.join(READERS)}")
    whole = reading(path, f"{path.suffix} file", "save or download it again")
    with whole, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = _mesh(path, num_points, seed) if kind in MESHES else READERS[kind](path)
    return check_shape(points, str(path))


def load_array(path: Path) -> np.ndarray:
    """The array of an .npy file; nothing is unpickled."""
    with reading(path, ".npy array", "save or download it again"):
        return np.load(path, allow_pickle=False)


def _mesh(path: Path, num_points: int, seed: int) -> np.ndarray:
    """Surface points, or the vertices where there is no face."""
    _check_compression(path)
    scene = trimesh.load_scene(path, process=False)
    parts = list(scene.geometry.values())
    meshes = [g for g in parts if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    _check_counts(path, parts)
    if not meshes:
        dumped: list[Any] = scene.dump()
        clouds = [g.vertices for g in dumped if getattr(g, "vertices", None) is not None]
        if not clouds:
            raise InputError(f"{path}: holds no vertex; save or download it again")
        return np.concatenate(clouds)
    if len(meshes) < len(parts):
        log.warning("%s: lines and points beside the meshes are left out", path)
    mesh = scene.to_mesh()
    used = np.unique(mesh.faces)
    if len(used) < 0.5 * len(mesh.vertices):
        share = f"{len(used)} of its {len(mesh.vertices)} vertices"
        log.warning("%s: a mesh of %s; its surface alone is sampled", path, share)
    corners = check_shape(mesh.vertices[used], str(path))
    center, scale = corners.mean(0), np.ptp(corners, axis=0).max()
    mesh.vertices = (mesh.vertices - center) / scale  # areas of huge coordinates would overflow
    if not mesh.area > 0:
        raise InputError(f"{path}: {len(mesh.faces)} faces without any area; repair the mesh")
    sampled, _ = trimesh.sample.sample_surface(mesh, num_points, seed=seed)
    return sampled * scale + center


def _check_counts(path: Path, parts: list) -> None:
    """Raises InputError where fewer vertices or faces came than a .ply or .off header promises."""
    head = path.read_bytes()[:65536].decode("latin-1")
    if path.suffix.lower() == ".ply":
        lines = head.partition("end_header")[0].splitlines()
        found = dict(line.split()[1:3] for line in lines if line.startswith("element "))
        if "tristrips" in found:
            raise InputError(f"{path}: triangle strips are not read; save it with plain faces")
        promised = int(found.get("vertex", 0)), int(found.get("face", 0))
    elif path.suffix.lower() == ".off":
        words = re.sub(r"#.*|C?OFF", " ", head).split()
        promised = int(words[0]), int(words[1])
    else:
        return
    for name, want in zip(("vertices", "faces"), promised, strict=True):
        count = sum(len(getattr(part, name, ())) for part in parts)
        if count < want:
            raise InputError(f"{path}: truncated, {count} of {want} {name}")


def _check_compression(path: Path) -> None:
    """Raises InputError for a glTF file whose meshes are compressed."""
    named = rb'"extensionsRequired"\s*:\s*\[[^\]]*"(\w*compression\w*)"'
    if path.suffix.lower() in (".glb", ".gltf") and (found := re.search(named, path.read_bytes())):
        raise InputError(f"{path}: needs {found[1].decode()}; save it uncompressed")


def _npy(path: Path) -> np.ndarray:
    return _columns(load_array(path), path)


def _npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        known = [name for name in ARRAYS if name in arrays.files]
        if not known and len(arrays.files) != 1:
            raise NoShapeError(
                f"{path}: holds {', '.join(arrays.files) or 'nothing'}; name the cloud 'points'"
            )
        return _columns(arrays[(known or arrays.files)[0]], path)


def _columns(array: np.ndarray, path: Path) -> np.ndarray:
    good = array.dtype.kind in "fiu" and array.ndim == 2 and array.shape[1] >= 3
    if not good or (array.shape[0] == 3 and array.shape[1] > 9):
        raise NoShapeError(
            f"{path}: array of type {array.dtype}, shape {array.shape}; it must be numbers, (N, 3) "
            "or (N, 3 + more columns)"
        )
    return array[:, :3]


def _text(path: Path) -> np.ndarray:
    """Numbers in columns, by blanks, commas or semicolons, after any header lines."""
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = [_blanks(line) for line in content.decode(encoding, errors="replace").splitlines()]
    header = next((i for i, line in enumerate(lines) if _is_point(line)), None)
    if header is None:
        raise NoShapeError(f"{path}: holds no line of three numbers")
    return np.loadtxt(lines[header:], comments=("#", "//"), usecols=(0, 1, 2), ndmin=2)


def _blanks(line: str) -> str:
    """A line's numbers between blanks, with decimal points, from "1,5;2;3" or "1,5 2,0 3,0" too."""
    if ";" in line or re.fullmatch(r"\s*(-?\d+,\d+\s+){2,}-?\d+,\d+\s*", line):
        return line.replace(",", ".").replace(";", " ")
    return line.replace(",", " ")


def _is_point(line: str) -> bool:
    try:
        return len([float(word) for word in line.split()[:3]]) == 3
    except ValueError:
        return False


def _pcd(path: Path) -> np.ndarray:
    cloud = pypcd4.PointCloud.from_path(path)
    found, want = len(cloud.pc_data), cloud.metadata.points
    if found < want:
        raise InputError(f"{path}: truncated, {found} of {want} points")
    points = np.stack([np.asarray(cloud.pc_data[a], np.float64).ravel() for a in "xyz"], axis=1)
    return points[~np.isnan(points).any(1)]  # pixels without a measurement


READERS: dict[str, Callable] = dict.fromkeys(MESHES, _mesh)
READERS |= {".npy": _npy, ".npz": _npz, ".pcd": _pcd, ".xyz": _text, ".txt": _text}
