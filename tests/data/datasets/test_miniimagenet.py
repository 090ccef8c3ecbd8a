from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypimg.data.datasets import miniimagenet as module
from hypimg.data.datasets.miniimagenet import MiniImageNet
from hypimg.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TINY = {split: names[:count] for (split, names), count in zip(module.CLASSES.items(), (3, 2, 2), strict=True)}
EACH = 4
COUNTS = {"train": 12, "val": 8, "test": 8}


def mini(**options: object) -> MiniImageNet:
    return MiniImageNet(*IMAGENET, **options)


@pytest.fixture(autouse=True)
def few_classes(monkeypatch) -> None:
    monkeypatch.setattr(module, "CLASSES", TINY)
    monkeypatch.setattr(module, "PER_CLASS", EACH)


def photograph(label: int, number: int, side: int = 84) -> np.ndarray:
    return np.full((side, side, 3), 30 * label + number, np.uint8)


WANTED = np.stack([photograph(label, number) for label in range(7) for number in range(EACH)])
NAMES = [name for names in TINY.values() for name in names]


def with_lists(data_dir: Path, lists: str = "miniimagenet", images: str = "miniimagenet/images") -> Path:
    """The folder of images with train.csv, val.csv, test.csv, whose lines are not in the order of the classes."""
    (data_dir / images).mkdir(parents=True)
    (data_dir / lists).mkdir(parents=True, exist_ok=True)
    for split, names in TINY.items():
        lines = ["filename,label"]
        for number in range(EACH):
            for name in reversed(names):
                file = f"{name}{number:08d}.png"
                Image.fromarray(photograph(NAMES.index(name), number)).save(data_dir / images / file)
                lines.append(f"{file},{name}")
        (data_dir / lists / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return data_dir


def with_class_folders(data_dir: Path, parts: bool = True, suffix: str = "png", side: int = 84) -> Path:
    for split, names in TINY.items():
        for name in names:
            folder = data_dir / "mini" / (split if parts else ".") / name
            folder.mkdir(parents=True)
            for number in range(EACH):
                pixels = photograph(NAMES.index(name), number, side)
                Image.fromarray(pixels).save(folder / f"{name}_{number}.{suffix}")
    return data_dir


def caches(kind: int) -> dict[str, dict]:
    """File name → contents, in one of the two conventions; images of a class do not lie together."""
    contents = {}
    for split, names in TINY.items():
        order = [(label, number) for number in range(EACH) for label in range(len(names))]
        images = np.stack([photograph(NAMES.index(names[label]), number) for label, number in order])
        if kind == 0:
            rows = {name: [i for i, (j, _) in enumerate(order) if j == label] for label, name in enumerate(names)}
            contents[f"mini-imagenet-cache-{split}.pkl"] = {"image_data": images, "class_dict": rows}
        else:
            phase = {"train": "train_phase_train"}.get(split, split)
            codes = {name.encode(): NAMES.index(name) for name in names}
            labels = [NAMES.index(names[label]) for label, _ in order]
            contents[f"miniImageNet_category_split_{phase}.pickle"] = {
                b"data": images,
                b"labels": labels,
                b"catname2label": codes,
            }
    return contents


def with_caches(data_dir: Path, contents: dict[str, object]) -> Path:
    data_dir.mkdir()
    for name, values in contents.items():
        (data_dir / name).write_bytes(values if isinstance(values, bytes) else pickle.dumps(values))
    return data_dir


def check(data_dir: Path, tmp_path: Path, form: str):
    store = mini().open(data_dir, tmp_path / "store")
    assert (store.form, store.official, store.counts) == (form, False, COUNTS)
    assert not store.ragged
    assert np.array_equal(store.images, WANTED)
    assert store.classes == NAMES
    assert store.column("label").tolist() == np.repeat(range(7), EACH).tolist()
    assert store.indices("val").tolist() == list(range(12, 20))
    return store


@pytest.mark.parametrize(("lists", "images"), [("mini", "mini/images"), ("mini/split", "mini/images"), (".", "images")])
def test_images_with_lists(tmp_path, lists, images):
    check(with_lists(tmp_path / "data", lists, images), tmp_path, "images with lists")


@pytest.mark.parametrize("parts", [True, False])
def test_class_folders(tmp_path, parts):
    check(with_class_folders(tmp_path / "data", parts), tmp_path, "class folders")


@pytest.mark.parametrize("kind", [0, 1])
def test_pickled_caches(tmp_path, kind):
    check(with_caches(tmp_path / "data", caches(kind)), tmp_path, "pickled caches")


def test_all_forms_give_the_same_images_in_the_same_order_under_digests_of_their_own(tmp_path):
    digests = {
        check(make(tmp_path / str(i)), tmp_path, form).digest
        for i, (make, form) in enumerate(
            [
                (with_lists, "images with lists"),
                (with_class_folders, "class folders"),
                (lambda folder: with_caches(folder, caches(0)), "pickled caches"),
            ]
        )
    }
    assert len(digests) == 3


def test_originals_of_other_sizes_are_stored_as_they_are(tmp_path):
    data_dir = with_class_folders(tmp_path / "data", suffix="JPEG", side=100)
    Image.new("L", (50, 70)).save(data_dir / "mini/train" / NAMES[0] / f"{NAMES[0]}_0.JPEG")
    store = mini().open(data_dir, tmp_path / "store")
    assert store.ragged
    assert store.image(0).shape == (70, 50, 3)
    assert store.image(1).shape == (100, 100, 3)


def test_the_view_is_the_middle_of_the_image_at_92_by_84(tmp_path):
    data_dir = with_class_folders(tmp_path / "data", side=100)
    noise = np.random.default_rng(0).integers(0, 256, (150, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data_dir / "mini/val" / NAMES[3] / f"{NAMES[3]}_0.png")
    store, dataset = mini().open(data_dir, tmp_path / "store"), mini()
    views = dataset.view(store, dataset.indices(store, "val"))
    assert (views.shape, views.dtype) == ((8, 84, 84, 3), np.uint8)
    wanted = Image.fromarray(noise).resize((92, 138), Image.Resampling.BILINEAR).crop((4, 27, 88, 111))
    assert np.array_equal(views[0], np.asarray(wanted))
    assert views[1:, 0, 0, 0].tolist() == [30 * label + number for label in (3, 4) for number in range(EACH)][1:]
    assert dataset.regions(store, dataset.indices(store, "val")) is None


def test_a_view_of_another_size_keeps_the_proportion(tmp_path):
    data_dir = with_class_folders(tmp_path / "data", side=46)
    dataset = mini(image_size=42)
    store = dataset.open(data_dir, tmp_path / "store")
    assert np.array_equal(dataset.view(store, np.array([5])), store.images[5:6, 2:44, 2:44])


def test_a_split_of_the_users_own_takes_the_place_of_the_published_one(tmp_path):
    parts = {"train": NAMES[5:], "val": NAMES[:1], "test": NAMES[1:2]}
    (tmp_path / "own.json").write_text(json.dumps(parts))
    dataset = mini(class_split=str(tmp_path / "own.json"))
    store = dataset.open(with_lists(tmp_path / "data"), tmp_path / "store")
    assert dataset.indices(store, "train").tolist() == list(range(20, 28))
    assert dataset.indices(store, "test").tolist() == list(range(4, 8))
    assert store.digest == mini().find(tmp_path / "data").digest


def test_the_classes_are_those_of_ravi_and_larochelle(monkeypatch, shared_data):
    monkeypatch.undo()
    published = json.loads((shared_data / "splits/miniimagenet.json").read_text())["classes"]
    assert published == module.CLASSES
    assert [len(names) for names in module.CLASSES.values()] == [64, 16, 20]
    assert module.PER_CLASS == 600
    assert mini().num_classes == 100


def test_nothing_there_is_nothing_found(tmp_path, shared_data):
    assert mini().find(tmp_path) is None
    assert mini().find(shared_data) is None
    with pytest.raises(
        UserError, match=r"dataset=miniimagenet: not found under .*; put miniimagenet/train\.csv.* there$"
    ):
        mini().open(tmp_path, tmp_path / "store")


def test_all_of_imagenet_is_not_taken_for_it(tmp_path):
    data_dir = with_class_folders(tmp_path / "data", parts=False)
    (data_dir / "mini/n00000001").mkdir()
    assert mini().find(data_dir) is None


@pytest.mark.parametrize(
    "content", ["id,name\n1,n01532829\n", "filename,label\nbird.jpg,bird\n", "filename,label\n", ""]
)
def test_lists_of_other_data_are_not_taken_for_it(tmp_path, content):
    (tmp_path / "train.csv").write_text(content)
    assert mini().find(tmp_path) is None


@pytest.mark.parametrize("size", [0, 84.0])
def test_the_size_is_checked(size):
    with pytest.raises(UserError, match=r"dataset\.image_size="):
        MiniImageNet(*IMAGENET, image_size=size)


def failing(data_dir: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        mini().open(data_dir, tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists() or list((tmp_path / "store").iterdir()) == []


# --- bad lists -----------------------------------------------------------------------------------------------------


def edit(file: Path, old: str, new: str) -> None:
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))


def test_a_missing_list_is_named(tmp_path):
    data_dir = with_lists(tmp_path / "data")
    (data_dir / "miniimagenet/val.csv").unlink()
    failing(data_dir, tmp_path, r"file=.*val\.csv: is missing")


def test_lists_without_images_are_named(tmp_path):
    data_dir = with_lists(tmp_path / "data", images="elsewhere/photographs")
    failing(data_dir, tmp_path, "miniimagenet has lists, but no folder images lies in or beside it")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("filename,label", "file,label", r"val\.csv: begins with file,label, not filename,label"),
        (f"{NAMES[3]}00000001.png,{NAMES[3]}\n", "", f"class {NAMES[3]} of val has 3 images, not 4"),
        (f"{NAMES[3]}00000001.png,{NAMES[3]}", f"{NAMES[3]}00000001.png,n99999999", f"class {NAMES[3]} of val has 3"),
        (f"{NAMES[3]}00000001.png,", f"../{NAMES[3]}00000001.png,", r"refused: its path '\.\./.*' leaves the folder"),
        (f"{NAMES[3]}00000001.png,", "/etc/passwd,", "refused: its path '/etc/passwd' leaves the folder"),
        (f"{NAMES[3]}00000001", f"{NAMES[3]}00000002", rf"val\.csv: lists {NAMES[3]}00000002\.png twice"),
        (f"00000001.png,{NAMES[3]}", "00000001.png", r"val\.csv: its line .* is not a file and a class"),
    ],
)
def test_a_list_that_does_not_fit_is_named(tmp_path, old, new, message):
    data_dir = with_lists(tmp_path / "data")
    edit(data_dir / "miniimagenet/val.csv", old, new)
    failing(data_dir, tmp_path, message)


