from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypimg.data.datasets import cub as module
from hypimg.data.datasets.cub import Cub, read_lists
from hypimg.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLASSES = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
COUNTS = {"train": 7, "test": 5}


def cub(image_size: int = 84, **options: object) -> Cub:
    return Cub(*IMAGENET, image_size=image_size, **options)


def photograph(number: int) -> Image.Image:
    """Of another size and colour each; number 3 is grey."""
    pixels = np.full((20 + number, 30 - number, 3), 10 * number, np.uint8)
    return Image.fromarray(pixels[..., 0] if number == 3 else pixels)


@pytest.fixture
def data_dir(monkeypatch, tmp_path) -> Path:
    """Twelve photographs of three species in the authors' layout; the counts are made to fit."""
    monkeypatch.setattr(module, "COUNTS", COUNTS)
    monkeypatch.setattr(module, "CLASSES", len(CLASSES))
    folder = tmp_path / "data/birds/CUB_200_2011"
    images, labels, split, boxes = [], [], [], []
    for number in range(1, 13):
        label = (number - 1) // 4
        path = f"{CLASSES[label]}/{CLASSES[label][4:]}_{number:04d}_{number * 7}.jpg"
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        photograph(number).save(folder / "images" / path, quality=100)
        images.append(f"{number} {path}")
        labels.append(f"{number} {label + 1}")
        split.append(f"{number} {int(number <= 6 or number == 11)}")
        boxes.append(f"{number} {number}.0 2.5 10.0 {number + 5}.0")
    (folder / "classes.txt").write_text("\n".join(f"{i + 1} {name}" for i, name in enumerate(CLASSES)))
    lists = {"images": images, "image_class_labels": labels, "train_test_split": split, "bounding_boxes": boxes}
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def folder_of(data_dir: Path) -> Path:
    return data_dir / "birds/CUB_200_2011"


def change(data_dir: Path, name: str, line: int, text: str | None) -> None:
    """Replace one line of a list; drop it with None."""
    file = folder_of(data_dir) / name
    lines = file.read_text().splitlines()
    lines[line : line + 1] = [] if text is None else [text]
    file.write_text("\n".join(lines) + "\n")


def test_photographs_are_stored_as_they_are_with_their_columns(data_dir, tmp_path):
    store = cub().open(data_dir, tmp_path / "store")
    assert store.ragged
    assert store.counts == COUNTS
    assert store.classes == CLASSES
    assert store.form == "authors' folder, pixels not verified"
    assert not store.official
    for i in range(12):
        wanted = np.asarray(photograph(i + 1).convert("RGB"))
        assert store.image(i).shape == wanted.shape == (21 + i, 29 - i, 3)
        assert np.abs(store.image(i).astype(int) - wanted).max() <= 1  # JPEG at quality 100
    assert store.column("label").tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert store.indices("train").tolist() == [0, 1, 2, 3, 4, 5, 10]
    assert store.column("box_x")[:3].tolist() == [1, 2, 3]
    assert [store.column(f"box_{side}")[4] for side in "xywh"] == [5, 2.5, 10, 10]


def test_grey_photographs_become_rgb(data_dir, tmp_path):
    store = cub().open(data_dir, tmp_path / "store")
    assert np.ptp(store.image(2), axis=2).max() == 0
    assert store.image(2).shape[2] == 3


def test_the_order_of_the_lines_means_nothing_but_for_the_images(data_dir):
    before = read_lists(folder_of(data_dir))
    for name in ("image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"):
        file = folder_of(data_dir) / name
        file.write_text("\n".join(reversed(file.read_text().splitlines())))
    after = read_lists(folder_of(data_dir))
    assert before.paths == after.paths
    for field in ("labels", "split", "boxes"):
        assert np.array_equal(getattr(before, field), getattr(after, field))


def test_the_digest_moves_with_a_photograph_or_a_list_and_stays_when_the_folder_moves(data_dir, tmp_path):
    digest = cub().find(data_dir).digest
    (data_dir / "birds").rename(data_dir / "elsewhere")
    assert cub().find(data_dir).digest == digest
    (data_dir / "elsewhere").rename(data_dir / "birds")
    change(data_dir, "bounding_boxes.txt", 0, "1 1.0 2.5 10.0 66.0")
    digests = [digest, cub().find(data_dir).digest]
    Image.new("RGB", (50, 50)).save(next(iter(sorted(folder_of(data_dir).glob("images/*/*.jpg")))))
    digests.append(cub().find(data_dir).digest)
    assert len(set(digests)) == 3


def test_the_size_that_a_model_takes_is_no_matter_of_the_store(data_dir):
    assert cub(84).find(data_dir).digest == cub(224).find(data_dir).digest
    assert cub(224).image_shape == (3, 224, 224)


@pytest.mark.parametrize("size", [0, 84.0, True, "84"])
def test_the_size_is_checked(size):
    with pytest.raises(UserError, match=r"dataset\.image_size="):
        cub(size)


