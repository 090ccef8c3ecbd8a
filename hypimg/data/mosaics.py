"""The packed form of sets of small images: square mosaics of many images, each one JPEG or WebP stream, in one npz.

blob      uint8 [bytes]: all streams in a row         offsets   [M + 1]: stream i is blob[offsets[i] : offsets[i + 1]]
grid      (g, h, w): a mosaic shows g × g images of h × w, row by row; the last one is padded
labels    [N], names [N]: file names, classes [K]
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from hypimg.data.archives import decode_image, read_npz
from hypimg.errors import UserError

ARRAYS = ("blob", "offsets", "grid", "labels", "names", "classes")
MAX_UNPACKED = 512 << 20


def read_mosaics(file: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Decode the images of a packed file into `images`, uint8 [N, h, w, 3], one mosaic at a time; returns its arrays.

    Raises UserError naming the file where it is damaged or holds another number or size of images.
    """
    count, *shape = images.shape[:3]
    arrays = read_npz(file, max_unpacked=MAX_UNPACKED)
    try:
        blob, offsets, labels = (arrays[name] for name in ("blob", "offsets", "labels"))
        across, height, width = (int(size) for size in arrays["grid"])
        lacking = [name for name in ARRAYS if name not in arrays]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        if labels.shape != (count,) or arrays["names"].shape != (count,) or [height, width] != shape or across < 1:
            raise ValueError(f"{len(labels)} images of {height}×{width}, not {count} of {shape[0]}×{shape[1]}")
        per_mosaic = across * across
        mosaics = -(-count // per_mosaic)
        if (
            blob.dtype != np.uint8
            or blob.ndim != 1
            or offsets.shape != (mosaics + 1,)
            or offsets.dtype.kind not in "iu"
        ):
            raise ValueError(f"blob {blob.dtype} {blob.shape}, offsets {offsets.dtype} {offsets.shape}")
        for i in range(mosaics):
            tiles = _tiles(blob[int(offsets[i]) : int(offsets[i + 1])].tobytes(), across, height, width)
            part = images[i * per_mosaic : (i + 1) * per_mosaic]
            part[:] = tiles[: len(part)]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        words = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError("file", file, f"not the packed form of these images ({words}); fetch it again") from error
    return arrays


def _tiles(encoded: bytes, across: int, height: int, width: int) -> np.ndarray:
    """uint8 [across², height, width, 3]; ValueError with a reason."""
    image = decode_image(io.BytesIO(encoded)).convert("RGB")
    if image.size != (across * width, across * height):
        raise ValueError(f"a mosaic is {image.width}×{image.height}, not {across * width}×{across * height}")
    pixels = np.asarray(image).reshape(across, height, across, width, 3)
    return pixels.swapaxes(1, 2).reshape(-1, height, width, 3)
