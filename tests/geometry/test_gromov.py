"""δ-hyperbolicity against brute force, the published formula and known spaces; every path gives the same bits."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hypimg import geometry
from hypimg.geometry import _gromov_numba, gromov, poincare

SETS = ["gaussian", "clusters", "features", "disc", "tree"]
seeds = st.integers(0, 2**31)


def metric(kind: str, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Distances of n random points of a space."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "tree":  # node i hangs from a random earlier node by a random edge
        d = torch.zeros(n, n, dtype=torch.float64)
        for i in range(1, n):
            parent = int(torch.randint(i, (), generator=generator))
            d[i, :i] = d[:i, i] = d[parent, :i] + float(normal(1).abs())
        return d.to(dtype)
    if kind == "disc":  # uniform in the hyperbolic area of a disk of radius 6
        share = torch.rand(n, generator=generator, dtype=torch.float64)
        radius = torch.acosh(1 + share * (math.cosh(6.0) - 1))
        direction = normal(n, 2)
        x = (radius / 2).tanh().unsqueeze(1) * direction / direction.norm(dim=1, keepdim=True)
        return poincare.cdist(x, x, 1.0, "exact").to(dtype)
    if kind == "clusters":
        x = 3 * normal(20, 16)[torch.randint(20, (n,), generator=generator)] + 0.5 * normal(n, 16)
    else:
        x = normal(n, 16) if kind == "gaussian" else (normal(n, 4) @ normal(4, 64)).relu()
    return gromov.euclidean_distances(x).to(dtype)


def published(d: Tensor, base: int) -> Tensor:
    """δ_p as HIE's code has it, row by row."""
    a = (d[base].unsqueeze(1) + d[base] - d) / 2
    return max((torch.minimum(row, a).amax(1) - row).amax() for row in a)


def four_point(d: Tensor) -> float:
    """δ from all quadruples."""
    best = 0.0
    for x, y, z, w in itertools.combinations(range(len(d)), 4):
        sums = sorted(float(s) for s in (d[x, y] + d[z, w], d[x, z] + d[y, w], d[x, w] + d[y, z]))
        best = max(best, (sums[2] - sums[1]) / 2)
    return best


@pytest.mark.parametrize("method", ["numba", "torch"])
@pytest.mark.parametrize("kind", SETS)
def test_delta_is_the_published_formula(kind, method):
    for dtype in (torch.float32, torch.float64):
        d = metric(kind, 90, dtype=dtype)
        slack = 4 * torch.finfo(dtype).eps * float(d.amax())
        for base in (0, 17, -1):
            delta = gromov.delta_hyperbolicity(d, base, method)
            assert delta.dtype == dtype and delta.shape == ()
            assert float((delta - published(d, base)).abs()) <= slack


@settings(max_examples=10)
@given(seed=seeds, kind=st.sampled_from(SETS), n=st.integers(4, 14))
def test_delta_over_all_base_points_is_that_of_all_quadruples(seed, kind, n):
    d = metric(kind, n, seed)
    slack = 1e-13 * float(d.amax())
    for method in ("numba", "torch"):
        assert abs(float(gromov.delta_hyperbolicity(d, "all", method)) - four_point(d)) <= slack
    assert abs(float(gromov.delta_by_base(d, range(n)).amax()) - four_point(d)) <= slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SETS)
def test_all_paths_give_the_same_bits(kind, dtype):
    for n in (5, 32, 33, 200):
        d = gromov._checked(metric(kind, n, n, dtype))  # made exactly symmetric, as the searches expect
        order = gromov._nearby_order(d)
        base = n // 2
        expected = gromov.delta_hyperbolicity(d, base, "torch")
        assert torch.equal(gromov.delta_hyperbolicity(d, base, "numba"), expected)
        for kernel in ("pruned", "dense"):
            doubled, _ = _gromov_numba.search(d, order, base, 0.0, kernel)
            assert doubled / 2 == float(expected)
            doubled, _ = _gromov_numba.search(d, torch.arange(n), base, 0.0, kernel)
            assert doubled / 2 == float(expected)
    d = metric(kind, 40, 1, dtype)
    assert torch.equal(gromov.delta_hyperbolicity(d, "all", "torch"), gromov.delta_hyperbolicity(d, "all", "numba"))


