"""Figure 5 has a column for every n that both nets have scores of."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hypimg.errors import UserError
from hypimg.evaluation.ood import ks_distance
from hypimg.figures import hie_fig5, read_scores


@pytest.fixture(scope="module")
def table(stored_scores):
    """Scores of the paper's two rows at n = 2 and 8, of one row at 16."""
    cells = {("hyperbolic", f"n={n}"): stored_scores(f"h{n}", c=0.1, dim=n) for n in (2, 8, 16)}
    return cells | {("euclidean", f"n={n}"): stored_scores(f"e{n}", c=0.0, dim=n) for n in (2, 8)}


@pytest.fixture(scope="module")
def panels(table, tmp_path_factory):
    """The axes of the drawn figure, [3, columns], caught on their way to the files."""
    caught: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hie_fig5, "save", lambda figure, stem, caption: caught.append(figure))
        hie_fig5.draw(table, tmp_path_factory.mktemp("figure"))
    return np.array(caught[0].axes).reshape(3, -1)


def test_it_draws_twice_the_same(table, tmp_path):
    first, second = (hie_fig5.draw(table, tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in first] == ["hie_fig5.png", "hie_fig5.pdf", "hie_fig5.txt"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_each_panel_states_the_ks_distance_of_its_scores(table, panels):
    assert [panel.get_title() for panel in panels[0]] == ["n = 2", "n = 8"]
    for column, n in enumerate(("n=2", "n=8")):
        hyperbolic, euclidean = (read_scores(table[row, n]) for row in ("hyperbolic", "euclidean"))
        distance = ks_distance(hyperbolic["dist0_in"], hyperbolic["dist0_out"])
        probability = ks_distance(euclidean["pmax_in"], euclidean["pmax_out"])
        for panel, value in zip(panels[:, column], (distance, probability, probability), strict=True):
            assert f"KS {value:.3f}" in [text.get_text() for text in panel.texts]


def test_every_image_is_in_a_histogram(panels):
    for panel in panels.flat:
        for patch in panel.patches:
            heights = patch.get_xy()[:, 1]  # an outline of steps: both ends of each bin's top
            assert heights.sum() / 2 == pytest.approx(1, abs=1e-9)


def test_nines_keep_the_digits_of_one_minus_p():
    np.testing.assert_allclose(hie_fig5.nines(np.log([0.9, 0.99])), [1, 2], rtol=1e-12)
    np.testing.assert_allclose(hie_fig5.nines(np.array([-1e-12, -1e-30])), [12, 16], rtol=1e-12)


def test_no_common_n_ends_in_one_line(table, tmp_path):
    with pytest.raises(UserError, match="no n has scores of both nets"):
        hie_fig5.draw({("hyperbolic", "n=16"): table["hyperbolic", "n=16"]}, tmp_path)
