"""The Poincaré ball in other units, at small curvature and at c = 0."""

from __future__ import annotations

import pytest
import torch

from hypimg.geometry import poincare as pb

N = 16


def vectors(seed, d, dtype, length=1.0):
    x = torch.randn(N, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * length / d**0.5).to(dtype)


@pytest.mark.parametrize("c", [4.0**k for k in (-10, -3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curvature_is_a_unit_of_length(points, call, c, dtype):
    """The c-ball at x is the 1-ball at √c x; √c is a power of 2 here, so that scaling does not round."""
    root = c**0.5
    x, y, v = points(0, N, 5, 1.0, dtype), points(1, N, 5, 1.0, dtype), vectors(2, 5, dtype)
    in_unit_ball, scaled = call(x, y, v, 1.0), call(x / root, y / root, v / root, c)
    if call.__name__ != "conformal_factor":
        scaled = scaled * root
    torch.testing.assert_close(scaled, in_unit_ball, rtol=2e-7 if dtype == torch.float32 else 1e-13, atol=0)


@pytest.mark.parametrize("c", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_curvature_tends_to_euclid_at_the_rate_c(dtype, c):
    x, y, v = (vectors(i, 3, dtype) for i in range(3))
    pairs = {
        "dist": (pb.dist(x, y, c), 2 * (x - y).double().norm(dim=-1)),
        "cdist": (pb.cdist(x, y, c, "exact"), 2 * torch.cdist(x.double(), y.double())),
        "mobius_add": (pb.mobius_add(x, y, c), x.double() + y),
        "expmap": (pb.expmap(x, v, c), x.double() + v),
        "logmap": (pb.logmap(x, y, c), y.double() - x),
        "transport": (pb.transport(x, y, v, c), v.double()),
    }
    for name, (ours, euclid) in pairs.items():
        error = float((ours.double() - euclid).abs().max())
        assert error < 60 * c + 10 * torch.finfo(dtype).eps, name
        if c == 1e-4:
            assert error > 1e-6, name  # and is not Euclid yet


@pytest.mark.parametrize("c", [0, 0.0, torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64, requires_grad=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_curvature_is_euclid(c, dtype):
    x, y, v = (vectors(i, 3, dtype, length=100.0) for i in range(3))  # norms of about 100: no ball holds them
    r = torch.tensor(0.3, dtype=dtype)
    m = vectors(4, 3, dtype)
    equal = {
        "conformal_factor": (pb.conformal_factor(x, c), torch.full((N,), 2.0, dtype=dtype)),
        "project": (pb.project(x, c, 1e-3), x),
        "mobius_add": (pb.mobius_add(x, y, c), x + y),
        "mobius_scalar_mul": (pb.mobius_scalar_mul(r, x, c), r * x),
        "mobius_matvec": (pb.mobius_matvec(m, x, c), x @ m.mT),
        "gyration": (pb.gyration(x, y, v, c), v),
        "expmap0": (pb.expmap0(v, c), v),
        "expmap0_margin": (pb.expmap0(v, c, 1e-3), v),
        "logmap0": (pb.logmap0(x, c), x),
        "expmap": (pb.expmap(x, v, c), x + v),
        "logmap": (pb.logmap(x, y, c), y - x),
        "transport": (pb.transport(x, y, v, c), v),
        "dist": (pb.dist(x, y, c), 2 * (x - y).norm(dim=-1)),
        "dist0": (pb.dist0(x, c), 2 * x.norm(dim=-1)),
        "cdist": (pb.cdist(x, y, c, "exact"), 2 * torch.cdist(x, y)),
        "cdist_matmul": (pb.cdist(x, y, c, "matmul"), 2 * torch.cdist(x, y)),
        "geodesic": (pb.geodesic(r, x, y, c), x + r * (y - x)),
        "to_klein": (pb.to_klein(x, c), 2 * x),
        "from_klein": (pb.from_klein(x, c), x / 2),
    }
    for name, (ours, euclid) in equal.items():
        assert ours.dtype == dtype, name
        torch.testing.assert_close(ours, euclid, rtol=2e-5 if dtype == torch.float32 else 1e-12, atol=0, msg=name)


def test_what_is_no_point_has_no_distance():
    y = torch.tensor([[0.1, 0.2]])
    for wrong in ([torch.nan, 0.1], [1.2, 0.0], [1.0, 0.0]):
        x = torch.tensor([wrong])
        found = [pb.dist(x, y, 1.0), pb.dist0(x, 1.0), *(pb.cdist(x, y, 1.0, m) for m in ("auto", "exact", "matmul"))]
        assert not any(bool(d.isfinite().any()) for d in found), wrong


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_curvature_in_half_precision_is_taken_as_it_is(dtype):
    y = torch.tensor([[0.1, 0.2]])
    for value in (0.0, 0.5):
        c = torch.tensor(value, dtype=dtype)
        torch.testing.assert_close(pb.dist(y, -y, c), pb.dist(y, -y, float(c)), rtol=1e-6, atol=0)