def test_threads_do_not_change_delta():
    d = metric("clusters", 600, dtype=torch.float32)
    one = gromov.delta_hyperbolicity(d, 0, "numba")
    torch.set_num_threads(2)
    try:
        assert torch.equal(gromov.delta_hyperbolicity(d, 0, "numba"), one)
        order = gromov._nearby_order(d)
        assert _gromov_numba.search(d, order, 0, 0.0, "dense")[0] == 2 * float(one)
    finally:
        torch.set_num_threads(1)


@settings(max_examples=20)
@given(seed=seeds, kind=st.sampled_from(SETS))
def test_delta_of_one_base_point_bounds_the_exact_one(seed, kind):
    d = metric(kind, 25, seed)
    exact, by_base = gromov.delta_hyperbolicity(d, "all"), gromov.delta_by_base(d, range(25))
    slack = 1e-13 * d.amax()
    assert (by_base <= exact + slack).all() and (exact <= 2 * by_base + slack).all()
    assert torch.equal(by_base[3], gromov.delta_hyperbolicity(d, 3))


@settings(max_examples=20)
@given(seed=seeds, kind=st.sampled_from(SETS))
def test_delta_ignores_the_order_and_scales_with_the_distances(seed, kind):
    d = metric(kind, 70, seed)
    new = torch.randperm(70, generator=torch.Generator().manual_seed(seed))
    shuffled = d[new][:, new]
    where = int((new == 5).nonzero())
    assert torch.equal(gromov.delta_hyperbolicity(shuffled, where), gromov.delta_hyperbolicity(d, 5))
    torch.testing.assert_close(
        gromov.delta_hyperbolicity(shuffled[:30, :30], "all"),
        gromov.delta_hyperbolicity(d[new[:30].sort().values][:, new[:30].sort().values], "all"),
        rtol=1e-12,
        atol=1e-13 * float(d.amax()),
    )
    assert torch.equal(gromov.delta_hyperbolicity(8 * d), 8 * gromov.delta_hyperbolicity(d))
    torch.testing.assert_close(gromov.relative_delta(3 * d), gromov.relative_delta(d), rtol=1e-12, atol=1e-14)


def test_a_tree_has_delta_zero():
    d = metric("tree", 200)
    for method in ("numba", "torch"):
        assert float(gromov.relative_delta(d, 0, method)) < 1e-14
    assert float(gromov.relative_delta(metric("tree", 50), "all")) < 1e-14


def test_known_spaces_have_their_delta():
    square = torch.tensor([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]]).double()  # a cycle of four
    assert float(gromov.delta_hyperbolicity(square)) == 1.0 and float(gromov.relative_delta(square)) == 1.0
    for c in (0.5, 1.0):  # a square with its corners near the sphere reaches the plane's ln 2/√c
        x = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64) * (1 - 1e-7) / c**0.5
        delta = float(gromov.delta_hyperbolicity(poincare.cdist(x, x, c, "exact"), "all"))
        assert delta == pytest.approx(math.log(2) / c**0.5, rel=1e-6)
    inside = float(gromov.delta_hyperbolicity(metric("disc", 150), "all"))
    assert 0.68 < inside <= math.log(2)


def test_relative_delta_of_the_disk_gives_back_its_curvature():
    # Points spread evenly over the disk that the constant is made from.
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(400, generator=generator, dtype=torch.float64)
    radius = torch.acosh(1 + share * (math.cosh(12.2) - 1))
    turn = 2 * math.pi * torch.rand(400, generator=generator, dtype=torch.float64)
    x = (radius / 2).tanh().unsqueeze(1) * torch.stack([turn.cos(), turn.sin()], 1)
    delta = gromov.relative_delta(poincare.cdist(x, x, 1.0, "exact"))
    assert float(delta) == pytest.approx(0.057, abs=1e-3)
    assert gromov.curvature_from_delta(delta, "hyperbolic_plane") == pytest.approx(1.0, abs=0.03)


