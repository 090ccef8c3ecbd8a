"""The even functions from which all formulas are made, against 50-digit arithmetic on both sides of the series' end."""

from __future__ import annotations

import mpmath
import pytest
import torch
from mpmath import mpf

from hypimg.geometry import _rows

mpmath.mp.dps = 50
FUNCTIONS = {
    "tanhc": (_rows.tanhc, mpmath.tanh),
    "sinhc": (_rows.sinhc, mpmath.sinh),
    "asinhc": (_rows.asinhc, mpmath.asinh),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_even_functions_and_their_slopes_are_right(name, dtype):
    function, root_function = FUNCTIONS[name]
    limit, eps = _rows._SERIES_BELOW[dtype], torch.finfo(dtype).eps
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
    (slope,) = torch.autograd.grad(_rows.safe_sqrt(q).sum(), q)
    assert slope.tolist() == pytest.approx([0.0, 0.25, 5e149])
