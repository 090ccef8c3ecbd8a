"""The plot of a sweep shows each mean where it belongs, with its interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from hypimg.figures import sweep
from hypimg.figures.sweep import Curve, Point

CURVES = [
    Curve("hyperbolic", [Point(0.005, 0.50, 0.02, 3, "seeds"), Point(0.01, 0.52, 0.01, 1, "episodes")]),
    Curve("angular", [Point(0.005, 0.48, None, 1, None), Point(0.1, 0.40, 0.03, 4, "seeds")]),
    Curve("Euclidean", [Point(None, 0.45, 0.015, 5, "seeds")]),
    Curve("cosine", [Point(None, 0.51, None, 1, None)]),
]


@pytest.fixture(scope="module")
def figure(tmp_path_factory) -> Figure:
    caught: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "save", lambda figure, stem, caption: caught.append(figure))
        sweep.draw(CURVES, tmp_path_factory.mktemp("figure") / "x", "c", "fewshot/accuracy")
    return caught[0]


def test_it_draws_twice_the_same(tmp_path: Path) -> None:
    first, second = (sweep.draw(CURVES, tmp_path / name / "sweep_c", "c", "a/accuracy") for name in ("one", "two"))
    assert [path.name for path in first] == ["sweep_c.png", "sweep_c.pdf", "sweep_c.txt"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_marks_stand_at_the_means_in_percent_and_bars_have_the_intervals(figure: Figure) -> None:
    (ax,) = figure.axes
    for curve, bars in ((CURVES[0], [0.02, 0.01]), (CURVES[1], [None, 0.03])):
        (line,) = [line for line in ax.lines if line.get_label() == curve.label]
        np.testing.assert_allclose(line.get_ydata(), [100 * point.mean for point in curve.points])
        np.testing.assert_allclose(line.get_xdata(), [point.x for point in curve.points], rtol=0.1)
        for place, point, bar in zip(line.get_xdata(), curve.points, bars, strict=True):
            (container,) = [
                c for c in ax.containers if np.allclose(c.lines[0].get_xydata(), [[place, 100 * point.mean]])
            ]
            mark, _, segments = container.lines
            assert (mark.get_markerfacecolor() == "white") == (point.n == 1)
            if bar is None:
                assert not segments
            else:
                (low, high) = segments[0].get_segments()[0][:, 1]
                np.testing.assert_allclose((low, high), (100 * (point.mean - bar), 100 * (point.mean + bar)))


def test_arms_at_one_value_stand_beside_each_other(figure: Figure) -> None:
    first = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_label() in ("hyperbolic", "angular")]
    assert first[0] != first[1]


def test_an_arm_without_the_setting_is_a_line_across_with_a_band(figure: Figure) -> None:
    (ax,) = figure.axes
    (line,) = [line for line in ax.lines if line.get_label() == "Euclidean"]
    np.testing.assert_allclose(line.get_ydata(), [45, 45])
    (band,) = ax.patches
    np.testing.assert_allclose((band.get_y(), band.get_height()), (43.5, 3.0))


def test_the_axis_is_logarithmic_with_ticks_at_the_values(figure: Figure) -> None:
    (ax,) = figure.axes
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "fewshot accuracy (%)"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.005", "0.01", "0.1"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [curve.label for curve in CURVES]


def test_a_setting_that_may_be_zero_has_a_linear_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Figure] = []
    monkeypatch.setattr(sweep, "save", lambda figure, stem, caption: caught.append(figure))
    curves = [Curve("all", [Point(x, 2.0, None, 1, None) for x in (0.0, 0.5)])]
    sweep.draw(curves, tmp_path / "x", "optimizer.weight_decay", "val/loss")
    (ax,) = caught[0].axes
    assert ax.get_xscale() == "linear" and ax.get_ylabel() == "val loss"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 2])  # no percent


def test_the_caption_tells_the_kinds_of_interval_apart() -> None:
    text = sweep.caption(CURVES, "c", "fewshot/accuracy", ["Left out 2 of 9 runs."])
    assert "means over 3 to 4 training seeds, with the 95 % t-interval" in text
    assert "over its test episodes and says nothing of other seeds" in text
    assert "without a bar: one training" in text
    assert "Euclidean (mean and t-interval over 5 seeds); cosine (one training)" in text
    assert text.endswith("Left out 2 of 9 runs.")
    assert "episodes" not in sweep.caption([CURVES[1]], "c", "a", [])
