"""The data sets that a run and its evaluators have opened, and which data that was."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hypimg.data.dataset import ImageDataset
from hypimg.data.resident import Part, read_labels, read_part
from hypimg.data.store import ImageStore


@dataclass
class OpenedData:
    """The data sets that an evaluator opens under this machine's folders, and the device that it may use."""

    data_dir: Path
    store_dir: Path
    download: bool = False
    device: str = "cpu"
    opened: dict[str, dict[str, Any]] = field(default_factory=dict)

    def open(self, dataset: ImageDataset) -> ImageStore:
        store = dataset.open(self.data_dir, self.store_dir, self.download)
        self.opened[dataset.name] = identity(store)
        return store


@dataclass
class RunData(OpenedData):
    """The data of a run for its evaluators: its own test images, and others opened under the same folders."""

    dataset: ImageDataset = field(kw_only=True)
    store: ImageStore = field(kw_only=True)

    @property
    def indices(self) -> np.ndarray:
        return self.dataset.indices(self.store, "test")

    @property
    def identity(self) -> dict[str, Any]:
        """As `identity`; a user's own class split is part of what was seen."""
        seen, split = identity(self.store), self.dataset.class_split
        if split is not None and split.digest:
            seen["digest"] = hashlib.sha256(f"{seen['digest']}{split.digest}".encode()).hexdigest()
        return seen

    def labels_of(self, split: str) -> tuple[np.ndarray, list[str]]:
        """The labels of `part`, and their names, without its images."""
        return read_labels(self.dataset, self.store, self.dataset.indices(self.store, split))

    def part(self, split: str) -> Part:
        """The images of a split as a model takes them, with their labels."""
        return read_part(self.dataset, self.store, self.dataset.indices(self.store, split))

    @property
    def labels(self) -> np.ndarray:
        return self.store.column("label")[self.indices].astype(np.int64)


def identity(store: ImageStore) -> dict[str, Any]:
    """Which data was seen: recorded by runs and evaluations, printed by tables."""
    return {"name": store.name, "form": store.form, "digest": store.digest, "official": store.official}
