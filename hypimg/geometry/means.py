"""Means of points of the Poincaré ball."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypimg.geometry import poincare
from hypimg.geometry._rows import alpha_of, prepare, square_of
from hypimg.geometry._scalars import Scalar, asinhc, safe_sqrt, tanhc

# Newton's method from the midpoint needs 2 to 4 iterations, about 10 at worst: more mean points outside the ball.
_MOST_ITERATIONS = 50


def midpoint(x: Tensor, c: Scalar, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Einstein midpoint (the same point as the Poincaré gyromidpoint): HIE's mean, its prototypes.

    m = S/(L + √(L² − c‖S‖²)) with S = Σ w λ x, L = Σ w (λ − 1);  the weighted mean at c = 0.
    In Klein coordinates k it is Σ w γ k / Σ w γ with γ = λ − 1.

    x: [..., n, ..., d], inside the ball, averaged over `dim` (not the last).  weights: x's shape without its last
    dimension (or broadcasting to it), ≥ 0.  Returns x's shape without `dim`.  One point is its own midpoint. Weights
    that are all 0 give NaN. Summed in float64: L² and c‖S‖² are nearly equal near the sphere.
    Raises ValueError for no points (n = 0), for the last dimension as `dim` and for weights of another shape.
    Source: HIE, Einstein midpoint; Poincaré ResNet, Poincaré midpoint.
    """
    (x,) = prepare(c, x)
    _check_dim(x, dim)
    lam = 2 / alpha_of(x, c)
    w = lam.new_ones(()) if weights is None else _expanded(weights, x).unsqueeze(-1)
    total = (w * lam * x.double()).sum(dim)
    mass = (w * (lam - 1)).sum(dim)
    length = safe_sqrt((mass.square() - c * total.square().sum(-1, keepdim=True)).clamp(min=0))
    return (total / (mass + length)).to(x.dtype)


def _expanded(weights: Tensor, x: Tensor) -> Tensor:
    """Weights in float64, a number per point."""
    try:
        return weights.double().expand(x.shape[:-1])
    except RuntimeError:
        shapes = f"{tuple(weights.shape)} for points {tuple(x.shape)}"
        raise ValueError(f"weights must have the points' shape without its last dimension, got {shapes}") from None


class FrechetMean(NamedTuple):
    """What `frechet_mean` found: the point [..., d] and how near it is to the minimum."""

    point: Tensor  # [..., d]
    residual: Tensor  # [...], the Riemannian norm of the gradient at the point: about its distance to the mean
    converged: Tensor  # bool [...], whether the residual is within the tolerance or what rounding leaves of it
    iterations: int  # Newton iterations, the same for all sets of the batch


def frechet_mean(
    x: Tensor,
    c: Scalar,
    weights: Tensor | None = None,
    dim: int = -2,
    *,
    tolerance: float = 1e-10,
    steps: int | None = None,
) -> FrechetMean:
    """Fréchet (Karcher) mean: the point of the ball with the least Σ w d(x_i, m)²;  the weighted mean at c = 0.

    Newton's method from the midpoint: m ← exp_m(H⁻¹ Σ w log_m(x_i)), H = Σ w (k_i (I − r_i r_iᵀ) + r_i r_iᵀ), where
    Σ w = 1, r_i is the direction of log_m(x_i) and k_i = θ_i coth θ_i, θ_i = √c d(x_i, m). A step that does not shrink
    the residual λ_m ‖Σ w log_m(x_i)‖ is shortened, so it converges for any points of the ball. In float64, but for H,
    which decides how fast and not where to.

    x: [..., n, ..., d], inside the ball, averaged over `dim` (not the last); all other dimensions but the last are a
    batch.  weights: x's shape without its last dimension (or broadcasting to it), ≥ 0, not all 0.
    Returns a FrechetMean: `.point` in x's dtype (x's shape without `dim`), `.residual`, `.converged`, `.iterations`.
    tolerance: iterate until every residual is below it, as a length (or below what rounding leaves of it: 16 units of
        last place of λ_m ‖m‖ and of the largest distance). This looks at values on the host, so not under compile or
        vmap, and raises RuntimeError if some set does not converge: points outside the ball, NaN, or weights all 0.
    steps: take this number of iterations instead and look at nothing; 3 are enough for most sets, the residual tells.
    Gradients in x, weights and c come from the implicit function theorem at the point found, not from the iteration:
    they are as right as the residual is small, to any order.
    Raises ValueError for no points (n = 0), for the last dimension as `dim` and for steps < 0.
    Source: Lou et al. 2020, Differentiating through the Fréchet Mean (there by another iteration).
    """
    (given,) = prepare(c, x)
    x, w, k = _sets(given, c, weights, dim)
    found = _solve(x, w, k, tolerance, steps)
    point = _Implicit.apply(x, w, k, found.point)
    return found._replace(point=point.to(given.dtype), residual=found.residual.to(given.dtype))


