from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hypimg import _torchvision
from hypimg.data.archives import read_pickled_dict
from hypimg.data.datasets.cifar import CIFAR10, CIFAR100, Cifar10, Cifar100
from hypimg.errors import UserError

HALF = [0.5, 0.5, 0.5]
OFFICIAL_TEST_BATCH = "40351d587109b95175f43aff81a1287e"  # MD5


def cifar10() -> Cifar10:
    return Cifar10(HALF, HALF)


def cifar100() -> Cifar100:
    return Cifar100(HALF, HALF)


def in_rows(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 3] → [N, 3072], channel by channel."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


@pytest.fixture(scope="session")
def store10(shared_data, store_dir):
    return cifar10().open(shared_data, store_dir)


@pytest.fixture(scope="session")
def store100(shared_data, store_dir):
    return cifar100().open(shared_data, store_dir)


# --- the real images -----------------------------------------------------------------------------------------------


def test_the_packed_cifar10_says_what_was_recompressed(store10):
    assert store10.form == "packed npz, train recompressed as JPEG, test lossless"
    assert not store10.official
    assert store10.meta["details"] == {"official_splits": ["test"]}
    assert store10.images.shape == (60000, 32, 32, 3)
    assert store10.counts == {"train": 50000, "test": 10000}
    assert store10.digest.startswith("14e429163df9")  # golden: changes only with decoder_version


def test_cifar10_has_its_classes_and_its_order(store10):
    assert store10.classes == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert store10.column("label")[:8].tolist() == [6, 9, 9, 4, 1, 1, 2, 7]
    for split, each in {"train": 5000, "test": 1000}.items():
        assert np.bincount(store10.column("label")[store10.indices(split)]).tolist() == [each] * 10


def test_the_packed_cifar100_has_fine_and_coarse_labels(store100):
    assert store100.form == "packed npz, train recompressed as JPEG, test recompressed as JPEG"
    assert not store100.official
    assert store100.digest.startswith("a77b2b6f7aac")  # golden
    fine, coarse = store100.column("label"), store100.column("coarse")
    assert np.bincount(fine[store100.indices("train")]).tolist() == [500] * 100
    assert np.bincount(coarse[store100.indices("test")]).tolist() == [500] * 20
    assert len({(a, b) for a, b in zip(fine.tolist(), coarse.tolist(), strict=True)}) == 100
    apple = int(coarse[fine == store100.classes.index("apple")][0])
    assert store100.names("coarse")[apple] == "fruit_and_vegetables"


def test_the_training_images_have_the_published_means(store10, store100):
    for store, means in ((store10, [0.4914, 0.4822, 0.4465]), (store100, [0.5071, 0.4865, 0.4409])):
        assert store.images[:50000].mean(axis=(0, 1, 2)) / 255 == pytest.approx(means, abs=2e-4)


@pytest.fixture(scope="session")
def official_batch(shared_data, store10, python2) -> bytes:
    """The authors' file test_batch, rebuilt from its pixels, labels and names."""
    with np.load(shared_data / "cifar10_test.npz") as npz:
        names, labels = [name + b".png" for name in npz["names"].tolist()], npz["labels"].tolist()
    content = python2(
        {
            b"batch_label": b"testing batch 1 of 1",
            b"labels": labels,
            b"data": in_rows(store10.images[50000:]),
            b"filenames": names,
        }
    )
    assert hashlib.md5(content).hexdigest() == OFFICIAL_TEST_BATCH
    return content


def test_the_authors_own_pickle_passes_the_allow_list(official_batch, store10, tmp_path):
    (tmp_path / "test_batch").write_bytes(official_batch)
    values = read_pickled_dict(tmp_path / "test_batch")
    assert sorted(values) == ["batch_label", "data", "filenames", "labels"]
    images = values["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(images, store10.images[50000:])
    assert values["labels"] == store10.column("label")[50000:].tolist()


def test_a_folder_with_the_official_test_batch_is_official_in_its_test_split_alone(official_batch, store10, tmp_path):
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i in range(5):
        rows = slice(i * 10000, (i + 1) * 10000)
        batch = {
            "data": in_rows(store10.images[rows]),
            "labels": store10.column("label")[rows].tolist(),
            "filenames": ["x.png"] * 10000,
        }
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(official_batch)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": store10.classes}))
    store = cifar10().open(tmp_path / "data", tmp_path / "store")
    assert store.form == "pickled batches, unknown pixels"
    assert store.meta["details"] == {"official_splits": ["test"]}
    assert np.array_equal(store.images, store10.images)
    assert np.array_equal(store.column("label"), store10.column("label"))


# --- every form, on a few images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "form"),
    [
        ("write_folder", "pickled batches"),
        ("write_archive", "archive of pickled batches"),
        ("write_npz", "packed npz, unknown files"),
    ],
)
def test_every_form_gives_the_same_official_images(tiny, tmp_path, write, form):
    dataset = tiny.make()
    data_dir = getattr(tiny, write)(tmp_path / "data")
    assert dataset.find(data_dir).official is None
    store = dataset.open(data_dir, tmp_path / "store")
    assert (store.form, store.official, store.counts) == (form, True, {"train": 50, "test": 10})
    assert np.array_equal(store.images, np.concatenate([*tiny.images.values()]))
    for column, labels in tiny.labels.items():
        assert np.array_equal(store.column(column), np.concatenate([*labels.values()]))
        assert store.names(column)[1] == f"{column}_1"
    assert np.array_equal(store.indices("test"), np.arange(50, 60))


