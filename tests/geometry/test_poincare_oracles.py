"""The Poincaré ball against others: geoopt in float64 inside the ball, 50-digit arithmetic up to the sphere."""

from __future__ import annotations

import mpmath
import pytest
import torch
from mpmath import mpf

from hypimg.geometry import poincare as pb

N, D = 12, 5
mpmath.mp.dps = 50


@pytest.fixture(scope="module")
def geoopt():
    from geoopt.manifolds.stereographic import math

    return math


# geoopt's k is −c. Below |k| ≈ 1e-2 it sums a short series in k, so there 50-digit arithmetic is the judge.
@pytest.mark.parametrize("c", [0.05, 1.0, 10.0])
def test_geoopt_agrees_inside_the_ball(points, geoopt, c):
    k = torch.tensor(-c, dtype=torch.float64)
    x, y = points(0, N, D, c, torch.float64, margin=0.1), points(1, N, D, c, torch.float64, margin=0.1)
    v = 0.3 * points(2, N, D, c, torch.float64, margin=0.1)
    m = torch.linspace(-1, 1, 3 * D, dtype=torch.float64).reshape(3, D)
    half = torch.tensor(0.3, dtype=torch.float64)
    pairs = {
        "conformal_factor": (pb.conformal_factor(x, c), geoopt.lambda_x(x, k=k)),
        "mobius_add": (pb.mobius_add(x, y, c), geoopt.mobius_add(x, y, k=k)),
        "mobius_scalar_mul": (pb.mobius_scalar_mul(half, x, c), geoopt.mobius_scalar_mul(half, x, k=k)),
        "mobius_matvec": (pb.mobius_matvec(m, x, c), geoopt.mobius_matvec(m, x, k=k)),
        "gyration": (pb.gyration(x, y, v, c), geoopt.gyration(x, y, v, k=k)),
        "expmap0": (pb.expmap0(v, c), geoopt.expmap0(v, k=k)),
        "logmap0": (pb.logmap0(x, c), geoopt.logmap0(x, k=k)),
        "expmap": (pb.expmap(x, v, c), geoopt.expmap(x, v, k=k)),
        "logmap": (pb.logmap(x, y, c), geoopt.logmap(x, y, k=k)),
        "transport": (pb.transport(x, y, v, c), geoopt.parallel_transport(x, y, v, k=k)),
        "dist": (pb.dist(x, y, c), geoopt.dist(x, y, k=k)),
        "dist0": (pb.dist0(x, c), geoopt.dist0(x, k=k)),
        "geodesic": (pb.geodesic(half, x, y, c), geoopt.geodesic(half, x, y, k=k)),
    }
    for name, (ours, theirs) in pairs.items():
        scale = theirs.abs().max()
        assert float((ours - theirs).abs().max() / scale) < 1e-11, name


def exact(x):
    return [[mpf(float(value)) for value in row] for row in x]


def inner(x, y):
    return mpmath.fsum(a * b for a, b in zip(x, y, strict=True))


def exact_add(x, y, c):
    xy, xx, yy = inner(x, y), inner(x, x), inner(y, y)
    denominator = 1 + 2 * c * xy + c**2 * xx * yy
    p, q = (1 + 2 * c * xy + c * yy) / denominator, (1 - c * xx) / denominator
    return [p * a + q * b for a, b in zip(x, y, strict=True)]


def exact_dist(x, y, c):
    moved = exact_add([-a for a in x], y, c)
    return 2 / mpmath.sqrt(c) * mpmath.atanh(mpmath.sqrt(c * inner(moved, moved)))


def exact_expmap(x, v, c):
    norm = mpmath.sqrt(inner(v, v))
    scale = mpmath.tanh(mpmath.sqrt(c) * norm / (1 - c * inner(x, x))) / (mpmath.sqrt(c) * norm)
    return exact_add(x, [scale * a for a in v], c)


def exact_logmap(x, y, c):
    w = exact_add([-a for a in x], y, c)
    norm = mpmath.sqrt(inner(w, w))
    scale = (1 - c * inner(x, x)) / mpmath.sqrt(c) * mpmath.atanh(mpmath.sqrt(c) * norm) / norm
    return [scale * a for a in w]


