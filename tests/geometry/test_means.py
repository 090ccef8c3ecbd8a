"""The midpoint of the Poincaré ball."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from hypimg.geometry import means, poincare

seeds, curvatures = st.integers(0, 2**31), st.floats(-6, 1).map(lambda k: 10.0**k)


def by_klein(x, c, w):
    """HIE's formula, in float64 and away from the sphere."""
    k = poincare.to_klein(x, c)
    gamma = (w / (1 - c * k.square().sum(-1)).sqrt()).unsqueeze(-1)
    return poincare.from_klein((gamma * k).sum(-2) / gamma.sum(-2), c)


@settings(max_examples=50)
@given(seed=seeds, c=curvatures)
def test_midpoint_is_the_einstein_midpoint(points, seed, c):
    x = points(seed, 7, 3, c, torch.float64, margin=0.05)
    w = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    assert float((means.midpoint(x, c, w) - by_klein(x, c, w)).norm() * c**0.5) < 1e-11
    assert float((means.midpoint(x, c) - by_klein(x, c, torch.ones_like(w))).norm() * c**0.5) < 1e-11


@settings(max_examples=50)
@given(seed=seeds, c=curvatures, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_midpoint_moves_with_the_points(points, seed, c, dtype):
    x, a = points(seed, 7, 3, c, dtype, margin=0.1), points(seed + 1, 2, 3, c, dtype, margin=0.3)[:1]
    moved = means.midpoint(poincare.mobius_add(a, x, c), c)
    assert (
        float((moved - poincare.mobius_add(a[0], means.midpoint(x, c), c)).norm() * c**0.5)
        < 200 * torch.finfo(dtype).eps
    )


@settings(max_examples=50)
@given(seed=seeds, c=curvatures, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_midpoint_of_one_point_is_the_point(points, seed, c, dtype):
    x = points(seed, 12, 3, c, dtype)
    tolerance = 2 * torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 1e4) / c**0.5
    torch.testing.assert_close(means.midpoint(x.unsqueeze(1), c), x, rtol=0, atol=tolerance)
    repeated = x.unsqueeze(1).expand(-1, 5, -1)
    torch.testing.assert_close(means.midpoint(repeated, c), x, rtol=0, atol=tolerance)


def test_midpoint_of_two_points_halves_their_geodesic(points):
    x, y = points(0, 12, 3, 0.5, torch.float64), points(1, 12, 3, 0.5, torch.float64)
    torch.testing.assert_close(
        means.midpoint(torch.stack([x, y]), 0.5, dim=0), poincare.geodesic(0.5, x, y, 0.5), rtol=1e-9, atol=1e-9
    )


def test_midpoint_takes_any_dimension_but_the_last(points):
    x = points(0, 24, 3, 1.0, torch.float32).reshape(2, 3, 4, 3)
    assert torch.equal(means.midpoint(x, 1.0), means.midpoint(x, 1.0, dim=2))
    assert torch.equal(means.midpoint(x, 1.0, dim=0), means.midpoint(x.movedim(0, 2), 1.0))
    w = torch.tensor([1.0, 0.0, 2.0, 1.0])
    assert means.midpoint(x, 1.0, w).shape == (2, 3, 3)
    without = torch.cat([x[..., :1, :], x[..., 2:, :], x[..., 2:3, :]], -2)
    torch.testing.assert_close(means.midpoint(x, 1.0, w), means.midpoint(without, 1.0), rtol=1e-6, atol=1e-7)
    for dim in (-1, 3):
        with pytest.raises(ValueError, match="last dimension"):
            means.midpoint(x, 1.0, dim=dim)


def test_midpoint_at_zero_curvature_is_the_weighted_mean():
    x, w = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    for c in (0.0, torch.tensor(0.0, requires_grad=True)):
        torch.testing.assert_close(means.midpoint(x, c), x.mean(0))
        torch.testing.assert_close(means.midpoint(x, c, w), (w.unsqueeze(-1) * x).sum(0) / w.sum())


@pytest.mark.parametrize("c", [0.0, 1.2])
def test_midpoint_has_right_and_finite_derivatives(points, c):
    x = points(0, 6, 3, 1.2, torch.float64, margin=0.2).requires_grad_()
    w = torch.rand(6, dtype=torch.float64, requires_grad=True)
    k = torch.tensor(c, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, w, k: means.midpoint(x, k, w), (x, w, k), atol=1e-5, rtol=1e-4)
    edge = points(0, 6, 3, 1.2, torch.float32, margin=1e-5).requires_grad_()
    for points_there in (edge, edge[:1], edge[:1].expand(3, -1)):
        m = means.midpoint(points_there, 1.2)
        (gradient,) = torch.autograd.grad(m.sum(), edge)
        assert m.isfinite().all() and gradient.isfinite().all()


def test_midpoint_compiles_and_comes_out_as_float32(points):
    torch._dynamo.reset()
    x = points(0, 6, 3, 1.0, torch.float32)
    compiled = torch.compile(lambda x: means.midpoint(x, 1.0), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), means.midpoint(x, 1.0))
    batched = torch.func.vmap(lambda x: means.midpoint(x, 1.0))(torch.stack([x, -x]))
    torch.testing.assert_close(batched, means.midpoint(torch.stack([x, -x]), 1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(means.midpoint(x, 1.0), means.midpoint(x, 1.0))
    assert means.midpoint(0.9 * x.bfloat16(), 1.0).dtype == torch.float32
