"""The even functions from which all formulas are made, against 50-digit arithmetic on both sides of the series' end."""

from __future__ import annotations

import mpmath
import pytest
import torch
from mpmath import mpf

from hypimg.geometry import _scalars

mpmath.mp.dps = 50
FUNCTIONS = {
    "tanhc": (_scalars.tanhc, mpmath.tanh),
    "sinhc": (_scalars.sinhc, mpmath.sinh),
    "asinhc": (_scalars.asinhc, mpmath.asinh),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_even_functions_and_their_slopes_are_right(name, dtype):
    function, root_function = FUNCTIONS[name]
    limit, eps = _scalars._SERIES_BELOW[dtype], torch.finfo(dtype).eps
    t = torch.cat(
        [torch.logspace(-12, 2, 60, dtype=torch.float64), limit * (1 + torch.tensor([-1e-6, -1e-3, 1e-6, 1e-3]))]
    )
    t = t.to(dtype).requires_grad_()
    value = function(t)
    (slope,) = torch.autograd.grad(value.sum(), t)

    def exact(u):
        return root_function(mpmath.sqrt(u)) / mpmath.sqrt(u)

    for u, v, s in zip(t.tolist(), value.tolist(), slope.tolist(), strict=True):
        assert v == pytest.approx(float(exact(mpf(u))), rel=4 * eps), u
        # The closed form's slope is a difference that has lost about eps/u of its digits.
        expected = float(mpmath.diff(exact, mpf(u), h=mpf(u) * mpf(10) ** -20))
        assert s == pytest.approx(expected, rel=12 * eps / min(max(u, limit), 1.0)), u


@pytest.mark.parametrize("name", FUNCTIONS)
def test_even_functions_hold_at_zero_and_far_away(name):
    function, _ = FUNCTIONS[name]
    slopes = {"tanhc": -1 / 3, "sinhc": 1 / 6, "asinhc": -1 / 6}
    t = torch.tensor([0.0, 1e5, 1e60 if name != "sinhc" else 1e5], dtype=torch.float64, requires_grad=True)
    value = function(t)
    (slope,) = torch.autograd.grad(value.sum(), t)
    assert value.isfinite().all() and slope.isfinite().all()
    assert float(value.detach()[0]) == 1.0
    assert float(slope[0]) == pytest.approx(slopes[name], rel=1e-15)


def test_safe_sqrt_has_no_infinite_slope():
    q = torch.tensor([0.0, 4.0, 1e-300], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(_scalars.safe_sqrt(q).sum(), q)
    assert slope.tolist() == pytest.approx([0.0, 0.25, 5e149])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1e-6, 1.0, 10.0])
def test_arsinh_and_its_slopes_are_right(dtype, c):
    eps = torch.finfo(dtype).eps
    z = torch.cat([torch.logspace(-6, 6, 40), -torch.logspace(-6, 6, 5)]).to(dtype).requires_grad_()
    k = torch.tensor(c, dtype=torch.float64).requires_grad_()
    value = _scalars.arsinh(z, k)
    (slope,) = torch.autograd.grad(value.sum(), z, retain_graph=True)
    by_c = torch.stack([torch.autograd.grad(v, k, retain_graph=True)[0] for v in value])

    def exact(z, c):
        return mpmath.asinh(mpmath.sqrt(c) * z) / mpmath.sqrt(c)

    for w, v, s, s_c in zip(z.tolist(), value.tolist(), slope.tolist(), by_c.tolist(), strict=True):
        assert v == pytest.approx(float(exact(mpf(w), mpf(c))), rel=6 * eps), w
        assert s == pytest.approx(float(1 / mpmath.sqrt(1 + mpf(c) * mpf(w) ** 2)), rel=6 * eps), w
        expected = float(mpmath.diff(lambda c: exact(mpf(w), c), mpf(c), h=mpf(c) * mpf(10) ** -20))  # noqa: B023
        series_ends = _scalars._SERIES_BELOW[dtype]
        assert s_c == pytest.approx(expected, rel=12 * eps / min(max(c * w * w, series_ends), 1.0)), w


def test_arsinh_at_zero_curvature_is_its_argument():
    z = torch.tensor([-3.0, 0.0, 1e-20, 2.0])
    c = torch.zeros((), requires_grad=True)
    torch.testing.assert_close(_scalars.arsinh(z, c).detach(), z, rtol=2e-7, atol=0)
    (by_c,) = torch.autograd.grad(_scalars.arsinh(z[3:], c).sum(), c)
    assert float(by_c) == pytest.approx(-8 / 6)
