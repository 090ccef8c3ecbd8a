"""CIFAR-10 and CIFAR-100 from the authors' pickles (folder or tar.gz), or from packed npz files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypimg.data.archives import read_pickled_dict, read_tar, text
from hypimg.data.dataset import Found, ImageDataset, search, sha256_of_file
from hypimg.data.mosaics import read_mosaics
from hypimg.data.store import Decoded
from hypimg.errors import UserError

SIDE = 32
COUNTS = {"train": 50_000, "test": 10_000}
MAX_UNPACKED = 1 << 30  # the archives unpack to about 190 MB


@dataclass(frozen=True)
class Column:
    """Where a label column stands: keys of its labels and of its classes' names in the pickles and in packed files."""

    classes: int
    pickled: tuple[str, str]
    packed: tuple[str, str]


@dataclass(frozen=True)
class Facts:
    """What tells one of the two from the other.

    folder: of the authors' pickles, in the archive and unpacked.  batches: the pickles of each split.  meta: the pickle
    with the names of the classes.
    digests: for each split the SHA-256 of the official pixels, uint8 [N, 32, 32, 3], and of the labels, uint8, column
    by column; over the images sorted by label, then file name, if `sorted_digests`.
    packed: for each split the SHA-256 of a packed file that is known, and what was done to its pixels.
    """

    folder: str
    archive: str
    batches: dict[str, tuple[str, ...]]
    meta: str
    columns: dict[str, Column]
    sorted_digests: bool
    digests: dict[str, tuple[str, str]]
    packed: dict[str, tuple[str, str]]


