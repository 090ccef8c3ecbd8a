from __future__ import annotations

import math

import numpy as np
import pytest

from hypimg.data.datasets.digits import Digits
from hypimg.errors import UserError

MEAN, STD = [0.3061], [0.3765]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Digits(MEAN, STD).open("nowhere", tmp_path_factory.mktemp("store"))


def test_all_digits_are_there_with_an_even_test_split(store):
    assert store.counts == {"train": 1297, "test": 500}
    assert np.bincount(store.column("label")[store.indices("test")]).tolist() == [50] * 10
    assert store.images.shape == (1797, 8, 8, 1)
    assert store.classes == list("0123456789")


def test_they_are_the_published_pixels(store):
    assert store.official
    assert store.digest.startswith("2cd65077146c")  # golden: changes only with decoder_version


def test_grey_values_fill_eight_bits(store):
    assert np.unique(store.images).tolist() == [round(grey * 255 / 16) for grey in range(17)]


def test_the_test_split_never_changes(store):
    assert store.indices("test")[:8].tolist() == [3, 7, 13, 16, 19, 22, 26, 36]


def test_the_constants_are_those_of_the_training_split(store):
    train = store.images[store.indices("train")] / 255
    assert train.mean() == pytest.approx(MEAN[0], abs=1e-4)
    assert train.std() == pytest.approx(STD[0], abs=1e-4)


def test_blurred_digits_are_other_data_of_the_same_brightness(store, tmp_path):
    blurred = Digits(MEAN, STD, blur=2.0).open("nowhere", tmp_path)
    assert blurred.digest != store.digest
    assert np.array_equal(blurred.column("label"), store.column("label"))
    assert np.array_equal(blurred.column("split"), store.column("split"))
    assert blurred.images.std() < 0.4 * store.images.std()
    assert blurred.images.mean() == pytest.approx(store.images.mean(), rel=0.01)


def test_images_are_blurred_one_by_one(store, tmp_path):
    from scipy.ndimage import gaussian_filter

    blurred = Digits(MEAN, STD, blur=1.0).open("nowhere", tmp_path)
    one = gaussian_filter(np.rint(store.image(7)[..., 0] / (255 / 16)) * (255 / 16), 1.0)
    assert np.array_equal(blurred.image(7)[..., 0], np.rint(one).astype(np.uint8))


def test_no_blur_is_one_data_set_however_it_is_written(tmp_path):
    assert Digits(MEAN, STD, blur=0).find("x").digest == Digits(MEAN, STD).find("x").digest


@pytest.mark.parametrize("blur", [-1.0, math.inf, math.nan])
def test_other_blurs_are_refused(blur):
    with pytest.raises(UserError, match=r"dataset\.blur"):
        Digits(MEAN, STD, blur=blur)
