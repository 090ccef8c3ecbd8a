from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypimg.data.datasets.birds2010 import FILE, Birds2010
from hypimg.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def birds(**options: object) -> Birds2010:
    return Birds2010(*IMAGENET, **options)


@pytest.fixture(scope="module")
def store(shared_data, store_dir):
    return birds().open(shared_data, store_dir)


@pytest.fixture(scope="module")
def arrays(shared_data) -> dict[str, np.ndarray]:
    with np.load(shared_data / FILE) as file:
        return dict(file)


def test_294_photographs_of_varying_size(store, arrays):
    assert store.ragged
    assert (len(store), store.counts, store.official) == (294, {"all": 294}, False)
    assert store.form == "packed npz of the 2010 edition, reduced to a short side of 96, JPEG"
    assert store.column("label").tolist() == arrays["labels"].tolist()
    assert store.classes[8] == "009.Brewer_Blackbird"
    encoded = arrays["blob"][arrays["offsets"][77] : arrays["offsets"][78]].tobytes()
    assert np.array_equal(store.image(77), np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))


def test_its_split_is_four_three_and_three_species(shared_data, store_dir, store):
    dataset = birds(class_split="birds2010")
    dataset.open(shared_data, store_dir)
    labels = {part: store.column("label")[dataset.indices(store, part)] for part in ("train", "val", "test")}
    assert {part: sorted(set(values.tolist())) for part, values in labels.items()} == {
        "train": [0, 1, 2, 3],
        "val": [4, 5, 6],
        "test": [7, 8, 9],
    }
    assert sum(map(len, labels.values())) == 294


def test_the_view_is_that_of_cub(store):
    views = birds().view(store, np.array([0, 2]))
    assert views.shape == (2, 84, 84, 3)
    height, width = store.image(2).shape[:2]
    assert (height, width) == (96, 144)
    resized = Image.fromarray(store.image(2)).resize((126, 84), Image.Resampling.BICUBIC)
    assert np.array_equal(views[1], np.asarray(resized)[:, 21:105])
    assert birds().regions(store, np.array([0, 2])) is None


def test_it_has_no_boxes_to_crop_to():
    assert birds(crop="none").image_shape == (3, 84, 84)
    with pytest.raises(
        UserError, match=r"dataset\.crop=bbox: birds2010 has no bounding boxes; pass dataset\.crop=none"
    ):
        birds(crop="bbox")


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(UserError, match=rf"dataset=birds2010: not found under .*; put {FILE} .* there$"):
        birds().open(tmp_path, tmp_path / "store")


def failing(arrays: dict[str, np.ndarray], tmp_path: Path, message: str) -> None:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / FILE, **arrays)
    with pytest.raises(UserError, match=rf"file=.*{FILE}: .*{message}") as caught:
        birds().open(tmp_path / "data", tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels", lambda values: values[:-1], r"its labels are uint8 \[293\], not numbers \[294\]"),
        ("labels", lambda values: values.astype(float), r"its labels are float64 \[294\]"),
        ("labels", lambda values: values + 1, "does not hold streams of 10 classes"),
        ("offsets", lambda values: values[1:], r"its offsets are int64 \[294\]"),
        ("sizes", lambda values: values[:, ::-1], "its image 0 is 96×144, not 144×96"),
        ("blob", lambda values: values[:5000], "its image 0: (not an image|damaged image)"),
        ("blob", lambda values: values.astype(np.int64), "does not hold streams"),
        ("classes", lambda values: values[:3], r"its classes are .* \[3\]"),
    ],
)
def test_a_file_that_does_not_fit_is_named(arrays, tmp_path, name, change, message):
    failing(arrays | {name: change(arrays[name])}, tmp_path, message)


def test_a_file_without_sizes_is_named(arrays, tmp_path):
    failing({name: values for name, values in arrays.items() if name != "sizes"}, tmp_path, "it lacks 'sizes'")


def test_a_changed_file_is_said_to_be_unknown(arrays, tmp_path):
    np.savez(tmp_path / FILE, **arrays)  # not compressed: other bytes
    assert birds().find(tmp_path).form.endswith("unknown file")