def frechet_variance(
    x: Tensor,
    c: Scalar,
    weights: Tensor | None = None,
    dim: int = -2,
    mean: Tensor | None = None,
    *,
    tolerance: float = 1e-10,
    steps: int | None = None,
) -> Tensor:
    """Fréchet variance Σ w d(x_i, m)² about the Fréchet mean m, or about `mean` if given, for w that sum to 1.

    x: [..., n, ..., d], weights, dim, tolerance, steps: as in `frechet_mean`, and it raises what that raises.  mean:
    x's shape without `dim`, inside the ball.  Returns x's shape without `dim` and without the last; 4 times the
    Euclidean variance at c = 0.  Gradients in x, weights, c and mean.
    Source: Lou et al. 2020; Poincaré ResNet, batch normalisation.
    """
    (given,) = prepare(c, x) if mean is None else prepare(c, x, mean)[:1]
    x, w, k = _sets(given, c, weights, dim)
    if mean is None:
        mean = _Implicit.apply(x, w, k, _solve(x, w, k, tolerance, steps).point)
    m = mean.double().unsqueeze(-2)
    q = square_of(x - m) / (alpha_of(x, k) * alpha_of(m, k))
    return (w * 4 * q * asinhc(k * q).square()).sum((-2, -1)).to(given.dtype)


def _check_dim(x: Tensor, dim: int) -> None:
    if dim % x.dim() == x.dim() - 1:
        raise ValueError("dim must not be the last dimension: it holds the coordinates")
    if x.shape[dim] == 0:
        raise ValueError(f"a mean needs at least one point, got none: shape {tuple(x.shape)}, dim {dim}")