def test_curvature_from_delta_has_the_papers_numbers():
    for delta, c in {0.17: 0.718, 0.21: 0.470, 0.23: 0.392, 0.25: 0.332, 0.26: 0.307}.items():
        assert round(gromov.curvature_from_delta(delta), 3) == c
    assert round(gromov.DELTA_CONSTANTS["hyperbolic_plane"], 4) == 0.0568
    assert gromov.curvature_from_delta(torch.tensor(0.0)) == math.inf
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            gromov.curvature_from_delta(wrong)
    with pytest.raises(ValueError, match="paper, hyperbolic_plane"):
        gromov.curvature_from_delta(0.2, "papier")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_euclidean_distances_keep_near_pairs(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 300, generator=generator, dtype=torch.float64).to(dtype)
    x[1] = x[0]
    x[2] = x[0]
    x[2, 7] += 1e-3 if dtype == torch.float16 else 1e-6
    x = x + 1  # far from the origin as features after a ReLU are
    d = gromov.euclidean_distances(x)
    assert d.dtype == torch.promote_types(dtype, torch.float32)
    exact = (x.double().unsqueeze(1) - x.double()).norm(dim=-1)
    torch.testing.assert_close(d.double(), exact, rtol=2 * torch.finfo(d.dtype).eps, atol=0)
    assert torch.equal(d, d.T) and float(d.diagonal().amax()) == 0 and float(d[0, 1]) == 0
    assert gromov.euclidean_distances(x[:1]).tolist() == [[0.0]]


def test_rounding_is_forgiven_and_gradients_are_dropped():
    d = metric("gaussian", 50, dtype=torch.float32)
    noise = 1e-6 * torch.rand(50, 50, generator=torch.Generator().manual_seed(0))
    rough = (d * (1 + noise)).requires_grad_()
    delta = gromov.delta_hyperbolicity(rough, 0, "torch")
    assert not delta.requires_grad
    assert torch.equal(delta, gromov.delta_hyperbolicity(rough, 0, "numba"))
    torch.testing.assert_close(delta, gromov.delta_hyperbolicity(d), rtol=1e-5, atol=0)
    assert torch.equal(-0.0 * d + d, d) and torch.equal(gromov.delta_hyperbolicity(torch.zeros(4, 4)), torch.zeros(()))


def changed(d: Tensor, *entries: tuple[int, int], to: float) -> Tensor:
    d = d.clone()
    for i, j in entries:
        d[i, j] = to
    return d


def test_wrong_input_is_named():
    d = metric("gaussian", 8)
    cases = [
        (d[:3, :3], ValueError, "at least 4 points, got 3"),
        (d[:5], ValueError, "square"),
        (d[0], ValueError, "square"),
        (d.unsqueeze(0), ValueError, "square"),
        (d.long(), TypeError, "int64"),
        (d.half(), TypeError, "float16"),
        (d.numpy(), TypeError, "tensor"),
        (changed(d, (1, 2), to=9.0), ValueError, "symmetric"),
        (changed(d, (1, 2), (2, 1), to=-1.0), ValueError, ">= 0, got -1"),
        (changed(d, (1, 2), (2, 1), to=math.nan), ValueError, "not finite"),
        (changed(d, (1, 2), (2, 1), to=math.inf), ValueError, "not finite"),
        (changed(d, (3, 3), to=0.5), ValueError, "diagonal"),
        (changed(d, (1, 2), (2, 1), to=99.0), ValueError, "triangle inequality at point 0"),
    ]
    for wrong, error, words in cases:
        for method in ("numba", "torch"):
            with pytest.raises(error, match=words):
                gromov.delta_hyperbolicity(wrong, 0, method)
    for base, error in ((8, ValueError), (-9, ValueError), (1.0, TypeError), ("some", TypeError), (True, TypeError)):
        with pytest.raises(error, match="base must be"):
            gromov.delta_hyperbolicity(d, base)
    with pytest.raises(ValueError, match="method must be"):
        gromov.delta_hyperbolicity(d, method="fast")
    with pytest.raises(ValueError, match="two different points"):
        gromov.relative_delta(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="CPU"):
        gromov._search(d.to("meta"), 1, "numba")
    for features, error in ((torch.ones(3, 2).long(), TypeError), (torch.ones(3), ValueError), (d / 0, ValueError)):
        with pytest.raises(error, match="features"):
            gromov.euclidean_distances(features)


def test_without_numba_torch_does_the_work(monkeypatch):
    d = metric("gaussian", 20)
    expected = gromov.delta_hyperbolicity(d, 0, "numba")
    monkeypatch.delattr(geometry, "_gromov_numba")
    monkeypatch.setitem(sys.modules, "hypimg.geometry._gromov_numba", None)  # importing it fails
    monkeypatch.setattr(gromov, "_NUMBA_PAYS", 0)
    assert torch.equal(gromov.delta_hyperbolicity(d), expected)
    with pytest.raises(ImportError, match=r"hypimg\[fast\]"):
        gromov.delta_hyperbolicity(d, method="numba")
