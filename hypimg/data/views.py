"""Photographs of any size as they are evaluated: the short side brought to a length, then the middle cut out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hypimg.data.store import ImageStore


def centre_views(
    store: ImageStore,
    indices: np.ndarray,
    *,
    resize: int,
    size: int,
    resample: str,
    regions: npt.NDArray[np.int64] | None = None,
) -> np.ndarray:
    """Stored colour images as uint8 [N, size, size, 3]: `centre_view` of each, in the order of indices.

    regions: int64 [N, 4], top, left, height, width: the part of each image that is taken first; None: all of it.
    """
    views = np.empty((len(indices), size, size, 3), np.uint8)
    for row, index in enumerate(indices):
        pixels = store.image(int(index))
        if regions is not None:
            top, left, height, width = regions[row]
            pixels = pixels[top : top + height, left : left + width]
        views[row] = centre_view(pixels, resize, size, resample)
    return views


def centre_view(pixels: np.ndarray, resize: int, size: int, resample: str) -> np.ndarray:
    """uint8 [h, w, 3] → uint8 [size, size, 3], as torchvision's Resize(resize) and CenterCrop(size) do with Pillow.

    The short side becomes `resize` >= size pixels long, the proportions are kept; an image that has this size already
    is not resampled.  resample: `bilinear` or `bicubic`, both antialiased.
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    short = min(height, width)
    target = int(resize * width / short), int(resize * height / short)
    if target != (width, height):
        pixels = np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling[resample.upper()]))
        height, width = pixels.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]
