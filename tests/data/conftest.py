"""Images in the packed form, as tests of it and of the data sets that come in it need them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

Pack = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def mosaic() -> Callable[[np.ndarray, int], bytes]:
    """Images and their number across → one mosaic as a WebP stream without loss."""
    return stream


@pytest.fixture(scope="session")
def pack() -> Pack:
    """Images [N, h, w, 3] (and their number across a mosaic) → the arrays of the packed form, without loss."""
    return packed


def stream(images: np.ndarray, across: int) -> bytes:
    """One mosaic, padded with black."""
    count, height, width, _ = images.shape
    tiles = np.zeros((across * across, height, width, 3), np.uint8)
    tiles[:count] = images
    pixels = tiles.reshape(across, across, height, width, 3).swapaxes(1, 2).reshape(across * height, across * width, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def packed(images: np.ndarray, across: int = 2) -> dict[str, np.ndarray]:
    streams = [stream(images[i : i + across**2], across) for i in range(0, len(images), across**2)]
    return {
        "blob": np.frombuffer(b"".join(streams), np.uint8),
        "offsets": np.cumsum([0, *map(len, streams)]),
        "grid": np.array([across, *images.shape[1:3]], np.int32),
        "labels": np.arange(len(images), dtype=np.uint8),
        "names": np.array([f"name_{i}" for i in range(len(images))], "S20"),
        "classes": np.array([f"class_{i}" for i in range(len(images))], "S20"),
    }
