"""The Poincaré ball { x : c‖x‖² < 1 } of sectional curvature −c, as functions on tensors.

Points and vectors are [..., d] and broadcast as in torch; c ≥ 0 is a float or a 0-dim tensor (then it gets a gradient).
c = 0 is the Euclidean limit: maps are the identity, x ⊕ y = x + y, dist = 2‖x − y‖; a gradient in c is one-sided there.
float32 and float64 keep their dtype; float16 and bfloat16 are computed and returned in float32, inside autocast too. No
function looks at a value on the host (one documented exception: `cdist`), so all of them compile to one graph and work
under vmap. Of NaN they return NaN; of points on or outside the sphere the distances and logarithms are NaN or infinite,
the other functions' results mean nothing: `check_points` tells. Derivatives are those of reverse mode (no jacfwd).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hypimg.geometry._pairs import Pairs, differences, product, sides
from hypimg.geometry._rows import alpha_of, dot, gap, inverse_of, length, move, prepare, square_of
from hypimg.geometry._scalars import ALMOST_ONE, Scalar, arsinh, asinhc, safe_sqrt, sinhc, tanhc


def _per_point(t: Scalar) -> Scalar:
    """A number per point, [...], made to multiply vectors, [..., d]."""
    return t.unsqueeze(-1) if isinstance(t, Tensor) and t.dim() else t


def _limit(margin: float) -> float:
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be in [0, 1), got {margin}")
    return 1 - margin


def conformal_factor(x: Tensor, c: Scalar) -> Tensor:
    """λ_x = 2/(1 − c‖x‖²), by which the metric at x stretches Euclidean lengths: g_x = λ_x² I.

    x: [..., d], inside the ball.  Returns [...]; 2 at the origin and everywhere at c = 0.   Source: HIE, section 3.
    """
    (x,) = prepare(c, x)
    return (2 / alpha_of(x, c)).squeeze(-1).to(x.dtype)


def project(x: Tensor, c: Scalar, margin: float) -> Tensor:
    """The nearest point whose norm is at most (1 − margin)/√c: x itself, or x shortened onto the clip sphere.

    x: [..., d], any norm.  margin: in [0, 1).  Returns [..., d].  At c = 0 nothing is shortened.
    The gradient of a shortened point has no radial part, so such a point does not come back by itself; a point exactly
    on the clip sphere counts as inside.   Source: HIE, clipping after exp₀ (margin 1e-3).
    """
    (x,) = prepare(c, x)
    limit = _limit(margin)
    t = c * square_of(x)
    outside = t > limit * limit
    scale = torch.where(outside, limit * torch.where(outside, t, 1.0).rsqrt(), 1.0)
    return scale.to(x.dtype) * x


def mobius_add(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """Möbius sum, the addition of the ball seen as a gyrovector space; x + y at c = 0.

    x ⊕ y = ((1 + 2c⟨x,y⟩ + c‖y‖²) x + (1 − c‖x‖²) y) / (1 + 2c⟨x,y⟩ + c²‖x‖²‖y‖²), computed as
    (α(x + y) + c s x)/(αβ + c s) with s = ‖x + y‖², which is equal and has positive coefficients only.

    x, y: [..., d], inside the ball.  Returns [..., d].  (−x) ⊕ x = 0 exactly.   Source: HIE, equation 6.
    """
    x, y = prepare(c, x, y)
    # In float64 to the end: near the sphere terms of the coefficients' derivatives cancel.
    alpha, cs = alpha_of(x, c), c * gap(x, y, 1)
    denominator = alpha * alpha_of(y, c) + cs
    return move(alpha / denominator, cs / denominator, x, y, 1)


def expmap0(v: Tensor, c: Scalar, margin: float | None = None) -> Tensor:
    """Exponential map at the origin: a tangent vector becomes a point of the ball.

    x = tanh(√c ‖v‖) v / (√c ‖v‖).  dist(0, x) = 2‖v‖ for every c;  x = v at c = 0.

    v: [..., d], any norm whose square float64 holds.  Returns [..., d].  Value and gradient are finite at v = 0.  For
    large ‖v‖ rounding may put x on the sphere or just past it, where no distance exists: give `margin`, in [0, 1), to
    have the point projected in the same pass: project(expmap0(v, c), c, margin).   Source: HIE, section 3.
    """
    (v,) = prepare(c, v)
    limit, reach = 1.0, ALMOST_ONE
    if margin:  # tanh(√400) is 1: a margin of 0 changes nothing
        limit = _limit(margin)
        reach = math.atanh(limit) ** 2
    t = c * square_of(v)
    beyond = t > reach
    # A vector of any length has a square in float64; in float32 only those within reach have.
    far = limit * torch.where(beyond, t, 1.0).rsqrt().to(v.dtype)
    return torch.where(beyond, far, tanhc(t.clamp(max=reach).to(v.dtype))) * v


def logmap0(x: Tensor, c: Scalar) -> Tensor:
    """Logarithmic map at the origin, the inverse of `expmap0`: v = artanh(√c ‖x‖) x / (√c ‖x‖);  v = x at c = 0.

    x: [..., d], inside the ball.  Returns [..., d] with ‖v‖ = dist(0, x)/2.   Source: HIE, section 3.
    """
    (x,) = prepare(c, x)
    square = c * square_of(x, c)
    inverse = (1 / (1 - square)).to(x.dtype)
    return asinhc(square.to(x.dtype) * inverse) * inverse.sqrt() * x


def expmap(x: Tensor, v: Tensor, c: Scalar) -> Tensor:
    """Exponential map at x: where the geodesic that leaves x with velocity v is after time 1.

    exp_x(v) = x ⊕ ( tanh(√c λ_x ‖v‖ / 2) v / (√c ‖v‖) );  x + v at c = 0.  dist(x, exp_x(v)) = λ_x ‖v‖.

    x: [..., d], inside the ball.  v: [..., d], any norm.  Returns [..., d]; a long v may end on the sphere by rounding:
    see `project`.  A step shorter than the rounding of x is lost.   Source: HIE, equation 8.
    """
    x, v = torch.broadcast_tensors(*prepare(c, x, v))
    alpha = alpha_of(x, c)
    t = c * square_of(v) / alpha.square()
    beyond, near = t > ALMOST_ONE, t.clamp(max=ALMOST_ONE)
    tanh = tanhc(near)
    shrink = torch.where(beyond, torch.where(beyond, t, 1.0).rsqrt(), tanh)
    # x ⊕ f v as in `mobius_add`; there 1 − c‖f v‖² is 1 − tanh²(√t), which near the sphere the rounded f v has lost.
    f: Tensor | None = (shrink / alpha).to(v.dtype)
    if torch.compiler.is_compiling():  # which keeps f v or not as it sees fit
        v, f = (shrink / alpha).to(v.dtype) * v, None
    cs = c * gap(x, v, 1, f)
    denominator = alpha * (1 - near * tanh * tanh) + cs
    return move(alpha / denominator, cs / denominator, x, v, 1, f)


def logmap(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """Logarithmic map at x: the velocity with which a geodesic leaves x to be at y after time 1.

    log_x(y) = (2/(√c λ_x)) artanh(√c ‖w‖) w/‖w‖ with w = (−x) ⊕ y;  y − x at c = 0.  Computed as
    (asinh √u / √(u + u²)) (α(y − x) − c s x)/β, which is smooth at x = y: the Jacobian there is I in y and −I in x.

    x, y: [..., d], inside the ball.  Returns [..., d] with λ_x ‖v‖ = dist(x, y).   Source: HIE, equation 9.
    """
    x, y = prepare(c, x, y)
    alpha, beta, cs = (t.to(x.dtype) for t in (alpha_of(x, c), alpha_of(y, c), c * gap(x, y)))
    u = cs / (alpha * beta)
    scale = asinhc(u) * (1 + u).rsqrt() / beta
    return move(scale * alpha, -scale * cs, x, y, -1)


def gyration(u: Tensor, v: Tensor, w: Tensor, c: Scalar) -> Tensor:
    """gyr[u, v] w = −(u ⊕ v) ⊕ (u ⊕ (v ⊕ w)), the rotation by which ⊕ fails to be associative; w at c = 0.

    u, v: [..., d], inside the ball.  w: [..., d], any vector (the map is linear in w and keeps ‖w‖).  Returns [..., d].
    Source: Ungar's gyrovector spaces; Poincaré ResNet, parallel transport.
    """
    u, v, w = prepare(c, u, v, w)
    # gyr[u, v] w = w + 2(A u + B v)/D. Near the sphere A u and B v nearly cancel when v ≈ −u (transport over a short
    # way), hence A (u + v) + (B − A) v, with B − A written so that it vanishes with p = u + v.
    p = u + v
    pw, vw, pv = dot(p, w), dot(v, w), dot(p, v)
    pp, vv = square_of(p), square_of(v)
    alpha, beta = alpha_of(u, c), 1 - c * vv
    denominator = alpha * beta + c * pp
    a = c * (vw * (beta + 2 * c * pv) - c * vv * pw)
    b_minus_a = -c * (beta * pw + c * pp * vw)
    return w + (2 * a / denominator).to(w.dtype) * p + (2 * b_minus_a / denominator).to(w.dtype) * v


def transport(x: Tensor, y: Tensor, v: Tensor, c: Scalar) -> Tensor:
    """Parallel transport of the tangent vector v from x to y along their geodesic; v at c = 0.

    P_{x→y}(v) = (λ_x/λ_y) gyr[y, −x] v.  Keeps lengths: λ_y ‖P(v)‖ = λ_x ‖v‖.

    x, y: [..., d], inside the ball.  v: [..., d].  Returns [..., d].   Source: Poincaré ResNet, parallel transport.
    """
    x, y, v = prepare(c, x, y, v)
    return (alpha_of(y, c) / alpha_of(x, c)).to(v.dtype) * gyration(y, -x, v, c)


def mobius_scalar_mul(r: Scalar, x: Tensor, c: Scalar) -> Tensor:
    """r ⊗ x = tanh(r artanh(√c ‖x‖)) x / (√c ‖x‖) = exp₀(r log₀(x));  r x at c = 0.

    r: a float, or a number per point, [...].  x: [..., d], inside the ball.  Returns [..., d]; n ⊗ x = x ⊕ … ⊕ x.
    Source: Ungar; Ganea et al. 2018, Hyperbolic Neural Networks.
    """
    v = logmap0(x, c)
    r = _per_point(r)
    return expmap0((r.to(v.dtype) if isinstance(r, Tensor) else r) * v, c)


def mobius_matvec(m: Tensor, x: Tensor, c: Scalar) -> Tensor:
    """M ⊗ x = (1/√c) tanh( (‖Mx‖/‖x‖) artanh(√c ‖x‖) ) Mx/‖Mx‖ = exp₀(M log₀(x)), and 0 where Mx = 0;  Mx at c = 0.

    m: [out, in], or [..., out, in] with a matrix per point.  x: [..., in], inside the ball.  Returns [..., out].
    Source: Ganea et al. 2018; HIE, linear layer.
    """
    if m.dim() < 2 or m.shape[-1] != x.shape[-1]:
        raise ValueError(f"m must be [..., out, {x.shape[-1]}] for points {tuple(x.shape)}, got {tuple(m.shape)}")
    v = logmap0(x, c)
    dtype = torch.promote_types(v.dtype, m.dtype)
    m, v = m.to(dtype), v.to(dtype)
    with torch.autocast(v.device.type, enabled=False):
        v = v @ m.mT if m.dim() == 2 else (m @ v.unsqueeze(-1)).squeeze(-1)
    return expmap0(v, c)


def dist(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """Geodesic distance of paired points.

    d = (2/√c) artanh(√c ‖(−x) ⊕ y‖) = (2/√c) arsinh √u with u = c ‖x − y‖²/((1 − c‖x‖²)(1 − c‖y‖²)); 2‖x − y‖ at c = 0.

    x, y: [..., d], inside the ball.  Returns [...].  At x = y it is 0 with gradient 0.  Scaling: √c d_c(x, y) =
    d_1(√c x, √c y).   Source: HIE, equation 7 (with the minus that one printing lacks).
    """
    x, y = prepare(c, x, y)
    q = gap(x, y) / (alpha_of(x, c) * alpha_of(y, c))
    return length(q, c, x.dtype).squeeze(-1)


def dist0(x: Tensor, c: Scalar) -> Tensor:
    """Distance to the origin, (2/√c) artanh(√c ‖x‖);  2‖x‖ at c = 0.

    x: [..., d], inside the ball.  Returns [...].  At x = 0 it is 0 with gradient 0.   Source: HIE, section 3.
    """
    (x,) = prepare(c, x)
    square = square_of(x, c)
    return length(square / (1 - c * square), c, x.dtype).squeeze(-1)


def cdist(x: Tensor, y: Tensor, c: Scalar, mode: str = "auto") -> Tensor:
    """Distance of every x to every y: cdist(x, y)[..., i, j] = dist(x[..., i, :], y[..., j, :]).

    x: [..., n, d], y: [..., m, d], inside the ball.  Returns [..., n, m].

    mode="exact": from differences (torch.cdist's); right for near and equal pairs, and looks at no value.
    mode="matmul": from one matrix product of width d + 2. Its error is up to 5e-7 (‖x‖² + ‖y‖²) in ‖x − y‖², so near
        pairs are wrong: in float32 d(x, x) comes out as up to 0.14/√c at norms up to 0.9/√c, 11/√c at the clip sphere
        of margin 1e-3, and gradients are wrong likewise.
    mode="auto": matmul, with the near pairs (‖x − y‖² < 0.2 (‖x‖² + ‖y‖²)) computed again from differences; where these
        are more than 8 % of a block of rows, the block is computed as in exact. The one function here that looks at
        values on the host; where it cannot (compiled, vmap, CUDA graph capture) it is exact.
    Nothing larger than a block of rows and the output is held, and for the backward pass only x and y (in mode exact
    the output too). Second derivatives exist; in mode exact, and in blocks of auto that are computed so, they hold
    n × m × d numbers, as do first ones under torch.func.grad, since torch.cdist has no second derivative.
    The matrix product is float32: leave torch.backends.cuda.matmul.allow_tf32 off, as it is by default.
    Source: the formula of `dist`.
    """
    x, y = prepare(c, x, y)
    if mode not in ("auto", "exact", "matmul"):
        raise ValueError(f"mode must be auto, exact or matmul, got {mode!r}")
    if x.dim() < 2 or y.dim() < 2:
        raise ValueError(f"x must be [..., n, d] and y [..., m, d], got {tuple(x.shape)} and {tuple(y.shape)}")
    lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = x.expand(*lead, *x.shape[-2:]), y.expand(*lead, *y.shape[-2:])
    a, b = (inverse_of(t, c) for t in (x, y))
    if not torch.compiler.is_compiling():
        if x.is_cuda and mode == "auto" and torch.cuda.is_current_stream_capturing():
            mode = "exact"
        return Pairs.apply(x, y, a, b, c, mode)
    if mode == "matmul":
        left, right = sides(x, y, a, b)
        root = safe_sqrt(product(left.gram, right.gram).clamp(min=0))
    else:
        root = differences(x, y) * a.sqrt() * b.sqrt().mT
    return 2 * arsinh(root, c)


def geodesic(t: Scalar, x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """The point at time t on the geodesic that is at x for t = 0 and at y for t = 1;  (1 − t) x + t y at c = 0.

    γ(t) = x ⊕ t ⊗ ((−x) ⊕ y) = (w₀ λ_x x + w₁ λ_y y) / (1 + w₀ (λ_x − 1) + w₁ (λ_y − 1)) with θ = √c d(x, y),
    w₀ = sinh((1 − t) θ)/sinh θ, w₁ = sinh(t θ)/sinh θ.  dist(x, γ(t)) = t d(x, y).

    t: a float or a number per point, [...]; t outside [0, 1] extends the geodesic.  x, y: [..., d], inside the ball.
    Returns [..., d], x and y at the ends up to rounding.
    Source: Ungar's gyroline; here as the straight line of the hyperboloid, which has no cancellation.
    """
    x, y = prepare(c, x, y)
    t = _per_point(t)
    alpha, beta = alpha_of(x, c), alpha_of(y, c)
    u = c * square_of(x - y) / (alpha * beta)
    theta2 = 4 * u * asinhc(u) ** 2
    w0 = (1 - t) * sinhc((1 - t) ** 2 * theta2) / sinhc(theta2)
    w1 = t * sinhc(t**2 * theta2) / sinhc(theta2)
    w0, w1 = w0 / alpha, w1 / beta  # w λ = 2 w/α, w (λ − 1) = w (2 − α)/α
    denominator = 1 + w0 * (2 - alpha) + w1 * (2 - beta)
    # From the difference: near each other and the sphere, x and y have coefficients that nearly cancel.
    return move(2 * w1 / denominator, 2 * (w0 + w1) / denominator, x, y, -1)


def to_klein(x: Tensor, c: Scalar) -> Tensor:
    """Poincaré ball to Klein model, where geodesics are straight: k = 2x/(1 + c‖x‖²).

    x: [..., d].  Returns [..., d].  2x at c = 0.  In float32 a point within 1e-4 of the sphere comes to lie on
    it: compute means with `means.midpoint`, not through Klein coordinates.   Source: HIE, Einstein midpoint.
    """
    (x,) = prepare(c, x)
    return (2 / (1 + c * square_of(x))).to(x.dtype) * x


def from_klein(k: Tensor, c: Scalar) -> Tensor:
    """Klein model to Poincaré ball, the inverse of `to_klein`: x = k/(1 + √(1 − c‖k‖²));  k/2 at c = 0.

    k: [..., d], c‖k‖² ≤ 1 (what lies outside by rounding is taken for a point of the sphere).  Returns [..., d].
    Source: HIE, Einstein midpoint.
    """
    (k,) = prepare(c, k)
    return (1 / (1 + safe_sqrt(alpha_of(k, c).clamp(min=0)))).to(k.dtype) * k


def check_points(x: Tensor, c: Scalar, name: str = "points") -> None:
    """Raise ValueError unless every x lies inside the ball, c‖x‖² < 1. For the edges: data, checkpoints, user calls.

    x: [..., d].  The message names the first row that is outside or not finite. It looks at values on the host, so it
    has no place in a training step. (ValueError, since geometry imports torch alone: who knows what the user can mend
    turns it into a UserError.)   Source: ours.
    """
    if not 0 <= float(c) < math.inf:
        raise ValueError(f"c must be a finite number >= 0, got {float(c)}")
    (x,) = prepare(c, x)
    inside = (c * square_of(x.detach()) < 1).flatten()
    if bool(inside.all()):
        return
    row = int((~inside).nonzero()[0, 0])
    norm = float(x.detach().double().reshape(-1, x.shape[-1])[row].norm())
    radius = 1 / math.sqrt(float(c)) if float(c) > 0 else math.inf
    raise ValueError(
        f"{name}: row {row} of {inside.numel()} has norm {norm:.9g}, outside the ball of radius {radius:.9g} "
        f"(c={float(c):.9g}); {int((~inside).sum())} such rows"
    )
