"""Features are those of the encoder alone: of any batch, image size or source, kept whole and read again."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hypimg import _torchvision
from hypimg.data.datasets.digits import Digits
from hypimg.data.preprocess import normalise
from hypimg.data.store import ImageStore
from hypimg.errors import UserError
from hypimg.evaluation import features
from hypimg.models.encoders import LITE0_PREPROCESSING, Encoder, Preprocessing

SMALL = Preprocessing(12, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Corners(nn.Module):
    """Means of the quarters of an image, [N, 3, 2, 2]; counts the images that it saw."""

    seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return nn.functional.adaptive_avg_pool2d(images, 2)


def encoder(how: Preprocessing = SMALL, weights: str = "0" * 64) -> Encoder:
    return Encoder("corners", Corners(), how, "last", weights)


def preprocess(images: torch.Tensor, how: Preprocessing) -> torch.Tensor:
    return normalise(features.resize_and_crop(images, how), how.mean, how.std)


@pytest.fixture
def store(tmp_path) -> ImageStore:
    """1,797 grey images of 8×8, in a store of this test's own."""
    return Digits([0.3], [0.4]).open(tmp_path / "data", tmp_path / "store")


@pytest.fixture
def folder(tmp_path) -> list[Path]:
    """Twelve photographs' worth of noise, of three sizes, upright and lying."""
    random = np.random.default_rng(0)
    paths = []
    for index in range(12):
        height, width = [(20, 14), (14, 20), (9, 9)][index % 3]
        path = tmp_path / "photos" / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        paths.append(path)
    return paths


@pytest.mark.parametrize("size", [(32, 32), (300, 200), (224, 500), (256, 256), (257, 333), (1000, 70)])
@pytest.mark.parametrize("network", ["resnet34", "inception_v3", "efficientnet_b0"])
def test_preprocessing_is_torchvisions_own(size, network):
    transform = _torchvision.load().models.get_model_weights(network).DEFAULT.transforms()
    how = Preprocessing(
        transform.resize_size[0],
        transform.crop_size[0],
        transform.interpolation.value,
        tuple(transform.mean),
        tuple(transform.std),
    )
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(preprocess(images, how), transform(images), rtol=0, atol=2e-6)


def test_of_an_endless_strip_the_middle_is_taken():
    transform = _torchvision.load().models.get_model_weights("resnet34").DEFAULT.transforms()
    how = Preprocessing(256, 224, "bilinear", tuple(transform.mean), tuple(transform.std))
    strip = torch.randint(0, 256, (1, 3, 30, 1200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(preprocess(strip, how), transform(strip), rtol=0, atol=0.02)  # one grey level
    endless = strip[:, :, :2, :1].expand(1, 3, 2, 1_000_000)
    assert features.resize_and_crop(endless, how).shape == (1, 3, 224, 224)


def test_lite0_sees_grey_values_less_127_over_128():
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 3, 256, 256)[::51]
    seen = preprocess(images, LITE0_PREPROCESSING)
    assert seen.shape == (6, 3, 224, 224)
    expected = (torch.arange(0.0, 256, 51) - 127) / 128
    torch.testing.assert_close(seen[:, 0, 5, 5], expected, rtol=0, atol=1e-6)


def test_a_grey_image_counts_as_grey_rgb(store):
    found = features.of_store(store, np.arange(5), encoder())
    image = torch.from_numpy(np.array(store.images[:5])).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    expected = nn.functional.adaptive_avg_pool2d(preprocess(image, SMALL), 2).flatten(1).numpy()
    assert found.dtype == np.float32 and found.shape == (5, 12)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neither_batches_nor_sizes_change_features(folder):
    together, _, _ = features.of_files(folder, encoder(), batch_size=12)
    alone, _, _ = features.of_files(folder, encoder(), batch_size=1)
    few, kept, skipped = features.of_files(folder, encoder(), batch_size=5)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(few, alone, atol=1e-6)
    assert kept == folder and skipped == []


def test_features_are_in_the_order_that_was_asked_for(store):
    rows = np.array([7, 3, 3, 100])
    found = features.of_store(store, rows, encoder())
    every = features.of_store(store, np.arange(101), encoder())
    np.testing.assert_array_equal(found, every[rows])


def test_an_unreadable_file_stops_and_is_named(folder):
    folder[6].write_bytes(folder[6].read_bytes()[:40])
    with pytest.raises(UserError, match=r"06\.png"):
        features.of_files(folder, encoder(), batch_size=4)


def test_unreadable_files_are_left_out_and_named_when_asked(folder):
    expected, _, _ = features.of_files([path for path in folder if path.stem not in ("02", "06")], encoder())
    folder[2].write_bytes(b"")
    folder[6].write_text("not an image")
    found, kept, skipped = features.of_files(folder, encoder(), batch_size=4, skip_unreadable=True)
    np.testing.assert_array_equal(found, expected)
    assert [path.stem for path in kept] == [f"{index:02}" for index in range(12) if index not in (2, 6)]
    assert ["02.png" in str(skipped[0]), "06.png" in str(skipped[1])] == [True, True]


def test_spares_stand_in_for_unreadable_files_in_turn(folder):
    expected, _, _ = features.of_files([*folder[1:5], folder[8]], encoder())
    for index in (0, 6, 7):
        folder[index].write_text("not an image")
    found, kept, skipped = features.of_files(folder[:5], encoder(), skip_unreadable=True, spares=folder[6:])
    assert kept == [*folder[1:5], folder[8]] and len(skipped) == 3
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_folder_of_unreadable_files_has_no_features_and_the_first_is_named(folder):
    for path in folder:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"00\.png: empty file.*none of 12 files could be read"):
        features.of_files(folder[:4], encoder(), skip_unreadable=True, spares=folder[4:])


