"""Rooms import downward only, and importing hypimg costs little."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A room may import those before it in this order (and itself); rooms of one tuple stand beside each other.
ORDER = [
    ("errors",),
    ("geometry", "_torchvision"),
    ("nn", "config"),
    ("models", "data"),
    ("training", "evaluation"),
    ("figures",),
    ("rundir",),
    ("run",),
    ("help", "launch"),
    ("tables",),
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_rooms_import_downward_only() -> None:
    wrong = []
    for path in sorted((ROOT / "hypimg").rglob("*.py")):
        room = path.relative_to(ROOT / "hypimg").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in RANK, f"{room}: a new room needs its place in ORDER"
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] != "hypimg" or len(parts) < 2:
                continue
            other = parts[1]
            if other != room and RANK[other] >= RANK[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_geometry_imports_torch_alone() -> None:
    for path in (ROOT / "hypimg" / "geometry").glob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        allowed = {"torch", "hypimg", "math", "__future__", "collections", "typing"}
        if path.name == "_gromov_numba.py":  # itself imported by the function that needs it, as the extra `fast`
            allowed |= {"numba", "numpy", "concurrent"}
        assert tops <= allowed, path


def test_only_one_file_imports_torchvision_and_one_instantiates() -> None:
    users = {"torchvision": set(), "hydra.utils.instantiate": set(), "lightning_fabric": set()}
    for path in (ROOT / "hypimg").rglob("*.py"):
        for name in _imports(path):
            for wanted, where in users.items():
                if name == wanted or name.startswith(f"{wanted}."):
                    where.add(path.relative_to(ROOT / "hypimg").as_posix())
    assert users["hydra.utils.instantiate"] == {"run.py"}
    assert users["lightning_fabric"] == {"training/devices.py"}
    assert users["torchvision"] <= {"_torchvision.py"}


def test_importing_hypimg_loads_nothing_heavy() -> None:
    code = "import sys, json, hypimg, hypimg.nn, hypimg.geometry; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))
    heavy = {
        "wandb",
        "matplotlib",
        "torchvision",
        "sklearn",
        "scipy",
        "geoopt",
        "lightning_fabric",
        "PIL",
        "hydra",
        "rich",
    }
    assert not heavy & set(loaded)
