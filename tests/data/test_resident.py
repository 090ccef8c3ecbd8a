from __future__ import annotations

import numpy as np
import pytest

from hypimg.data.resident import ResidentImages
from hypimg.data.store import Decoded, open_or_fill
from hypimg.errors import UserError


def test_images_of_varying_size_are_refused_in_one_line(tmp_path):
    zeros = np.zeros(2, np.int64)
    images = (np.zeros((side, 4, 3), np.uint8) for side in (4, 5))
    decoded = Decoded(images, {"label": zeros, "split": zeros}, {"label": ["a"], "split": ["all"]}, "generated", False)
    store = open_or_fill(tmp_path, "toy", "0" * 64, lambda: decoded)
    with pytest.raises(UserError, match="dataset=toy: its images differ in size"):
        ResidentImages(store, store.indices(), [0.5] * 3, [0.5] * 3)
