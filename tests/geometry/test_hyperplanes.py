"""Hyperbolic multinomial logistic regression against the printed formulas."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from hypimg.geometry import hyperplanes, poincare

mpmath.mp.dps = 50
N, K, D = 12, 5, 4


def printed_logits(x, p, a, c):
    """HIE's formula as it is printed: the Möbius sum is formed for every pair."""
    moved = poincare.mobius_add(-p.unsqueeze(-3).expand(*x.shape[:-1], *p.shape), x.unsqueeze(-2), c)
    norm = a.norm(dim=-1)
    argument = 2 * c**0.5 * (moved * a).sum(-1) / ((1 - c * moved.square().sum(-1)) * norm)
    return 2 / (1 - c * p.square().sum(-1)) * norm / c**0.5 * argument.asinh()


def printed_unidirectional(x, z, r, c):
    """HNN++'s formula as it is printed."""
    norm, lam = z.norm(dim=-1), (2 / (1 - c * x.square().sum(-1))).unsqueeze(-1)
    angle = 2 * c**0.5 * r
    argument = lam * c**0.5 * (x @ (z / norm.unsqueeze(-1)).mT) * angle.cosh() - (lam - 1) * angle.sinh()
    return 2 * norm / c**0.5 * argument.asinh()


def inputs(points, c, dtype, margin=1e-3, seed=0):
    p = points(seed + 1, K, D, c, dtype, margin)
    a = torch.randn(K, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return points(seed, N, D, c, dtype, margin), p, a


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    c=st.floats(-6, 1).map(lambda k: 10.0**k),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_mlr_logits_are_the_printed_formula(points, seed, c, dtype):
    x, p, a = inputs(points, c, dtype, margin=0.1, seed=seed)
    expected = printed_logits(x.double(), p.double(), a.double(), c)
    ours = hyperplanes.mlr_logits(x, p, a, c)
    assert ours.dtype == dtype and ours.shape == (N, K)
    # λ_x λ_p is at most 100 at this margin: so much of the rounding of one product reaches the argument of arsinh.
    error = (ours.double() - expected).abs() / expected.abs().amax(0)
    assert float(error.max()) < 100 * torch.finfo(dtype).eps


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), c=st.floats(-6, 1).map(lambda k: 10.0**k))
def test_both_regressions_are_one(points, seed, c):
    x, _, z = inputs(points, c, torch.float64, seed=seed)
    r = torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / c**0.5
    ours = hyperplanes.unidirectional_logits(x, z, r, c)
    scale = ours.abs().max()
    assert float((ours - printed_unidirectional(x, z, r, c)).abs().max() / scale) < 1e-11
    p = poincare.expmap0(r.unsqueeze(-1) * z / z.norm(dim=-1, keepdim=True), c)
    a = z / (c**0.5 * r).cosh().square().unsqueeze(-1)
    assert float((ours - hyperplanes.mlr_logits(x, p, a, c)).abs().max() / scale) < 1e-9