def test_features_of_a_store_are_computed_once(store):
    first, second = encoder(), encoder()
    a = features.of_store(store, np.arange(40), first)
    b = features.of_store(store, np.arange(40), second)
    np.testing.assert_array_equal(a, b)
    assert (first.network.seen, second.network.seen) == (40, 0)
    assert [path.suffix for path in (store.path.parent / "features").iterdir()] == [".npy"]


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "1" * 64},
        {"how": Preprocessing(12, 8, "bicubic", SMALL.mean, SMALL.std)},
        {"how": Preprocessing(13, 8, "bilinear", SMALL.mean, SMALL.std)},
    ],
)
def test_other_weights_or_preprocessing_are_computed_anew(store, other):
    features.of_store(store, np.arange(10), encoder())
    again = encoder(**other)
    features.of_store(store, np.arange(10), again)
    assert again.network.seen == 10


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY cut", None])
def test_damaged_features_are_computed_again(store, damage, caplog):
    expected = features.of_store(store, np.arange(10), encoder())
    (path,) = (store.path.parent / "features").iterdir()
    if damage is None:
        np.save(path, expected[:7])
    else:
        path.write_bytes(damage)
    again = encoder()
    with caplog.at_level(logging.WARNING, "hypimg"):
        np.testing.assert_array_equal(features.of_store(store, np.arange(10), again), expected)
    assert again.network.seen == 10 and "damaged" in caplog.text
    np.testing.assert_array_equal(np.load(path), expected)


def test_a_pickle_in_place_of_features_is_not_read(store, tmp_path, caplog):
    expected = features.of_store(store, np.arange(10), encoder())
    (path,) = (store.path.parent / "features").iterdir()
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    np.testing.assert_array_equal(features.of_store(store, np.arange(10), encoder()), expected)


def test_a_store_that_cannot_be_written_costs_the_reuse_alone(store, caplog):
    (store.path.parent / "features").write_text("in the way")
    with caplog.at_level(logging.WARNING, "hypimg"):
        assert features.of_store(store, np.arange(10), encoder()).shape == (10, 12)
    assert "could not be kept" in caplog.text


def test_progress_is_told_in_lines_where_there_is_no_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr(features, "SECONDS_BETWEEN_LINES", 0.0)
    features.of_files(folder, encoder(), batch_size=5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("corners on 12 files: 5 of 12 images") and "s left" in lines[0]
    assert lines[-1].startswith("corners on 12 files: 12 of 12 images")
