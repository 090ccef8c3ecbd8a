from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from hypimg import _torchvision

ROOT = Path(__file__).parents[1]


def run(code: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)


def test_torchvision_loads_next_to_this_torch_and_says_once_what_is_missing():
    done = run(
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "from hypimg import _torchvision\n"
        "vision = _torchvision.load()\n"
        "assert _torchvision.load() is vision\n"
        "import torch, torchvision\n"
        "assert torchvision is vision\n"
        "model = vision.models.resnet18(num_classes=3).eval()\n"
        "assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)\n"
        "vision.datasets.MNIST, vision.datasets.Omniglot, vision.transforms.Resize\n"
        "print(_torchvision.missing_operators())"
    )
    missing = ast.literal_eval(done.stdout)
    assert missing in ([], ["nms", "qnms"])
    assert done.stderr.count("compiled operators") == bool(missing)


def test_a_healthy_pair_is_left_alone(monkeypatch):
    vision = object()
    monkeypatch.setattr(importlib, "import_module", lambda name: vision)
    monkeypatch.setattr(_torchvision, "_defined", [])
    assert _torchvision.load() is vision
    assert _torchvision.missing_operators() == []


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'torchvision'"),
        RuntimeError("operator torchvision::roi_align does not exist"),
        OSError("libcudart.so"),
    ],
)
def test_any_other_error_passes_through(monkeypatch, error):
    def fail(name: str) -> object:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(_torchvision, "_define", lambda operator: pytest.fail(f"defined {operator}"))
    with pytest.raises(type(error)) as caught:
        _torchvision.load()
    assert caught.value is error


def test_an_operator_that_stays_missing_ends_in_its_own_error(monkeypatch):
    def fail(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    defined: list[str] = []
    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(_torchvision, "_defined", defined)
    monkeypatch.setattr(_torchvision, "_define", defined.append)
    with pytest.raises(RuntimeError, match="nms does not exist"):
        _torchvision.load()
    assert defined == ["nms"]


def test_no_other_file_imports_torchvision():
    importers = set()
    for file in (ROOT / "hypimg").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            if any(module.split(".")[0] == "torchvision" for module in modules):
                importers.add(str(file))
    assert importers == set()  # _torchvision.py itself imports it by name, when asked to
