"""Laws of the Poincaré ball, on points from the origin to the clip sphere.

Tolerances: storing a point y in a floating dtype moves it by about eps/√c in the ball, hence by λ_y eps/√c in length
as the metric has it, and an isometry that carries y to x turns that into (λ_y/λ_x) eps/√c. No code can do better than
this conditioning, so the laws are held to a small multiple of it, not to one loose number. Of float64 points 1 − c‖x‖²
is itself known to λ_x eps only (of float32 points it is computed in float64).
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypimg.geometry import check_points
from hypimg.geometry import poincare as pb

N = 16
seeds = st.integers(0, 2**31)
curvatures = st.floats(-6, 1).map(lambda k: 10.0**k)
dtypes = st.sampled_from([torch.float32, torch.float64])
dims = st.sampled_from([1, 2, 5, 32])


def laws(test):
    return settings(max_examples=50)(given(seed=seeds, c=curvatures, dtype=dtypes, d=dims)(test))


def close(a, b, tolerance):
    error = (a.double() - b.double()).abs()
    if torch.is_tensor(tolerance) and tolerance.dim() < error.dim():
        tolerance = tolerance.unsqueeze(-1)
    assert bool((error <= tolerance).all()), f"worst error / tolerance = {(error / tolerance).max():.3g}"


def vectors(seed, d, c, dtype, length=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(N, d, generator=generator, dtype=torch.float64) * (length / (c * d) ** 0.5)).to(dtype)


def eps_of(dtype, c):
    return torch.finfo(dtype).eps / c**0.5


def relative_eps(dtype, *lams):
    """Rounding of a factor made of several 1 − c‖x‖²."""
    return torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 1 + sum(lams))


@laws
def test_mobius_add_left_cancels(points, seed, c, dtype, d):
    a, x = points(seed, N, d, c, dtype), points(seed + 1, N, d, c, dtype)
    moved = pb.mobius_add(a, x, c)
    back = pb.mobius_add(-a, moved, c)
    lam_moved, lam_x = (2 / (1 - c * p.double().square().sum(-1)).clamp(min=1e-16) for p in (moved, x))
    # Where a and x are both on the clip sphere, a ⊕ x may lie a thousand times nearer to the sphere than either.
    usable = lam_moved < 1 / torch.finfo(dtype).eps
    close(back[usable], x[usable], 20 * eps_of(dtype, c) * (1 + lam_moved / lam_x)[usable])


@laws
def test_mobius_add_has_zero_and_negatives(points, seed, c, dtype, d):
    x = points(seed, N, d, c, dtype)
    zero = torch.zeros_like(x)
    assert torch.equal(pb.mobius_add(zero, x, c), x)
    close(pb.mobius_add(x, zero, c), x, 4 * eps_of(dtype, c))
    assert torch.equal(pb.mobius_add(-x, x, c), zero)


@laws
def test_dist_is_kept_by_translation(points, seed, c, dtype, d):
    a, x, y = (points(seed + i, N, d, c, dtype, margin=0.1) for i in range(3))
    ax, ay = pb.mobius_add(a, x, c), pb.mobius_add(a, y, c)
    lam = pb.conformal_factor(ax, c).double() + pb.conformal_factor(ay, c).double()
    close(pb.dist(ax, ay, c), pb.dist(x, y, c), 20 * eps_of(dtype, c) * lam)


@laws
def test_dist_is_a_metric(points, seed, c, dtype, d):
    x, y, z = (points(seed + i, N, d, c, dtype) for i in range(3))
    xy = pb.dist(x, y, c)
    assert torch.equal(xy, pb.dist(y, x, c))
    assert torch.equal(pb.dist(x, x, c), torch.zeros_like(xy))
    assert bool((xy <= (pb.dist(x, z, c) + pb.dist(z, y, c)) * (1 + 10 * torch.finfo(dtype).eps)).all())
    assert bool((xy > 0)[(x != y).any(-1)].all())


@laws
def test_gyration_keeps_norms_and_inner_products(points, seed, c, dtype, d):
    a, b = points(seed, N, d, c, dtype), points(seed + 1, N, d, c, dtype)
    v, w = vectors(seed, d, c, dtype), vectors(seed + 1, d, c, dtype)
    gv, gw = pb.gyration(a, b, v, c), pb.gyration(a, b, w, c)
    eps = relative_eps(dtype, pb.conformal_factor(a, c).double(), pb.conformal_factor(b, c).double())
    scale = v.double().norm(dim=-1) * w.double().norm(dim=-1)
    close((gv.double() * gw.double()).sum(-1), (v.double() * w.double()).sum(-1), 40 * eps * scale)


@laws
def test_gyration_is_the_defect_of_associativity(points, seed, c, dtype, d):
    a, b, w = (points(seed + i, N, d, c, torch.float64, margin=0.2) for i in range(3))
    by_sums = pb.mobius_add(-pb.mobius_add(a, b, c), pb.mobius_add(a, pb.mobius_add(b, w, c), c), c)
    close(pb.gyration(a, b, w, c), by_sums, 1e-11 / c**0.5)
    left, right = pb.mobius_add(a, b, c), pb.gyration(a, b, pb.mobius_add(b, a, c), c)
    close(left, right, 1e-11 / c**0.5)


@laws
def test_expmap0_has_twice_the_norm_as_distance(seed, c, dtype, d):
    v = vectors(seed, d, c, dtype)
    x = pb.expmap0(v, c)
    close(pb.dist0(x, c), 2 * v.double().norm(dim=-1), 4 * eps_of(dtype, c) * pb.conformal_factor(x, c).double())


@laws
def test_logmap0_inverts_expmap0(points, seed, c, dtype, d):
    x = points(seed, N, d, c, dtype)
    close(pb.expmap0(pb.logmap0(x, c), c), x, 8 * eps_of(dtype, c))
    close(2 * pb.logmap0(x, c).double().norm(dim=-1), pb.dist0(x, c), 8 * eps_of(dtype, c) * 10)
    v = vectors(seed, d, c, dtype)
    back = pb.logmap0(pb.expmap0(v, c), c)
    close(back, v, 4 * eps_of(dtype, c) * pb.conformal_factor(pb.expmap0(v, c), c).double())


@laws
def test_expmap0_with_a_margin_projects_in_the_same_pass(seed, c, dtype, d):
    v = vectors(seed, d, c, dtype, length=4.0)
    close(pb.expmap0(v, c, 1e-3), pb.project(pb.expmap0(v, c), c, 1e-3), 4 * eps_of(dtype, c))


@laws
def test_logmap_inverts_expmap(points, seed, c, dtype, d):
    x = points(seed, N, d, c, dtype)
    lam_x = pb.conformal_factor(x, c).double()
    v = (vectors(seed, d, c, dtype).double() / lam_x.unsqueeze(-1)).to(dtype)  # hyperbolic steps of about 1/√c
    y = pb.expmap(x, v, c)
    # The bound of error in units of the middle point's rounding is 20.
    close(pb.logmap(x, y, c), v, 20 * eps_of(dtype, c) * (pb.conformal_factor(y, c).double() / lam_x + 1))


@laws
def test_expmap_inverts_logmap(points, seed, c, dtype, d):
    x, y = (points(seed + i, N, d, c, dtype) for i in range(2))
    # Rounding turns the vector by eps, which at distance d moves its end by sinh(√c d)/√c eps.
    swing = (pb.dist(x, y, c).double() * c**0.5).sinh() / pb.conformal_factor(y, c).double()
    ratio = pb.conformal_factor(x, c).double() / pb.conformal_factor(y, c).double()
    close(pb.expmap(x, pb.logmap(x, y, c), c), y, 20 * eps_of(dtype, c) * (1 + ratio + swing))


@laws
def test_expmap_goes_as_far_as_the_vector_is_long(points, seed, c, dtype, d):
    x = points(seed, N, d, c, dtype)
    lam_x = pb.conformal_factor(x, c).double()
    v = (vectors(seed, d, c, dtype).double() / lam_x.unsqueeze(-1)).to(dtype)
    y = pb.expmap(x, v, c)
    tolerance = 20 * eps_of(dtype, c) * (lam_x + pb.conformal_factor(y, c).double())
    close(pb.dist(x, y, c), lam_x * v.double().norm(dim=-1), tolerance)


@laws
def test_logmap_is_as_long_as_the_distance(points, seed, c, dtype, d):
    x, y = (points(seed + i, N, d, c, dtype) for i in range(2))
    length = pb.conformal_factor(x, c).double() * pb.logmap(x, y, c).double().norm(dim=-1)
    distance = pb.dist(x, y, c).double()
    close(
        length, distance, 20 * torch.finfo(dtype).eps * (distance + pb.conformal_factor(x, c).double() * 0.01 / c**0.5)
    )


@laws
def test_maps_at_the_origin_are_the_general_ones(points, seed, c, dtype, d):
    x = points(seed, N, d, c, dtype)
    zero, v = torch.zeros_like(x), vectors(seed, d, c, dtype)
    close(pb.expmap(zero, v, c), pb.expmap0(v, c), 4 * eps_of(dtype, c))
    close(pb.logmap(zero, x, c), pb.logmap0(x, c), 40 * eps_of(dtype, c))
    close(pb.dist(zero, x, c), pb.dist0(x, c), 40 * eps_of(dtype, c))


@laws
def test_transport_keeps_lengths_and_comes_back(points, seed, c, dtype, d):
    x, y = (points(seed + i, N, d, c, dtype) for i in range(2))
    v = vectors(seed, d, c, dtype)
    lam_x, lam_y = pb.conformal_factor(x, c).double(), pb.conformal_factor(y, c).double()
    there = pb.transport(x, y, v, c)
    norm, eps = v.double().norm(dim=-1), relative_eps(dtype, lam_x, lam_y)
    close(lam_y * there.double().norm(dim=-1), lam_x * norm, 40 * eps * lam_x * norm)
    close(pb.transport(y, x, there, c), v, 60 * eps * norm)
    close(pb.transport(x, x, v, c), v, 10 * eps * norm)


@laws
def test_transport_carries_the_geodesic_to_itself(points, seed, c, dtype, d):
    x, y = (points(seed + i, N, d, c, torch.float64) for i in range(2))
    length = pb.logmap(y, x, c).norm(dim=-1)
    close(pb.transport(x, y, pb.logmap(x, y, c), c), -pb.logmap(y, x, c), 1e-9 * (length + 1e-3 / c**0.5))


@laws
def test_geodesic_divides_the_distance(points, seed, c, dtype, d):
    x, y = (points(seed + i, N, d, c, dtype) for i in range(2))
    t = torch.linspace(0, 1, N, dtype=dtype)
    z = pb.geodesic(t, x, y, c)
    total, lam = pb.dist(x, y, c).double(), pb.conformal_factor(z, c).double()
    tolerance = 20 * (eps_of(dtype, c) * lam + torch.finfo(dtype).eps * total)
    close(pb.dist(x, z, c), t * total, tolerance)
    close(pb.dist(z, y, c), (1 - t) * total, tolerance)


@laws
def test_geodesic_starts_at_x_ends_at_y_and_leaves_along_the_logarithm(points, seed, c, dtype, d):
    x, y = (points(seed + i, N, d, c, dtype) for i in range(2))
    close(pb.geodesic(0.0, x, y, c), x, 4 * eps_of(dtype, c))
    close(pb.geodesic(1.0, x, y, c), y, 4 * eps_of(dtype, c))
    x, y = (points(seed + i, N, d, c, torch.float64, margin=0.1) for i in range(2))
    close(pb.geodesic(0.3, x, y, c), pb.expmap(x, 0.3 * pb.logmap(x, y, c), c), 1e-11 / c**0.5)
    by_sums = pb.mobius_add(x, pb.mobius_scalar_mul(0.3, pb.mobius_add(-x, y, c), c), c)
    close(pb.geodesic(0.3, x, y, c), by_sums, 1e-11 / c**0.5)


@laws
def test_scalar_multiples_add_along_a_line(points, seed, c, dtype, d):
    x = points(seed, N, d, c, torch.float64, margin=0.1)
    times = [pb.mobius_scalar_mul(r, x, c) for r in (1.0, 2.0, 0.7, 2.7, -1.0)]
    tolerance = 1e-11 / c**0.5
    close(times[0], x, tolerance)
    close(times[1], pb.mobius_add(x, x, c), tolerance)
    close(times[3], pb.mobius_add(times[1], times[2], c), tolerance)
    close(times[4], -x, tolerance)
    r = torch.rand(N, dtype=torch.float64)
    close(pb.mobius_scalar_mul(r, x, c)[3], pb.mobius_scalar_mul(float(r[3]), x[3], c), tolerance)


@laws
def test_matrices_act_as_their_product(points, seed, c, dtype, d):
    x = points(seed, N, d, c, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    m, n = (torch.randn(s, generator=generator, dtype=torch.float64) / d for s in ((3, 4), (4, d)))
    close(pb.mobius_matvec(m, pb.mobius_matvec(n, x, c), c), pb.mobius_matvec(m @ n, x, c), 1e-9 / c**0.5)
    close(pb.mobius_matvec(torch.eye(d, dtype=torch.float64), x, c), x, 1e-12 / c**0.5)
    assert not pb.mobius_matvec(0 * n, x, c).any()
    per_point = pb.mobius_matvec(n.expand(N, 4, d), x, c)
    close(per_point, pb.mobius_matvec(n, x, c), 1e-12 / c**0.5)


@laws
def test_klein_coordinates_come_back(points, seed, c, dtype, d):
    x = points(seed, N, d, c, torch.float64)
    k = pb.to_klein(x, c)
    close(pb.from_klein(k, c), x, 1e-9 / c**0.5)
    ends = pb.to_klein(points(seed + 1, N, d, c, torch.float64), c)
    # Geodesics are straight there: a middle point lies on the chord.
    middle = pb.to_klein(pb.geodesic(0.4, x, pb.from_klein(ends, c), c), c)
    chord = ends - k
    along = ((middle - k) * chord).sum(-1, keepdim=True) / chord.square().sum(-1, keepdim=True).clamp(min=1e-300)
    close(middle - k, along * chord, 1e-7 / c**0.5)


@laws
def test_project_clips_far_points_and_keeps_near_ones(seed, c, dtype, d):
    v = vectors(seed, d, c, dtype, length=3.0)
    x = pb.project(v, c, 1e-3)
    norm, limit, eps = v.double().norm(dim=-1), (1 - 1e-3) / c**0.5, torch.finfo(dtype).eps
    inside = norm <= limit
    assert torch.equal(x[inside], v[inside])
    close(x.double().norm(dim=-1), norm.clamp(max=limit), 4 * eps * limit)
    close(x, v.double() * (x.double().norm(dim=-1) / norm).unsqueeze(-1), 4 * eps * limit)
    close(pb.project(x, c, 1e-3), x, 4 * eps * limit)


@laws
def test_cdist_is_dist_of_all_pairs(points, seed, c, dtype, d):
    x, y = points(seed, N, d, c, dtype), points(seed + 1, N + 3, d, c, dtype)
    y[:4] = x[:4]  # equal pairs
    y[4:6] = x[4:6] * (1 - 1e-3)  # near pairs
    pairs = pb.dist(x.unsqueeze(1), y.unsqueeze(0), c)
    for mode in ("exact", "auto"):
        close(pb.cdist(x, y, c, mode), pairs, 8 * torch.finfo(dtype).eps * pairs.double())
    batched = pb.cdist(x.expand(2, 3, N, d), y.expand(3, N + 3, d), c)
    assert batched.shape == (2, 3, N, N + 3)
    assert torch.equal(batched[1, 2], pb.cdist(x, y, c))


@laws
def test_cdist_by_matmul_is_dist_of_far_pairs(points, seed, c, dtype, d):
    x, y = points(seed, N, d, c, dtype), points(seed + 1, N, d, c, dtype)
    pairs = pb.dist(x.unsqueeze(1), y.unsqueeze(0), c).double()
    squares = x.double().square().sum(-1)[:, None] + y.double().square().sum(-1)
    far = (x[:, None] - y).double().square().sum(-1) > 0.2 * squares
    error = (pb.cdist(x, y, c, "matmul").double() - pairs)[far].abs()
    assert bool((error <= 20 * torch.finfo(dtype).eps * pairs[far]).all())


def test_points_outside_are_named(points):
    x = points(0, N, 3, 2.0, torch.float32)
    check_points(x, 2.0)
    check_points(100 * x, 0.0)
    x[5] = torch.tensor([0.0, 1e3, 0.0])
    with pytest.raises(ValueError, match=r"gallery: row 5 of 16 has norm 1000, outside the ball of radius 0\.7071"):
        check_points(x, torch.tensor(2.0), name="gallery")
    x[2, 0] = float("nan")
    with pytest.raises(ValueError, match="row 2 of 16 has norm nan"):
        check_points(x.reshape(4, 4, 3), 2.0)


def test_wrong_arguments_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="c must be a finite number >= 0, got -1"):
        pb.dist0(x, -1.0)
    with pytest.raises(ValueError, match="c must be a finite number >= 0, got nan"):
        pb.dist0(x, float("nan"))
    with pytest.raises(ValueError, match="0-dim tensor, got shape"):
        pb.dist0(x, torch.ones(2))
    with pytest.raises(TypeError, match=r"floating point, got torch\.int64"):
        pb.expmap0(torch.zeros(2, 3, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match="share their last dimension"):
        pb.dist(x, torch.zeros(2, 1), 1.0)
    with pytest.raises(ValueError, match="mode must be"):
        pb.cdist(x, x, 1.0, "fast")


def test_one_geodesic_is_drawn_at_many_times(points):
    x, y = points(0, 2, 3, 1.0, torch.float64)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    drawn = pb.geodesic(times, x, y, 1.0)
    torch.testing.assert_close(drawn, torch.stack([pb.geodesic(float(t), x, y, 1.0) for t in times]))
