"""Recipes: a class of everyday things as a short YAML file of sizes, styles and parts.

    let:       sizes, drawn in order; each may use the ones before it
    styles:    a list of {weight, let, parts}; one is drawn per shape
    parts:     a list of parts, each one solid (or macro) with modifiers
        box:   {size: [x, y, z], taper: [x, z], shear: [x, z]}, standing on its 'at'
        loft:  {rings: [[y, rx, rz, dx, dz], ...], exponent, caps}
        tube:  {path: [[x, y, z], ...], radius, bend: true for a smooth curve}
        NAME:  {argument: value, ...} a macro of macros.yaml: {let, parts}
        at: [x, y, z], rotate: [x, y, z] in degrees, mirror: x | z | xz (keeps the original),
        if: condition, repeat: {variable: count}

Every value may be arithmetic on named sizes; U(a, b) is a uniform draw, P(p) true with probability
p, pick(a, b, ...) one of its arguments. The frame: y up, front towards +z, width along x, floor at
y = 0.
"""

import ast
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import trimesh
import yaml

from dual_denoising.data import ASSETS, solids
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import InputError, reading

SOLIDS: dict[str, Callable] = {"box": solids.box, "loft": solids.loft, "tube": solids.tube}
MODIFIERS = {"at", "rotate", "mirror", "if", "repeat"}
ARITHMETIC: Any = (ast.Expression, ast.expr_context, ast.Name, ast.Constant, ast.Call, ast.IfExp)
ARITHMETIC += (ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop, ast.BoolOp, ast.boolop)
ARITHMETIC += (ast.Compare, ast.cmpop)


@cache
def _compiled(text: str) -> CodeType:
    """An expression as code: arithmetic, comparisons and calls of the names that it is given."""
    tree = ast.parse(text, mode="eval")
    if not all(isinstance(node, ARITHMETIC) for node in ast.walk(tree)):
        raise ValueError(f"'{text}' is no arithmetic")
    return compile(tree, "<recipe>", "eval")


def _value(value, scope: dict):
    """Numbers for a YAML value: strings are expressions, lists and mappings are walked."""
    if isinstance(value, str):
        return eval(_compiled(value), {"__builtins__": {}}, scope)
    if isinstance(value, list):
        return [_value(v, scope) for v in value]
    if isinstance(value, dict):
        return {k: _value(v, scope) for k, v in value.items()}
    return value


def _functions(rng: np.random.Generator) -> dict:
    return {
        "U": lambda a, b: a + (b - a) * rng.random(),
        "P": lambda p: rng.random() < p,
        "pick": lambda *options: options[int(rng.random() * len(options))],
        "min": min,
        "max": max,
        "abs": abs,
        "sqrt": math.sqrt,
        "int": int,
        "pi": math.pi,
        "sin": lambda a: math.sin(math.radians(a)),
        "cos": lambda a: math.cos(math.radians(a)),
    }


class Recipe:
    """One class of shapes, read from ``<folder>/<name>.yaml``."""

    def __init__(self, name: str, folder: Path = ASSETS / "primitives"):
        self.name, self.path = name, Path(folder) / f"{name}.yaml"
        recipe = _load(self.path)
        self.synonyms = recipe.get("synonyms", [])
        self.let, self.styles = recipe.get("let", {}), recipe["styles"]
        weights = np.array([style.get("weight", 1) for style in self.styles], float)
        self.shares = weights / weights.sum()
        self.macros = _load(Path(folder) / "macros.yaml")
        self.digest = fingerprint([recipe, self.macros])

    def build(self, rng: np.random.Generator, style: int | None = None) -> solids.Mesh:
        """A shape of a drawn (or the given) style as a mesh, in the recipe's unit and frame."""
        style = rng.choice(len(self.styles), p=self.shares) if style is None else style
        chosen = self.styles[style]
        scope = _functions(rng)
        try:
            for let in (self.let, chosen.get("let", {})):
                for size, value in let.items():
                    scope[size] = _value(value, scope)
            meshes = [mesh for part in chosen["parts"] for mesh in self._part(part, scope)]
            return trimesh.util.append_faces(*zip(*meshes, strict=True))
        except Exception as error:  # an expression of a recipe can raise any
            raise InputError(f"{self.path}: style {style}: {error}") from error

    def _part(self, part: dict, scope: dict) -> list[solids.Mesh]:
        kind = next(key for key in part if key not in MODIFIERS)
        variable, count = next(iter(part.get("repeat", {"_": 1}).items()))
        meshes = []
        for i in range(int(_value(count, scope))):
            inner = scope | {variable: i}
            if not _value(part.get("if", True), inner):
                continue
            made = []
            for vertices, faces in self._solid(kind, _value(part[kind], inner), inner):
                turned = solids.turn(vertices, _value(part.get("rotate", (0, 0, 0)), inner))
                made.append((turned + _value(part.get("at", (0, 0, 0)), inner), faces))
            for axis in part.get("mirror", ""):
                flip = np.where(np.arange(3) == "xyz".index(axis), -1, 1)
                made += [(v * flip, f[:, ::-1]) for v, f in made]
            meshes += made
        return meshes

    def _solid(self, kind: str, arguments: dict, scope: dict) -> list[solids.Mesh]:
        if kind in self.macros:
            macro, inner = self.macros[kind], scope | arguments
            for size, value in macro.get("let", {}).items():
                inner.setdefault(size, _value(value, inner))
            return [m for part in macro["parts"] for m in self._part(part, inner)]
        if kind not in SOLIDS:
            raise ValueError(f"'{kind}' is no solid ({', '.join(SOLIDS)}) and no macro")
        if arguments.pop("bend", False):
            arguments["path"] = solids.bend(arguments["path"])
            if isinstance(arguments["radius"], list):
                ends = np.linspace(0, 1, len(arguments["radius"]))
                at = np.linspace(0, 1, len(arguments["path"]))
                arguments["radius"] = np.interp(at, ends, arguments["radius"])
        return [SOLIDS[kind](**arguments)]


@cache
def _load(path: Path) -> dict:
    with reading(path, "YAML file", "repair it"):
        return yaml.safe_load(path.read_text())


def known_classes(folder: Path = ASSETS / "primitives") -> list[str]:
    """Names of all classes with a recipe, sorted."""
    return sorted(p.stem for p in Path(folder).glob("*.yaml") if p.stem != "macros")
