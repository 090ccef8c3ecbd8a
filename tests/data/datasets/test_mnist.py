from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hypimg import _torchvision
from hypimg.data.datasets.mnist import FILES, Mnist, read_idx
from hypimg.errors import UserError

NAMES = list(FILES)


def mnist() -> Mnist:
    return Mnist([0.1307], [0.3081])


@pytest.fixture(scope="session")
def unpacked(shared_data, tmp_path_factory) -> Path:
    """The four files, unpacked; only read by tests."""
    folder = tmp_path_factory.mktemp("mnist") / "unpacked"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(gzip.decompress((shared_data / "mnist/MNIST/raw" / f"{name}.gz").read_bytes()))
    return folder


@pytest.fixture(scope="session")
def store(shared_data, tmp_path_factory):
    return mnist().open(shared_data, tmp_path_factory.mktemp("store"))


@pytest.fixture
def data_dir(unpacked, tmp_path) -> Path:
    """A folder whose files may be replaced (never written into: they are links)."""
    (tmp_path / "data/MNIST/raw").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "data/MNIST/raw" / name).symlink_to(unpacked / name)
    return tmp_path / "data"


def replace(data_dir: Path, name: str, content: bytes) -> Path:
    file = data_dir / "MNIST/raw" / name
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    return file


def test_the_official_files_are_found_as_they_lie(store):
    assert store.official
    assert store.form == "idx files"
    assert store.counts == {"train": 60000, "test": 10000}
    assert store.images.shape == (70000, 28, 28, 1)
    assert store.digest.startswith("1d503e0388d1")  # golden: changes only with decoder_version


