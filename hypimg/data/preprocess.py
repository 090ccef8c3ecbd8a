"""From stored or foreign images to a model's input: tensors, normalisation, one validation split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hypimg.data.folder import open_upright
from hypimg.errors import UserError

INVERT = ("auto", "yes", "no")


def to_tensor(images: np.ndarray) -> Tensor:
    """Stored images as a tensor: uint8 [N, H, W, C] → uint8 [N, C, H, W], contiguous, a copy in memory."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, H, W, C], got {images.dtype} {list(images.shape)}")
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 − mean) / std per channel, computed as images · 1/(255 std) − mean/std in one pass.

    images: uint8 [N, C, H, W] on any device.  Returns float32 [N, C, H, W] there; within 1e-6 of torchvision's ToTensor
    and Normalize.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(mean):
        raise ValueError(f"images must be uint8 [N, {len(mean)}, H, W], got {images.dtype} {list(images.shape)}")
    means, stds = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    scale, shift = (v.float().view(1, -1, 1, 1).to(images.device) for v in (1 / (255 * stds), -means / stds))
    return torch.addcmul(shift, images.float(), scale)


def split_off(
    labels: np.ndarray, fraction: float, generator: torch.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split image positions in two, class by class: (the rest, a `fraction` of them), both ascending.

    Each class gives round(fraction · its size) images. fraction = 0 gives an empty second part.
    """
    if not 0 <= fraction < 1:
        raise UserError("val_fraction", fraction, "must be in [0, 1)")
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator).numpy()
        held_out[members[order[: round(fraction * len(members))]]] = True
    return np.flatnonzero(~held_out).astype(np.int64), np.flatnonzero(held_out).astype(np.int64)


def read_images(
    paths: Iterable[Path], image_shape: tuple[int, int, int], invert: str = "auto"
) -> tuple[Tensor, list[Path], list[tuple[Path, str]]]:
    """Image files of any kind as a model's input: (uint8 [N, C, H, W], the paths read, [(path, why it was skipped)]).

    Every mode is read as `folder.open_upright` does. Colour becomes grey (ITU-R 601 luma) where C is 1. Then the image
    is resized to H × W by Pillow's bilinear filter with antialiasing; its proportions are not kept.

    invert: `no`; `yes`: 255 − value; `auto`: `yes` where the model is grey (C = 1; taken to know white ink on black,
        as in MNIST) and the border of the image is lighter than mid-grey, else `no`.
    A damaged, empty, or oversized file, or one that is no image, is skipped with a reason; nothing is raised.
    """
    if invert not in INVERT:
        raise UserError("invert", invert, f"must be one of {', '.join(INVERT)}")
    channels = image_shape[0]
    if channels not in (1, 3):
        raise ValueError(f"image_shape must have 1 or 3 channels, got {image_shape}")
    kept: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    images: list[np.ndarray] = []
    for path in map(Path, paths):
        try:
            images.append(_read_image(path, image_shape, invert))
            kept.append(path)
        except ValueError as error:
            skipped.append((path, str(error)))
    stacked = np.stack(images) if images else np.zeros((0, *image_shape), np.uint8)
    return torch.from_numpy(stacked), kept, skipped


def _read_image(path: Path, image_shape: tuple[int, int, int], invert: str) -> np.ndarray:
    """uint8 [C, H, W]; ValueError with a reason."""
    from PIL import Image, ImageOps

    channels, height, width = image_shape
    image = open_upright(path, "L" if channels == 1 else "RGB")
    if invert == "yes" or (invert == "auto" and channels == 1 and _border_is_light(np.asarray(image))):
        image = ImageOps.invert(image)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _border_is_light(grey: np.ndarray) -> bool:
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return bool(border.mean() > 127.5)
