"""What is wrong with a copy of CIFAR is said in one line that names the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hypimg.errors import UserError


def failing(tiny, data_dir: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny.make().open(data_dir, tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists() or list((tmp_path / "store").iterdir()) == []


def test_a_missing_batch_is_named(tiny10, tmp_path):
    data_dir = tiny10.write_folder(tmp_path / "data")
    (data_dir / "cifar-10-batches-py/data_batch_3").unlink()
    failing(tiny10, data_dir, tmp_path, r"dataset=cifar10: .*cifar-10-batches-py lacks data_batch_3; fetch it again")


@pytest.mark.parametrize("keep", [0, 2, 20, 1000, -1])
def test_a_truncated_batch_is_named(tiny10, tmp_path, keep):
    pickles = tiny10.pickles()
    pickles["data_batch_2"] = pickles["data_batch_2"][:keep]
    data_dir = tiny10.write_folder(tmp_path / "data", pickles)
    failing(tiny10, data_dir, tmp_path, r"file=.*data_batch_2: (damaged pickle|refused: not a pickle)")


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
@pytest.mark.parametrize("write", ["write_folder", "write_archive"])
def test_a_batch_that_runs_a_command_is_refused_by_name(tiny10, tmp_path, name, write):
    pickles = tiny10.pickles() | {name: pickle.dumps({"data": Attack(tmp_path / "run")}, 2)}
    if write == "write_archive":
        pickles = {f"cifar-10-batches-py/{key}": value for key, value in pickles.items()}
    data_dir = getattr(tiny10, write)(tmp_path / "data", pickles)
    failing(tiny10, data_dir, tmp_path, rf"file=.*{name}: refused: not a pickle of plain arrays \(.*system\)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((9, 3072), np.uint8)}, r"uint8 \(9, 3072\), not uint8 \(10, 3072\)"),
        ({b"data": np.zeros((10, 3072))}, r"float64 \(10, 3072\), not uint8"),
        ({b"data": [1, 2]}, "its data are list"),
        ({b"labels": [1] * 9}, "does not hold 10 values of label"),
        ({b"labels": [0] * 9 + [10]}, "label goes from 0 to 10, not 0 to 9"),
        ({b"labels": [0] * 9 + [-1]}, "label goes from -1 to 0"),
        ({b"labels": [0.5] * 10}, "does not hold 10 values of label"),
        ({b"labels": [[0], [0, 1]] * 5}, "does not hold 10 values of label"),
        ({b"labels": None}, "does not hold 10 values of label"),
        ({b"filenames": [b"a"]}, "does not hold 10 file names"),
        ({b"filenames": [1] * 10}, "does not hold 10 file names"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(tiny10, tmp_path, change, message):
    pickles = tiny10.pickles() | {"test_batch": pickle.dumps(tiny10.batches()["test_batch"] | change)}
    data_dir = tiny10.write_folder(tmp_path / "data", pickles)
    failing(tiny10, data_dir, tmp_path, f"file=.*test_batch: .*{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dictionary"),
        ({}, "does not hold 10 names of classes"),
        ({"label_names": ["a"] * 9}, "does not hold 10 names of classes"),
    ],
)
def test_class_names_that_do_not_fit_are_named(tiny10, tmp_path, content, message):
    data_dir = tiny10.write_folder(tmp_path / "data", tiny10.pickles() | {"batches.meta": pickle.dumps(content)})
    failing(tiny10, data_dir, tmp_path, rf"file=.*batches\.meta: {message}")


def test_an_archive_without_a_batch_is_named(tiny, tmp_path):
    pickles = {f"{tiny.facts.folder}/{name}": content for name, content in tiny.pickles().items()}
    for lacking in (tiny.facts.meta, tiny.facts.batches["train"][-1]):
        members = {name: content for name, content in pickles.items() if not name.endswith(f"/{lacking}")}
        data_dir = tiny.write_archive(tmp_path / lacking, members)
        failing(tiny, data_dir, tmp_path, rf"file=.*{tiny.facts.archive}: it lacks {lacking}; fetch it again")


def test_an_archive_with_a_path_that_escapes_is_refused(tiny, tmp_path):
    data_dir = tiny.write_archive(tmp_path / "data", {f"{tiny.facts.folder}/../../evil": b"x"})
    failing(tiny, data_dir, tmp_path, r"refused: its member .*evil' leaves the folder")


def test_a_truncated_archive_is_named(tiny, tmp_path):
    data_dir = tiny.write_archive(tmp_path / "data")
    archive = data_dir / tiny.facts.archive
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    failing(tiny, data_dir, tmp_path, rf"file=.*{tiny.facts.archive}: damaged or cut short")


def test_one_packed_file_without_the_other_is_named(tiny, tmp_path):
    tiny.write_npz(tmp_path / "data")
    (tmp_path / f"data/{tiny.dataset.name}_test.npz").unlink()
    failing(tiny, tmp_path / "data", tmp_path, rf"data lacks {tiny.dataset.name}_test\.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(9, np.uint8)}, "9 images of 32×32, not 10 of 32×32"),
        ({"labels": np.full(10, 200, np.uint8)}, "label goes from 200 to 200"),
        ({"names": np.zeros(10)}, "does not hold 10 file names"),
        ({"classes": np.array([b"a"])}, "names of classes"),
    ],
)
def test_a_packed_file_that_does_not_fit_is_named(tiny, tmp_path, changes, message):
    tiny.write_npz(tmp_path / "data", **changes)
    failing(tiny, tmp_path / "data", tmp_path, rf"file=.*{tiny.dataset.name}_test\.npz: .*{message}")


def test_the_packed_cifar100_needs_coarse_labels(tiny100, tmp_path):
    tiny = tiny100
    tiny.write_npz(tmp_path / "data")
    arrays = tiny.arrays("test")
    del arrays["coarse"]
    np.savez(tmp_path / "data/cifar100_test.npz", **arrays)
    failing(
        tiny, tmp_path / "data", tmp_path, r"cifar100_test\.npz: not cifar100 in the packed form \(it lacks coarse\)"
    )
