"""CUB-200-2011, photographs of birds, from the authors' unpacked folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hypimg.data.archives import leaves_folder
from hypimg.data.dataset import Found, ImageDataset, digest_of_tree, search, square
from hypimg.data.folder import read_image
from hypimg.data.store import Decoded
from hypimg.errors import UserError

FOLDER = "CUB_200_2011"
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
CLASSES = 200
COUNTS = {"train": 5_994, "test": 5_794}  # the authors' parts; few-shot work splits the classes instead
OTHER_SETS = re.compile("nabirds", re.IGNORECASE)  # North American birds come with lists of the same names


@dataclass(frozen=True)
class Lists:
    """What the authors' text files say, in the order of images.txt.

    paths: relative to images/.  labels: 0 ... 199.  split: 0 (train) or 1 (test).  boxes: [N, 4], x, y, width, height
    of the bird in pixels of the original.  classes: "001.Black_footed_Albatross", ...
    """

    paths: list[str]
    labels: np.ndarray
    split: np.ndarray
    boxes: np.ndarray
    classes: list[str]


class Cub(ImageDataset):
    """11,788 photographs of 200 species of birds (Wah et al. 2011), stored as they are, grey ones as RGB.

    The splits are the authors' train (5,994) and test (5,794) parts, in which every class occurs. Columns box_x, box_y,
    box_w, box_h hold the bird's bounding box in pixels. Counts and lists are checked; the pixels are not known to us,
    so no copy is called official.

    image_size: the side of the square that a model takes; the store keeps the originals, of varying size.
    """

    name = "cub"
    where = "unpack CUB_200_2011.tgz of the authors' page (folder CUB_200_2011 with images and lists)"
    splits = ("train", "test")
    num_classes = 200
    decoder_version = 1

    def __init__(self, mean: Sequence[float], std: Sequence[float], image_size: int = 84):
        self.image_shape = square("dataset.image_size", image_size)
        super().__init__(mean, std)

    def _locate(self, data_dir: Path) -> Found | None:
        found = [path.parent for path in search(data_dir, ["image_class_labels.txt"])["image_class_labels.txt"]]
        folders = [folder for folder in found if not OTHER_SETS.search(str(folder.relative_to(data_dir)))]
        if not folders:
            return None
        folder = min(folders, key=lambda path: (path.name != FOLDER, path))
        lists = read_lists(folder)
        files = [folder / "images" / path for path in lists.paths]
        source = digest_of_tree(folder, [*(folder / name for name in LISTS), *files])
        return Found("authors' folder, pixels not verified", False, (folder,), source, dict(COUNTS))

    def _decode(self, found: Found) -> Decoded:
        folder = found.files[0]
        lists = read_lists(folder)
        boxes = {f"box_{side}": lists.boxes[:, i].copy() for i, side in enumerate("xywh")}
        return Decoded(
            images=_images(folder, lists.paths),
            columns={"label": lists.labels, "split": lists.split, **boxes},
            names={"label": lists.classes, "split": list(self.splits)},
            form=found.form,
            official=False,
        )


def _images(folder: Path, paths: list[str]) -> Iterator[np.ndarray]:
    for path in paths:
        yield read_image(folder / "images" / path)


def read_lists(folder: Path) -> Lists:
    """The authors' lists, checked: 11,788 images, 200 classes of one folder each, 5,994 for training, sound boxes.

    Raises UserError naming the file.
    """
    lines = {name: _read_list(folder / name) for name in LISTS}
    total = sum(COUNTS.values())
    for name, values in lines.items():
        if len(values) != total or values.keys() != lines["images.txt"].keys():
            other = "" if len(values) != total else "; its numbers are not those of images.txt"
            raise UserError(
                "file", folder / name, f"lists {len(values):,} images, not {total:,}{other}; unpack it again"
            )
    keys = list(lines["images.txt"])
    paths = [lines["images.txt"][key] for key in keys]
    for path in paths:
        if leaves_folder(path):
            raise UserError("file", folder / "images.txt", f"refused: its path {path!r} leaves the folder")
    labels = _numbers(folder / "image_class_labels.txt", lines, keys, 1)[:, 0].astype(np.int64) - 1
    classes = _class_names(folder, paths, labels)
    training = _numbers(folder / "train_test_split.txt", lines, keys, 1)[:, 0]
    if not np.isin(training, (0, 1)).all() or int(training.sum()) != COUNTS["train"]:
        remedy = f"marks {int((training == 1).sum()):,} images for training, not {COUNTS['train']:,}; unpack it again"
        raise UserError("file", folder / "train_test_split.txt", remedy)
    boxes = _numbers(folder / "bounding_boxes.txt", lines, keys, 4)
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > 0).all()):
        raise UserError("file", folder / "bounding_boxes.txt", "holds a box without area; unpack it again")
    return Lists(paths, labels, (1 - training).astype(np.uint8), boxes, classes)


def _read_list(file: Path) -> dict[str, str]:
    """A list of the authors: image number → the rest of its line."""
    try:
        lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError("file", file, "is missing; unpack CUB_200_2011.tgz again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("file", file, f"cannot be read ({error})") from error
    for line in lines:
        if len(line) != 2:
            raise UserError("file", file, f"its line {' '.join(line)!r} is not a number and a value; unpack it again")
    values = {number: value.strip() for number, value in lines}
    if len(values) != len(lines):
        raise UserError("file", file, "lists some images twice; unpack it again")
    return values


def _numbers(file: Path, lines: dict[str, dict[str, str]], keys: list[str], width: int) -> np.ndarray:
    """float64 [N, width] in the order of keys."""
    rows = [lines[file.name][key].split() for key in keys]
    try:
        numbers = np.array([[float(word) for word in row] for row in rows], np.float64)
        if numbers.shape != (len(keys), width):
            raise ValueError(f"{width} wanted")
    except ValueError as error:
        raise UserError("file", file, f"does not hold {width} number(s) an image ({error}); unpack it again") from error
    return numbers


def _class_names(folder: Path, paths: list[str], labels: np.ndarray) -> list[str]:
    names = {(int(label), path.split("/")[0]) for label, path in zip(labels, paths, strict=True)}
    if sorted(label for label, _ in names) != list(range(CLASSES)):
        remedy = (
            f"its labels and the folders of images.txt are not {CLASSES} classes with one folder each; unpack it again"
        )
        raise UserError("file", folder / "image_class_labels.txt", remedy)
    return [name for _, name in sorted(names)]
