"""A folder of image files, as a practitioner has it: which files, and the pixels of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hypimg.data.archives import decode_image
from hypimg.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

# of the formats that archives.decode_image reads
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}

log = logging.getLogger(__name__)


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, by their endings, sorted; hidden ones are left out.

    Raises UserError where the folder is missing or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("images", folder, "no such folder; pass a folder of images")
    visible = (
        path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    images = sorted(path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise UserError("images", folder, f"holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


# Ends the line on an unreadable image of a data set that has the option.
OR_SKIP = "replace it, or pass dataset.skip_unreadable=true to leave it out"


def read_image(path: Path, remedy: str = "replace it or leave it out") -> np.ndarray:
    """An image file of any kind in colour, uint8 [h, w, 3], as `open_upright` reads it; grey values three times.

    Raises UserError naming the file and the remedy where it is empty, damaged, too large or no image.
    """
    try:
        return np.asarray(open_upright(path, "RGB"))
    except ValueError as error:
        raise UserError("image", path, f"{error}; {remedy}") from error


def unreadable(files: Iterable[Path]) -> set[Path]:
    """The files that `read_image` refuses, each with a line in the log. Decodes them all."""
    refused = set()
    for file in files:
        try:
            read_image(file)
        except UserError as error:
            log.warning("skipping %s", error)
            refused.add(file)
    return refused


def form_skipping(form: str, count: int) -> str:
    """A data set's form, as runs record it, with the number of images left out of it."""
    return f"{form}, {count:,} unreadable skipped" if count else form


def open_upright(path: Path, mode: str) -> Image.Image:
    """An image file of any kind with 8 bits per value, upright and opaque, in Pillow's mode "L" or "RGB".

    CMYK and palettes are converted; 16-bit values are scaled by their range 0 ... 65535, floats by the image's own
    minimum and maximum; what is transparent lies on white, as on a page; EXIF turns are applied; of several frames the
    first counts.
    Raises ValueError, with a reason in a few words.
    """
    from PIL import Image, ImageOps

    try:
        if Path(path).stat().st_size == 0:
            raise ValueError("empty file")
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    image = decode_image(path)
    try:
        image = _to_eight_bits(ImageOps.exif_transpose(image))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert(mode)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"damaged image ({type(error).__name__}: {error})") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion cuts everything above 255 off.
    from PIL import Image

    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        low, high = values.min(), values.max()
        return Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8))
    if image.mode.startswith("I"):
        return Image.fromarray(np.rint(np.clip(np.asarray(image, np.float64), 0, 65535) / 257).astype(np.uint8))
    return image
