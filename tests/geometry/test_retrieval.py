"""Nearest neighbours and ranks against the whole matrix of distances, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypimg.geometry import _pairs, retrieval
from hypimg.geometry import poincare as pb

cases = given(seed=st.integers(0, 2**31), c=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0]))


def sets(points, seed, c):
    unit = c or 1.0
    return points(seed, 9, 5, unit, torch.float32, 0.01), points(seed + 1, 40, 5, unit, torch.float32, 0.01)


@settings(max_examples=30)
@cases
def test_topk_finds_the_nearest_in_order(points, seed, c):
    x, y = sets(points, seed, c)
    distances, indices = retrieval.topk(x, y, c, 7)
    whole = pb.cdist(x.double(), y.double(), c, "exact")
    nearest = whole.sort(dim=1).values[:, :7]
    torch.testing.assert_close(distances.double(), nearest, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(distances.double(), whole.gather(1, indices), rtol=2e-6, atol=1e-12)
    assert bool((distances.diff(dim=1) >= 0).all())


def test_a_query_that_is_in_the_gallery_is_its_own_nearest(points):
    y = points(0, 40, 5, 1.0, torch.float32)
    distances, indices = retrieval.topk(y, y, 1.0, 1)
    assert torch.equal(distances, torch.zeros(40, 1))
    assert torch.equal(y[indices[:, 0]], y)


@settings(max_examples=30)
@cases
def test_ranks_are_places_in_the_sorted_gallery(points, seed, c):
    x, y = sets(points, seed, c)
    x, y = x.double(), y.double()
    generator = torch.Generator().manual_seed(seed)
    matches = torch.rand(9, 40, generator=generator).argsort(dim=1)[:, :6]
    matches[2, 3:] = -1
    exclude = torch.tensor([[0, 1, -1]]).expand(9, 3).contiguous()
    ranks = retrieval.rank_by_distance(x, y, c, matches)
    kept = retrieval.rank_by_distance(x, y, c, matches, exclude)
    whole = pb.cdist(x, y, c, "exact")
    for i in range(9):
        for place, match in enumerate(matches[i].tolist()):
            if match < 0:
                assert ranks[i, place] == kept[i, place] == -1
                continue
            # A matrix product knows ‖x − y‖² to 1e-15, so which of two distances is smaller to about 1e-7 near 0.
            surely, perhaps = whole[i] < whole[i, match] - 1e-7, whole[i] < whole[i, match] + 1e-7
            perhaps[match] = False
            assert int(surely.sum()) <= int(ranks[i, place]) <= int(perhaps.sum())
            assert match < 2 or int(surely[2:].sum()) <= int(kept[i, place]) <= int(perhaps[2:].sum())


def clusters(spread: float):
    """20 clusters of 50 points near the sphere, so that the nearest are near pairs."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(20, 32, generator=generator), dim=-1).repeat(50, 1)
    y = centres + spread * torch.randn(1000, 32, generator=generator)
    return 0.999 * torch.nn.functional.normalize(y, dim=-1)


@pytest.mark.parametrize("spread", [1e-3, 1e-4])
def test_near_points_are_told_apart(spread):
    y = clusters(spread)
    whole = pb.cdist(y.double(), y.double(), 1.0, "exact")
    distances, indices = retrieval.topk(y, y, 1.0, 5)
    assert torch.equal(indices[:, 0], torch.arange(1000))
    torch.testing.assert_close(distances.double(), whole.sort(dim=1).values[:, :5], rtol=5e-6, atol=1e-12)
    second = whole.sort(dim=1).indices[:, 1:2]
    ranks = retrieval.rank_by_distance(y, y, 1.0, second)
    assert float((ranks == 1).double().mean()) > 0.99  # but for ties within a few 1e-7


def test_equal_gallery_points_rank_equally_wherever_they_lie():
    y = clusters(1e-3)
    y[502] = y[999] = y[17]
    ranks = retrieval.rank_by_distance(y[:50], y, 1.0, torch.tensor([[17, 502, 999]]).expand(50, 3).contiguous())
    near = torch.arange(50) % 20 == 17
    assert bool((ranks[near] == ranks[near, :1]).all())


def test_what_is_not_a_point_gains_nothing():
    y = clusters(1e-1)[:20].clone()
    matches = torch.tensor([[3]])
    assert int(retrieval.rank_by_distance(torch.full((1, 32), torch.nan), y, 1.0, matches)) == 20
    y[3] = torch.nan
    assert int(retrieval.rank_by_distance(y[:1], y, 1.0, matches)) == 20
    y[3] = 1.0  # far outside
    assert int(retrieval.rank_by_distance(y[:1], y, 1.0, matches)) == 20
    distances, indices = retrieval.topk(y[:1], y, 1.0, 20)
    assert int(indices[0, -1]) == 3 and bool(distances[0, -1].isnan()) and bool(distances[0, :-1].isfinite().all())
    assert retrieval.rank_by_distance(y[:2], y[:0], 1.0, torch.full((2, 3), -1)).tolist() == [[-1] * 3] * 2


def test_an_excluded_match_ranks_behind_all_that_count():
    y = clusters(1e-1)[:20]
    matches = torch.tensor([[3]])
    assert int(retrieval.rank_by_distance(y[:1], y, 1.0, matches, torch.tensor([[3, 5]]))) == 18


def test_blocks_change_nothing(points, monkeypatch):
    x, y = sets(points, 3, 1.0)
    matches = torch.arange(27).reshape(9, 3)
    one = (*retrieval.topk(x, y, 1.0, 5), retrieval.rank_by_distance(x, y, 1.0, matches))
    monkeypatch.setattr(_pairs, "BLOCK", 80)
    monkeypatch.setattr(_pairs, "ROWS", 1)
    many = (*retrieval.topk(x, y, 1.0, 5), retrieval.rank_by_distance(x, y, 1.0, matches))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b)


def test_wrong_arguments_are_refused(points):
    x, y = sets(points, 0, 1.0)
    with pytest.raises(ValueError, match="k must be from 1 to"):
        retrieval.topk(x, y, 1.0, 41)
    with pytest.raises(ValueError, match=r"x must be \[n, d\]"):
        retrieval.topk(x[0], y, 1.0, 1)
    with pytest.raises(ValueError, match="must hold indices"):
        retrieval.rank_by_distance(x, y, 1.0, torch.full((9, 1), 40))
    with pytest.raises(ValueError, match="matches must be int64"):
        retrieval.rank_by_distance(x, y, 1.0, torch.zeros(9, 1))
