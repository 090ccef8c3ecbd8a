"""Readers for files from elsewhere: archives, images and pickles are hostile until checked."""

from __future__ import annotations

import io
import lzma
import pickle
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hypimg.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_MEMBERS = 200_000
MAX_UNPACKED = 4 << 30  # bytes, of one archive
# Not every format of Pillow's: some (EPS) start other programs.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

# What pickles of numpy arrays need (protocols 0 to 5, written by numpy 1 or 2), and nothing that acts.
PICKLE_GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"{core}.multiarray", name) for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
    *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
    ("_codecs", "encode"),
}


@contextmanager
def open_zip(path: Path, max_members: int = MAX_MEMBERS, max_unpacked: int = MAX_UNPACKED) -> Iterator[zipfile.ZipFile]:
    """A zip file whose table of contents is harmless: no name leaves the folder, sizes within limits, no encryption.

    The sizes are those that the table states; zipfile reads no member beyond its stated size. Errors while reading
    inside the `with` (a damaged or truncated member) become a UserError that names the file, too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if len(members) > max_members or unpacked > max_unpacked:
                limits = f"more than {max_members} files or {max_unpacked >> 20} MiB unpacked"
                raise UserError("file", path, f"refused: {limits} ({len(members)} files, {unpacked >> 20} MiB)")
            for member in members:
                if leaves_folder(member.filename):
                    raise UserError("file", path, f"refused: its member {member.filename!r} leaves the folder")
                if member.flag_bits & 1:
                    raise UserError("file", path, f"refused: its member {member.filename!r} is encrypted")
            yield archive
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise UserError("file", path, f"damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        raise UserError("file", path, f"cannot be read ({error.strerror or error})") from error


def leaves_folder(name: str) -> bool:
    """Whether a path that a stranger wrote (in an archive, in a list) points outside the folder it is relative to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or bool(re.match(r"[A-Za-z]:", name)) or "\0" in name


def read_tar(
    path: Path, wanted: Container[str], max_members: int = MAX_MEMBERS, max_unpacked: int = MAX_UNPACKED
) -> Iterator[tuple[str, bytes]]:
    """The name and bytes of each member of a tar file (compressed or not) that is `wanted`, in the archive's order.

    Nothing is unpacked to disk. Raises UserError naming the file where it is damaged or cut short, or where any member
    on the way leaves the folder, is a link or a device, or goes beyond the limits.
    """
    unpacked = 0
    try:
        with tarfile.open(path) as archive:
            for count, member in enumerate(archive, start=1):
                unpacked += member.size
                if count > max_members or unpacked > max_unpacked:
                    limits = f"more than {max_members} files or {max_unpacked >> 20} MiB unpacked"
                    raise UserError("file", path, f"refused: {limits}")
                if leaves_folder(member.name):
                    raise UserError("file", path, f"refused: its member {member.name!r} leaves the folder")
                if not (member.isfile() or member.isdir()):
                    raise UserError("file", path, f"refused: its member {member.name!r} is a link or a device")
                name = str(PurePosixPath(member.name))  # without a leading ./
                handle = archive.extractfile(member) if name in wanted else None
                if handle is not None:
                    yield name, handle.read()
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise UserError("file", path, f"damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        raise UserError("file", path, f"cannot be read ({error.strerror or error})") from error


def read_npz(path: Path, max_unpacked: int = MAX_UNPACKED) -> dict[str, np.ndarray]:
    """All arrays of an npz file, without pickles. Raises UserError naming the file where it is damaged."""
    with open_zip(path, max_unpacked=max_unpacked) as archive:
        try:
            members = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
            return {name: np.lib.format.read_array(member, allow_pickle=False) for name, member in members.items()}
        except (ValueError, SyntaxError, MemoryError) as error:
            raise UserError("file", path, f"damaged: {error}") from error


def decode_image(source: Path | IO[bytes]) -> Image.Image:
    """An image with its pixels loaded, by Pillow.

    Raises ValueError, with a reason in a few words, where it is no image, is cut short, or holds more pixels than
    Pillow takes for safe (89 million; `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=IMAGE_FORMATS) as image:
                image.load()
                return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged image ({error})") from error


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: Path, content: bytes | None = None) -> Any:
    """A pickle of plain containers, strings, numbers and numpy arrays; anything else is refused before it runs.

    content: the pickle's bytes where it lies in an archive; `path` then only names it in errors.
    Byte strings of Python 2 (the CIFAR batches) come as bytes. Raises UserError naming the file.
    """
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as handle:
            return _ArraysOnly(handle, encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise UserError("file", path, f"refused: not a pickle of plain arrays ({error})") from error
    except OSError as error:
        raise UserError("file", path, f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError("file", path, f"damaged pickle ({type(error).__name__}: {error}); fetch it again") from error


def read_pickled_dict(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """A pickled dictionary, read by `read_pickle`, with its keys as text: Python 2 wrote them as bytes."""
    values = read_pickle(path, content)
    if not isinstance(values, dict):
        raise UserError("file", path, f"holds a {type(values).__name__}, not a dictionary; fetch it again")
    return {text(key): value for key, value in values.items()}


def text(value: object) -> str:
    """A string of Python 2 or 3."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
