"""Figure 1 draws the cell of dimension 2 of the hyperbolic row."""

from __future__ import annotations

import pytest

from hypimg.errors import UserError
from hypimg.figures import hie_fig1


def test_it_draws_the_hyperbolic_cell_twice_the_same(stored_scores, tmp_path):
    scores = {("hyperbolic", "n=2"): stored_scores("run", c=0.1), ("euclidean", "n=2"): tmp_path / "not read"}
    first, second = (hie_fig1.draw(scores, tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in first] == ["hie_fig1.png", "hie_fig1.pdf", "hie_fig1.txt"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_missing_cell_names_its_command(stored_scores, tmp_path):
    with pytest.raises(UserError, match="make reproduce-table3 ONLY=hyperbolic/n=2"):
        hie_fig1.draw({("hyperbolic", "n=8"): stored_scores("run", dim=8)}, tmp_path)
