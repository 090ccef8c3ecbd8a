"""MNIST from its four idx files, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from pathlib import Path

import numpy as np

from hypimg.data.dataset import Found, ImageDataset, search
from hypimg.data.store import Decoded
from hypimg.errors import UserError

# file: shape, SHA-256 of the unpacked bytes. These are the bytes inside the four files with the official MD5
# (f68b3c2d..., d53e105e..., 9fb629c4..., ec29112d...); so gzipped and unpacked copies are told by one table.
FILES: dict[str, tuple[tuple[int, ...], str]] = {
    "train-images-idx3-ubyte": ((60000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": ((60000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": ((10000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": ((10000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
# Sets that come under the same file names; a folder called after one of them is not MNIST.
OTHER_SETS = re.compile(r"fashion|[ekq]mnist|kuzushiji", re.IGNORECASE)


class Mnist(ImageDataset):
    """Handwritten digits, 28×28 grey, white on black: 60,000 for training, 10,000 for test (LeCun and Cortes)."""

    name = "mnist"
    where = (
        "put the four idx files of LeCun's MNIST page (train-images-idx3-ubyte.gz, ...; gzipped or not) in MNIST/raw"
    )
    splits = ("train", "test")
    num_classes = 10
    image_shape = (1, 28, 28)
    decoder_version = 1

    def _locate(self, data_dir: Path) -> Found | None:
        files = _find_files(data_dir)
        if files is None:
            return None
        digests = [hashlib.sha256(_read_idx_bytes(file, shape)).hexdigest() for file, (shape, _) in _with_facts(files)]
        official = digests == [digest for _, digest in FILES.values()]
        form = "idx files" if official else "idx files, unknown digest"
        source = hashlib.sha256("".join(digests).encode()).hexdigest()
        return Found(form, official, files, source, {"train": 60000, "test": 10000})

    def _decode(self, found: Found) -> Decoded:
        train_images, train_labels, test_images, test_labels = (
            read_idx(file, shape) for file, (shape, _) in _with_facts(found.files)
        )
        labels = np.concatenate([train_labels, test_labels])
        if labels.max() >= self.num_classes:
            raise UserError("dataset", self.name, f"label {labels.max()} in {found.files[0].parent}; labels are 0 to 9")
        return Decoded(
            images=np.concatenate([train_images, test_images])[..., None],
            columns={"label": labels.astype(np.int64), "split": np.repeat(np.array([0, 1], np.uint8), [60000, 10000])},
            names={"label": [str(digit) for digit in range(10)], "split": list(self.splits)},
            form=found.form,
            official=bool(found.official),
        )

    def _download(self, data_dir: Path) -> None:
        from hypimg import _torchvision

        _torchvision.load().datasets.MNIST(str(data_dir), download=True)


def _with_facts(files: tuple[Path, ...]) -> list[tuple[Path, tuple[tuple[int, ...], str]]]:
    return list(zip(files, FILES.values(), strict=True))


def _find_files(data_dir: Path) -> tuple[Path, ...] | None:
    """The four files of one folder, in the order of FILES; unpacked ones are preferred (no unpacking at each open)."""
    paths = search(data_dir, [name + ending for name in FILES for ending in ("", ".gz")])
    folders: dict[Path, dict[str, Path]] = {}
    for name in FILES:
        for path in (*paths[name + ".gz"], *paths[name]):
            if path.is_file() and not OTHER_SETS.search(str(path.parent.relative_to(data_dir))):
                folders.setdefault(path.parent, {})[name] = path
    complete = [folder for folder in sorted(folders) if len(folders[folder]) == len(FILES)]
    if complete:
        return tuple(folders[complete[0]][name] for name in FILES)
    if folders:
        folder = min(folders)
        missing = ", ".join(name for name in FILES if name not in folders[folder])
        remedy = f"{folder} lacks {missing}; put all four idx files there, or remove it and pass download=true"
        raise UserError("dataset", "mnist", remedy)
    return None


def read_idx(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An idx file of unsigned bytes, uint8 of this shape.

    The form: bytes 0, 0, 8 (unsigned byte), number of dimensions, each size as a big-endian uint32, then the values.
    Raises UserError naming the file where it is cut short, too long, damaged, or of another shape.
    """
    raw = _read_idx_bytes(file, shape)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _read_idx_bytes(file: Path, shape: tuple[int, ...]) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    expected = len(header) + int(np.prod(shape))
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as handle:
            # One byte more than expected: enough to see that it is too long, whatever a hostile file unpacks to.
            raw = handle.read(expected + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError("file", file, f"damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        raise UserError("file", file, f"cannot be read ({error.strerror or error})") from error
    if raw[: len(header)] != header:
        wanted = "×".join(str(size) for size in shape)
        raise UserError("file", file, f"not an idx file of {wanted} unsigned bytes (it begins {raw[:16].hex()})")
    if len(raw) != expected:
        kind = "longer than" if len(raw) > expected else f"cut short: {len(raw)} of"
        raise UserError("file", file, f"{kind} {expected} bytes unpacked; fetch it again")
    return raw