def test_a_strange_class_is_named(tmp_path):
    data_dir = with_lists(tmp_path / "data")
    with open(data_dir / "miniimagenet/test.csv", "a") as file:
        file.write("a.png,n99999999\n")
    failing(data_dir, tmp_path, r"test has 3 classes, not 2 \(n99999999 is not one\)")


def test_a_missing_empty_or_oversized_image_is_named(tmp_path):
    data_dir = with_lists(tmp_path / "data")
    file = data_dir / f"miniimagenet/images/{NAMES[0]}00000002.png"
    file.unlink()
    failing(data_dir, tmp_path, rf"file=.*{file.name}: cannot be read")
    file.write_bytes(b"")
    failing(data_dir, tmp_path, rf"image=.*{file.name}: empty file")
    Image.new("1", (20_000, 10_000)).save(file)
    failing(data_dir, tmp_path, rf"image=.*{file.name}: more than 89478485 pixels")


@pytest.mark.parametrize("make", [with_lists, with_class_folders])
def test_unreadable_images_are_left_out_and_counted_only_when_asked(tmp_path, caplog, make):
    data_dir = make(tmp_path / "data")
    damaged = sorted(data_dir.rglob(f"{NAMES[1]}*.png"))[2], sorted(data_dir.rglob(f"{NAMES[4]}*.png"))[0]
    damaged[0].write_bytes(b"")
    damaged[1].write_bytes(damaged[1].read_bytes()[:60])
    failing(
        data_dir,
        tmp_path,
        rf"image=.*{damaged[0].name}: empty file; replace it, or pass dataset\.skip_unreadable=true to leave it out",
    )
    store = mini(skip_unreadable=True).open(data_dir, tmp_path / "store")
    assert np.array_equal(store.images, np.delete(WANTED, [6, 16], axis=0))
    assert store.column("label").tolist() == np.delete(np.repeat(range(7), EACH), [6, 16]).tolist()
    assert store.counts == {"train": 11, "val": 7, "test": 8}
    assert store.form.endswith(", 2 unreadable skipped")
    assert store.meta["details"] == {"skipped": [file.name for file in damaged]}
    assert [file.name in caplog.text for file in damaged] == [True, True]
    assert store.digest != mini().find(data_dir).digest


