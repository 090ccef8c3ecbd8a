"""Derivatives of the Poincaré ball: right in float64, finite in float32, at 0, at x = y and on the clip sphere."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hypimg.geometry import poincare as pb


def inputs(points, call, c, margin, n):
    """x, y, v with the origin and the clip sphere among them, and c as a tensor, all wanting a gradient."""
    unit = max(c, 1.0)  # lengths of about 1, so that a step of gradcheck in c is small against every c‖x‖²
    x, y, v = (points(seed, n, 3, unit, torch.float64, margin) for seed in range(3))
    if "dist" in call.__name__:  # a distance has no derivative where it is 0
        x, y = x + 0.01, y - 0.02
    # c = 0 is the end of its range: the step to both sides of gradcheck would leave it, see the test below.
    return *(t.requires_grad_() for t in (x, y, 0.7 * v)), torch.tensor(c, dtype=torch.float64, requires_grad=c > 0)


@pytest.mark.parametrize("c", [0.0, 1e-4, 1.3])
def test_first_derivatives_are_right(points, call, c):
    assert gradcheck(call, inputs(points, call, c, margin=0.2, n=4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("c", [0.0, 1.3])
def test_second_derivatives_are_right(points, call, c):
    assert gradgradcheck(call, inputs(points, call, c, margin=0.3, n=2), atol=1e-4, rtol=1e-3)


def test_derivative_in_c_at_zero_is_the_one_from_above(points, call):
    x, y, v, _ = inputs(points, call, 0.0, margin=0.2, n=4)
    zero, step = torch.zeros((), dtype=torch.float64, requires_grad=True), 1e-7
    function = lambda c: call(x, y, v, c).detach()  # noqa: E731
    analytic = torch.autograd.functional.jacobian(lambda c: call(x, y, v, c), zero)
    numeric = (function(torch.tensor(step, dtype=torch.float64)) - function(zero.detach())) / step
    torch.testing.assert_close(analytic, numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("c", [0.0, 1e-3, 1.0])
def test_maps_are_smooth_where_points_coincide(points, c):
    x = points(0, 4, 3, c or 1.0, torch.float64, margin=0.2)
    y, v = x.clone(), torch.zeros_like(x)
    k = torch.tensor(c, dtype=torch.float64)
    arguments = tuple(t.requires_grad_() for t in (x, y, v, k))
    smooth = [
        lambda x, y, v, k: pb.logmap(x, y, k),
        lambda x, y, v, k: pb.expmap(x, v, k),
        lambda x, y, v, k: pb.mobius_add(-x, y, k),
        lambda x, y, v, k: pb.geodesic(0.3, x, y, k),
        lambda x, y, v, k: pb.transport(x, y, v + 1, k),
        lambda x, y, v, k: pb.expmap0(v, k, 1e-3),
        lambda x, y, v, k: pb.logmap0(v, k),
        lambda x, y, v, k: pb.mobius_scalar_mul(0.3, v, k),
    ]
    for function in smooth:
        assert gradcheck(function, arguments, atol=1e-5, rtol=1e-4)
        assert gradgradcheck(function, arguments, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [0.0, 1e-6, 1.0])
def test_logmap_has_unit_jacobians_where_points_coincide(points, c, dtype):
    for x in points(0, 6, 3, c or 1.0, dtype):
        in_x, in_y = torch.autograd.functional.jacobian(lambda x, y: pb.logmap(x, y, c), (x, x.clone()))
        eye = torch.eye(3, dtype=dtype)
        torch.testing.assert_close(in_y, eye, rtol=0, atol=8 * torch.finfo(dtype).eps)
        torch.testing.assert_close(in_x, -eye, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [1e-3, 1e-5])
@pytest.mark.parametrize("c", [1e-6, 0.1, 10.0])
def test_values_and_gradients_are_finite_everywhere(points, call, c, margin, dtype):
    """At the origin, at x = y, at x = −y, on the clip sphere, and a float32 step away from each."""
    x = points(0, 12, 3, c, dtype, margin)
    k = torch.tensor(c, dtype=dtype)
    steps = [torch.zeros_like(x), 1e-6 * x.flip(-1), 1e-30 * torch.ones_like(x)]
    for y in [x, -x, torch.zeros_like(x), x.flip(0)]:
        for step in steps:
            near = pb.project(y + step, c, margin)
            arguments = tuple(t.detach().clone().requires_grad_() for t in (x, near, step * 3, k))
            value = call(*arguments)
            assert value.isfinite().all()
            gradients = torch.autograd.grad(value.sum(), arguments, allow_unused=True)
            assert all(g.isfinite().all() for g in gradients if g is not None)


def test_gradient_of_a_distance_of_nothing_is_zero():
    x = torch.tensor([[0.3, 0.1], [0.0, 0.0]], requires_grad=True)
    for value in (pb.dist(x, x.detach(), 1.0), pb.cdist(x, x.detach(), 1.0).diagonal()):
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert not gradient.any()
    (gradient,) = torch.autograd.grad(pb.dist0(x, 1.0)[1], x)
    assert not gradient.any()


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-3, 1.0, 9.1, 50.0, 1e10, 1e30])
def test_expmap0_takes_vectors_of_any_length(length):
    v = torch.tensor([[0.6, 0.8]]).mul(length).requires_grad_()
    x = pb.expmap0(v, 1.0, 1e-3)
    (gradient,) = torch.autograd.grad(x.sum(), v)
    assert x.isfinite().all() and gradient.isfinite().all()
    assert float(x.detach().norm()) == pytest.approx(min(torch.tensor(length).tanh().item(), 1 - 1e-3), rel=1e-6)
    if length < 1e-2:
        torch.testing.assert_close(gradient, torch.ones(1, 2), rtol=1e-5, atol=0)


def test_clipping_cuts_the_radial_part_of_the_gradient():
    v = torch.tensor([[3.0, 4.0]], requires_grad=True)
    for x in (pb.project(v, 1.0, 1e-3), pb.expmap0(v, 1.0, 1e-3)):
        (radial,) = torch.autograd.grad((x * v.detach()).sum(), v, retain_graph=True)
        (tangential,) = torch.autograd.grad((x * torch.tensor([[-4.0, 3.0]])).sum(), v)
        assert radial.abs().max() < 1e-6
        torch.testing.assert_close(tangential, torch.tensor([[-4.0, 3.0]]) * (1 - 1e-3) / 5)