@pytest.mark.parametrize("c", [1e-6, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("margin", [0.1, 1e-3, 1e-5])
def test_mlr_logits_keep_five_digits_up_to_the_sphere(points, c, margin):
    """Points up to the clip sphere, offsets at most at norm 0.9: worst error over the largest logit of the class."""
    x, p, a = inputs(points, c, torch.float32, margin)
    p = poincare.project(p, c, 0.1)
    expected = torch.empty(N, K, dtype=torch.float64)
    exact = [[[mpf(float(v)) for v in row] for row in t] for t in (x, p, a)]
    for i, xi in enumerate(exact[0]):
        for k, (pk, ak) in enumerate(zip(exact[1], exact[2], strict=True)):
            xp, xx, pp = (
                mpmath.fsum(u * v for u, v in zip(s, t, strict=True)) for s, t in ((xi, pk), (xi, xi), (pk, pk))
            )
            denominator = 1 - 2 * c * xp + mpf(c) ** 2 * xx * pp
            z = [((1 - c * pp) * u - (1 - 2 * c * xp + c * xx) * v) / denominator for u, v in zip(xi, pk, strict=True)]
            norm = mpmath.sqrt(mpmath.fsum(v * v for v in ak))
            za, zz = mpmath.fsum(u * v for u, v in zip(z, ak, strict=True)), mpmath.fsum(u * u for u in z)
            argument = 2 * mpmath.sqrt(mpf(c)) * za / ((1 - c * zz) * norm)
            expected[i, k] = float(2 / (1 - c * pp) * norm / mpmath.sqrt(mpf(c)) * mpmath.asinh(argument))
    error = (hyperplanes.mlr_logits(x, p, a, c).double() - expected).abs() / expected.abs().amax(0)
    assert float(error.max()) < 5e-6


def test_logits_are_signed_distances_to_the_hyperplane(points):
    """|logit| = λ_p ‖a‖ d(x, H), and H is what geodesics from p at right angles to a reach."""
    c = 0.7
    x, p, a = inputs(points, c, torch.float64, margin=0.3)
    x, p, a = x[0], p[:1], a[:1]
    side = torch.randn(4000, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    side = side - (side @ a[0]).unsqueeze(-1) * a / a.square().sum()
    on_plane = poincare.expmap(p, side, c)
    assert float(hyperplanes.mlr_logits(on_plane, p, a, c).abs().max()) < 1e-9
    nearest = on_plane[poincare.dist(x, on_plane, c).argmin()]
    for _ in range(200):  # descend along the hyperplane to the foot of x
        step = poincare.logmap(p[0], nearest, c).requires_grad_()
        foot = poincare.expmap(p[0], step - (step @ a[0]) * a[0] / a.square().sum(), c)
        (gradient,) = torch.autograd.grad(poincare.dist(x, foot, c).square(), step)
        nearest = poincare.expmap(p[0], (step - 0.02 * gradient).detach(), c)
    length = poincare.conformal_factor(p, c) * a.norm(dim=-1)
    logit = hyperplanes.mlr_logits(x, p, a, c)
    assert float(length * poincare.dist(x, nearest, c)) == pytest.approx(float(logit.abs()), rel=1e-6)
    ahead = poincare.expmap(p, 0.1 * a, c)
    assert float(hyperplanes.mlr_logits(ahead, p, a, c)) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [0.0, 1e-7, torch.tensor(0.0, dtype=torch.float64)])
def test_small_curvature_tends_to_a_linear_layer(points, c, dtype):
    x, p, a = inputs(points, 1.0, dtype)
    rtol = 1e-4 if dtype == torch.float32 else 2e-6
    expected = 4 * (x @ a.mT - (p * a).sum(-1))
    torch.testing.assert_close(hyperplanes.mlr_logits(x, p, a, c), expected, rtol=rtol, atol=1e-4 * rtol + 1e-6)
    r = p.norm(dim=-1)
    expected = 4 * (x @ a.mT - a.norm(dim=-1) * r)
    ours = hyperplanes.unidirectional_logits(x, a, r, c)
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=1e-4 * rtol + 1e-6)


def test_curvature_is_a_unit_of_length(points):
    x, p, a = inputs(points, 1.0, torch.float64)
    for root in (2.0**-9, 4.0):
        for function, offset in ((hyperplanes.mlr_logits, p), (hyperplanes.unidirectional_logits, None)):
            if offset is not None:
                scaled, one = function(x / root, p / root, a, root**2), function(x, p, a, 1.0)
            else:
                r = p.norm(dim=-1)
                scaled, one = function(x / root, a, r / root, root**2), function(x, a, r, 1.0)
            torch.testing.assert_close(scaled * root, one, rtol=1e-13, atol=0)


@pytest.mark.parametrize("c", [0.0, 1.3])
def test_derivatives_are_right(points, c):
    """The points hold the origin and x = p."""
    x, p, a = inputs(points, 1.3, torch.float64, margin=0.3)
    x, p, a, k = x[-4:].clone(), p[:2].clone(), a[:2], torch.tensor(c, dtype=torch.float64)
    x[0], p[1] = p[0], 0.0
    r = torch.tensor([0.3, 0.0], dtype=torch.float64)
    for function, arguments in (
        (hyperplanes.mlr_logits, (x, p, a, k)),
        (hyperplanes.unidirectional_logits, (x, a, r, k)),
    ):
        for t in arguments[: 4 if c else 3]:  # a step to both sides of c = 0 would leave its range
            t.requires_grad_()
        assert gradcheck(function, arguments, atol=1e-5, rtol=1e-4)
        assert gradgradcheck(function, arguments, atol=1e-4, rtol=1e-3)
        if c == 0:
            step = torch.tensor(1e-7, dtype=torch.float64)
            one, two = (function(*(t.detach() for t in arguments[:3]), at) for at in (k, step))
            by_c = torch.autograd.functional.jacobian(lambda at: function(*arguments[:3], at), k)  # noqa: B023
            torch.testing.assert_close(by_c, (two - one) / step, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1e-6, 1.0, 10.0])
