from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hypimg.data.class_splits import FOLDER, PARTS, ClassSplit, published
from hypimg.data.datasets.cifar import Cifar100
from hypimg.data.datasets.digits import Digits
from hypimg.data.store import ImageStore
from hypimg.errors import UserError

COUNTS = {
    "birds2010": (4, 3, 3),
    "cifar_fs": (64, 16, 20),
    "cub_chen": (100, 50, 50),
    "cub_feat": (100, 50, 50),
    "fc100": (60, 20, 20),
    "omniglot_vinyals": (1028, 172, 423),
}
DIGITS = {"train": ["3", "1"], "val": ["0"], "test": ["9", "4"]}


def parts_of(name: str) -> dict[str, list[str]]:
    return ClassSplit(name).parts


@pytest.mark.parametrize("name", COUNTS)
def test_the_splits_of_the_literature_part_their_classes(name):
    split = ClassSplit(name)
    assert tuple(split.parts) == PARTS
    assert tuple(len(names) for names in split.parts.values()) == COUNTS[name]
    assert len(set().union(*split.parts.values())) == sum(COUNTS[name])
    assert len(split.source) > 20


def test_every_file_that_ships_is_a_known_split():
    assert published() == sorted(COUNTS)
    assert "data/splits/*.json" in (FOLDER.parents[2] / "pyproject.toml").read_text()


def shared(shared_data: Path, name: str) -> dict:
    return json.loads((shared_data / "splits" / f"{name}.json").read_text())


def test_the_cifar_splits_are_the_lists_beside_the_data(shared_data):
    lists = shared(shared_data, "cifar100")
    for part in PARTS:
        assert parts_of("cifar_fs")[part] == [lists["fine"][i] for i in lists["cifar_fs"][part]]
        coarse = {lists["fine_to_coarse"][lists["fine"].index(name)] for name in parts_of("fc100")[part]}
        assert coarse == set(lists["fc100_coarse"][part])
        assert len(parts_of("fc100")[part]) == 5 * len(coarse)


def test_the_omniglot_split_is_the_list_beside_the_data(shared_data):
    with np.load(shared_data / "omniglot.npz") as arrays:
        characters = arrays["chars"].astype(str)
    lists = shared(shared_data, "omniglot_vinyals")
    assert parts_of("omniglot_vinyals") == {part: characters[lists[part]].tolist() for part in PARTS}


def test_the_cub_splits_are_the_lists_beside_the_data(shared_data):
    """With FEAT's counts of images: 5,891 / 2,932 / 2,965."""
    lists = shared(shared_data, "cub200_2011")
    feat, chen = lists["feat"], lists["chen"]
    names = {number: name for number, name in enumerate(lists["classes"], start=1)}
    assert parts_of("cub_feat") == {part: [names[i] for i in feat[part]] for part in PARTS}
    assert parts_of("cub_chen") == {
        part: [names[i] for i in chen[theirs]] for part, theirs in zip(PARTS, ("base", "val", "novel"), strict=True)
    }
    images = dict(zip(lists["classes"], lists["images_per_class"], strict=True))
    assert [sum(images[name] for name in parts_of("cub_feat")[part]) for part in PARTS] == [5891, 2932, 2965]


def test_chens_rule_gives_chens_split():
    split = parts_of("cub_chen")
    everyone = sorted(name for names in split.values() for name in names)
    assert split == {"train": everyone[::2], "val": everyone[1::4], "test": everyone[3::4]}


@pytest.fixture(scope="module")
def cifar100(shared_data, store_dir) -> ImageStore:
    return Cifar100([0.5] * 3, [0.5] * 3).open(shared_data, store_dir)


