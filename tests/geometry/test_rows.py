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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1e-6, 1.0, 10.0])
def test_arsinh_and_its_slopes_are_right(dtype, c):
    eps = torch.finfo(dtype).eps
    z = torch.cat([torch.logspace(-6, 6, 40), -torch.logspace(-6, 6, 5)]).to(dtype).requires_grad_()
    k = torch.tensor(c, dtype=torch.float64).requires_grad_()
    value = _rows.arsinh(z, k)
    (slope,) = torch.autograd.grad(value.sum(), z, retain_graph=True)
    by_c = torch.stack([torch.autograd.grad(v, k, retain_graph=True)[0] for v in value])

    def exact(z, c):
        return mpmath.asinh(mpmath.sqrt(c) * z) / mpmath.sqrt(c)

    for w, v, s, s_c in zip(z.tolist(), value.tolist(), slope.tolist(), by_c.tolist(), strict=True):
        assert v == pytest.approx(float(exact(mpf(w), mpf(c))), rel=6 * eps), w
        assert s == pytest.approx(float(1 / mpmath.sqrt(1 + mpf(c) * mpf(w) ** 2)), rel=6 * eps), w
        expected = float(mpmath.diff(lambda c: exact(mpf(w), c), mpf(c), h=mpf(c) * mpf(10) ** -20))  # noqa: B023
        series_ends = _rows._SERIES_BELOW[dtype]
        assert s_c == pytest.approx(expected, rel=12 * eps / min(max(c * w * w, series_ends), 1.0)), w


def test_arsinh_at_zero_curvature_is_its_argument():
    z = torch.tensor([-3.0, 0.0, 1e-20, 2.0])
    c = torch.zeros((), requires_grad=True)
    torch.testing.assert_close(_rows.arsinh(z, c).detach(), z, rtol=2e-7, atol=0)
    (by_c,) = torch.autograd.grad(_rows.arsinh(z[3:], c).sum(), c)
    assert float(by_c) == pytest.approx(-8 / 6)


def test_sums_by_blocks_are_the_sums():
    x, y = torch.randn(2, 3000, 100, generator=torch.Generator().manual_seed(0)).unbind()
    assert x.numel() > _rows._WHOLE
    torch.testing.assert_close(_rows.square_of(x), x.double().square().sum(-1, keepdim=True), rtol=1e-14, atol=0)
    torch.testing.assert_close(_rows.dot(x, y), (x.double() * y.double()).sum(-1, keepdim=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        _rows.square_of(x.reshape(30, 100, 100)).reshape(-1, 1), _rows.square_of(x), rtol=0, atol=0
    )


@pytest.mark.parametrize("c", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("d", [2, 64, 1024])
def test_compiled_sums_are_exact_near_the_sphere(c, d):
    x = torch.nn.functional.normalize(torch.randn(50, d, generator=torch.Generator().manual_seed(d)).double(), dim=-1)
    x = (x * (1 - torch.logspace(-1, -5, 50).unsqueeze(-1)) / c**0.5).float()
    alpha = 1 - c * x.double().square().sum(-1, keepdim=True)
    compiled = torch.compile(lambda x: _rows.alpha_of(x, c), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, alpha, rtol=1e-6, atol=0)