def test_pixels_and_labels_stand_in_the_files_order(store, unpacked):
    train = np.fromfile(unpacked / NAMES[0], np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(unpacked / NAMES[3], np.uint8, offset=8)
    assert np.array_equal(store.images[store.indices("train")][..., 0], train)
    assert np.array_equal(store.column("label")[store.indices("test")], labels)


def test_classes_have_their_known_sizes(store):
    sizes = np.bincount(store.column("label")[store.indices("train")])
    assert sizes.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_the_constants_are_those_of_the_training_split(store):
    images = store.images[store.indices("train")]
    assert images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert np.sqrt((images.astype(np.float32) / 255).var()) == pytest.approx(0.3081, abs=1e-4)


def test_gzipped_and_unpacked_files_are_the_same_data(store, data_dir):
    found = mnist().find(data_dir)
    assert found.digest == store.digest
    assert found.official


def test_a_mixture_of_both_is_the_same_data(store, data_dir, shared_data):
    (data_dir / "MNIST/raw" / NAMES[0]).unlink()
    shutil.copy(shared_data / "mnist/MNIST/raw" / f"{NAMES[0]}.gz", data_dir / "MNIST/raw")
    assert mnist().find(data_dir).digest == store.digest


def test_a_data_dir_that_is_read_only_stays_untouched(data_dir, tmp_path):
    for folder in (data_dir / "MNIST/raw", data_dir / "MNIST", data_dir):
        folder.chmod(0o555)
    before = [(path, path.lstat().st_mtime_ns) for path in sorted(data_dir.rglob("*"))]
    mnist().open(data_dir, tmp_path / "store")
    assert [(path, path.lstat().st_mtime_ns) for path in sorted(data_dir.rglob("*"))] == before
    for folder in (data_dir, data_dir / "MNIST", data_dir / "MNIST/raw"):
        folder.chmod(0o755)


def test_nothing_there_is_nothing_found(tmp_path):
    assert mnist().find(tmp_path) is None


def test_a_missing_file_is_named(data_dir):
    (data_dir / "MNIST/raw" / NAMES[3]).unlink()
    with pytest.raises(UserError, match=r"dataset=mnist: .*MNIST/raw lacks t10k-labels-idx1-ubyte;"):
        mnist().find(data_dir)


@pytest.mark.parametrize("folder", ["FashionMNIST", "KMNIST", "QMNIST", "EMNIST"])
def test_other_sets_of_the_same_form_are_not_taken_for_it(data_dir, folder):
    (data_dir / "MNIST").rename(data_dir / folder)
    assert mnist().find(data_dir) is None


@pytest.mark.parametrize("keep", [0, 3, 16, 1_000_000, 7_840_015])
def test_a_truncated_file_is_named(data_dir, unpacked, keep):
    file = replace(data_dir, NAMES[2], (unpacked / NAMES[2]).read_bytes()[:keep])
    with pytest.raises(UserError, match=r"file=.*t10k-images-idx3-ubyte: (cut short|not an idx file)") as caught:
        mnist().find(data_dir)
    assert caught.value.value == file


@pytest.mark.parametrize("keep", [0, 5, 1000, -4])
def test_a_truncated_gzip_file_is_named(data_dir, shared_data, keep):
    content = (shared_data / "mnist/MNIST/raw" / f"{NAMES[2]}.gz").read_bytes()
    (data_dir / "MNIST/raw" / NAMES[2]).unlink()
    replace(data_dir, f"{NAMES[2]}.gz", content[:keep])
    with pytest.raises(UserError, match=r"file=.*t10k-images-idx3-ubyte\.gz: "):
        mnist().find(data_dir)


def test_a_damaged_gzip_file_is_named(data_dir, shared_data):
    content = bytearray((shared_data / "mnist/MNIST/raw" / f"{NAMES[2]}.gz").read_bytes())
    content[500_000] ^= 255
    (data_dir / "MNIST/raw" / NAMES[2]).unlink()
    replace(data_dir, f"{NAMES[2]}.gz", bytes(content))
    with pytest.raises(UserError, match="damaged or cut short"):
        mnist().find(data_dir)


def test_a_longer_file_is_named(data_dir, unpacked):
    replace(data_dir, NAMES[3], (unpacked / NAMES[3]).read_bytes() + b"\0")
    with pytest.raises(UserError, match="longer than 10008 bytes"):
        mnist().find(data_dir)


def test_a_gzip_bomb_is_not_unpacked(data_dir, unpacked):
    (data_dir / "MNIST/raw" / NAMES[3]).unlink()
    bomb = gzip.compress((unpacked / NAMES[3]).read_bytes() + bytes(50 << 20), compresslevel=1)
    replace(data_dir, f"{NAMES[3]}.gz", bomb)
    with pytest.raises(UserError, match="longer than 10008 bytes"):
        mnist().find(data_dir)


def test_swapped_files_are_named(data_dir, unpacked):
    replace(data_dir, NAMES[1], (unpacked / NAMES[3]).read_bytes())
    with pytest.raises(UserError, match=r"not an idx file of 60000 unsigned bytes \(it begins 0000080100002710"):
        mnist().find(data_dir)


def test_files_of_another_kind_are_named(data_dir):
    replace(data_dir, NAMES[0], b"<html>404 not found</html>")
    with pytest.raises(UserError, match="not an idx file of 60000×28×28"):
        mnist().find(data_dir)


def test_altered_pixels_are_accepted_and_said_so(store, data_dir, unpacked, tmp_path):
    altered = bytearray((unpacked / NAMES[2]).read_bytes())
    altered[-1] = 7
    replace(data_dir, NAMES[2], bytes(altered))
    changed = mnist().open(data_dir, tmp_path / "store")
    assert not changed.official
    assert changed.form == "idx files, unknown digest"
    assert changed.digest != store.digest
    assert changed.images[-1, -1, -1, 0] == 7


def test_labels_beyond_nine_are_refused(data_dir, unpacked, tmp_path):
    altered = bytearray((unpacked / NAMES[3]).read_bytes())
    altered[-1] = 10
    replace(data_dir, NAMES[3], bytes(altered))
    with pytest.raises(UserError, match="label 10"):
        mnist().open(data_dir, tmp_path / "store")
    assert os.listdir(tmp_path / "store") == []


def test_read_idx_reads_the_form(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert read_idx(tmp_path / "a", (2, 3)).tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(UserError, match="not an idx file"):
        read_idx(tmp_path / "a", (3, 2))


def test_download_goes_through_torchvision_into_data_dir(shared_data, tmp_path, monkeypatch):
    def fetch(root: str, download: bool) -> None:
        assert download
        shutil.copytree(shared_data / "mnist/MNIST", Path(root) / "MNIST")

    monkeypatch.setattr(_torchvision, "load", lambda: SimpleNamespace(datasets=SimpleNamespace(MNIST=fetch)))
    assert mnist().open(tmp_path / "data", tmp_path / "store", download=True).official
