"""The plain form in Lorentz coordinates: it is the ball of `hypimg.geometry` in other coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from poincare_reference import agree, gap, tensor

from hypimg.geometry import means, poincare
from hypimg.nn import lorentz

CS = (0.1, 1.0)
UNBOUNDED = lorentz.longest_tangent(0.0)

seeds = st.integers(0, 2**20)
sizes = st.sampled_from([1e-6, 1e-2, 0.3, 0.7])  # longer ones have no digits in the coordinates of the ball
channels = st.integers(1, 6)


def points(seed, d, size, shape=(2, 3, 4)):
    """W [N, d, H, W] of tangents with coordinates of this size, about one point that is not the origin."""
    u = tensor(shape[0], d, *shape[1:], seed=seed, size=size) + tensor(1, d, 1, 1, seed=seed + 1, size=0.3)
    return lorentz.points_of(u, UNBOUNDED)


def to_ball(w, c=1.0):
    """[N, d, H, W] → [N H W, d]."""
    flat = w.movedim(1, -1).flatten(0, -2)
    return flat / (c**0.5 * (1 + (1 + flat.square().sum(-1, keepdim=True)).sqrt()))


@given(seeds, channels, sizes, st.sampled_from(CS))
def test_points_and_tangents_are_exp_and_log_at_the_origin(seed, d, size, c):
    v = tensor(5, d, 1, 1, seed=seed, size=size)
    w = lorentz.points_of(c**0.5 * v, UNBOUNDED)
    assert gap(to_ball(w, c), poincare.expmap0(v[..., 0, 0], c)) < 1e-13
    assert gap(lorentz.tangents_of(w), c**0.5 * v) < 1e-13


@pytest.mark.parametrize("margin", [4e-3, 1e-3, 1e-5])
def test_the_cap_is_the_clip_sphere(margin):
    c, v = 0.3, tensor(40, 3, 1, 1, size=6)
    limit = lorentz.longest_tangent(margin)
    w = lorentz.points_of(c**0.5 * v, limit)
    projected = poincare.expmap0(v[..., 0, 0], c, margin)
    assert gap(to_ball(w, c), projected) < 1e-10
    at_clip = (c**0.5 * projected.norm(dim=-1) > (1 - margin) * (1 - 1e-12)).sum()
    assert 5 < at_clip < 40
    long = lorentz.points_of(c**0.5 * v, UNBOUNDED)
    assert gap(lorentz.project(long, limit), w) < 1e-10
    assert lorentz.longest_tangent(margin) == math.atanh(1 - margin)


def test_the_gradient_of_a_capped_point_has_no_radial_part():
    limit = lorentz.longest_tangent(1e-3)
    for function in (lambda u: lorentz.points_of(u, limit), lambda u: lorentz.project(u, limit)):
        u = (3000 * tensor(4, 3, 1, 1)).requires_grad_()
        (gradient,) = torch.autograd.grad((tensor(4, 3, 1, 1, seed=1) * function(u)).sum(), u)
        assert gradient.abs().max() > 0
        assert (gradient * u).sum(1).abs().max() < 1e-10 * (gradient.norm(dim=1) * u.norm(dim=1)).max()


@given(seeds, channels, sizes)
def test_the_mobius_sum_is_that_of_the_ball_and_cancels_from_the_left(seed, d, size):
    x, y = points(seed, d, size), points(seed + 2, d, 0.5)
    total = lorentz.mobius_sum(x, y)
    assert gap(to_ball(total), poincare.mobius_add(to_ball(x), to_ball(y), 1.0)) < 1e-12
    # digits are lost as the square of x's time coordinate
    time = float(1 + x.square().sum(1).max())
    assert gap(lorentz.mobius_sum(-x, total), y) < 1e-14 * time**2
    assert torch.equal(lorentz.mobius_sum(torch.zeros_like(y), y), y)
    assert gap(lorentz.mobius_sum(x, torch.zeros_like(x)), x) < 1e-14 * time


@given(seeds, channels, sizes)
def test_the_midpoint_is_that_of_the_ball_and_moves_with_the_points(seed, d, size):
    w = points(seed, d, size)
    mean = lorentz.midpoint(w)
    assert mean.shape == (1, d, 1, 1)
    assert gap(to_ball(mean)[0], means.midpoint(to_ball(w), 1.0)) < 1e-11
    boost = lorentz.points_of(tensor(1, d, 1, 1, seed=seed + 3, size=0.5), UNBOUNDED)
    assert gap(lorentz.midpoint(lorentz.mobius_sum(boost, w)), lorentz.mobius_sum(boost, mean)) < 1e-10
    one = w[:1, :, :1, :1]
    assert gap(lorentz.midpoint(one.expand(3, d, 2, 2)), one) < 1e-13 * float(1 + one.square().sum())


@given(seeds, channels, st.sampled_from([1e-2, 0.3, 0.7]), st.sampled_from(CS))
def test_moving_is_log_transport_scaling_and_exp(seed, d, size, c):
    w, bias, gain = points(seed, d, size), tensor(d, seed=seed + 4, size=0.4), torch.tensor(1.7, dtype=torch.float64)
    norm = lorentz.Norm(gain, c**0.5 * bias, c, 1e-6, False)
    mean = lorentz.midpoint(w)
    moved, variance = lorentz.moved(w, mean, None, norm, UNBOUNDED)
    x, m = to_ball(w, c), to_ball(mean, c)
    expected = poincare.dist(x, m, c).square().mean()
    assert gap(variance, expected) < 1e-10
    b = poincare.expmap0(bias, c)
    v = (gain / (expected + 1e-6)).sqrt() * poincare.transport(m, b, poincare.logmap(m, x, c), c)
    y = poincare.expmap(b, v, c)
    # by the logarithm at the target: near the sphere the ball's own coordinates have no digits
    assert gap(poincare.logmap(b, to_ball(moved, c), c), poincare.logmap(b, y, c)) < 1e-8
    given_variance, same = lorentz.moved(w, mean, variance, norm, UNBOUNDED)
    assert torch.equal(given_variance, moved) and same is variance


@given(seeds, channels, st.sampled_from([0.1, 0.5, 1.0]))
def test_moving_by_unit_scale_is_an_isometry(seed, d, size):
    w = points(seed, d, size)
    norm = lorentz.Norm(torch.ones((), dtype=torch.float64), tensor(d, seed=seed), 1.0, 0.0, False)
    one = torch.ones((), dtype=torch.float64)
    moved, _ = lorentz.moved(w, lorentz.midpoint(w), one, norm, UNBOUNDED)
    before, after = (poincare.cdist(to_ball(v), to_ball(v), 1.0, "exact") for v in (w, moved))
    assert gap(after, before) < 1e-9
    assert gap(lorentz.midpoint(moved), lorentz.points_of(norm.bias.view(1, -1, 1, 1), UNBOUNDED)) < 1e-9


def test_near_points_keep_their_distances_in_float32():
    """cosh d − 1 from a rounded cosh would have no digits: pitfall 1 of the plain form."""
    u = tensor(8, 4, 6, 6, size=1e-3) + tensor(1, 4, 1, 1, seed=1, size=1e-2)
    rounded = lorentz.points_of(u, UNBOUNDED).float()
    for frechet in (False, True):
        norm = [
            lorentz.Norm(torch.ones((), dtype=t), torch.zeros(4, dtype=t), 1.0, 1e-6, frechet)
            for t in (torch.float64, torch.float32)
        ]
        expected, _ = lorentz.moved(rounded.double(), lorentz.midpoint(rounded.double()), None, norm[0], UNBOUNDED)
        found, _ = lorentz.moved(rounded, lorentz.midpoint(rounded), None, norm[1], UNBOUNDED)
        assert gap(found.double(), expected) < 1e-4  # a rounded cosh − 1 would be wrong by 1e-7 in 4e-6


@pytest.mark.parametrize(("spread", "d"), [(0.3, 4), (1.3, 4), (2.7, 16), (4.1, 4)])
def test_the_frechet_mean_is_that_of_the_ball(spread, d):
    """Within three Newton steps, at spreads where a Karcher step of length 1 diverges (2.7, 4.1)."""
    direction = tensor(2, d, 6, 6)
    u = spread / 2 * direction / direction.norm(dim=1, keepdim=True) + tensor(1, d, 1, 1, seed=1, size=0.2)
    u.requires_grad_()
    w = lorentz.points_of(u, UNBOUNDED)
    found, newton = lorentz.frechet_mean(w)
    expected = means.frechet_mean(to_ball(w), 1.0, tolerance=1e-13).point
    agree(to_ball(found)[0], expected, {"points": u}, value=1e-9, slope=1e-8)
    assert 0 <= newton < 1e-4 and found.isfinite().all()


def test_the_frechet_means_gradient_is_that_of_the_implicit_function():
    """By finite differences of the ball's own iteration to the end."""
    u = tensor(1, 2, 2, 2, size=0.3)

    def mean(u):
        return means.frechet_mean(to_ball(lorentz.points_of(u, UNBOUNDED)), 1.0, tolerance=1e-14).point

    u.requires_grad_()
    found, _ = lorentz.frechet_mean(lorentz.points_of(u, UNBOUNDED))
    (gradient,) = torch.autograd.grad(to_ball(found)[0, 0], u)
    step = 1e-5
    with torch.no_grad():
        for index in ((0, 0, 0, 0), (0, 1, 1, 0)):
            shift = torch.zeros_like(u)
            shift[index] = step
            difference = (mean(u + shift) - mean(u - shift))[0] / (2 * step)
            assert gradient[index] == pytest.approx(float(difference), rel=1e-7)


