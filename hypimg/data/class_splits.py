"""Splits of the classes, as few-shot work needs them: no class of one part occurs in another.

A split is a JSON file {"source": where the lists are from, "train": [class names], "val": [...], "test": [...]} in the
names that the store gives the classes. Those of the literature lie in `splits/`; a path that ends in .json names a
user's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hypimg.data.store import ImageStore
from hypimg.errors import UserError, nearest

FOLDER = Path(__file__).resolve().parent / "splits"
PARTS = ("train", "val", "test")


class ClassSplit:
    """The class names of each part, read and checked.

    name: of a split of the literature (`published`), or a path that ends in .json.
    Raises UserError where there is no such split, where the file is not one, or where a class stands in it twice.
    """

    def __init__(self, name: str):
        self.name = name
        if isinstance(name, str) and name.endswith(".json"):
            file = Path(name)
        elif name in published():
            file = FOLDER / f"{name}.json"
        else:
            remedy = f"no such split (a file of your own ends in .json); {nearest(str(name), published())}"
            raise UserError("dataset.class_split", name, remedy)
        self.source, self.parts = _read(file)

    @property
    def digest(self) -> str:
        """SHA-256 of a user's own parts, whose file may change; of the literature's, which are code, nothing."""
        if self.name in published():
            return ""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def check(self, classes: Sequence[str]) -> None:
        """Raise UserError naming a class of the split that is not among these."""
        known = set(classes)
        for part, names in self.parts.items():
            unknown = [name for name in names if name not in known]
            if unknown:
                remedy = (
                    f"its {part} part names {unknown[0]!r}, which is none of the {len(known)} classes of this data set"
                )
                raise UserError("dataset.class_split", self.name, remedy)

    def indices(self, store: ImageStore, part: str) -> npt.NDArray[np.int64]:
        """The images of a part's classes in stored order, int64, whatever the authors' train or test part."""
        if part not in self.parts:
            raise UserError("split", part, f"{self.name} has {', '.join(self.parts)}")
        self.check(store.classes)
        codes = {name: code for code, name in enumerate(store.classes)}
        wanted = np.zeros(len(codes), bool)
        wanted[[codes[name] for name in self.parts[part]]] = True
        return np.flatnonzero(wanted[store.column("label")]).astype(np.int64)


def published() -> list[str]:
    """The names of the splits of the literature."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def _read(file: Path) -> tuple[str, dict[str, list[str]]]:
    """Where a split is from, and its parts."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError("dataset.class_split", file, f"cannot be read ({error.strerror})") from error
    except ValueError as error:  # not JSON, or not text
        raise UserError("dataset.class_split", file, f"is no JSON ({error})") from error
    form = 'must hold {"source": text, "train": [class names], "val": [...], "test": [...]}'
    if not isinstance(values, dict):
        raise UserError("dataset.class_split", file, form)
    parts: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for part in PARTS:
        names = values.get(part)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UserError("dataset.class_split", file, f"{form}; its {part!r} is no list of class names")
        for name in names:
            if name in seen:
                twice = part if seen[name] == part else f"{seen[name]} and {part}"
                raise UserError("dataset.class_split", file, f"names {name!r} twice (in {twice}); parts share no class")
            seen[name] = part
        parts[part] = names
    return str(values.get("source", "")), parts
