from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from hypimg.data.dataset import SEARCH_DEPTH, Found, ImageDataset, digest_of_tree, search, sha256_of_file
from hypimg.data.store import Decoded
from hypimg.errors import UserError


class Bytes(ImageDataset):
    """A data set of one file, whose bytes are the grey values of 1×1 images."""

    name = "bytes"
    where = "put some.bytes"
    splits = ("train",)
    num_classes = 1
    image_shape = (1, 1, 1)
    decoder_version = 1
    offset = 0

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)):
        super().__init__(mean, std)
        self.published: Any = None

    @property
    def parameters(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def _locate(self, data_dir: Path) -> Found | None:
        files = search(data_dir, ["some.bytes"])["some.bytes"]
        return Found("bytes", True, (files[0],), sha256_of_file(files[0]), {"train": 3}) if files else None

    def _decode(self, found: Found) -> Decoded:
        values = np.frombuffer(found.files[0].read_bytes(), np.uint8)
        zeros = np.zeros(len(values), np.int64)
        names = {"label": ["a"], "split": ["train"]}
        return Decoded(values.reshape(-1, 1, 1, 1), {"label": zeros, "split": zeros}, names, found.form, True)

    def _download(self, data_dir: Path) -> None:
        if isinstance(self.published, Exception):
            raise self.published
        (data_dir / "some.bytes").write_bytes(self.published)


@pytest.fixture
def data_dir(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "some.bytes").write_bytes(b"abc")
    return tmp_path / "data"


def test_open_decodes_what_it_finds(data_dir, tmp_path):
    assert Bytes().open(data_dir, tmp_path / "store").images.ravel().tolist() == list(b"abc")


def test_folders_may_be_given_as_text(data_dir, tmp_path):
    assert len(Bytes().open(str(data_dir), str(tmp_path / "store"))) == 3


def test_the_view_is_the_stored_images_in_memory_and_nothing_of_them_is_left_out(data_dir, tmp_path):
    store = Bytes().open(data_dir, tmp_path / "store")
    view = Bytes().view(store, np.array([2, 0]))
    assert type(view) is np.ndarray
    assert view.ravel().tolist() == [ord("c"), ord("a")]
    assert Bytes().indices(store, "train").tolist() == [0, 1, 2]
    assert Bytes().regions(store, np.array([2, 0])) is None
    assert Bytes().rotations == 1


def test_stored_images_of_another_size_are_no_view(data_dir, tmp_path):
    store = Bytes().open(data_dir, tmp_path / "store")
    larger = type("Larger", (Bytes,), {"image_shape": (1, 2, 3)})()
    with pytest.raises(UserError, match="dataset=bytes: its images are 1×1×1, not 2×3×1"):
        larger.view(store, np.array([0]))


def test_the_digest_moves_with_source_parameters_and_decoder(data_dir):
    digests = [Bytes().find(data_dir).digest]
    for change in ({"offset": 1}, {"decoder_version": 2}, {"name": "other"}):
        digests.append(type("Changed", (Bytes,), change)().find(data_dir).digest)
    (data_dir / "deep" / "some.bytes").write_bytes(b"abd")
    digests.append(Bytes().find(data_dir).digest)
    assert len(set(digests)) == len(digests)


def test_the_digest_stays_when_the_file_moves_or_the_constants_change(data_dir):
    digest = Bytes().find(data_dir).digest
    (data_dir / "deep").rename(data_dir / "elsewhere")
    assert Bytes(mean=[0.1], std=[0.2]).find(data_dir).digest == digest


def test_data_that_changed_is_decoded_anew(data_dir, tmp_path):
    first = Bytes().open(data_dir, tmp_path / "store")
    (data_dir / "deep" / "some.bytes").write_bytes(b"xyz")
    second = Bytes().open(data_dir, tmp_path / "store")
    assert second.images.ravel().tolist() == list(b"xyz")
    assert first.path != second.path


def test_a_missing_data_set_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"dataset=bytes: not found under .*; put some.bytes there, or pass download"):
        Bytes().open(tmp_path / "none", tmp_path / "store")
    assert not (tmp_path / "none").exists()


def test_nothing_is_fetched_unless_asked_for(tmp_path):
    dataset = Bytes()
    dataset.published = AssertionError("fetched")
    with pytest.raises(UserError, match="not found"):
        dataset.open(tmp_path, tmp_path / "store", download=False)


def test_download_fetches_what_is_missing(tmp_path):
    dataset = Bytes()
    dataset.published = b"new"
    assert len(dataset.open(tmp_path / "data", tmp_path / "store", download=True)) == 3


def test_download_leaves_what_is_there(data_dir, tmp_path):
    dataset = Bytes()
    dataset.published = AssertionError("fetched")
    assert len(dataset.open(data_dir, tmp_path / "store", download=True)) == 3


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("Error\ndownloading"), TimeoutError()])
def test_a_failed_download_ends_in_one_line(tmp_path, error):
    dataset = Bytes()
    dataset.published = error
    with pytest.raises(UserError, match="dataset=bytes: download failed") as caught:
        dataset.open(tmp_path, tmp_path / "store", download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"mean": [0.1, 0.2]}, "dataset.mean"),
        ({"std": [0.1, 0.2]}, "dataset.std"),
        ({"std": [0.0]}, "must be > 0"),
        ({"std": [float("nan")]}, "dataset.std"),
        ({"mean": [float("inf")]}, "dataset.mean"),
        ({"mean": 0.5}, "dataset.mean"),
        ({"mean": ["x"]}, "dataset.mean"),
    ],
)
def test_constants_are_checked(constants, message):
    with pytest.raises(UserError, match=message):
        Bytes(**constants)


def test_search_is_bounded_sorted_and_leaves_hidden_folders_out(tmp_path):
    at_the_bound = tmp_path.joinpath(*"abcde"[:SEARCH_DEPTH])
    for folder in (tmp_path / "z", tmp_path / "y", at_the_bound, at_the_bound / "f", tmp_path / ".store"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "it").write_text("")
    found = search(tmp_path, ["it", "nothing"])
    assert found == {"it": [at_the_bound / "it", tmp_path / "y" / "it", tmp_path / "z" / "it"], "nothing": []}


def test_search_follows_links_and_survives_loops(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "it").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    assert search(tmp_path / "data", ["it"])["it"][0] == tmp_path / "data" / "link" / "it"


def test_search_in_a_missing_folder_finds_nothing(tmp_path):
    assert search(tmp_path / "none", ["it"]) == {"it": []}


def test_the_digest_of_a_tree_moves_with_paths_and_sizes_and_names_what_is_missing(tmp_path):
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for file in files:
        file.write_bytes(b"12")
    digests = [
        digest_of_tree(tmp_path, files),
        digest_of_tree(tmp_path, files[:1]),
        digest_of_tree(tmp_path, files[::-1]),
    ]
    files[1].write_bytes(b"123")
    digests.append(digest_of_tree(tmp_path, files))
    assert len(set(digests)) == len(digests)
    files[0].unlink()
    with pytest.raises(UserError, match=r"file=.*a\.jpg: cannot be read \(No such file"):
        digest_of_tree(tmp_path, files)


def test_a_data_set_that_cannot_be_fetched_does_not_offer_it(tmp_path):
    class NotFetched(Bytes):
        _download = ImageDataset._download

    with pytest.raises(UserError, match=r"put some\.bytes there$"):
        NotFetched().open(tmp_path / "none", tmp_path / "store")
    with pytest.raises(UserError, match=r"download=True: bytes has no download; put some\.bytes"):
        NotFetched().open(tmp_path, tmp_path / "store", download=True)