def test_values_and_gradients_are_finite_everywhere(points, c, dtype):
    x, p, a = inputs(points, c, dtype, margin=1e-5)
    x = torch.cat([x, p])  # x = p, at the origin and on the clip sphere among them
    a[0], a[1], a[2] = 0.0, 1e-20, 1e-42
    a = torch.cat([a, 1e6 * a[3:]])
    p = torch.cat([p, p[3:]])
    k = torch.tensor(c, dtype=dtype)
    r = torch.linspace(-100, 100, len(p), dtype=dtype) / c**0.5
    for function, arguments in (
        (hyperplanes.mlr_logits, (x, p, a, k)),
        (hyperplanes.unidirectional_logits, (x, a, r, k)),
    ):
        arguments = tuple(t.detach().clone().requires_grad_() for t in arguments)
        logits = function(*arguments)
        gradients = torch.autograd.grad(logits.sum(), arguments)
        assert logits.isfinite().all() and all(g.isfinite().all() for g in gradients)
        assert not logits[:, 0].any()
        normal_gradient = gradients[2 if function is hyperplanes.mlr_logits else 1]
        assert not normal_gradient[0].any()
        assert normal_gradient[1].any()


def test_low_precision_comes_out_as_float32(points):
    x, p, a = inputs(points, 1.0, torch.float32)
    expected = hyperplanes.mlr_logits(x, p, a, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hyperplanes.mlr_logits(x, p, a, 1.0), expected)
        assert torch.equal(
            hyperplanes.unidirectional_logits(x, a, p[:, 0], 1.0), hyperplanes.unidirectional_logits(x, a, p[:, 0], 1.0)
        )
    for dtype in (torch.float16, torch.bfloat16):
        assert hyperplanes.mlr_logits(0.9 * x.to(dtype), 0.9 * p.to(dtype), a.to(dtype), 1.0).dtype == torch.float32


def test_compiles_to_one_graph_and_vmaps(points):
    torch._dynamo.reset()
    x, p, a = inputs(points, 1.0, torch.float32)
    for function, arguments in (
        (hyperplanes.mlr_logits, (x, p, a, torch.tensor(1.0))),
        (hyperplanes.unidirectional_logits, (x, a, p[:, 0], torch.tensor(1.0))),
    ):
        expected = function(*arguments)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            vmap(function, in_dims=(0, None, None, None))(*arguments), expected, rtol=1e-4, atol=1e-5
        )


def test_wrong_shapes_are_refused():
    x, p = torch.zeros(2, 3), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"\[classes, d\], got \(4, 3\) and \(5, 3\)"):
        hyperplanes.mlr_logits(x, p, torch.zeros(5, 3), 1.0)
    with pytest.raises(ValueError, match="last dimension"):
        hyperplanes.mlr_logits(x, torch.zeros(4, 2), torch.zeros(4, 2), 1.0)
    with pytest.raises(ValueError, match=r"r \[classes\]"):
        hyperplanes.unidirectional_logits(x, p, torch.zeros(5), 1.0)


@pytest.mark.parametrize("c", [0.0, 1e-6, 0.1, 1.0, 10.0])
def test_normals_from_the_origin_are_transported_to_p(points, c: float) -> None:
    x, p = points(0, 20, 4, c or 1.0, torch.float64), 0.9 * points(1, 6, 4, c or 1.0, torch.float64)
    a = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    there = poincare.transport(torch.zeros_like(p), p, a, c)
    expected = hyperplanes.mlr_logits(x, p, there, c)
    torch.testing.assert_close(hyperplanes.mlr_logits(x, p, a, c, from_origin=True), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("name", ["mlr_logits", "unidirectional_logits"])
def test_vmap_over_any_argument_is_a_loop(points, name, which):
    x, p, a = inputs(points, 1.0, torch.float64, margin=0.1)
    arguments = [x, p, a, torch.tensor(1.0, dtype=torch.float64)]
    if name == "unidirectional_logits":
        arguments[1:3] = [a, p[:, 0].contiguous()]
    stacked = torch.stack([arguments[which], 0.9 * arguments[which]])
    dims = [None] * 4
    dims[which] = 0
    function = getattr(hyperplanes, name)
    together = torch.func.vmap(function, in_dims=tuple(dims))(*arguments[:which], stacked, *arguments[which + 1 :])
    looped = torch.stack([function(*arguments[:which], one, *arguments[which + 1 :]) for one in stacked])
    torch.testing.assert_close(together, looped, rtol=1e-12, atol=1e-12)