def edge_pairs(c, dtype, margin):
    """Pairs at norm (1 − margin)/√c and far inside, apart by nothing, by 1e-7 … 0.1, and by a diameter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=-1, keepdim=True)
    step = torch.randn(N, D, generator=generator, dtype=torch.float64)
    step = step / step.norm(dim=-1, keepdim=True) * 10.0 ** -torch.arange(1, N + 1).clamp(max=7).unsqueeze(-1)
    y = x + step
    y[-1], y[-2] = -x[-1], 0.3 * x[-2]
    y = y / y.norm(dim=-1, keepdim=True).clamp(min=1.0)
    return tuple((z * (1 - margin) / c**0.5).to(dtype) for z in (x, y))


def relative_error(ours, exactly):
    exactly = torch.tensor([float(e) for e in exactly], dtype=torch.float64)
    return float(((ours.double() - exactly).abs() / exactly.abs()).max())


CURVATURES = [1e-6, 1e-3, 0.1, 1.0, 10.0]
MARGINS = [0.5, 1e-2, 1e-3, 1e-5]


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("c", CURVATURES)
def test_distances_keep_seven_digits_up_to_the_sphere(c, margin):
    x, y = edge_pairs(c, torch.float32, margin)
    rows = list(zip(exact(x), exact(y), strict=True))
    pairs = [exact_dist(a, b, mpf(c)) for a, b in rows]
    assert relative_error(pb.dist(x, y, c), pairs) < 2.5e-7
    assert relative_error(pb.cdist(x, y, c, "exact").diagonal(), pairs) < 1e-6
    assert relative_error(pb.cdist(x, y, c).diagonal(), pairs) < 1e-6
    to_origin = [2 / mpmath.sqrt(c) * mpmath.atanh(mpmath.sqrt(mpf(c) * inner(a, a))) for a, _ in rows]
    assert relative_error(pb.dist0(x, c), to_origin) < 2.5e-7


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("c", CURVATURES)
def test_distances_in_float64_lose_only_what_the_points_lost(c, margin):
    x, y = edge_pairs(c, torch.float64, margin)
    pairs = [exact_dist(a, b, mpf(c)) for a, b in zip(exact(x), exact(y), strict=True)]
    assert relative_error(pb.dist(x, y, c), pairs) < 4e-16 / margin + 1e-15


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("c", CURVATURES)
def test_sums_and_maps_are_right_up_to_the_sphere(c, margin):
    x, y = edge_pairs(c, torch.float32, margin)
    v = ((y - x) * 3 + 0.01 * x) * margin
    triples = list(zip(exact(x), exact(y), exact(v), strict=True))
    unit = torch.finfo(torch.float32).eps / c**0.5

    def error(ours, function):
        theirs = torch.tensor([[float(e) for e in function(*row)] for row in triples], dtype=torch.float64)
        return (ours.double() - theirs).norm(dim=-1), theirs

    e, _ = error(pb.mobius_add(x, y, c), lambda a, b, w: exact_add(a, b, mpf(c)))
    assert float(e.max()) < 3 * unit
    e, theirs = error(pb.mobius_add(-x, y, c), lambda a, b, w: exact_add([-t for t in a], b, mpf(c)))
    assert float((e / theirs.norm(dim=-1)).max()) < 5e-7
    e, theirs = error(pb.logmap(x, y, c), lambda a, b, w: exact_logmap(a, b, mpf(c)))
    assert float((e / theirs.norm(dim=-1)).max()) < 5e-7
    # expmap adds the point exp₀(λ_x v/2), which is rounded: λ of it over λ of the result is what that costs.
    e, theirs = error(pb.expmap(x, v, c), lambda a, b, w: exact_expmap(a, w, mpf(c)))
    added = 2 * (c**0.5 / 2 * pb.conformal_factor(x, c).double() * v.double().norm(dim=-1)).cosh() ** 2
    assert float((e / (1 + added / pb.conformal_factor(theirs, c))).max()) < 2 * unit


@pytest.mark.parametrize("c", [1e-8, 1e-6, 1e-3, 1.0])
def test_gradient_in_c_is_right_from_tiny_curvature_on(c):
    x = torch.tensor([[0.3, 0.4], [0.0, 0.0], [0.6, -0.7]], dtype=torch.float64)
    y = torch.tensor([[0.1, -0.2], [0.3, 0.1], [-0.6, 0.7]], dtype=torch.float64)
    v = torch.tensor([[0.2, 0.1], [1e-3, 0.0], [1.0, 2.0]], dtype=torch.float64)
    functions = {
        "dist": (lambda k: pb.dist(x, y, k), lambda a, b, w, k: exact_dist(a, b, k)),
        "expmap0": (lambda k: pb.expmap0(v, k)[:, 0], lambda a, b, w, k: exact_expmap([0, 0], w, k)[0]),
        "expmap": (lambda k: pb.expmap(x, v, k)[:, 0], lambda a, b, w, k: exact_expmap(a, w, k)[0]),
        "logmap": (lambda k: pb.logmap(x, y, k)[:, 0], lambda a, b, w, k: exact_logmap(a, b, k)[0]),
        "mobius_add": (lambda k: pb.mobius_add(x, y, k)[:, 0], lambda a, b, w, k: exact_add(a, b, k)[0]),
    }
    for name, (ours, theirs) in functions.items():
        k = torch.tensor(c, dtype=torch.float64, requires_grad=True)
        for row, (a, b, w) in enumerate(zip(exact(x), exact(y), exact(v), strict=True)):
            (gradient,) = torch.autograd.grad(ours(k)[row], k)
            expected = float(mpmath.diff(lambda t, a=a, b=b, w=w, f=theirs: f(a, b, w, t), mpf(c), h=mpf(c) * 1e-12))
            assert float(gradient) == pytest.approx(expected, rel=1e-9, abs=1e-14), (name, row)
