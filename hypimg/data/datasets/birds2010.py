"""Ten classes of the first CUB-200 (2010) from one packed npz: a stand-in to try the bird pipeline with."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hypimg.data.archives import decode_image, read_npz
from hypimg.data.dataset import Found, ImageDataset, search, sha256_of_file, square
from hypimg.data.store import Decoded, ImageStore
from hypimg.data.views import centre_views
from hypimg.errors import UserError

FILE = "cub2010_10.npz"
IMAGES, CLASSES = 294, 10
KNOWN = "5a02dc94448f0333f519cdf05d1c87d34671500dca561dd1116115733f8f0144"  # SHA-256 of the file that we know
MAX_UNPACKED = 64 << 20
ARRAYS = ("blob", "offsets", "sizes", "labels", "classes")


class Birds2010(ImageDataset):
    """294 photographs of 10 species of the CUB-200 of 2010 (Welinder et al.), short side 96, recompressed.

    The species' names are those of CUB-200-2011's first ten, the photographs are not its. Too few for a table: results
    are compared with nobody's. Form: `blob` holds one JPEG per image, stream i is blob[offsets[i] : offsets[i + 1]];
    `sizes` (width, height), `labels`, `classes`. The authors' parts are not in it: without a class split there is one
    split, `all`.

    image_size: as of CUB.  crop: none (or null): the file has no boxes.
    """

    name = "birds2010"
    where = f"put {FILE} (10 classes of the CUB-200 of 2010 in one npz)"
    splits = ("all",)
    num_classes = CLASSES
    decoder_version = 1

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int = 84,
        class_split: str | None = None,
        crop: str | None = None,
    ):
        if crop not in (None, "none"):
            raise UserError("dataset.crop", crop, f"{self.name} has no bounding boxes; pass dataset.crop=none")
        self.image_shape = square("dataset.image_size", image_size)
        super().__init__(mean, std, class_split)

    def view(self, store: ImageStore, indices: np.ndarray) -> np.ndarray:
        size = self.image_shape[1]
        return centre_views(store, indices, resize=size, size=size, resample="bicubic")

    def _locate(self, data_dir: Path) -> Found | None:
        files = search(data_dir, [FILE])[FILE]
        if not files:
            return None
        digest = sha256_of_file(files[0])
        known = "reduced to a short side of 96, JPEG" if digest == KNOWN else "unknown file"
        return Found(f"packed npz of the 2010 edition, {known}", False, (files[0],), digest, {"all": IMAGES})

    def _decode(self, found: Found) -> Decoded:
        file = found.files[0]
        arrays = read_npz(file, max_unpacked=MAX_UNPACKED)
        try:
            blob, offsets, sizes, labels, classes = (arrays[name] for name in ARRAYS)
        except KeyError as error:
            raise UserError("file", file, f"not the packed form of these images (it lacks {error})") from error
        shapes = {"offsets": (IMAGES + 1,), "sizes": (IMAGES, 2), "labels": (IMAGES,), "classes": (CLASSES,)}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or (arrays[name].dtype.kind not in "iu") != (name == "classes"):
                shown = f"{arrays[name].dtype} {list(arrays[name].shape)}"
                raise UserError("file", file, f"its {name} are {shown}, not numbers {list(shape)}; fetch it again")
        labels = labels.astype(np.int64)
        if blob.dtype != np.uint8 or blob.ndim != 1 or sorted(set(labels.tolist())) != list(range(CLASSES)):
            raise UserError("file", file, f"does not hold streams of {CLASSES} classes; fetch it again")
        return Decoded(
            images=_photographs(blob, offsets, sizes, file),
            columns={"label": labels, "split": np.zeros(IMAGES, np.uint8)},
            names={"label": classes.astype(str).tolist(), "split": list(self.splits)},
            form=found.form,
            official=False,
        )


def _photographs(blob: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, file: Path) -> Iterator[np.ndarray]:
    for number, (width, height) in enumerate(sizes.tolist()):
        try:
            image = decode_image(io.BytesIO(blob[int(offsets[number]) : int(offsets[number + 1])].tobytes()))
        except ValueError as error:
            raise UserError("file", file, f"its image {number}: {error}; fetch it again") from error
        if image.size != (width, height):
            held = f"{image.width}×{image.height}, not {width}×{height}"
            raise UserError("file", file, f"its image {number} is {held}; fetch it again")
        yield np.asarray(image.convert("RGB"))