def test_a_frechet_mean_of_equal_points_is_the_point():
    w = points(0, 3, 0.5)[:1, :, :1, :1]
    for same in (w, w.expand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64)):
        mean, newton = lorentz.frechet_mean(same)
        assert mean.isfinite().all() and newton < 1e-12
        assert (mean - same[:1, :, :1, :1]).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("channels", "ratio"), [(3, 0.310), (4, 0.316), (8, 0.324), (16, 0.329), (32, 0.331), (512, 0.3333)]
)
def test_the_factor_of_the_concatenation(channels, ratio):
    found = lorentz.beta_ratio(9 * channels, channels)
    assert found == pytest.approx(ratio, abs=6e-4)
    assert 9**0.5 * found < 1  # nine tangents within the cap join to one within it: no projection is needed
    assert lorentz.beta_ratio(channels, channels) == 1


def test_no_field_needs_a_projection_up_to_512_channels():
    assert all(3 * lorentz.beta_ratio(9 * n, n) < 1 for n in range(1, 513))


def test_planes_of_no_direction_have_a_score_of_zero_and_a_gradient():
    u, z = tensor(3, 4), torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    p = lorentz.planes(z, None, 1.0)
    square = u.square().sum(1, keepdim=True)
    v = lorentz.scores(u @ p.weight.T, square, p, UNBOUNDED, False)
    assert (v == 0).all()
    (gradient,) = torch.autograd.grad(v[:, 0].sum(), z)
    # of a short direction: 2 ‖z‖ arsinh(t) ≈ 2 (sinh 2s/s) ⟨u, z⟩
    s = square.sqrt()
    assert gap(gradient[0], (2 * (2 * s).sinh() / s * u).sum(0)) < 1e-12 and (gradient[1] == 0).all()


