"""The only importer of torchvision, which makes it load next to a CPU build of torch, too.

torchvision's wheels for Linux are linked against CUDA. Next to a CPU torch their compiled part does not load, and the
import fails because the Python part registers implementations of two operators, `nms` and `qnms`, whose schemas the
compiled part would have defined. Defined here instead, everything in Python works (data sets, transforms, models); the
compiled operators say at their call that they are missing. hypimg uses none of them.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # a schema lives as long as the Library that defined it
_defined: list[str] = []


def load() -> ModuleType:
    """torchvision, with `datasets`, `models` and `transforms`.

    A healthy pair is imported as it is. On exactly the error "operator torchvision::nms (then qnms) does not exist" the
    schema is defined and the import tried again; any other error passes through.
    """
    for _ in range(len(SCHEMAS) + 1):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = [name for name in SCHEMAS if f"operator torchvision::{name} does not exist" in str(error)]
            if not missing or missing[0] in _defined:
                raise
            _define(missing[0])
    raise AssertionError("unreachable: each round defines one schema")


def missing_operators() -> list[str]:
    """The compiled operators whose schemas had to be defined here (for environment.json); empty for a healthy pair."""
    return list(_defined)


def _define(operator: str) -> None:
    import torch

    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    if not _defined:
        log.warning("torchvision's compiled operators do not fit this torch; hypimg needs none of them and goes on")
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(SCHEMAS[operator])
    _libraries.append(library)
    _defined.append(operator)
