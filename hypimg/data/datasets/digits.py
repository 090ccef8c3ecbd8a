"""scikit-learn's handwritten digits: 1,797 images of 8×8, shipped with the package."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypimg.data.dataset import Found, ImageDataset
from hypimg.data.store import Decoded
from hypimg.errors import UserError

TEST_PER_CLASS = 50  # of 174 to 183
SPLIT_SEED = 0
# SHA-256 of the grey values (0 to 16, uint8 [1797, 8, 8]) and labels (uint8 [1797]) as scikit-learn 1.9.1 ships them
SOURCE = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


class Digits(ImageDataset):
    """The digits that need no download, for first steps and tests.

    Grey values 0 ... 16 become 0 ... 255. The test split, 50 images of each digit drawn once with a fixed seed, is ours
    (1,297 / 500): the package has none.

    blur: σ of a Gaussian filter in pixels. Blurred copies of the same digits serve as "other data" in an illustration
        of out-of-distribution scores; 0 leaves the images alone. The filter mirrors the image at its border, so the
        mean brightness stays.
    """

    name = "digits"
    where = "it comes with scikit-learn: install that"
    splits = ("train", "test")
    num_classes = 10
    image_shape = (1, 8, 8)
    decoder_version = 1

    def __init__(self, mean: Sequence[float], std: Sequence[float], blur: float = 0.0, class_split: str | None = None):
        super().__init__(mean, std, class_split)
        if not 0 <= blur < float("inf"):
            raise UserError("dataset.blur", blur, "must be a finite number of pixels >= 0")
        self.blur = float(blur)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"blur": self.blur}

    def _locate(self, data_dir: Path) -> Found | None:
        grey, labels = _load()
        digest = hashlib.sha256(grey.tobytes() + labels.tobytes()).hexdigest()
        official = digest == SOURCE
        form = "scikit-learn's copy" if official else "scikit-learn's copy, unknown digest"
        test = TEST_PER_CLASS * self.num_classes
        return Found(form, official, (), digest, {"train": len(grey) - test, "test": test})

    def _decode(self, found: Found) -> Decoded:
        grey, labels = _load()
        pixels = grey * (255 / 16)
        if self.blur > 0:
            from scipy.ndimage import gaussian_filter

            pixels = gaussian_filter(pixels, sigma=(0, self.blur, self.blur), mode="reflect")
        return Decoded(
            images=np.rint(pixels).astype(np.uint8)[..., None],
            columns={"label": labels.astype(np.int64), "split": _fixed_split(labels)},
            names={"label": [str(digit) for digit in range(10)], "split": list(self.splits)},
            form=found.form,
            official=bool(found.official),
        )


def _load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)


def _fixed_split(labels: np.ndarray) -> np.ndarray:
    """0 (train) or 1 (test) per image."""
    # RandomState, because numpy promises that its stream never changes
    random = np.random.RandomState(SPLIT_SEED)
    split = np.zeros(len(labels), np.uint8)
    for digit in range(10):
        split[random.permutation(np.flatnonzero(labels == digit))[:TEST_PER_CLASS]] = 1
    return split