def test_cifar100_is_official_in_any_order(tiny100, python2, tmp_path):
    tiny = tiny100
    order = np.random.default_rng(1).permutation(50)
    pickles = tiny.pickles() | {"train": python2(tiny.batch("train", order.tolist()))}
    store = tiny.make().open(tiny.write_folder(tmp_path / "data", pickles), tmp_path / "store")
    assert store.official
    assert np.array_equal(store.images[:50], tiny.images["train"][order])
    assert np.array_equal(store.column("coarse")[:50], tiny.labels["coarse"]["train"][order])


@pytest.mark.parametrize("what", ["pixel", "label"])
def test_altered_batches_are_accepted_and_said_so(tiny, python2, tmp_path, what):
    batches = tiny.batches()
    batch = batches[next(iter(batches))]
    if what == "pixel":
        batch[b"data"][0, 0] ^= 1
    else:
        batch[next(iter(tiny.facts.columns.values())).pickled[0].encode()][0] += 1
    pickles = {name: python2(values) for name, values in batches.items()}
    store = tiny.make().open(tiny.write_folder(tmp_path / "data", pickles), tmp_path / "store")
    assert not store.official
    assert store.form == "pickled batches, unknown pixels"
    assert store.meta["details"] == {"official_splits": ["test"]}


def test_pickles_of_python_3_are_read(tiny10, tmp_path):
    pickles = {name: pickle.dumps({k.decode(): v for k, v in b.items()}) for name, b in tiny10.batches().items()}
    assert tiny10.make().open(tiny10.write_folder(tmp_path / "data", pickles), tmp_path / "store").official


def test_the_authors_pickles_come_before_packed_files(tiny, tmp_path):
    tiny.write_npz(tmp_path / "data")
    assert tiny.make().find(tmp_path / "data").form == "packed npz, unknown files"
    tiny.write_folder(tmp_path / "data")
    assert tiny.make().find(tmp_path / "data").form == "pickled batches"


def test_nothing_there_is_nothing_found(tiny, tmp_path):
    assert tiny.make().find(tmp_path) is None
    with pytest.raises(UserError, match=rf"not found under .*{tiny.facts.archive}.* or pass download=true"):
        tiny.make().open(tmp_path, tmp_path / "store")


def test_download_fetches_the_archive_and_leaves_the_reading_to_us(tiny, tmp_path, monkeypatch):
    source = tiny.write_archive(tmp_path / "source") / tiny.facts.archive

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        assert (url, md5) == (f"of {tiny.dataset.__name__.upper()}", "its MD5")
        (Path(root) / filename).write_bytes(source.read_bytes())

    sets = {name: SimpleNamespace(url=f"of {name}", tgz_md5="its MD5") for name in ("CIFAR10", "CIFAR100")}
    datasets = SimpleNamespace(utils=SimpleNamespace(download_url=fetch), **sets)
    monkeypatch.setattr(_torchvision, "load", lambda: SimpleNamespace(datasets=datasets))
    assert tiny.make().open(tmp_path / "data", tmp_path / "store", download=True).official


def test_torchvision_still_has_what_the_download_uses():
    datasets = _torchvision.load().datasets
    assert callable(datasets.utils.download_url)
    for theirs, facts in ((datasets.CIFAR10, CIFAR10), (datasets.CIFAR100, CIFAR100)):
        assert (theirs.filename, theirs.base_folder) == (facts.archive, facts.folder)
        assert len(theirs.tgz_md5) == 32 and theirs.url.endswith(facts.archive)