def _sets(x: Tensor, c: Scalar, weights: Tensor | None, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points [..., n, d], weights [..., n, 1] that sum to 1, and c, all in float64."""
    _check_dim(x, dim)
    dim = dim % x.dim() - x.dim()
    k = c.double() if isinstance(c, Tensor) else torch.tensor(float(c), dtype=torch.float64, device=x.device)
    if weights is None:
        w = x.new_ones((x.shape[dim], 1), dtype=torch.float64)
    else:
        w = _expanded(weights, x).unsqueeze(-1).movedim(dim, -2)
    return x.double().movedim(dim, -2), w / w.sum(-2, keepdim=True), k


class _Pull(NamedTuple):
    """The points as seen from m [..., d]: log_m(x_i) = near (x_i − m) − back m, and what follows from them."""

    m: Tensor
    difference: Tensor  # x − m, [..., n, d]
    near: Tensor  # [..., n, 1]
    back: Tensor  # [..., n, 1]
    theta2: Tensor  # θ², [..., n, 1]
    force: Tensor  # Σ w log_m(x_i), minus half the gradient, [..., d]
    residual: Tensor  # [...]
    floor: Tensor  # what rounding may leave of the residual, [...]


def _pull(m: Tensor, x: Tensor, beta: Tensor, w: Tensor, c: Tensor) -> _Pull:
    """The formula of `poincare.logmap`, whose [..., n, d] vectors need not be formed in float64 here."""
    alpha = alpha_of(m, c)
    difference = x - m.unsqueeze(-2)
    square = torch.linalg.vector_norm(difference, dim=-1, keepdim=True).square()
    q = square / (alpha.unsqueeze(-2) * beta)
    u = c * q
    half = asinhc(u)
    scale = half * (1 + u).rsqrt() / beta
    near, back = scale * alpha.unsqueeze(-2), scale * (c * square)
    force = ((w * near).mT @ difference).squeeze(-2) - (w * back).sum(-2) * m
    residual, size = (2 / alpha * t for t in (force, m))
    residual = torch.linalg.vector_norm(residual, dim=-1)
    residual = torch.where(alpha.squeeze(-1) > 0, residual, torch.inf)  # rounding may put m past the sphere
    farthest = (2 * safe_sqrt(q) * half).amax((-2, -1))
    floor = 16 * torch.finfo(torch.float64).eps * (torch.linalg.vector_norm(size, dim=-1) + farthest)
    return _Pull(m, difference, near, back, 4 * u * half.square(), force, residual, floor)


def _solve(x: Tensor, w: Tensor, c: Tensor, tolerance: float, steps: int | None) -> FrechetMean:
    """The mean of `_sets` without a gradient."""
    if steps is not None and steps < 0:
        raise ValueError(f"steps must be >= 0, got {steps}")
    x, w, c = x.detach(), w.detach(), c.detach()
    beta = alpha_of(x, c)
    here = _pull(midpoint(x, c, w.squeeze(-1)), x, beta, w, c)
    size = torch.ones_like(here.residual)
    taken = 0
    while taken < (_MOST_ITERATIONS if steps is None else steps):
        if steps is None and bool((here.residual <= tolerance + here.floor).all()):
            break
        there = _pull(poincare.expmap(here.m, size.unsqueeze(-1) * _newton(here, w, c), c), x, beta, w, c)
        better = there.residual < here.residual
        size = torch.where(better, 1.0, size / 4)
        taken += 1
        if steps is None and bool(better.all()):
            here = there
            continue
        here = _Pull(*(_choose(better, new, old) for new, old in zip(there, here, strict=True)))
    found = FrechetMean(here.m, here.residual, here.residual <= tolerance + here.floor, taken)
    if steps is None and not bool(found.converged.all()):
        raise RuntimeError(
            f"frechet_mean: {int((~found.converged).sum())} of {found.converged.numel()} sets did not converge in "
            f"{taken} iterations, largest residual {float(found.residual.max()):.3g}; are all points inside the ball "
            "(geometry.check_points tells) and the weights not all 0?"
        )
    return found


def _choose(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the sets [...] that are better, `old` for the others, [..., more dimensions]."""
    return torch.where(better.reshape(better.shape + (1,) * (new.dim() - better.dim())), new, old)


def _newton(here: _Pull, w: Tensor, c: Tensor) -> Tensor:
    """Newton's step H⁻¹ Σ w log_m(x_i). H decides how fast the iteration is, not where it ends: float32 will do."""
    m, difference, near, back, force = (t.float() for t in (here.m, *here[1:4], here.force))
    logs = torch.addcmul(near * difference, back, m.unsqueeze(-2), value=-1)
    with torch.autocast(m.device.type, enabled=False):
        return _over_hessian(force, logs, here.theta2, w, 2 / alpha_of(here.m, c), c).double()


def _over_hessian(v: Tensor, logs: Tensor, theta2: Tensor, w: Tensor, lam: Tensor, c: Tensor) -> Tensor:
    """H⁻¹ v with H = s I − Lᵀ R L, where L [..., n, d] are the logarithms, s = Σ w k and R = w (k − 1)/‖L‖²."""
    n, d = logs.shape[-2:]
    s = (w / tanhc(theta2)).sum(-2, keepdim=True).to(v.dtype)  # [..., 1, 1]
    r = (w * (c * lam.unsqueeze(-2).square()) * _excess(theta2)).to(v.dtype)
    v = v.unsqueeze(-1)
    if d <= n:
        h = s * torch.eye(d, dtype=v.dtype, device=v.device) - logs.mT @ (r * logs)
        return torch.linalg.solve_ex(h, v)[0].squeeze(-1)
    # Woodbury: the same by an n × n system.
    h = s * torch.eye(n, dtype=v.dtype, device=v.device) - r * (logs @ logs.mT)
    return ((v + logs.mT @ torch.linalg.solve_ex(h, r * (logs @ v))[0]) / s).squeeze(-1)


def _excess(t: Tensor) -> Tensor:
    """(√t coth √t − 1)/t for t ≥ 0."""
    near = t < 1e-2
    small, large = torch.where(near, t, 0.0), torch.where(near, 1.0, t)
    series = 1 / 3 + small * (-1 / 45 + small * (2 / 945 + small * (-1 / 4725 + small * (2 / 93555))))
    return torch.where(near, series, (1 / tanhc(large) - 1) / large)


class _Implicit(torch.autograd.Function):
    """Hands the solved mean on, with the gradient that Σ w log_m(x_i) = 0 gives it.

    dm = H⁻¹ d(Σ w log_m(x_i)) at fixed m. Backward is made of differentiable operations on inputs and output, so higher
    derivatives are right too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, c: Tensor, solved: Tensor) -> Tensor:
        return solved.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:3], output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, w, c, m = ctx.saved_tensors
        logs = poincare.logmap(m.unsqueeze(-2), x, c)
        lam = 2 / alpha_of(m, c)
        theta2 = c * lam.unsqueeze(-2).square() * square_of(logs)
        pulled = _over_hessian(grad, logs, theta2, w, lam, c)

        def gradient(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
            return (w * poincare.logmap(m.unsqueeze(-2), x, c)).sum(-2)

        pull = torch.func.vjp(gradient, x, w, c)[1]
        return *pull(pulled), None
