"""The report picture shows every subsample and cloud, and is the same bytes each time."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hypimg.evaluation.hyperbolicity import Analysis, analyse
from hypimg.figures import hyperbolicity


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(np.random.default_rng(0).standard_normal((200, 10)), samples=20, repeats=6)


@pytest.fixture(scope="module")
def panels(analysis, tmp_path_factory):
    caught: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyperbolicity, "save", lambda figure, stem, caption: caught.append(figure))
        hyperbolicity.draw(analysis, "noise", tmp_path_factory.mktemp("figure") / "report")
    return caught[0].axes


def test_it_draws_twice_the_same(analysis, tmp_path):
    first, second = (hyperbolicity.draw(analysis, "noise", tmp_path / name / "report") for name in ("a", "b"))
    assert [path.name for path in first] == ["report.png", "report.pdf", "report.txt"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_every_subsample_and_cloud_is_a_point(analysis, panels):
    for panel, name in zip(panels, ("delta_rel", "delta_over_mean", "diameter_over_mean"), strict=True):
        drawn = [points.get_offsets()[:, 0].tolist() for points in panel.collections]
        expected = [[getattr(m, name) for m in side] for side in (analysis.data, analysis.null)]
        np.testing.assert_allclose(drawn, expected)
        assert panel.get_xlim()[0] == 0 and panel.get_xlim()[1] > np.max(drawn)


def test_means_are_written_with_their_deviations(analysis, panels):
    written = [text.get_text() for text in panels[0].texts]
    assert written == ["{:.3f} ± {:.3f}".format(*analysis.mean_and_std(side)) for side in ("data", "null")]


def test_the_caption_says_what_was_drawn_of_how_much(analysis):
    text = hyperbolicity.caption(analysis, "noise")
    assert "200 images with 10 features" in text and "6 disjoint subsamples of 20 images" in text
    few = analyse(np.random.default_rng(0).standard_normal((30, 10)), samples=100, repeats=2)
    assert "equal (so the spread is that of base points) subsamples of 30" in hyperbolicity.caption(few, "noise")
