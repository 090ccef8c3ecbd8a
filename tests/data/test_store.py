from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hypimg.data import store as store_module
from hypimg.data.store import DamagedStore, Decoded, ImageStore, open_or_fill, store_path
from hypimg.errors import UserError

DIGEST = "0123456789abcdef" * 4
NAMES = {"label": ["a", "b", "c"], "split": ["train", "test"]}


def decoded(count: int = 12, side: int = 5) -> Decoded:
    random = np.random.default_rng(0)
    return Decoded(
        images=random.integers(0, 256, (count, side, side + 1, 3), dtype=np.uint8),
        columns={"label": np.arange(count) % 3, "split": (np.arange(count) % 4 == 0).astype(np.uint8)},
        names=NAMES,
        form="generated",
        official=False,
    )


def decoded_ragged(shapes: list[tuple[int, int, int]]) -> Decoded:
    def images() -> Iterator[np.ndarray]:
        for i, shape in enumerate(shapes):
            yield np.full(shape, i, np.uint8)

    zeros = np.zeros(len(shapes), np.int64)
    return Decoded(images(), {"label": zeros, "split": zeros}, NAMES, "generated", False)


def must_not_decode() -> Decoded:
    raise AssertionError("decoded although the store is whole")


def left_in(store_dir: Path) -> list[str]:
    return sorted(path.name for path in store_dir.iterdir())


def test_the_store_returns_what_was_decoded(tmp_path):
    store = open_or_fill(tmp_path, "toy", DIGEST, decoded)
    wanted = decoded()
    assert np.array_equal(store.images, wanted.images)
    assert store.images.dtype == np.uint8
    assert np.array_equal(store.image(3), wanted.images[3])
    assert np.array_equal(store.column("label"), wanted.columns["label"])
    assert store.classes == ["a", "b", "c"]
    assert (store.name, store.digest, store.form, store.official) == ("toy", DIGEST, "generated", False)
    assert store.counts == {"train": 9, "test": 3}
    assert len(store) == 12


def test_the_folder_bears_name_and_digest_and_holds_no_leftovers(tmp_path):
    store = open_or_fill(tmp_path / "made" / "on demand", "toy", DIGEST, decoded)
    assert store.path == tmp_path / "made" / "on demand" / "toy-0123456789ab"
    assert left_in(store.path.parent) == ["toy-0123456789ab"]


def test_images_are_mapped_and_cannot_be_written(tmp_path):
    images = open_or_fill(tmp_path, "toy", DIGEST, decoded).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_the_second_opening_decodes_nothing(tmp_path):
    open_or_fill(tmp_path, "toy", DIGEST, decoded)
    assert len(open_or_fill(tmp_path, "toy", DIGEST, must_not_decode)) == 12


def test_indices_of_the_splits_part_the_store(tmp_path):
    store = open_or_fill(tmp_path, "toy", DIGEST, decoded)
    train, test = store.indices("train"), store.indices("test")
    assert test.tolist() == [0, 4, 8]
    assert train.dtype == np.int64
    assert sorted([*train, *test]) == store.indices().tolist() == list(range(12))


def test_an_unknown_split_names_those_there_are(tmp_path):
    with pytest.raises(UserError, match="split=val: toy has train, test"):
        open_or_fill(tmp_path, "toy", DIGEST, decoded).indices("val")


def test_an_unknown_column_names_those_there_are(tmp_path):
    with pytest.raises(KeyError, match="label, split"):
        open_or_fill(tmp_path, "toy", DIGEST, decoded).column("camera")


def test_images_of_varying_size_come_back_one_by_one(tmp_path):
    shapes = [(3, 4, 3), (1, 1, 3), (7, 2, 3)]
    store = open_or_fill(tmp_path, "toy", DIGEST, lambda: decoded_ragged(shapes))
    assert store.ragged
    for i, shape in enumerate(shapes):
        assert store.image(i).shape == shape
        assert (store.image(i) == i).all()
    with pytest.raises(ValueError, match="differ in size"):
        _ = store.images


def test_images_of_varying_size_are_counted_from_the_end_as_in_a_list(tmp_path):
    store = open_or_fill(tmp_path, "toy", DIGEST, lambda: decoded_ragged([(3, 4, 3), (1, 1, 3), (7, 2, 3)]))
    assert store.image(-1).shape == (7, 2, 3)
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            store.image(beyond)


