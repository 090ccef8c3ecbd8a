"""Omniglot from the authors' zips, the folders they unpack to, or one packed npz."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hypimg.data.archives import decode_image, open_zip, read_npz
from hypimg.data.dataset import Found, ImageDataset, search, sha256_of_file
from hypimg.data.store import Decoded
from hypimg.errors import UserError

SIDE = 105
DRAWERS = 20  # every character was drawn once by each
CHARACTERS = {"background": 964, "evaluation": 659}
PARTS = {"background": ("background",), "evaluation": ("evaluation",), "all": ("background", "evaluation")}
# SHA-256 of the ink, uint8 [N, 105, 105] of 0 and 1, by character and drawer: what "official" means, in every form
PIXELS = {
    "background": "dd58c588f6e2a235ab066d820e54815196df02fcb5ee660aa01b1bfd6c84ed3f",
    "evaluation": "c3cd7004d5b5d81203d43f5fcdcc7ff34e9923b8059c9e04999b0b98a1b652a8",
}
PATH = re.compile(r"images_(?P<part>background|evaluation)/(?P<character>[^/]+/character\d+)/\d+_(?P<drawer>\d+)\.png")
MAX_UNPACKED = 512 << 20  # the two zips unpack to about 10 MB

# A drawing on its way in: (Alphabet/characterNN, drawer 1 ... 20, split), and the ink, uint8 [105, 105], 255 = ink
Key = tuple[str, int, str]
Drawing = tuple[Key, np.ndarray]


class Omniglot(ImageDataset):
    """1,623 characters of 50 alphabets, each drawn by 20 people, 105×105 (Lake et al. 2015).

    Ink is white (255) on black, as in MNIST; the authors' files hold the opposite. Images are reduced to
    image_size × image_size by Pillow's bilinear filter, which averages over the source pixels (antialiasing, as
    torchvision's Resize does for PIL images). All forms give the same pixels in the same order: by
    "Alphabet/characterNN", then drawer. Labels count the characters of the part; further columns are drawer (1 ... 20),
    alphabet (coded) and background (bool).

    part: `background` (30 alphabets, 964 characters), `evaluation` (20, 659) or `all`; the splits have these names.
    rotations: 1, or 4: few-shot work (Vinyals et al. 2016) takes a character turned by 90°, 180°, 270° for a further
        class. The store holds each drawing once.
    """

    name = "omniglot"
    where = (
        "put images_background.zip and images_evaluation.zip (folder python of Brenden Lake's omniglot repository), "
        "zipped or unpacked, in omniglot-py"
    )
    decoder_version = 1

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        part: str,
        image_size: int = 28,
        class_split: str | None = None,
        rotations: int | None = None,
    ):
        if part not in PARTS:
            raise UserError("dataset.part", part, f"must be one of {', '.join(PARTS)}")
        if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
            raise UserError("dataset.image_size", image_size, "must be a whole number >= 1 (the drawings have 105)")
        if isinstance(rotations, bool) or rotations not in (None, 1, 4):
            raise UserError("dataset.rotations", rotations, "must be 1, or 4 for the turns by 0°, 90°, 180°, 270°")
        self.part, self.image_size, self.rotations = part, image_size, rotations or 1
        self.splits = PARTS[part]
        self.num_classes = sum(CHARACTERS[split] for split in self.splits) * self.rotations
        self.image_shape = (1, image_size, image_size)
        super().__init__(mean, std, class_split)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"part": self.part, "image_size": self.image_size}

    def _locate(self, data_dir: Path) -> Found | None:
        counts = {split: CHARACTERS[split] * DRAWERS for split in self.splits}
        folders = [f"images_{split}" for split in self.splits]
        zips = [f"{name}.zip" for name in folders]
        paths = search(data_dir, [*zips, *folders, "omniglot.npz"])
        forms = {"zip files": zips, "unpacked folders": folders, "packed npz": ["omniglot.npz"]}
        for form, names in forms.items():
            files = tuple(paths[name][0] for name in names if paths[name])
            if len(files) == len(names):
                digests = [_digest_of_folder(file) if file.is_dir() else sha256_of_file(file) for file in files]
                return Found(form, None, files, hashlib.sha256("".join(digests).encode()).hexdigest(), counts)
        return None

    def _decode(self, found: Found) -> Decoded:
        count = sum(CHARACTERS[split] for split in self.splits) * DRAWERS
        images = np.zeros((count, self.image_size, self.image_size, 1), np.uint8)
        pixels = {split: hashlib.sha256() for split in self.splits}
        keys: list[Key] = []
        for key, ink in _drawings(found, self.splits):
            if len(keys) < len(images):
                images[len(keys), :, :, 0] = _resize(ink, self.image_size)
            # Grey ink (a copy that was compressed again) is 0 or 1 nowhere else, so its digest differs.
            pixels[key[2]].update(np.where(ink == 255, 1, ink).astype(np.uint8).tobytes())
            keys.append(key)
        self._check_counts(keys, found)
        official = all(pixels[split].hexdigest() == PIXELS[split] for split in self.splits)
        characters, labels = np.unique([character for character, _, _ in keys], return_inverse=True)
        alphabets, alphabet = np.unique([character.split("/")[0] for character, _, _ in keys], return_inverse=True)
        splits = np.array([self.splits.index(split) for _, _, split in keys], np.uint8)
        return Decoded(
            images=images,
            columns={
                "label": labels.astype(np.int64),
                "split": splits,
                "drawer": np.array([drawer for _, drawer, _ in keys], np.int64),
                "alphabet": alphabet.astype(np.int64),
                "background": np.array([split == "background" for _, _, split in keys]),
            },
            names={"label": characters.tolist(), "split": list(self.splits), "alphabet": alphabets.tolist()},
            form=found.form if official else f"{found.form}, unknown pixels",
            official=official,
        )

    def _check_counts(self, keys: list[Key], found: Found) -> None:
        source = found.files[0]
        if len(set(keys)) != len(keys):
            raise UserError("file", source, "holds some drawings twice; unpack it again")
        for split in self.splits:
            characters: dict[str, int] = {}
            for character, _, part in keys:
                if part == split:
                    characters[character] = characters.get(character, 0) + 1
            if len(characters) != CHARACTERS[split] or set(characters.values()) != {DRAWERS}:
                drawings = sum(characters.values())
                held = f"{len(characters)} characters, {drawings} drawings"
                wanted = f"{CHARACTERS[split]} characters with {DRAWERS} drawings each"
                raise UserError("file", source, f"the {split} part has {held}, not {wanted}; fetch it again")

    def _download(self, data_dir: Path) -> None:
        from hypimg import _torchvision

        for split in self.splits:
            _torchvision.load().datasets.Omniglot(str(data_dir), background=split == "background", download=True)


def _resize(ink: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    if size == SIDE:
        return ink
    return np.asarray(Image.fromarray(ink).resize((size, size), Image.Resampling.BILINEAR))


def _digest_of_folder(folder: Path) -> str:
    """SHA-256 over the drawings' paths and bytes, in the order of the paths."""
    digest = hashlib.sha256()
    for path, file in _drawing_files(folder):
        digest.update(f"{path}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _drawing_files(folder: Path) -> list[tuple[str, Path]]:
    files = ((f"{folder.name}/{file.relative_to(folder).as_posix()}", file) for file in folder.glob("*/*/*.png"))
    return sorted((path, file) for path, file in files if PATH.fullmatch(path))


def _drawings(found: Found, splits: Sequence[str]) -> Iterator[Drawing]:
    """Every drawing of a source, by character and drawer."""
    if found.form == "packed npz":
        yield from _from_npz(found.files[0], splits)
    elif found.form == "unpacked folders":
        paths = {path: file for folder in found.files for path, file in _drawing_files(folder)}
        for key, path in _in_order(paths):
            yield key, _read_ink(paths[path].read_bytes(), str(paths[path]))
    else:
        with ExitStack() as stack:
            archives = [stack.enter_context(open_zip(file, max_unpacked=MAX_UNPACKED)) for file in found.files]
            members = {path: archive for archive in archives for path in archive.namelist() if PATH.fullmatch(path)}
            for key, path in _in_order(members):
                yield key, _read_ink(members[path].read(path), f"{members[path].filename}: {path}")


def _in_order(paths: Iterable[str]) -> list[tuple[Key, str]]:
    keys = []
    for path in paths:
        match = PATH.fullmatch(path)
        assert match is not None
        key = (match["character"], int(match["drawer"]), match["part"])
        keys.append((key, path))
    return sorted(keys)


def _read_ink(encoded: bytes, name: str) -> np.ndarray:
    try:
        image = decode_image(io.BytesIO(encoded))
    except ValueError as error:
        raise UserError("file", name, f"{error}; unpack or fetch it again") from error
    if image.size != (SIDE, SIDE):
        raise UserError("file", name, f"is {image.width}×{image.height}, not {SIDE}×{SIDE}")
    return 255 - np.asarray(image.convert("L"))


def _from_npz(file: Path, splits: Sequence[str]) -> Iterator[Drawing]:
    """The packed form: each row of 105 pixels in 14 bytes, 1 = ink; characters by sorted name, then drawer."""
    arrays = read_npz(file, max_unpacked=MAX_UNPACKED)
    try:
        bits, labels, drawers = arrays["bits"], arrays["labels"].astype(np.int64), arrays["drawer"].astype(np.int64)
        characters, background = arrays["chars"].astype(str).tolist(), arrays["background"].astype(bool)
        count = len(labels)
        if bits.shape != (count, SIDE, 14) or bits.dtype != np.uint8 or drawers.shape != (count,):
            raise ValueError(f"bits {bits.dtype} {bits.shape}, labels {labels.shape}, drawer {drawers.shape}")
        keys = [
            (characters[label], int(drawer), "background" if background[label] else "evaluation")
            for label, drawer in zip(labels, drawers, strict=True)
        ]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError("file", file, f"not Omniglot in the packed form ({type(error).__name__}: {error})") from error
    for key, row in sorted((key, row) for row, key in enumerate(keys) if key[2] in splits):
        yield key, np.unpackbits(bits[row], axis=1)[:, :SIDE] * np.uint8(255)
