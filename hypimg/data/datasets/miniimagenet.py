"""miniImageNet from a folder with lists, from class folders, or from pickled caches."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypimg.data.archives import leaves_folder, read_pickled_dict, text
from hypimg.data.dataset import Found, ImageDataset, digest_of_tree, search, sha256_of_file, skipping, square
from hypimg.data.folder import IMAGE_SUFFIXES, OR_SKIP, form_skipping, read_image, unreadable
from hypimg.data.store import Decoded, ImageStore
from hypimg.data.views import centre_views
from hypimg.errors import UserError

PER_CLASS = 600
# The classes of Ravi and Larochelle (2017), by their WordNet numbers.
_CLASSES = {
    "train": """
        n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006
        n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172
        n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037
        n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472
        n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742
        n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613
    """,
    "val": """
        n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780
        n03584254 n03770439 n03773504 n03980874 n09256479
    """,
    "test": """
        n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925
        n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480
    """,
}
CLASSES = {split: names.split() for split, names in _CLASSES.items()}
WORDNET = re.compile(r"n\d{8}")
# Two conventions of those who packed it; both hold uint8 [N, 84, 84, 3].
CACHES = (
    [f"mini-imagenet-cache-{split}.pkl" for split in CLASSES],
    [f"miniImageNet_category_split_{phase}.pickle" for phase in ("train_phase_train", "val", "test")],
)
HEADER = ["filename", "label"]

Sources = dict[str, list[Path]]  # class: its files


class MiniImageNet(ImageDataset):
    """100 classes of ImageNet with 600 photographs each, 64 / 16 / 20 classes for train / val / test.

    Vinyals et al. 2016 in the classes of Ravi and Larochelle 2017. Known forms: `train.csv`, `val.csv`, `test.csv`
    (columns filename, label) in a folder that holds `images` or lies beside it; folders named by WordNet number, below
    `train`, `val`, `test` or all in one; pickled caches (`image_data` with `class_dict`, or `data` with `labels` and
    `catname2label`), read through an allow-list. Images are stored as they are, by split, then class, then as the
    source orders them. Its authors publish lists, not images, so no copy is called official.

    image_size: the side of the square that a model takes; the store may hold other sizes. Evaluation brings the short
        side to 92/84 of it (bilinear) and cuts the middle out, as HIE's official code does; so images of 84 pixels are
        enlarged first, there and here.
    class_split: a user's own; null for the published one, which the splits are.
    skip_unreadable: true leaves image files out that cannot be decoded, and counts them; null stops at the first.
    """

    name = "miniimagenet"
    where = (
        "put miniimagenet/train.csv, val.csv, test.csv of Ravi and Larochelle (columns filename,label; "
        "github.com/twitter/meta-learning-lstm) and the 60,000 photographs that they name in miniimagenet/images; "
        "or folders miniimagenet/train/n01532829, ..., val/..., test/... of 600 photographs each; "
        "or mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl"
    )
    splits = ("train", "val", "test")
    num_classes = 100
    decoder_version = 1

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int = 84,
        class_split: str | None = None,
        skip_unreadable: bool | None = None,
    ):
        self.skip_unreadable = skipping(skip_unreadable)
        self.image_shape = square("dataset.image_size", image_size)
        super().__init__(mean, std, class_split)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"skip_unreadable": True} if self.skip_unreadable else {}

    def view(self, store: ImageStore, indices: np.ndarray) -> np.ndarray:
        size = self.image_shape[1]
        return centre_views(store, indices, resize=round(size * 92 / 84), size=size, resample="bilinear")

    def _locate(self, data_dir: Path) -> Found | None:
        counts = {split: len(classes) * PER_CLASS for split, classes in CLASSES.items()}
        for form, find, read in FOLDER_FORMS:
            folder = find(data_dir)
            if folder is not None:
                files = [file for paths in read(folder).values() for file in paths]
                return Found(form, False, (folder,), digest_of_tree(folder.parent, files), counts)
        caches = _find_caches(data_dir)
        if caches is not None:
            digests = "".join(sha256_of_file(file) for file in caches)
            return Found("pickled caches", False, caches, hashlib.sha256(digests.encode()).hexdigest(), counts)
        return None

    def _decode(self, found: Found) -> Decoded:
        classes = [name for split in self.splits for name in CLASSES[split]]
        sizes = [len(CLASSES[split]) * PER_CLASS for split in self.splits]
        kept, skipped = np.ones(sum(sizes), bool), []
        readers = {form: read for form, _, read in FOLDER_FORMS}
        images: Iterator[np.ndarray]
        if found.form in readers:
            files = [file for paths in readers[found.form](found.files[0]).values() for file in paths]
            refused = unreadable(files) if self.skip_unreadable else set()
            kept[:] = [file not in refused for file in files]
            images = (read_image(file, OR_SKIP) for file in files if file not in refused)
            skipped = sorted(file.name for file in refused)
        else:
            images = _from_caches(found.files)
        return Decoded(
            images=images,
            columns={
                "label": np.repeat(np.arange(len(classes), dtype=np.int64), PER_CLASS)[kept],
                "split": np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)[kept],
            },
            names={"label": classes, "split": list(self.splits)},
            form=form_skipping(found.form, len(skipped)),
            official=False,
            details={"skipped": skipped} if self.skip_unreadable else {},
        )


def _checked(sources: dict[str, Sources], source: Path) -> Sources:
    """The classes of all splits in one, in the order of CLASSES, if they are the right ones and whole."""
    whole: Sources = {}
    for split, classes in CLASSES.items():
        found = sources[split]
        _check_classes({name: len(files) for name, files in found.items()}, split, source)
        whole |= {name: found[name] for name in classes}
    return whole


def _check_classes(counts: dict[str, int], split: str, source: Path) -> None:
    wanted = CLASSES[split]
    for name in wanted:
        if counts.get(name, 0) != PER_CLASS:
            remedy = f"class {name} of {split} has {counts.get(name, 0)} images, not {PER_CLASS}; fetch it again"
            raise UserError("file", source, remedy)
    if len(counts) != len(wanted):
        strange = min(counts.keys() - set(wanted))
        raise UserError("file", source, f"{split} has {len(counts)} classes, not {len(wanted)} ({strange} is not one)")


# --- images with lists ---------------------------------------------------------------------------------------------


def _find_lists(data_dir: Path) -> Path | None:
    """The folder of train.csv, val.csv and test.csv of classes named by WordNet number."""
    for file in search(data_dir, ["train.csv"])["train.csv"]:
        with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error), open(file, newline="") as handle:
            rows = csv.reader(handle)
            if next(rows, None) == HEADER and WORDNET.fullmatch((next(rows, None) or ["", ""])[-1]):
                return file.parent
    return None


def _read_lists(folder: Path) -> Sources:
    images = folder / "images" if (folder / "images").is_dir() else folder.parent / "images"
    if not images.is_dir():
        raise UserError("dataset", "miniimagenet", f"{folder} has lists, but no folder images lies in or beside it")
    return _checked({split: _read_list(folder / f"{split}.csv", images) for split in CLASSES}, folder)


def _read_list(file: Path, images: Path) -> Sources:
    try:
        with open(file, newline="") as handle:
            header, *rows = csv.reader(handle)
    except FileNotFoundError as error:
        raise UserError("file", file, "is missing; put train.csv, val.csv and test.csv there") from error
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError("file", file, f"cannot be read ({error})") from error
    if header != HEADER:
        raise UserError("file", file, f"begins with {','.join(header)}, not {','.join(HEADER)}")
    sources: Sources = {}
    for row in rows:
        if len(row) != len(HEADER):
            raise UserError("file", file, f"its line {','.join(row)!r} is not a file and a class")
        name, label = row
        if leaves_folder(name):
            raise UserError("file", file, f"refused: its path {name!r} leaves the folder")
        sources.setdefault(label, []).append(images / name)
    files = Counter(path for paths in sources.values() for path in paths)
    if files and files.most_common(1)[0][1] > 1:
        raise UserError("file", file, f"lists {files.most_common(1)[0][0].name} twice; fetch it again")
    return sources


# --- class folders -------------------------------------------------------------------------------------------------


def _find_class_folders(data_dir: Path) -> Path | None:
    """The folder that holds train, val and test, or all class folders. All of ImageNet is not taken for it."""
    first, known = CLASSES["train"][0], {name for classes in CLASSES.values() for name in classes}
    for path in search(data_dir, [first])[first]:
        if path.is_dir() and _class_folders(path.parent) <= known:
            return path.parent.parent if path.parent.name == "train" else path.parent
    return None


def _class_folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if WORDNET.fullmatch(path.name) and path.is_dir()}


def _read_class_folders(folder: Path) -> Sources:
    in_parts = (folder / "train").is_dir()
    sources: dict[str, Sources] = {}
    for split, classes in CLASSES.items():
        part = folder / split if in_parts else folder
        if not part.is_dir():
            raise UserError("file", part, "is missing; miniImageNet has train, val and test")
        names = sorted(_class_folders(part)) if in_parts else classes
        sources[split] = {name: _images_in(part / name) for name in names}
    return _checked(sources, folder)


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


FOLDER_FORMS = (
    ("images with lists", _find_lists, _read_lists),
    ("class folders", _find_class_folders, _read_class_folders),
)


# --- pickled caches ------------------------------------------------------------------------------------------------


def _find_caches(data_dir: Path) -> tuple[Path, ...] | None:
    """One file per split, in the order of CLASSES."""
    for names in CACHES:
        paths = search(data_dir, names)
        found = next((paths[name][0].parent for name in names if paths[name]), None)
        if found is not None:
            lacking = [name for name in names if not (found / name).is_file()]
            if lacking:
                raise UserError("dataset", "miniimagenet", f"{found} lacks {', '.join(lacking)}")
            return tuple(found / name for name in names)
    return None


def _from_caches(files: Sequence[Path]) -> Iterator[np.ndarray]:
    for split, file in zip(CLASSES, files, strict=True):
        images, members = _read_cache(file, split)
        for name in CLASSES[split]:
            for row in members[name]:
                yield images[row]
        del images  # 0.8 GB for train, before the next split is read


def _read_cache(file: Path, split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images uint8 [N, h, w, 3] and the rows of each class."""
    values = read_pickled_dict(file)
    try:
        if "class_dict" in values:
            images = values["image_data"]
            members = {text(name): np.asarray(rows) for name, rows in values["class_dict"].items()}
        else:
            images, labels = values["data"], np.asarray(values["labels"])
            members = {text(name): np.flatnonzero(labels == code) for name, code in values["catname2label"].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        remedy = f"not a cache of miniImageNet ({type(error).__name__}: {error}); fetch it again"
        raise UserError("file", file, remedy) from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        shown = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UserError("file", file, f"its images are {shown}, not uint8 [N, h, w, 3]; fetch it again")
    for name, rows in members.items():
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or ((rows < 0) | (rows >= len(images))).any():
            raise UserError("file", file, f"its list of class {name} does not fit {len(images)} images; fetch it again")
    _check_classes({name: len(np.unique(rows)) for name, rows in members.items()}, split, file)
    return images, members