# --- bad class folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [True, False])
def test_a_class_folder_with_too_few_images_is_named(tmp_path, parts):
    data_dir = with_class_folders(tmp_path / "data", parts)
    next(data_dir.rglob(f"{NAMES[-1]}_1.png")).unlink()
    failing(data_dir, tmp_path, f"class {NAMES[-1]} of test has 3 images, not 4")


def test_a_missing_class_folder_or_part_is_named(tmp_path):
    data_dir = with_class_folders(tmp_path / "data")
    (data_dir / "mini/val" / NAMES[3]).rename(data_dir / "mini/val/elsewhere")
    failing(data_dir, tmp_path, f"class {NAMES[3]} of val has 0 images, not 4")
    (data_dir / "mini/val").rename(data_dir / "mini/validation")
    failing(data_dir, tmp_path, r"file=.*mini/val: is missing")


# --- bad caches ----------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


VAL = "mini-imagenet-cache-val.pkl"


def test_a_cache_that_runs_a_command_is_refused_by_name(tmp_path):
    data_dir = with_caches(tmp_path / "data", caches(0) | {VAL: {"image_data": Attack(tmp_path / "run")}})
    failing(data_dir, tmp_path, rf"file=.*{VAL}: refused: not a pickle of plain arrays \(.*system\)")
    assert not (tmp_path / "run").exists()