@pytest.mark.parametrize("r", [0.0, 3.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_offset_overflows(r, dtype):
    z, offset = torch.ones(2, 3, dtype=dtype), torch.full((2,), r, dtype=dtype, requires_grad=True)
    p = lorentz.planes(z, offset, 0.5)
    u = tensor(4, 3).to(dtype)
    v = lorentz.scores(u @ p.weight.T, u.square().sum(1, keepdim=True), p, lorentz.longest_tangent(1e-3), False)
    w = lorentz.points_of_scores(v, lorentz.longest_tangent(1e-3))
    w.sum().backward()
    assert v.isfinite().all() and w.isfinite().all() and offset.grad.isfinite().all()


@pytest.mark.parametrize("frechet", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_layer_is_its_parts(frechet, inverted):
    """Nothing is lost between them, for their gradients neither; and its statistics have no gradient."""
    u, z, skip = tensor(3, 2, 6, 5).requires_grad_(), tensor(4, 2, 3, 3), tensor(3, 4, 3, 5, seed=1).requires_grad_()
    limit, window = lorentz.longest_tangent(1e-3), ((2, 1), (1, 1))
    norm = lorentz.Norm(torch.tensor(0.7).double(), tensor(4, size=0.2), 0.3, 1e-6, frechet)
    p = lorentz.planes(z, tensor(4, seed=2), 0.3)
    made = lorentz.layer(u, p, *window, limit, inverted, norm, skip, relu=True)
    w = lorentz.convolution(u, p, *window, limit, inverted)
    mean = lorentz.frechet_mean(w)[0] if frechet else lorentz.midpoint(w)
    moved, variance = lorentz.moved(w, mean, None, norm, limit)
    expected = lorentz.residual(lorentz.tangents_of(moved), skip, limit).relu()
    agree(made.tangents, expected, {"u": u, "skip": skip}, value=1e-13, slope=1e-11)
    assert torch.equal(made.mean, mean) and torch.equal(made.variance, variance)
    assert not (made.mean.requires_grad or made.variance.requires_grad or made.newton.requires_grad)
    bare = lorentz.layer(u, p, *window, limit, inverted)
    assert torch.equal(bare.tangents, lorentz.tangents_of(w)) and bare[1:] == (None, None, None)


def test_a_layers_gradients_are_those_of_finite_differences():
    limit = lorentz.longest_tangent(1e-3)

    def run(u, z, r, gain, bias, c, skip, frechet):
        p, norm = lorentz.planes(z, r, c), lorentz.Norm(gain, c**0.5 * bias, c, 1e-6, frechet)
        return lorentz.layer(c**0.5 * u, p, (1, 1), (1, 1), limit, False, norm, c**0.5 * skip).tangents

    one = torch.tensor(0.6, dtype=torch.float64)
    inputs = [tensor(1, 2, 2, 2), tensor(2, 2, 3, 3), tensor(2, seed=1), one, tensor(2, seed=2), one / 2]
    inputs = [x.clone().requires_grad_() for x in (*inputs, tensor(1, 2, 2, 2, seed=3))]
    for frechet in (False, True):
        assert torch.autograd.gradcheck(lambda *x, f=frechet: run(*x, f), inputs, atol=1e-6, rtol=1e-5)
