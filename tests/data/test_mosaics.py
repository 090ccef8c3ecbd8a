from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hypimg.data.mosaics import read_mosaics
from hypimg.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 6, 3), dtype=np.uint8)


def read(folder: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    np.savez(folder / "packed.npz", **arrays)
    images = np.zeros_like(IMAGES)
    read_mosaics(folder / "packed.npz", images)
    return images


@pytest.mark.parametrize("across", [1, 2, 3, 4])
def test_images_come_row_by_row_and_the_padding_is_left_out(tmp_path, pack, across):
    assert np.array_equal(read(tmp_path, pack(IMAGES, across)), IMAGES)


def test_the_arrays_are_handed_on(tmp_path, pack):
    np.savez(tmp_path / "packed.npz", **pack(IMAGES), coarse=np.zeros(11))
    arrays = read_mosaics(tmp_path / "packed.npz", np.zeros_like(IMAGES))
    assert arrays["classes"][2] == b"class_2"
    assert "coarse" in arrays


@pytest.mark.parametrize("key", ["blob", "offsets", "grid", "labels", "names", "classes"])
def test_a_lacking_array_is_named(tmp_path, pack, key):
    arrays = pack(IMAGES)
    del arrays[key]
    with pytest.raises(UserError, match=rf"packed\.npz: .*it lacks '?{key}"):
        read(tmp_path, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(10)}, "10 images of 4×6, not 11 of 4×6"),
        ({"grid": np.array([2, 6, 4])}, "11 images of 6×4, not 11 of 4×6"),
        ({"grid": np.array([3, 4, 6])}, "offsets"),
        ({"grid": np.array([0, 4, 6])}, "not 11 of 4×6"),
        ({"grid": np.zeros(2)}, "not the packed form"),
        ({"offsets": np.zeros(4, np.int64)}, "not an image"),
        ({"offsets": np.array([0, 40, 80, 120])}, "not an image|damaged image"),
        ({"blob": np.zeros(10, np.float32)}, "blob float32"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, pack, change, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, pack(IMAGES) | change)


def test_a_mosaic_of_another_size_is_said(tmp_path, pack, mosaic):
    arrays = pack(IMAGES)
    other = mosaic(IMAGES[:9], 3)
    arrays["blob"] = np.frombuffer(other * 3, np.uint8)
    arrays["offsets"] = np.arange(4) * len(other)
    with pytest.raises(UserError, match="a mosaic is 18×12, not 12×8"):
        read(tmp_path, arrays)


def test_a_truncated_file_is_named(tmp_path, pack):
    np.savez(tmp_path / "packed.npz", **pack(IMAGES))
    (tmp_path / "short.npz").write_bytes((tmp_path / "packed.npz").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"short\.npz: damaged or cut short"):
        read_mosaics(tmp_path / "short.npz", np.zeros_like(IMAGES))
