"""The store: images decoded once into memory-mapped uint8, written whole or not at all.

A store is a folder `<store_dir>/<name>-<first 12 hex digits of the digest>`:

    images.npy                        uint8 [N, H, W, C], where all images have one size, or
    pixels.bin, offsets.npy, shapes.npy   all pixels in a row, [N + 1] offsets and [N, 3] shapes, where sizes vary
    column_<name>.npy                 one value per image: label, split, and where they exist drawer, alphabet, ...
    meta.json                         names, counts and the digest; the size of every file above

It is written into a temporary folder beside its place, flushed to the disk and renamed, so a reader sees a whole store
or none. Of several processes that fill the same store the first to finish wins and the others use what it wrote.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hypimg.errors import UserError

STORE_VERSION = 1  # of the layout above; a store of another version is written anew
PROGRESS_SECONDS = 5.0
NAME_DIGITS = 12  # of the digest in the folder's name; meta.json holds all 64

log = logging.getLogger(__name__)


@dataclass
class Decoded:
    """What a data set hands over to be stored.

    images: uint8 [N, H, W, C], or an iterable of uint8 [h, w, C] of varying size (consumed once, image by image).
    columns: one array [N] per name; `label` and `split` always.
    names: for each coded column the names of its codes 0, 1, ...; `label` and `split` always.
    """

    images: np.ndarray | Iterable[np.ndarray]
    columns: dict[str, np.ndarray]
    names: dict[str, list[str]]
    form: str
    official: bool
    details: dict[str, Any] = field(default_factory=dict)


class DamagedStore(Exception):
    """A store that cannot be read: a file is missing, cut short, or of another shape than meta.json says."""


class ImageStore:
    """Decoded images with their columns, read from disk as they are touched.

    images: uint8 memory map [N, H, W, C], where all images have one size; `image(i)` works for every data set.
    """

    def __init__(self, path: Path, digest: str | None = None):
        """Open a store. Checks file sizes and headers, not pixels. Raises DamagedStore, FileNotFoundError."""
        self.path = path
        try:
            self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            if self.meta["version"] != STORE_VERSION:
                raise DamagedStore(f"version {self.meta['version']}, not {STORE_VERSION}")
            if digest is not None and self.meta["digest"] != digest:
                raise DamagedStore("holds other data than its name says")
            self.name: str = self.meta["name"]
            self.form: str = self.meta["form"]
            self.official: bool = self.meta["official"]
            self.digest: str = self.meta["digest"]
            self._files = {name: self._map(name, **entry) for name, entry in self.meta["files"].items()}
            self._images = self._of_one_size()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not path.exists():
                raise FileNotFoundError(path) from error
            raise DamagedStore(f"{type(error).__name__}: {error}") from error

    def _map(self, name: str, bytes: int, dtype: str, shape: list[int]) -> np.ndarray:
        file = self.path / name
        if file.stat().st_size != bytes:
            raise DamagedStore(f"{name} has {file.stat().st_size} bytes, not {bytes}")
        if name == "pixels.bin":
            return np.memmap(file, np.uint8, "r") if bytes else np.zeros(0, np.uint8)
        array: np.ndarray = np.load(file, mmap_mode="r" if 0 not in shape else None)
        if array.dtype.str != dtype or list(array.shape) != shape:
            raise DamagedStore(f"{name} is {array.dtype.str} {list(array.shape)}, not {dtype} {shape}")
        return array

    def _of_one_size(self) -> np.ndarray | None:
        if "images.npy" in self._files:
            return self._files["images.npy"]
        shapes = self._files["shapes.npy"]
        if len(shapes) == 0 or (shapes != shapes[0]).any():
            return None
        images: np.ndarray = self._files["pixels.bin"].reshape(len(shapes), *shapes[0])
        return images

    def __len__(self) -> int:
        return int(self.meta["count"])

    def __repr__(self) -> str:
        return f"ImageStore({self.name}, {len(self)} images, {self.form}, digest {self.digest[:NAME_DIGITS]})"

    @property
    def ragged(self) -> bool:
        """Whether the images differ in size."""
        return self._images is None

    @property
    def images(self) -> np.ndarray:
        """uint8 [N, H, W, C]; ValueError where sizes vary."""
        if self._images is None:
            raise ValueError(f"the images of {self.name} differ in size: read them one by one with image(i)")
        return self._images

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 [H, W, C], a view of the map. Negative indices count from the end, as in a list."""
        if self._images is not None:
            return self._images[index]
        index = range(len(self))[index]
        start, stop = self._files["offsets.npy"][index : index + 2]
        pixels: np.ndarray = self._files["pixels.bin"][start:stop].reshape(self._files["shapes.npy"][index])
        return pixels

    @property
    def flat(self) -> tuple[np.ndarray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(pixels uint8 [total], offsets int64 [N + 1], shapes int64 [N, 3]), whether sizes vary or not.

        Image i is pixels[offsets[i] : offsets[i + 1]] in the shape shapes[i] = (H, W, C). The pixels are a view of the
        map.
        """
        if "pixels.bin" in self._files:
            return self._files["pixels.bin"], self._files["offsets.npy"], self._files["shapes.npy"]
        count, *shape = self.images.shape
        offsets = np.arange(count + 1, dtype=np.int64) * int(np.prod(shape))
        return self.images.reshape(-1), offsets, np.tile(np.array(shape, np.int64), (count, 1))

    def column(self, name: str) -> np.ndarray:
        """One value per image, [N]. KeyError names the columns there are."""
        if name not in self.columns:
            raise KeyError(f"{self.name} has no column {name!r}; it has {', '.join(self.columns)}")
        return self._files[f"column_{name}.npy"]

    @property
    def columns(self) -> list[str]:
        return [file.removeprefix("column_").removesuffix(".npy") for file in self._files if file.startswith("column_")]

    def names(self, column: str) -> list[str]:
        """The names of the codes 0, 1, ... of a coded column."""
        names: list[str] = self.meta["names"][column]
        return names

    @property
    def classes(self) -> list[str]:
        """The name of each label 0 ... K−1."""
        return self.names("label")

    @property
    def splits(self) -> list[str]:
        return self.names("split")

    @property
    def counts(self) -> dict[str, int]:
        """Images per split."""
        counts: dict[str, int] = self.meta["counts"]
        return counts

    def indices(self, split: str | None = None) -> npt.NDArray[np.int64]:
        """The images of one split in stored order, int64; of the whole store without an argument."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in self.splits:
            raise UserError("split", split, f"{self.name} has {', '.join(self.splits)}")
        return np.flatnonzero(self.column("split") == self.splits.index(split)).astype(np.int64)


def store_path(store_dir: Path, name: str, digest: str) -> Path:
    """Where the store of this data lies, or would lie."""
    return store_dir / f"{name}-{digest[:NAME_DIGITS]}"


def open_or_fill(store_dir: Path, name: str, digest: str, decode: Callable[[], Decoded]) -> ImageStore:
    """The store of this digest; decoded and written first if it is not there or damaged.

    Raises UserError where store_dir cannot be written (full, read-only); nothing half written stays behind.
    """
    path = store_path(store_dir, name, digest)
    try:
        return ImageStore(path, digest)
    except FileNotFoundError:
        log.info("decoding %s into %s (once)", name, path)
    except DamagedStore as damage:
        log.warning("%s is damaged (%s): decoding it again", path, damage)
    with _writing(store_dir):
        store_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale(store_dir)
        temporary = store_dir / f".tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        temporary.mkdir()
    try:
        decoded = decode()
        with _writing(store_dir):
            _write(temporary, name, digest, decoded)
            _publish(temporary, path, digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ImageStore(path, digest)


@contextlib.contextmanager
def _writing(store_dir: Path) -> Iterator[None]:
    """Turns what a user can mend about a disk into one line. Errors about files elsewhere (a source) pass through."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            file = Path(error.filename)
            if not (file.is_relative_to(store_dir) or store_dir.is_relative_to(file)):
                raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"{error.strerror}; free some space there or pass store_dir=<a folder with more>"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            remedy = f"cannot be written ({error.strerror}); pass store_dir=<a writable folder> or set $HYPIMG_STORE"
        else:
            raise
        raise UserError("store_dir", store_dir, remedy) from error


def _write(folder: Path, name: str, digest: str, decoded: Decoded) -> None:
    files: dict[str, dict[str, Any]] = {}
    if isinstance(decoded.images, np.ndarray):
        if decoded.images.dtype != np.uint8 or decoded.images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, H, W, C], got {decoded.images.dtype} {decoded.images.shape}")
        count = len(decoded.images)
        files["images.npy"] = _write_array(folder / "images.npy", decoded.images)
    else:
        total = len(decoded.columns["label"])
        count = _write_ragged(folder, _announced(decoded.images, total, name), files)
    for column, values in decoded.columns.items():
        if values.shape != (count,):
            raise ValueError(f"column {column!r} must be [{count}], got {list(values.shape)}")
        files[f"column_{column}.npy"] = _write_array(folder / f"column_{column}.npy", values)
    splits = decoded.names["split"]
    per_split = np.bincount(decoded.columns["split"], minlength=len(splits)).tolist()
    meta = {
        "version": STORE_VERSION,
        "name": name,
        "digest": digest,
        "form": decoded.form,
        "official": decoded.official,
        "count": count,
        "counts": dict(zip(splits, per_split, strict=True)),
        "names": decoded.names,
        "details": decoded.details,
        "files": files,
    }
    _write_bytes(folder / "meta.json", [json.dumps(meta, indent=1).encode()])
    _sync_folder(folder)


def _announced(images: Iterable[np.ndarray], total: int, name: str) -> Iterator[np.ndarray]:
    """The same images, with a line in the log now and then: tens of thousands take minutes."""
    last = time.monotonic()
    for count, image in enumerate(images):
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            log.info("decoding %s: %s of %s images", name, f"{count:,}", f"{total:,}")
        yield image


def _write_ragged(folder: Path, images: Iterable[np.ndarray], files: dict[str, dict[str, Any]]) -> int:
    shapes: list[tuple[int, ...]] = []

    def chunks() -> Iterable[bytes]:
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3:
                raise ValueError(f"an image must be uint8 [h, w, C], got {image.dtype} {image.shape}")
            shapes.append(image.shape)
            yield image.tobytes()

    size = _write_bytes(folder / "pixels.bin", chunks())
    sizes = np.prod(np.array(shapes, np.int64).reshape(-1, 3), axis=1)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    files["pixels.bin"] = {"bytes": size, "dtype": "|u1", "shape": [size]}
    files["offsets.npy"] = _write_array(folder / "offsets.npy", offsets)
    files["shapes.npy"] = _write_array(folder / "shapes.npy", np.array(shapes, np.int64).reshape(-1, 3))
    return len(shapes)


def _write_array(file: Path, array: np.ndarray) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    size = _write_bytes(file, [_npy_header(array), array.reshape(-1).view(np.uint8).data])
    return {"bytes": size, "dtype": array.dtype.str, "shape": list(array.shape)}


def _npy_header(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return buffer.getvalue()


def _write_bytes(file: Path, chunks: Iterable[bytes | memoryview]) -> int:
    # np.save hands a full disk on as an OSError without errno; plain writes keep it.
    with open(file, "wb") as handle:
        size = sum(handle.write(chunk) for chunk in chunks)
        handle.flush()
        os.fsync(handle.fileno())
    return size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, path: Path, digest: str) -> None:
    """Give a finished folder its name, unless a good store bears it already; a damaged one makes way."""
    for _ in range(10):
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            _sync_folder(path.parent)
            return
        try:
            ImageStore(path, digest)
            return
        except FileNotFoundError:
            continue
        except DamagedStore:
            aside = temporary.with_name(f"{temporary.name}-damaged")
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, aside)
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                aside.unlink()
    raise UserError("store_dir", path.parent, f"{path.name} keeps being damaged by another process; remove it")


def _remove_stale(store_dir: Path) -> None:
    """Remove what processes of this machine left that were killed while they wrote."""
    for folder in store_dir.glob(f".tmp-{socket.gethostname()}-*"):
        process = folder.name.removeprefix(f".tmp-{socket.gethostname()}-").split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            log.info("removing %s, left by a process that is gone", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