@pytest.mark.parametrize("ragged", [True, False])
def test_all_pixels_lie_in_a_row_with_offsets_and_shapes(tmp_path, ragged):
    shapes = [(2, 3, 3), (1, 5, 3), (4, 4, 3)] if ragged else [(4, 4, 3)] * 3
    contents = decoded_ragged(shapes) if ragged else decoded(3, 4)
    store = open_or_fill(tmp_path, "x", DIGEST, lambda: contents)
    pixels, offsets, sizes = store.flat
    assert (pixels.dtype, offsets.dtype, sizes.dtype) == (np.uint8, np.int64, np.int64)
    assert (offsets.shape, sizes.tolist()) == ((4,), [list(store.image(i).shape) for i in range(3)])
    assert offsets[0] == 0 and offsets[-1] == len(pixels)
    assert np.shares_memory(pixels, store.image(0))
    for i in range(3):
        assert np.array_equal(pixels[offsets[i] : offsets[i + 1]].reshape(sizes[i]), store.image(i))


def test_images_handed_over_one_by_one_that_have_one_size_are_one_array(tmp_path):
    store = open_or_fill(tmp_path, "toy", DIGEST, lambda: decoded_ragged([(3, 4, 3)] * 5))
    assert not store.ragged
    assert store.images.shape == (5, 3, 4, 3)
    assert isinstance(store.images, np.memmap)
    for i in range(5):
        assert (store.images[i] == i).all()
        assert np.array_equal(store.image(i), store.images[i])


def test_a_long_fill_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "PROGRESS_SECONDS", 0)
    caplog.set_level("INFO")
    open_or_fill(tmp_path, "toy", DIGEST, lambda: decoded_ragged([(1, 1, 3)] * 3))
    assert "decoding toy: 2 of 3 images" in caplog.text


def test_a_store_without_images_opens(tmp_path):
    assert len(open_or_fill(tmp_path, "none", DIGEST, lambda: decoded(count=0))) == 0
    assert len(open_or_fill(tmp_path, "none ragged", DIGEST, lambda: decoded_ragged([]))) == 0


@pytest.mark.parametrize("file", ["images.npy", "column_label.npy", "column_split.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "emptied"])
def test_a_damaged_store_is_rebuilt(tmp_path, file, damage):
    path = open_or_fill(tmp_path, "toy", DIGEST, decoded).path / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut short" else b"")
    with pytest.raises(DamagedStore):
        ImageStore(path.parent)
    store = open_or_fill(tmp_path, "toy", DIGEST, decoded)
    assert np.array_equal(store.images, decoded().images)
    assert left_in(tmp_path) == ["toy-0123456789ab"]


def test_an_array_of_another_shape_is_damage(tmp_path):
    path = open_or_fill(tmp_path, "toy", DIGEST, decoded).path
    np.save(path / "images.npy", decoded().images.reshape(12, 6, 5, 3))
    with pytest.raises(DamagedStore, match=r"images\.npy is"):
        ImageStore(path)


def test_a_store_of_another_digest_under_the_same_name_is_rebuilt(tmp_path):
    other = DIGEST[:12] + "f" * 52
    open_or_fill(tmp_path, "toy", other, lambda: decoded(count=2))
    assert len(open_or_fill(tmp_path, "toy", DIGEST, decoded)) == 12


def test_a_store_of_another_version_is_rebuilt(tmp_path):
    meta = open_or_fill(tmp_path, "toy", DIGEST, decoded).path / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"version": 0}))
    assert json.loads((open_or_fill(tmp_path, "toy", DIGEST, decoded).path / "meta.json").read_text())["version"] == 1


def test_a_file_in_the_place_of_the_store_makes_way(tmp_path):
    store_path(tmp_path, "toy", DIGEST).write_text("not a folder")
    assert len(open_or_fill(tmp_path, "toy", DIGEST, decoded)) == 12


def test_an_open_store_survives_its_rebuilding(tmp_path):
    store = open_or_fill(tmp_path, "toy", DIGEST, decoded)
    (store.path / "meta.json").unlink()
    open_or_fill(tmp_path, "toy", DIGEST, decoded)
    assert np.array_equal(store.images, decoded().images)


