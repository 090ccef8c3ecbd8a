"""CUB-200-2011, photographs of birds, from the authors' unpacked folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hypimg.data.archives import leaves_folder
from hypimg.data.dataset import Found, ImageDataset, digest_of_tree, search, skipping, square
from hypimg.data.folder import OR_SKIP, form_skipping, read_image, unreadable
from hypimg.data.store import Decoded, ImageStore
from hypimg.data.views import centre_views
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

    image_size: the side of the square that a model takes; the store keeps the originals, of varying size. Evaluation
        brings the short side to it (bicubic) and cuts the middle out, as HIE's official code does.
    crop: `bbox` takes the bird's bounding box alone, in `view` and for training; `none` (or null) the whole photograph.
        Which of the two HIE's Table 5 did is unknown.
    skip_unreadable: true leaves photographs out that cannot be decoded, and counts them; null stops at the first.
    """

    name = "cub"
    where = (
        "unpack CUB_200_2011.tgz (doi.org/10.22002/D1.20098, 1.2 GB, MD5 97eceeb196236b17998738112f37df78), "
        "so that CUB_200_2011/images.txt and CUB_200_2011/images/001.Black_footed_Albatross lie"
    )
    splits = ("train", "test")
    num_classes = 200
    decoder_version = 1

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int = 84,
        class_split: str | None = None,
        crop: str | None = None,
        skip_unreadable: bool | None = None,
    ):
        if crop not in (None, "none", "bbox"):
            raise UserError("dataset.crop", crop, "must be none or bbox")
        self.crop, self.skip_unreadable = crop, skipping(skip_unreadable)
        self.image_shape = square("dataset.image_size", image_size)
        super().__init__(mean, std, class_split)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"skip_unreadable": True} if self.skip_unreadable else {}

    def view(self, store: ImageStore, indices: np.ndarray) -> np.ndarray:
        size, regions = self.image_shape[1], self.regions(store, indices)
        return centre_views(store, indices, resize=size, size=size, resample="bicubic", regions=regions)

    def regions(self, store: ImageStore, indices: np.ndarray) -> npt.NDArray[np.int64] | None:
        """The birds' boxes, rounded outwards to whole pixels and cut at the photographs' borders; None if whole."""
        if self.crop != "bbox":
            return None
        left, top, width, height = (store.column(f"box_{side}")[indices] for side in "xywh")
        low = np.floor(np.stack([top, left], axis=1))
        high = np.ceil(np.stack([top + height, left + width], axis=1))
        sizes = store.flat[2][indices, :2]
        low, high = np.clip(low, 0, sizes), np.clip(high, 0, sizes)
        if (low >= high).any():
            number = int(indices[np.flatnonzero((low >= high).any(axis=1))[0]])
            raise UserError("dataset.crop", self.crop, f"the box of image {number} lies outside it; pass crop=none")
        return np.concatenate([low, high - low], axis=1).astype(np.int64)

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
        files = [folder / "images" / path for path in lists.paths]
        refused = unreadable(files) if self.skip_unreadable else set()
        kept = np.array([file not in refused for file in files])
        boxes = {f"box_{side}": lists.boxes[kept, i] for i, side in enumerate("xywh")}
        return Decoded(
            images=(read_image(file, OR_SKIP) for file in files if file not in refused),
            columns={"label": lists.labels[kept], "split": lists.split[kept], **boxes},
            names={"label": lists.classes, "split": list(self.splits)},
            form=form_skipping(found.form, len(refused)),
            official=False,
            details={"skipped": sorted(file.name for file in refused)} if self.skip_unreadable else {},
        )


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