def test_a_missing_or_truncated_cache_is_named(tmp_path):
    data_dir = with_caches(tmp_path / "data", caches(0))
    content = (data_dir / VAL).read_bytes()
    (data_dir / VAL).write_bytes(content[:1000])
    failing(data_dir, tmp_path, rf"file=.*{VAL}: (damaged|refused)")
    (data_dir / VAL).unlink()
    failing(data_dir, tmp_path, f"lacks {VAL}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_data": np.zeros((8, 84, 84, 3))}, "its images are float64"),
        ({"image_data": [1]}, "its images are list"),
        ({"image_data": np.zeros((5, 84, 84, 3), np.uint8)}, "does not fit 5 images"),
        ({"class_dict": {NAMES[3]: [0, 1, 2], NAMES[4]: [0]}}, f"class {NAMES[3]} of val has 3 images, not 4"),
        ({"class_dict": {NAMES[3]: [0, 1, 2, 2]}}, f"class {NAMES[3]} of val has 3 images, not 4"),
        ({"class_dict": {NAMES[3]: [-1, 1, 2, 3]}}, f"list of class {NAMES[3]} does not fit"),
        ({"class_dict": {NAMES[3]: [0.5] * 4}}, f"list of class {NAMES[3]} does not fit"),
        ({"class_dict": [1, 2]}, "not a cache of miniImageNet"),
        ({"class_dict": {NAMES[3]: [[1], [1, 2]]}}, "not a cache of miniImageNet"),
    ],
)
def test_a_cache_that_does_not_fit_is_named(tmp_path, change, message):
    contents = caches(0)
    contents[VAL] = contents[VAL] | change
    failing(with_caches(tmp_path / "data", contents), tmp_path, f"file=.*{VAL}: .*{message}")


@pytest.mark.parametrize("content", [{}, [1], {"data": 3}, {"data": np.zeros(3), "labels": [1], "catname2label": 1}])
def test_another_pickle_under_the_name_of_a_cache_is_named(tmp_path, content):
    failing(
        with_caches(tmp_path / "data", caches(1) | {"miniImageNet_category_split_val.pickle": content}),
        tmp_path,
        r"file=.*split_val\.pickle: (not a cache|holds a list)",
    )