def test_whoever_finishes_second_uses_the_first_ones_store(tmp_path):
    def decode_slowly() -> Decoded:
        first = open_or_fill(tmp_path, "toy", DIGEST, decoded)
        os.utime(first.path / "meta.json", ns=(1, 1))
        return decoded()

    store = open_or_fill(tmp_path, "toy", DIGEST, decode_slowly)
    assert (store.path / "meta.json").stat().st_mtime_ns == 1
    assert left_in(tmp_path) == ["toy-0123456789ab"]


def test_the_folder_gets_its_name_whole_and_flushed(tmp_path, monkeypatch):
    flushed: list[int] = []
    rename, fsync = os.rename, os.fsync

    def watched_rename(source, target):
        assert len(ImageStore(Path(source), DIGEST)) == 12
        assert not Path(target).exists()
        assert {path.stat().st_ino for path in (Path(source), *Path(source).iterdir())} <= set(flushed)
        rename(source, target)
        flushed.clear()

    def watched_fsync(descriptor):
        fsync(descriptor)
        flushed.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "rename", watched_rename)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    open_or_fill(tmp_path, "toy", DIGEST, decoded)
    assert flushed == [tmp_path.stat().st_ino]


def test_an_error_while_decoding_leaves_nothing(tmp_path):
    def fail() -> Decoded:
        raise RuntimeError("in the decoder")

    with pytest.raises(RuntimeError, match="in the decoder"):
        open_or_fill(tmp_path, "toy", DIGEST, fail)
    assert left_in(tmp_path) == []


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(UserError, match="free some space") as caught:
            open_or_fill(tmp_path, "toy", DIGEST, lambda: decoded(count=100, side=100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in str(caught.value)
    assert left_in(tmp_path) == []


def test_an_error_about_a_source_file_is_not_blamed_on_the_store(tmp_path):
    def images() -> Iterator[np.ndarray]:
        yield np.load(tmp_path / "gone.npy")

    zeros = np.zeros(1, np.int64)
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        open_or_fill(
            tmp_path / "store",
            "toy",
            DIGEST,
            lambda: Decoded(images(), {"label": zeros, "split": zeros}, NAMES, "", True),
        )
    assert left_in(tmp_path / "store") == []


def test_a_store_dir_that_cannot_be_made_ends_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"store_dir=.*file/store: cannot be written.*HYPIMG_STORE"):
        open_or_fill(tmp_path / "file" / "store", "toy", DIGEST, must_not_decode)


def test_columns_of_another_length_are_a_programmers_error(tmp_path):
    wrong = decoded()
    wrong.columns["label"] = wrong.columns["label"][1:]
    with pytest.raises(ValueError, match="column 'label'"):
        open_or_fill(tmp_path, "toy", DIGEST, lambda: wrong)
    assert left_in(tmp_path) == []


FILL = """
import sys, time
from pathlib import Path
import numpy as np
from hypimg.data.store import Decoded, open_or_fill

store_dir, digest, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def images():
    for i in range(50):
        time.sleep(pause)
        yield np.full((20, 20, 1), i, np.uint8)

def decode():
    column = np.zeros(50, np.int64)
    return Decoded(images(), {"label": column, "split": column}, {"label": ["a"], "split": ["all"]}, "generated", True)

store = open_or_fill(store_dir, "toy", digest, decode)
print(int(store.image(49)[0, 0, 0]), len(store))
"""


def fill_in_a_process(store_dir: Path, pause: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", FILL, str(store_dir), DIGEST, str(pause)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_a_process_killed_while_it_writes_leaves_no_store_and_its_rest_is_removed(tmp_path):
    process = fill_in_a_process(tmp_path, pause=1.0)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".tmp-*/pixels.bin")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [name[:5] for name in left_in(tmp_path)] == [".tmp-"]
    open_or_fill(tmp_path, "toy", DIGEST, decoded)
    assert left_in(tmp_path) == ["toy-0123456789ab"]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    process = fill_in_a_process(tmp_path, pause=0.03)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    open_or_fill(tmp_path, "other", DIGEST, decoded)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert printed.split() == ["49", "50"]


def test_two_processes_that_race_both_end_with_the_same_store(tmp_path):
    processes = [fill_in_a_process(tmp_path, pause=0.01) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].split() for process in processes] == [["49", "50"]] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert left_in(tmp_path) == ["toy-0123456789ab"]
