"""What a data set is: a form found in a folder, a decoder, and a few facts about its images."""

from __future__ import annotations

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hypimg.data.class_splits import ClassSplit
from hypimg.data.store import Decoded, ImageStore, open_or_fill
from hypimg.errors import UserError

SEARCH_DEPTH = 5  # folders below data_dir; `mnist/MNIST/raw` is 3


@dataclass(frozen=True)
class Found:
    """One form of a data set on disk.

    form: in words, as runs record it and tables print it.
    official: whether it is known to hold the authors' pixels, unchanged; None where only decoding can tell (then the
        store knows).
    digest: SHA-256 over the source, the decoder's parameters and its version: the name of what `open` returns.
    counts: images per split.
    """

    form: str
    official: bool | None
    files: tuple[Path, ...]
    digest: str
    counts: dict[str, int]


class ImageDataset(ABC):
    """A data set of images of one kind, with the constants that its images are normalised with.

    A subclass states `name`, `where`, `splits`, `num_classes`, `image_shape` and `decoder_version`, finds its form
    (`_locate`) and decodes it (`_decode`). `open` is all that training and evaluation use.

    mean, std: of pixel values in [0, 1], one per channel.
    class_split: a split of the classes into train, val and test (`class_splits`) that `indices` follows, in place of
        the authors' split of the images.
    image_shape: C, H, W of what a model takes; where the stored originals vary in size, `view` cuts them to it.
    rotations: R > 1 makes R classes of each: its images turned by 0, 90, ... degrees (`resident.rotated`).
    """

    name: str
    where: str  # how to get it and where to put it, in words
    splits: tuple[str, ...]
    num_classes: int
    image_shape: tuple[int, int, int]  # C, H, W
    decoder_version: int  # raised when the same source and parameters give other pixels, order or columns
    rotations: int = 1

    def __init__(self, mean: Sequence[float], std: Sequence[float], class_split: str | None = None):
        self.class_split = None if class_split is None else ClassSplit(class_split)
        self.mean = self._per_channel("mean", mean)
        self.std = self._per_channel("std", std)
        if min(self.std) <= 0:
            raise UserError("dataset.std", list(self.std), "must be > 0")

    def _per_channel(self, thing: str, values: Sequence[float]) -> tuple[float, ...]:
        channels = self.image_shape[0]
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != channels or not all(map(math.isfinite, numbers)):
            raise UserError(
                f"dataset.{thing}", values, f"must be {channels} finite number(s) in a list, one per channel"
            )
        return numbers

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that change decoded pixels; part of the digest."""
        return {}

    @property
    def or_download(self) -> str:
        """What ends the advice on how to get a data set: nothing where it cannot be fetched for the user."""
        return "" if type(self)._download is ImageDataset._download else ", or pass download=true"

    def find(self, data_dir: Path) -> Found | None:
        """The form of this data set under data_dir; None if there is none.

        Raises UserError, naming the file, where a form is there but cut short or not what it should be.
        """
        located = self._locate(Path(data_dir))
        if located is None:
            return None
        identity = {
            "name": self.name,
            "source": located.digest,
            "parameters": self.parameters,
            "decoder_version": self.decoder_version,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Found(located.form, located.official, located.files, digest, located.counts)

    def open(self, data_dir: Path, store_dir: Path, download: bool = False) -> ImageStore:
        """The decoded images; filled from data_dir if the store does not hold them yet.

        data_dir is only read (and may be read-only) unless `download` is true and the data set is missing.
        Raises UserError: nothing found, a damaged source, no space, no network.
        """
        data_dir, store_dir = Path(data_dir), Path(store_dir)
        found = self.find(data_dir)
        if found is None and download:
            self.download(data_dir)
            found = self.find(data_dir)
        if found is None:
            remedy = f"not found under {data_dir}; {self.where} there{self.or_download}"
            raise UserError("dataset", self.name, remedy)
        source = found
        store = open_or_fill(store_dir, self.name, found.digest, lambda: self._decode(source))
        if self.class_split is not None:
            self.class_split.check(store.classes)
        return store

    def indices(self, store: ImageStore, split: str) -> npt.NDArray[np.int64]:
        """The images of a split in stored order, int64 [N]; with a class split, those of the classes of a part.

        Raises UserError where there is no such split.
        """
        return store.indices(split) if self.class_split is None else self.class_split.indices(store, split)

    def view(self, store: ImageStore, indices: np.ndarray) -> np.ndarray:
        """The images as they are evaluated, uint8 [N, H, W, C] of `image_shape`: the stored ones, in memory."""
        channels, height, width = self.image_shape
        if store.ragged or store.images.shape[1:] != (height, width, channels):
            stored = "of varying size" if store.ragged else "×".join(map(str, store.images.shape[1:]))
            raise UserError("dataset", self.name, f"its images are {stored}, not {height}×{width}×{channels}")
        return store.images[indices]

    def regions(self, store: ImageStore, indices: np.ndarray) -> npt.NDArray[np.int64] | None:
        """What of each stored image counts, int64 [N, 4]: top, left, height, width in pixels; None for all of it."""
        return None

    def download(self, data_dir: Path) -> None:
        """Fetch the authors' files into data_dir. Raises UserError, in one line, where that fails."""
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._download(data_dir)
        except PermissionError as error:
            raise UserError("data_dir", data_dir, f"cannot be written ({error.strerror}); pass another one") from error
        except (OSError, RuntimeError) as error:
            reason = str(error) or type(error).__name__
            remedy = f"download failed ({reason}); {self.where} under {data_dir} by hand"
            raise UserError("dataset", self.name, remedy) from error

    @abstractmethod
    def _locate(self, data_dir: Path) -> Found | None:
        """As `find`; here `digest` is the SHA-256 of the source alone."""

    @abstractmethod
    def _decode(self, found: Found) -> Decoded: ...

    def _download(self, data_dir: Path) -> None:
        raise UserError("download", True, f"{self.name} has no download; {self.where}")


def search(data_dir: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """Files and folders with these names under data_dir, at most SEARCH_DEPTH folders deep, in sorted order.

    A data set is found by its files' names wherever they were unpacked, behind links as well. Hidden folders (where the
    store is) are not searched.
    """
    found: dict[str, list[Path]] = {name: [] for name in names}
    for folder, folders, files in os.walk(data_dir, followlinks=True):  # the depth bounds loops
        here = Path(folder)
        for name in (*folders, *files):
            if name in found:
                found[name].append(here / name)
        deeper = len(here.relative_to(data_dir).parts) < SEARCH_DEPTH
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deeper else []
    return {name: sorted(paths) for name, paths in found.items()}


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError("file", path, f"cannot be read ({error.strerror})") from error


def digest_of_tree(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the path and the size of each file, in their order.

    Sizes stand for bytes: a tree of gigabytes is looked at again with every run, and another encoding of tens of
    thousands of photographs does not keep all their sizes. Raises UserError naming a file that is missing.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
        except OSError as error:
            raise UserError("file", file, f"cannot be read ({error.strerror}); unpack or fetch it again") from error
    return digest.hexdigest()


def skipping(value: bool | None) -> bool:
    """Whether unreadable images are left out: the option skip_unreadable, null or true."""
    if value not in (None, True):
        raise UserError("dataset.skip_unreadable", value, "must be true, or null to stop at such an image")
    return value is True


def square(thing: str, size: int) -> tuple[int, int, int]:
    """(3, size, size). Raises UserError where size is not a whole number of pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(thing, size, "must be a whole number of pixels >= 1")
    return 3, size, size
