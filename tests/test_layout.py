"""Rooms import one way, so that each can be read without those after it."""

import ast
from pathlib import Path

import dual_denoising

PACKAGE = Path(dual_denoising.__file__).parent
ORDER = "errors keyed_random ops model data clip training attacks baselines evaluation reports"
ORDER = [*ORDER.split(), "benchmarks", "run", "reproduction", "demo"]


def rooms_of(path):
    """The rooms that a file imports from, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (name[1] for name in names if name[0] == "dual_denoising" and name[1:])
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dual_denoising"):
            names = [node.module.split(".")[1:2] or [alias.name] for alias in node.names]
            yield from (name for [name] in names)


def test_rooms_import_only_those_before_them():
    late = [
        f"{path.relative_to(PACKAGE)}: {other}"
        for place, room in enumerate(ORDER)
        for path in [*PACKAGE.glob(f"{room}.py"), *PACKAGE.glob(f"{room}/*.py")]
        for other in rooms_of(path)
        if other in ORDER[place + 1 :]
    ]
    assert not late
    assert {p.stem for p in PACKAGE.glob("[!_]*") if p.name != "__pycache__"} == set(ORDER)


def test_only_run_knows_hydra():
    users = {p.name for p in PACKAGE.rglob("*.py") if "hydra" in p.read_text(encoding="utf-8")}
    assert users == {"run.py"}