@dataclass
class Part:
    """One split in its source's order.

    images: uint8 [N, 32, 32, 3].  labels: int64 [N], one row per label column.  names: file names without .png, [N].
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]
    names: np.ndarray


class Cifar(ImageDataset):
    """What CIFAR-10 and CIFAR-100 share: 32×32 colour photographs, 50,000 / 10,000 (Krizhevsky 2009).

    Official means: pixels and labels of both splits have the known digests. The order of the images is that of the
    source. Pickles are read through an allow-list: nothing in them is run.
    """

    splits = ("train", "test")
    image_shape = (3, SIDE, SIDE)
    decoder_version = 1
    facts: Facts

    def _locate(self, data_dir: Path) -> Found | None:
        pickles = [*(name for names in self.facts.batches.values() for name in names), self.facts.meta]
        packed = [f"{self.name}_{split}.npz" for split in self.splits]
        paths = search(data_dir, [self.facts.folder, self.facts.archive, *packed])
        found: tuple[str, list[Path]]
        folders = [path for path in paths[self.facts.folder] if path.is_dir()]
        if folders:
            found = "pickled batches", [folders[0] / name for name in pickles]
        elif paths[self.facts.archive]:
            found = "archive of pickled batches", paths[self.facts.archive][:1]
        elif any(paths[name] for name in packed):
            here = next(paths[name][0].parent for name in packed if paths[name])
            found = "packed npz", [here / name for name in packed]
        else:
            return None
        form, files = found
        lacking = [file.name for file in files if not file.is_file()]
        if lacking:
            raise UserError("dataset", self.name, f"{files[0].parent} lacks {', '.join(lacking)}; fetch it again")
        digests = [sha256_of_file(file) for file in files]
        source = hashlib.sha256("".join(digests).encode()).hexdigest()
        if form == "packed npz":
            form = f"packed npz, {self._what_was_done(digests)}"
        return Found(form, None, tuple(files), source, dict(COUNTS))

    def _what_was_done(self, digests: list[str]) -> str:
        known = [self.facts.packed[split] for split in self.splits]
        if digests != [digest for digest, _ in known]:
            return "unknown files"
        return ", ".join(f"{split} {done}" for split, (_, done) in zip(self.splits, known, strict=True))

    def _decode(self, found: Found) -> Decoded:
        images = np.zeros((sum(COUNTS.values()), SIDE, SIDE, 3), np.uint8)
        rows = {"train": slice(0, COUNTS["train"]), "test": slice(COUNTS["train"], None)}
        parts = {split: self._empty(images[rows[split]]) for split in self.splits}
        packed = found.form.startswith("packed npz")
        names = self._read_npz(found, parts) if packed else self._read_pickles(found, parts)
        official = [split for split in self.splits if self._is_official(parts[split], split)]
        whole = official == list(self.splits)
        labels = {
            column: np.concatenate([parts[split].labels[column] for split in self.splits])
            for column in self.facts.columns
        }
        return Decoded(
            images=images,
            columns={**labels, "split": np.repeat(np.array([0, 1], np.uint8), list(COUNTS.values()))},
            names={**names, "split": list(self.splits)},
            form=found.form if whole or packed else f"{found.form}, unknown pixels",
            official=whole,
            details={"official_splits": official},
        )

    def _empty(self, images: np.ndarray) -> Part:
        count = len(images)
        return Part(
            images, {column: np.zeros(count, np.int64) for column in self.facts.columns}, np.zeros(count, "S64")
        )

    def _is_official(self, part: Part, split: str) -> bool:
        label = part.labels["label"]
        order = np.lexsort((part.names, label)) if self.facts.sorted_digests else np.arange(len(label))
        pixels, labels = hashlib.sha256(), hashlib.sha256()
        for rows in np.array_split(order, 10):  # a copy of a tenth at a time
            pixels.update(part.images[rows].tobytes())
        for column in self.facts.columns:
            labels.update(part.labels[column][order].astype(np.uint8).tobytes())
        return (pixels.hexdigest(), labels.hexdigest()) == self.facts.digests[split]

    def _read_npz(self, found: Found, parts: dict[str, Part]) -> dict[str, list[str]]:
        """Fill the parts; returns the names of the classes of each column."""
        names: dict[str, list[str]] = {}
        for split, file in zip(self.splits, found.files, strict=True):
            part = parts[split]
            arrays = read_mosaics(file, part.images)
            part.names[:] = _file_names(arrays["names"].tolist(), COUNTS[split], file)
            for name, column in self.facts.columns.items():
                lacking = [key for key in column.packed if key not in arrays]
                if lacking:
                    raise UserError("file", file, f"not {self.name} in the packed form (it lacks {lacking[0]})")
                values, classes = (arrays[key] for key in column.packed)
                names[name] = _texts(classes.tolist(), column.classes, "names of classes", file)
                part.labels[name][:] = _labels(values, COUNTS[split], column.classes, name, file)
        return names

    def _read_pickles(self, found: Found, parts: dict[str, Part]) -> dict[str, list[str]]:
        place = {batch: (split, row) for split, row, batch in self._places()}
        names: dict[str, list[str]] = {}
        for batch, file, content in self._pickles(found):
            values = read_pickled_dict(file, content)
            if batch == self.facts.meta:
                names = {
                    name: _texts(values.get(column.pickled[1]), column.classes, "names of classes", file)
                    for name, column in self.facts.columns.items()
                }
            else:
                split, row = place.pop(batch)
                self._read_batch(values, parts[split], row, COUNTS[split] // len(self.facts.batches[split]), file)
        if place or not names:
            lacking = ", ".join([*place, *([] if names else [self.facts.meta])])
            raise UserError("file", found.files[0], f"it lacks {lacking}; fetch it again")
        return names

    def _places(self) -> Iterator[tuple[str, int, str]]:
        for split, batches in self.facts.batches.items():
            for i, batch in enumerate(batches):
                yield split, i * (COUNTS[split] // len(batches)), batch

    def _pickles(self, found: Found) -> Iterator[tuple[str, Path, bytes | None]]:
        """Each pickle's name, the file to name in an error, and its bytes where they lie in an archive."""
        if found.form != "archive of pickled batches":
            yield from ((file.name, file, None) for file in found.files)
            return
        pickles = [*(batch for _, _, batch in self._places()), self.facts.meta]
        members = {f"{self.facts.folder}/{name}": name for name in pickles}
        for member, content in read_tar(found.files[0], members, max_unpacked=MAX_UNPACKED):
            yield members.pop(member), found.files[0] / member, content

    def _read_batch(self, values: dict[str, Any], part: Part, row: int, count: int, file: Path) -> None:
        data = values.get("data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (count, 3 * SIDE * SIDE):
            shown = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise UserError("file", file, f"its data are {shown}, not uint8 ({count}, 3072); fetch it again")
        rows = slice(row, row + count)
        part.images[rows] = data.reshape(count, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        part.names[rows] = _file_names(values.get("filenames"), count, file)
        for name, column in self.facts.columns.items():
            part.labels[name][rows] = _labels(values.get(column.pickled[0]), count, column.classes, name, file)

    def _download(self, data_dir: Path) -> None:
        from hypimg import _torchvision

        # Only its address, MD5 and fetching are used: its reader unpickles freely.
        datasets = _torchvision.load().datasets
        theirs = datasets.CIFAR10 if self.num_classes == 10 else datasets.CIFAR100
        datasets.utils.download_url(theirs.url, str(data_dir), self.facts.archive, theirs.tgz_md5)


CIFAR10 = Facts(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    meta="batches.meta",
    columns={"label": Column(10, ("labels", "label_names"), ("labels", "classes"))},
    sorted_digests=False,
    digests={
        "train": (
            "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        ),
        "test": (
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        ),
    },
    packed={
        "train": ("825674b96d623fa18fead684a3e570c60697d39e465300a866a4cd19f021a7c8", "recompressed as JPEG"),
        "test": ("963e9ca42793b94638d8747421548e5badafba27320bcaf18ed19c440d2e16e9", "lossless"),
    },
)
# The authors' order is not known here, so these digests hold for every order in which the images are published.
CIFAR100 = Facts(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    batches={"train": ("train",), "test": ("test",)},
    meta="meta",
    columns={
        "label": Column(100, ("fine_labels", "fine_label_names"), ("labels", "classes")),
        "coarse": Column(20, ("coarse_labels", "coarse_label_names"), ("coarse", "superclasses")),
    },
    sorted_digests=True,
    digests={
        "train": (
            "2aa2e92a742ec0fbd361b0b1386394899dfac5a05c448330d3371fd9b63b3e87",
            "500107ca2067112ad5aeab41b2ce99d65ab264fdaf0fb9eaab43d21ed54d3131",
        ),
        "test": (
            "2716d826d85ee9ca7f948fb4dc3b3d7515225d1a436d1c4b7e6975855da3d9ee",
            "90540970ebb13fe0ea8cb77f901d53a773956acc706d74dbc260649da52f6fad",
        ),
    },
    packed={
        "train": ("5ae200115fd120c5d0ba0afd4cf4e8d158d0d39ee0f279822cb71ae68d355474", "recompressed as JPEG"),
        "test": ("4fd6bd7979b17bb05fb1f5f240abb05159357ae4eaadd2ccc08992e537269142", "recompressed as JPEG"),
    },
)


class Cifar10(Cifar):
    """CIFAR-10: 10 classes, 5,000 + 1,000 images each."""

    name = "cifar10"
    where = "put cifar-10-python.tar.gz of the authors' page, packed or unpacked (cifar-10-batches-py),"
    num_classes = 10
    facts = CIFAR10


class Cifar100(Cifar):
    """CIFAR-100: 100 classes, 500 + 100 images each, in 20 superclasses (column `coarse`)."""

    name = "cifar100"
    where = "put cifar-100-python.tar.gz of the authors' page, packed or unpacked (cifar-100-python),"
    num_classes = 100
    facts = CIFAR100


def _texts(values: Any, count: int, what: str, file: Path) -> list[str]:
    if not isinstance(values, list) or len(values) != count or not all(isinstance(v, bytes | str) for v in values):
        raise UserError("file", file, f"does not hold {count} {what}; fetch it again")
    return [text(value) for value in values]


def _file_names(values: Any, count: int, file: Path) -> list[bytes]:
    return [name.removesuffix(".png").encode() for name in _texts(values, count, "file names", file)]


def _labels(values: Any, count: int, classes: int, column: str, file: Path) -> np.ndarray:
    """Labels as int64 [count], each in 0 ... classes − 1."""
    try:
        labels = np.asarray(values)
    except ValueError:  # lists of several lengths
        labels = np.zeros(0)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError("file", file, f"does not hold {count} values of {column}; fetch it again")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError("file", file, f"{column} goes from {labels.min()} to {labels.max()}, not 0 to {classes - 1}")
    return labels.astype(np.int64)
