"""Means of the Poincaré ball: the midpoint, the Fréchet mean and variance."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

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


def test_no_points_have_no_mean():
    for function in (means.midpoint, means.frechet_mean, means.frechet_variance):
        with pytest.raises(ValueError, match=r"at least one point, got none: shape \(4, 0, 3\)"):
            function(torch.zeros(4, 0, 3), 1.0)
        with pytest.raises(ValueError, match="last dimension"):
            function(torch.zeros(4, 5, 3), 1.0, dim=2)
        with pytest.raises(TypeError):
            function(torch.zeros(4, 5, 3, dtype=torch.int64), 1.0)
    assert means.midpoint(torch.zeros(4, 3), 1.0, torch.zeros(4)).isnan().all()


@settings(max_examples=50)
@given(seed=seeds, c=curvatures)
def test_frechet_mean_on_a_diameter_is_the_mean_of_its_coordinates(seed, c):
    """Along a line through the origin the ball is flat: distances are differences of 2 artanh(√c x)/√c."""
    generator = torch.Generator().manual_seed(seed)
    t = 1.5 * torch.randn(2, 9, generator=generator, dtype=torch.float64)
    w = torch.rand(9, generator=generator, dtype=torch.float64)
    way = torch.randn(5, generator=generator, dtype=torch.float64)
    x = t.tanh().unsqueeze(-1) * way / way.norm() / c**0.5
    found = means.frechet_mean(x, c, w)
    mean = (w * t).sum(-1) / w.sum()
    torch.testing.assert_close(found.point * c**0.5, mean.tanh().unsqueeze(-1) * way / way.norm(), rtol=1e-9, atol=1e-9)
    variance = 4 / c * ((w * (t - mean.unsqueeze(-1)).square()).sum(-1) / w.sum())
    torch.testing.assert_close(means.frechet_variance(x, c, w), variance, rtol=1e-9, atol=1e-9 / c)
    assert found.converged.all() and found.residual.shape == (2,)


@pytest.mark.parametrize("c", [0.05, 1.0, 10.0])
def test_geoopt_finds_no_force_at_the_frechet_mean_and_no_better_point(points, c):
    from geoopt.manifolds.stereographic import math

    k = torch.tensor(-c, dtype=torch.float64)
    x = points(0, 9, 4, c, torch.float64, margin=0.1)
    w = torch.rand(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = w / w.sum()
    m = means.frechet_mean(x, c, w.squeeze(-1)).point
    force = (w * math.logmap(m.expand_as(x), x, k=k)).sum(0)
    assert float((math.lambda_x(m, k=k) * force.norm()) * c**0.5) < 1e-11

    def spread(y):
        return float((w.squeeze(-1) * math.dist(x, y.expand_as(x), k=k).square()).sum())

    assert float(means.frechet_variance(x, c, w.squeeze(-1))) == pytest.approx(spread(m), rel=1e-11)
    for step in 1e-4 / c**0.5 * torch.eye(4, dtype=torch.float64):
        assert spread(m) < min(spread(m + step), spread(m - step))


@settings(max_examples=50)
@given(seed=seeds, c=curvatures)
def test_frechet_mean_and_variance_move_with_the_points(points, seed, c):
    x = points(seed, 7, 3, c, torch.float64, margin=0.1)
    a = points(seed + 1, 2, 3, c, torch.float64, margin=0.3)[:1]
    moved = poincare.mobius_add(a, x, c)
    there, here = means.frechet_mean(moved, c).point, means.frechet_mean(x, c).point
    assert float((there - poincare.mobius_add(a[0], here, c)).norm() * c**0.5) < 1e-10
    torch.testing.assert_close(
        c * means.frechet_variance(moved, c), c * means.frechet_variance(x, c), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("norm", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("n", [5, 100])
def test_newton_needs_at_most_four_iterations(norm, n):
    x = torch.randn(64, n, 64, generator=torch.Generator().manual_seed(n))
    found = means.frechet_mean(norm * x / x.norm(dim=-1, keepdim=True), 1.0)
    assert found.iterations <= 4 and found.converged.all()
    assert float(found.residual.max()) < 1e-10
    assert found.point.dtype == found.residual.dtype == torch.float32


@settings(max_examples=50)
@given(seed=seeds, n=st.integers(1, 30), d=st.integers(1, 20))
def test_newton_converges_from_any_points_and_weights(seed, n, d):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    margins = 10 ** (-7 * torch.rand(n, 1, generator=generator, dtype=torch.float64))
    x = (1 - margins) * x / x.norm(dim=-1, keepdim=True)
    found = means.frechet_mean(x, 1.0, 10 ** (-8 * torch.rand(n, generator=generator, dtype=torch.float64)))
    assert found.iterations <= 15
    # A mean at norm 1 − 1e-7 is itself rounded by up to 1e-9.
    assert float(found.residual) < 1e-10 + 1e-14 * float(poincare.conformal_factor(found.point, 1.0))


def test_excess_of_the_hessian_is_smooth_down_to_zero():
    """(√t coth √t − 1)/t, a series below 1e-2."""
    t = torch.logspace(-12, 3, 200, dtype=torch.float64)
    with mpmath.workdps(40):
        exact = [float((mpmath.sqrt(v) * mpmath.coth(mpmath.sqrt(v)) - 1) / mpmath.mpf(v)) for v in t.tolist()]
    torch.testing.assert_close(means._excess(t), torch.tensor(exact, dtype=torch.float64), rtol=2e-13, atol=0)
    assert float(means._excess(torch.zeros(()))) == pytest.approx(1 / 3)


def test_frechet_mean_of_one_point_is_the_point(points):
    x = points(0, 12, 3, 0.3, torch.float32)
    for same in (x.unsqueeze(1), x.unsqueeze(1).expand(-1, 5, -1)):
        torch.testing.assert_close(means.frechet_mean(same, 0.3).point, x, rtol=2e-7, atol=1e-10)
        assert float(means.frechet_variance(same, 0.3).max()) < 1e-9


def test_frechet_mean_takes_any_dimension_and_weights_as_the_midpoint_does(points):
    x = points(0, 24, 3, 1.0, torch.float64).reshape(2, 3, 4, 3)
    inner = means.frechet_mean(x, 1.0, dim=0).point
    assert torch.equal(inner, means.frechet_mean(x.movedim(0, 2), 1.0).point) and inner.shape == (3, 4, 3)
    assert means.frechet_variance(x, 1.0, dim=1).shape == (2, 4)
    w = torch.tensor([1.0, 0.0, 2.0, 1.0])
    without = torch.cat([x[..., :1, :], x[..., 2:, :], x[..., 2:3, :]], -2)
    for function in (means.frechet_variance, lambda *given: means.frechet_mean(*given).point):
        torch.testing.assert_close(function(x, 1.0, w), function(without, 1.0), rtol=1e-9, atol=1e-11)
    about = means.frechet_variance(x, 1.0, mean=torch.zeros(2, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(about, poincare.dist0(x, 1.0).square().mean(-1))


def test_frechet_mean_at_zero_curvature_is_the_weighted_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    w = torch.rand(5, generator=generator, dtype=torch.float64)
    mean = (w.unsqueeze(-1) * x).sum(0) / w.sum()
    for c in (0.0, torch.tensor(0.0, requires_grad=True)):
        torch.testing.assert_close(means.frechet_mean(x, c, w).point, mean)
        variance = 4 * (w * (x - mean).square().sum(-1)).sum() / w.sum()
        torch.testing.assert_close(means.frechet_variance(x, c, w), variance)


@pytest.mark.parametrize("n, d", [(4, 2), (2, 3)])  # one d × d system, one n × n
@pytest.mark.parametrize("c", [0.0, 1.2])
def test_frechet_derivatives_are_right_to_second_order(points, c, n, d):
    x = points(0, n, d, 1.2, torch.float64, margin=0.2).requires_grad_()
    w = torch.linspace(0.5, 1.5, n, dtype=torch.float64, requires_grad=True)
    k = torch.tensor(c, dtype=torch.float64, requires_grad=True)
    for function in (
        lambda x, w, k: means.frechet_mean(x, k, w).point,
        lambda x, w, k: means.frechet_variance(x, k, w),
    ):
        assert gradcheck(function, (x, w, k), atol=1e-6)
        assert gradgradcheck(function, (x, w, k), atol=1e-5)
    about = torch.full((d,), 0.1, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, m, k: means.frechet_variance(x, k, mean=m), (x, about, k), atol=1e-6)


def test_frechet_gradients_are_finite_at_equal_points_and_at_the_sphere(points):
    edge = points(0, 6, 3, 1.2, torch.float32, margin=1e-5).requires_grad_()
    c = torch.tensor(1.2, requires_grad=True)
    for x in (edge, edge[:1], edge[:1].expand(3, -1), torch.zeros_like(edge) * edge):
        value = means.frechet_mean(x, c).point.sum() + means.frechet_variance(x, c)
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, (edge, c)))


def test_sets_without_a_mean_are_told(points):
    x = points(0, 12, 3, 1.0, torch.float32).reshape(3, 4, 3)
    outside, broken = x.clone(), x.clone()
    outside[1, 2] = 1.5
    broken[1, 2] = torch.nan
    for bad, weights in ((outside, None), (broken, None), (x, torch.tensor([[1.0], [0.0], [1.0]]).expand(3, 4))):
        with pytest.raises(RuntimeError, match="1 of 3 sets did not converge"):
            means.frechet_mean(bad, 1.0, weights)
        found = means.frechet_mean(bad, 1.0, weights, steps=4)
        assert found.converged.tolist() == [True, False, True]
        torch.testing.assert_close(found.point[::2], means.frechet_mean(x[::2], 1.0).point)
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        means.frechet_mean(x, 1.0, steps=-1)


def test_fixed_steps_report_their_residual_and_look_at_no_value(points):
    torch._dynamo.reset()
    x = torch.stack([points(0, 6, 3, 1.0, torch.float32), points(1, 6, 3, 1.0, torch.float32)])
    start = means.frechet_mean(x, 1.0, steps=0)
    assert torch.equal(start.point, means.midpoint(x, 1.0)) and not start.converged.any()
    residuals = torch.stack([means.frechet_mean(x, 1.0, steps=steps).residual for steps in range(5)])
    assert (residuals[1:] <= residuals[:-1]).all() and (residuals[4] < 1e-6 * residuals[0]).all()

    def mean(x):
        return means.frechet_mean(x, 1.0, steps=2).point

    x.requires_grad_()
    expected = mean(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled.square().sum(), x)[0], gradient)
    torch.testing.assert_close(torch.func.vmap(mean)(x), expected)
    per_set = torch.func.vmap(torch.func.grad(lambda x: mean(x).square().sum()))(x)
    torch.testing.assert_close(per_set, gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mean(x), expected)
    assert mean(0.9 * x.bfloat16()).dtype == means.frechet_variance(0.9 * x.bfloat16(), 1.0).dtype == torch.float32