@pytest.mark.parametrize(("name", "counts"), [("cifar_fs", (38400, 9600, 12000)), ("fc100", (36000, 12000, 12000))])
def test_all_600_images_of_a_class_count_whatever_the_authors_part(cifar100, shared_data, store_dir, name, counts):
    dataset = Cifar100([0.5] * 3, [0.5] * 3, class_split=name)
    store = dataset.open(shared_data, store_dir)
    assert store.digest == cifar100.digest
    found = {part: dataset.indices(store, part) for part in PARTS}
    assert tuple(len(indices) for indices in found.values()) == counts
    assert sorted(np.concatenate(list(found.values()))) == list(range(60_000))
    for part, indices in found.items():
        assert indices.dtype == np.int64
        assert all(first < second for first, second in pairwise(indices.tolist()))
        labels, sizes = np.unique(store.column("label")[indices], return_counts=True)
        assert sorted(store.classes[label] for label in labels) == sorted(parts_of(name)[part])
        assert set(sizes.tolist()) == {600}


def own(tmp_path: Path, values: object) -> str:
    file = tmp_path / "own.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(file)


def test_a_file_of_the_users_own_is_a_split(tmp_path):
    dataset = Digits([0.3], [0.4], class_split=own(tmp_path, DIGITS))
    store = dataset.open(tmp_path, tmp_path / "store")
    for part, names in DIGITS.items():
        indices = dataset.indices(store, part)
        assert (
            indices.tolist() == np.flatnonzero(np.isin(store.column("label"), [int(name) for name in names])).tolist()
        )


def test_without_a_class_split_the_parts_are_the_authors(tmp_path):
    dataset = Digits([0.3], [0.4])
    store = dataset.open(tmp_path, tmp_path / "store")
    assert np.array_equal(dataset.indices(store, "test"), store.indices("test"))
    with pytest.raises(UserError, match="split=val: digits has train, test"):
        dataset.indices(store, "val")


def test_a_part_that_the_split_has_not_is_named(tmp_path):
    dataset = Digits([0.3], [0.4], class_split=own(tmp_path, DIGITS))
    store = dataset.open(tmp_path, tmp_path / "store")
    with pytest.raises(UserError, match=r"split=novel: .*own\.json has train, val, test"):
        dataset.indices(store, "novel")


def test_a_split_of_another_data_set_is_refused_as_the_data_is_opened(tmp_path):
    message = (
        r"dataset\.class_split=cifar_fs: its train part names 'apple', which is none of the 10 classes of this data"
    )
    with pytest.raises(UserError, match=message):
        Digits([0.3], [0.4], class_split="cifar_fs").open(tmp_path, tmp_path / "store")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "must hold"),
        (DIGITS | {"val": []}, "its 'val' is no list of class names"),
        (DIGITS | {"val": [0]}, "its 'val' is no list of class names"),
        (DIGITS | {"val": "0"}, "its 'val' is no list of class names"),
        ({"train": ["3"], "test": ["4"]}, "its 'val' is no list of class names"),
        (DIGITS | {"val": ["9"]}, r"names '9' twice \(in val and test\); parts share no class"),
        (DIGITS | {"val": ["0", "0"]}, r"names '0' twice \(in val\)"),
    ],
)
def test_a_file_that_is_no_split_is_named_in_one_line(tmp_path, values, message):
    with pytest.raises(UserError, match=rf"dataset\.class_split=.*own\.json: .*{message}") as caught:
        ClassSplit(own(tmp_path, values))
    assert "\n" not in str(caught.value)


def test_a_binary_or_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"class_split=.*none\.json: cannot be read \(No such file"):
        ClassSplit(str(tmp_path / "none.json"))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"class_split=.*binary\.json: is no JSON"):
        ClassSplit(str(tmp_path / "binary.json"))


@pytest.mark.parametrize("name", ["cifar_sf", "", 5, "../splits/cifar_fs"])
def test_an_unknown_name_is_answered_with_the_nearest(name):
    with pytest.raises(UserError, match=r"dataset\.class_split=.*no such split .*; .*cifar_fs"):
        ClassSplit(name)