def test_the_counts_are_the_authors(shared_data):
    """Against the class lists and counts of the splits that lie beside the data."""
    splits = json.loads((shared_data / "splits/cub200_2011.json").read_text())
    assert len(splits["classes"]) == module.CLASSES
    assert sum(splits["official_train_per_class"]) == module.COUNTS["train"]
    assert sum(splits["images_per_class"]) == sum(module.COUNTS.values())


def test_ten_classes_of_the_older_cub_are_not_taken_for_it(shared_data):
    assert (shared_data / "cub2010_10.npz").is_file()
    assert cub().find(shared_data) is None


def test_other_birds_with_lists_of_the_same_names_are_not_taken_for_it(data_dir):
    (data_dir / "birds").rename(data_dir / "NABirds")
    assert cub().find(data_dir) is None


def test_a_missing_data_set_says_where_to_get_it_and_offers_no_download(tmp_path):
    with pytest.raises(UserError, match=r"dataset=cub: not found under .*CUB_200_2011\.tgz .* there$"):
        cub().open(tmp_path, tmp_path / "store")


def failing(data_dir: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cub().open(data_dir, tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists() or list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("name", ["images.txt", "train_test_split.txt", "bounding_boxes.txt"])
def test_a_missing_list_is_named(data_dir, tmp_path, name):
    (folder_of(data_dir) / name).unlink()
    failing(data_dir, tmp_path, rf"file=.*{name}: is missing; unpack CUB_200_2011\.tgz again")


@pytest.mark.parametrize(
    ("name", "line", "text", "message"),
    [
        ("images.txt", 0, None, "lists 11 images, not 12"),
        ("image_class_labels.txt", 3, None, "lists 11 images, not 12"),
        ("bounding_boxes.txt", 3, "99 1 1 1 1", "numbers are not those of images.txt"),
        ("images.txt", 1, "1 001.Black_footed_Albatross/twice.jpg", "lists some images twice"),
        ("images.txt", 1, "2", "its line '2' is not a number and a value"),
        ("images.txt", 1, "2 ../../../etc/passwd.jpg", "refused: its path '../../../etc/passwd.jpg' leaves the folder"),
        ("images.txt", 1, "2 /etc/passwd.jpg", "leaves the folder"),
        ("image_class_labels.txt", 0, "1 2", "not 3 classes with one folder each"),
        ("image_class_labels.txt", 0, "1 x", r"does not hold 1 number\(s\) an image"),
        ("train_test_split.txt", 0, "1 0", "marks 6 images for training, not 7"),
        ("train_test_split.txt", 0, "1 2", "marks 6 images for training, not 7"),
        ("bounding_boxes.txt", 2, "3 1 1 1", r"does not hold 4 number\(s\) an image"),
        ("bounding_boxes.txt", 2, "3 1 1 0 5", "holds a box without area"),
        ("bounding_boxes.txt", 2, "3 1 nan 2 5", "holds a box without area"),
    ],
)
def test_a_list_that_does_not_fit_is_named(data_dir, tmp_path, name, line, text, message):
    change(data_dir, name, line, text)
    failing(data_dir, tmp_path, f"file=.*: .*{message}")


def first_image(data_dir: Path) -> Path:
    return sorted(folder_of(data_dir).glob("images/*/*.jpg"))[0]


def test_a_missing_photograph_is_named(data_dir, tmp_path):
    first_image(data_dir).unlink()
    failing(data_dir, tmp_path, r"file=.*0001_7\.jpg: cannot be read \(No such file")


@pytest.mark.parametrize("keep", [0, 300])
def test_an_empty_or_truncated_photograph_is_named(data_dir, tmp_path, keep):
    file = first_image(data_dir)
    file.write_bytes(file.read_bytes()[:keep])
    failing(data_dir, tmp_path, r"image=.*0001_7\.jpg: (empty file|not an image|damaged image)")


def test_a_bomb_among_the_photographs_is_named(data_dir, tmp_path):
    Image.new("1", (20_000, 10_000)).save(first_image(data_dir), "PNG")
    failing(data_dir, tmp_path, "more than 89478485 pixels")


# --- few-shot ------------------------------------------------------------------------------------------------------


def own_split(tmp_path: Path, **parts: list[str]) -> str:
    names = {"train": CLASSES[2:], "val": CLASSES[:1], "test": CLASSES[1:2]} | parts
    (tmp_path / "own.json").write_text(json.dumps(names))
    return str(tmp_path / "own.json")


def test_a_class_split_takes_all_images_of_its_classes(data_dir, tmp_path):
    dataset = cub(class_split=own_split(tmp_path))
    store = dataset.open(data_dir, tmp_path / "store")
    assert {part: dataset.indices(store, part).tolist() for part in ("train", "val", "test")} == {
        "train": [8, 9, 10, 11],
        "val": [0, 1, 2, 3],
        "test": [4, 5, 6, 7],
    }


def test_a_class_split_that_names_a_strange_class_is_refused_with_its_name(data_dir, tmp_path):
    dataset = cub(class_split=own_split(tmp_path, val=["999.Dodo"]))
    message = r"dataset\.class_split=.*own\.json: its val part names '999\.Dodo', .* none of the 3 classes"
    with pytest.raises(UserError, match=message):
        dataset.open(data_dir, tmp_path / "store")


def test_the_view_is_the_middle_of_the_photograph_by_bicubic_resizing(data_dir, tmp_path):
    store, dataset = cub().open(data_dir, tmp_path / "store"), cub(image_size=16)
    views = dataset.view(store, np.array([11, 4]))  # 32 × 18 and 25 × 25
    assert (views.shape, views.dtype) == ((2, 16, 16, 3), np.uint8)
    for view, index, size, corner in zip(views, (11, 4), ((16, 28), (16, 16)), (6, 0), strict=True):
        resized = Image.fromarray(store.image(index)).resize(size, Image.Resampling.BICUBIC)
        assert np.array_equal(view, np.asarray(resized)[corner : corner + 16])


@pytest.mark.parametrize("crop", [None, "none"])
def test_without_a_crop_all_of_a_photograph_counts(data_dir, tmp_path, crop):
    dataset = cub(crop=crop)
    store = dataset.open(data_dir, tmp_path / "store")
    assert dataset.regions(store, np.arange(12)) is None


def test_a_crop_takes_the_bird_alone_and_stays_inside_the_photograph(data_dir, tmp_path):
    """Photograph n is 20 + n high and 30 - n wide; its box has the corner (n, 2.5) and is 10 wide and n + 5 high."""
    dataset = cub(image_size=8, crop="bbox")
    store = dataset.open(data_dir, tmp_path / "store")
    regions = dataset.regions(store, np.array([0, 10, 11]))
    assert regions.dtype == np.int64
    assert regions.tolist() == [[2, 1, 7, 10], [2, 11, 17, 8], [2, 12, 18, 6]]  # 11 + 10 > 30 - 11
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(sorted(folder_of(data_dir).glob("images/*/*.jpg"))[9], "PNG")
    store = dataset.open(data_dir, tmp_path / "store")
    cut = Image.fromarray(noise[2:18, 10:20]).resize((8, 12), Image.Resampling.BICUBIC)  # 10 wide, 16 high
    assert np.array_equal(dataset.view(store, np.array([9]))[0], np.asarray(cut)[2:10])


def test_a_box_outside_its_photograph_is_named(data_dir, tmp_path):
    change(data_dir, "bounding_boxes.txt", 6, "7 400 2.5 10 10")
    dataset = cub(crop="bbox")
    store = dataset.open(data_dir, tmp_path / "store")
    with pytest.raises(UserError, match=r"dataset\.crop=bbox: the box of image 6 lies outside it"):
        dataset.regions(store, np.arange(12))


def test_crop_and_class_split_are_no_matter_of_the_store(data_dir, tmp_path):
    assert cub(crop="bbox", class_split=own_split(tmp_path)).find(data_dir).digest == cub().find(data_dir).digest


@pytest.mark.parametrize("options", [{"crop": "box"}, {"crop": True}, {"skip_unreadable": False}, {"class_split": "x"}])
def test_options_are_checked(options):
    with pytest.raises(UserError, match=rf"dataset\.{next(iter(options))}="):
        cub(**options)


def test_unreadable_photographs_are_left_out_and_counted_only_when_asked(data_dir, tmp_path, caplog):
    damaged = sorted(folder_of(data_dir).glob("images/*/*.jpg"))[5]
    damaged.write_bytes(damaged.read_bytes()[:300])
    failing(
        data_dir,
        tmp_path,
        rf"image=.*{damaged.name}: .*; replace it, or pass dataset\.skip_unreadable=true to leave it out",
    )
    whole = cub().find(data_dir).digest
    store = cub(skip_unreadable=True).open(data_dir, tmp_path / "store")
    assert store.digest != whole
    assert store.counts == {"train": 6, "test": 5}
    assert store.form == "authors' folder, pixels not verified, 1 unreadable skipped"
    assert store.meta["details"] == {"skipped": [damaged.name]}
    assert store.column("label").tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert store.column("box_x").tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert store.image(5).shape == (27, 23, 3)  # the seventh photograph
    assert f"skipping image={damaged}" in caplog.text


def test_what_to_fetch_and_where_to_put_it_is_said_exactly(tmp_path):
    with pytest.raises(UserError) as caught:
        cub().open(tmp_path, tmp_path / "store")
    said = str(caught.value)
    assert said.startswith(
        f"dataset=cub: not found under {tmp_path}; unpack CUB_200_2011.tgz (doi.org/10.22002/D1.20098"
    )
    assert said.endswith("so that CUB_200_2011/images.txt and CUB_200_2011/images/001.Black_footed_Albatross lie there")
