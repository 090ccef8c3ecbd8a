from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hypimg import _torchvision
from hypimg.data.store import Decoded, ImageStore, open_or_fill
from hypimg.data.views import centre_view, centre_views

SHAPES = [(30, 20), (20, 31), (17, 17), (16, 40), (100, 16), (9, 12)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    zeros = np.zeros(len(SHAPES), np.int64)
    decoded = Decoded(
        images=(noise(*shape) for shape in SHAPES),
        columns={"label": zeros, "split": zeros},
        names={"label": ["a"], "split": ["train"]},
        form="noise",
        official=False,
    )
    return open_or_fill(tmp_path_factory.mktemp("store"), "noise", "0" * 64, lambda: decoded)


@given(
    shape=st.tuples(st.integers(3, 90), st.integers(3, 90)),
    size=st.integers(1, 24),
    more=st.integers(0, 9),
    resample=st.sampled_from(["bilinear", "bicubic"]),
)
def test_a_view_is_what_torchvision_makes_of_a_photograph(shape, size, more, resample):
    transforms = _torchvision.load().transforms
    theirs = transforms.Compose(
        [
            transforms.Resize(size + more, interpolation=transforms.InterpolationMode(resample)),
            transforms.CenterCrop(size),
        ]
    )
    wanted = np.asarray(theirs(Image.fromarray(noise(*shape))))
    assert np.array_equal(centre_view(noise(*shape), size + more, size, resample), wanted)


def test_views_come_in_the_order_asked_for(store):
    indices = np.array([4, 0, 0, 2])
    views = centre_views(store, indices, resize=18, size=16, resample="bilinear")
    assert views.dtype == np.uint8
    for view, index in zip(views, indices, strict=True):
        assert np.array_equal(view, centre_view(noise(*SHAPES[index]), 18, 16, "bilinear"))


def test_a_region_is_cut_out_before_anything_else(store):
    """As if the image were the region alone: the filter sees nothing around it."""
    regions = np.array([[3, 4, 20, 12], [0, 11, 20, 20]])
    views = centre_views(store, np.array([0, 1]), resize=10, size=10, resample="bicubic", regions=regions)
    assert np.array_equal(views[0], centre_view(noise(30, 20)[3:23, 4:16], 10, 10, "bicubic"))
    assert np.array_equal(views[1], centre_view(noise(20, 31)[:, 11:], 10, 10, "bicubic"))


def test_an_image_of_the_wanted_size_is_not_resampled():
    assert np.array_equal(centre_view(noise(16, 16), 16, 16, "bicubic"), noise(16, 16))
    assert np.array_equal(centre_view(noise(16, 40), 16, 16, "bicubic"), noise(16, 40)[:, 12:28])


def test_no_images_are_no_views(store):
    assert centre_views(store, np.zeros(0, np.int64), resize=9, size=8, resample="bicubic").shape == (0, 8, 8, 3)
