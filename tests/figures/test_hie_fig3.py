"""Figure 3 needs no scores; what it draws is what its caption says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from hypimg.figures import hie_fig3
from hypimg.geometry import poincare


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    """The four axes, caught on their way to the files."""
    caught: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hie_fig3, "save", lambda figure, stem, caption: caught.append(figure))
        hie_fig3.draw({}, tmp_path_factory.mktemp("figure"))
    return caught[0].axes


def curves(ax):
    return [torch.from_numpy(np.asarray(line.get_xydata())) for line in ax.lines]


def test_it_draws_twice_the_same_without_scores(tmp_path):
    first, second = (hie_fig3.draw({}, tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in first] == ["hie_fig3.png", "hie_fig3.pdf", "hie_fig3.txt"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_every_panel_is_a_whole_disk_on_equal_axes(panels):
    assert len(panels) == 4
    for ax in panels:
        assert ax.get_aspect() == 1 and ax.get_xlim() == ax.get_ylim()
        (circle,) = (patch for patch in ax.patches if hasattr(patch, "radius"))
        assert (circle.center, circle.radius) == ((0, 0), 1)
        for curve in curves(ax):
            assert curve.norm(dim=-1).max() <= 1 + 1e-9


def test_dots_lie_at_equal_hyperbolic_steps_on_shortest_ways(panels):
    for (first, last), whole in zip(hie_fig3.ENDS, curves(panels[0])[::2], strict=True):
        x, y = (hie_fig3.point(end) for end in (first, last))
        steps = hie_fig3.geodesic(x, y, count=hie_fig3.STEPS + 1)
        lengths = poincare.dist(steps[:-1], steps[1:], 1.0)
        torch.testing.assert_close(lengths, poincare.dist(x, y, 1.0).expand_as(lengths) / hie_fig3.STEPS)
        ends = whole[[0, -1]].norm(dim=-1)
        assert (ends > 0.995).all(), "a continuation stops short of the boundary"


def test_the_ways_of_both_sums_are_as_long_as_their_summands_and_end_apart(panels):
    x, y = hie_fig3.point(hie_fig3.X), hie_fig3.point(hie_fig3.Y)
    to_x, to_xy, to_y, to_yx = curves(panels[1])
    for first, second, summand in ((to_x, to_xy, y), (to_y, to_yx, x)):
        torch.testing.assert_close(first[-1], second[0])
        torch.testing.assert_close(poincare.dist(second[0], second[-1], 1.0), poincare.dist0(summand, 1.0))
    assert poincare.dist(to_xy[-1], to_yx[-1], 1.0) > 0.5


def test_the_mean_lies_further_out_than_the_euclidean_one(panels):
    starts = [curve[0] for curve in curves(panels[2])]
    assert all(torch.equal(start, starts[0]) for start in starts)
    points = torch.tensor(hie_fig3.CLOUD, dtype=torch.float64)
    assert starts[0].norm() > 2 * points.mean(0).norm()


def test_hyperplanes_do_not_meet_and_levels_are_drawn_of_one(panels):
    arcs = [curve for curve in curves(panels[3]) if len(curve) == 200]
    assert len(arcs) == 3
    for i, arc in enumerate(arcs):
        for other in arcs[i + 1 :]:
            assert torch.cdist(arc, other).min() > 0.05
    contours = [collection for collection in panels[3].collections if hasattr(collection, "levels")]
    assert [list(contour.levels) for contour in contours] == [[1, 2, 3]]
