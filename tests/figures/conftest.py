"""Stored scores as an evaluation writes them, generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def stored_scores(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write an .npz of ten classes around a circle and outliers about the origin; c = 0 makes a Euclidean one."""

    def write(name: str, c: float = 1.0, dim: int = 2, count: int = 300) -> Path:
        random = np.random.default_rng(len(name))
        labels = np.arange(count) % 10
        directions = np.zeros((count, dim))
        directions[:, 0], directions[:, 1] = np.cos(labels * np.pi / 5), np.sin(labels * np.pi / 5)
        features = 2 * directions + 0.4 * random.normal(size=(count, dim))
        others = 0.6 * random.normal(size=(2 * count, dim))
        points, outliers = (_embed(vectors, c) for vectors in (features, others))
        normals = directions[:10]
        norms = [np.linalg.norm(vectors, axis=1) for vectors in (points, outliers)]
        clipped = [c > 0 and norm >= (1 - 1e-3 - 1e-6) / c**0.5 for norm in norms]
        arrays = {
            "points": points.astype(np.float32),
            "labels": labels,
            "outliers": outliers.astype(np.float32),
            "dist0_in": norms[0],
            "dist0_out": norms[1],
            "pmax_in": -(10.0 ** random.uniform(-20, 0, count)),
            "pmax_out": -(10.0 ** random.uniform(-4, 0.3, 2 * count)),
            "clipped_in": np.zeros(count, bool) | clipped[0],
            "clipped_out": np.zeros(2 * count, bool) | clipped[1],
            "c": np.float32(c),
            "offsets": (0.5 * normals).astype(np.float32),
            "normals": normals.astype(np.float32),
        }
        path = tmp_path_factory.mktemp("scores") / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        return path

    return write


def _embed(vectors: np.ndarray, c: float) -> np.ndarray:
    if c == 0:
        return vectors
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / norms * np.minimum(np.tanh(c**0.5 * norms), 1 - 1e-3) / c**0.5
