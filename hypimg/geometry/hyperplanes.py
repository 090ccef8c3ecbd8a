"""Signed distances to hyperplanes of the Poincaré ball, as logits of a multinomial logistic regression."""

from __future__ import annotations

import torch
from torch import Tensor

from hypimg.geometry._rows import Scalar, alpha_of, asinhc, dot, prepare, sinhc, square_of

# A normal shorter than this has no direction in float32: it counts as 0.
_SHORTEST_NORMAL = 1e-30

# sinh of a larger offset 2√c r would overflow float32 when squared; from here on it grows linearly.
_LARGEST_OFFSET = 30.0


def _logits(x: Tensor, w: Tensor, t: Tensor, scale: Tensor, c: Scalar) -> Tensor:
    """scale · asinh(√c z)/√c with z = λ_x ⟨x, w⟩ − (λ_x − 1) t: both regressions are this, one matrix product.

    x: [..., d], w: [K, d], t and scale: [K, 1] in float64.  Returns [..., K].
    """
    alpha = alpha_of(x, c)
    lam = 2 / alpha
    with torch.autocast(x.device.type, enabled=False):
        z = (lam.to(x.dtype) * x) @ w.mT - (lam - 1).to(x.dtype) * t.squeeze(-1).to(x.dtype)
    return scale.squeeze(-1).to(x.dtype) * z * asinhc(c * z * z)


def _direction(a: Tensor) -> tuple[Tensor, Tensor]:
    """a/‖a‖ in a's dtype and ‖a‖ in float64, both 0 with gradient 0 where a = 0."""
    square = square_of(a)
    present = square > _SHORTEST_NORMAL**2
    inverse = torch.where(present, torch.where(present, square, 1.0).rsqrt(), 0.0)
    return inverse.to(a.dtype) * a, inverse * square


def mlr_logits(x: Tensor, p: Tensor, a: Tensor, c: Scalar, from_origin: bool = False) -> Tensor:
    """Logits of hyperbolic multinomial logistic regression: class k has the hyperplane through p_k with normal a_k.

    logit_k(x) = (λ_{p_k} ‖a_k‖ / √c) arsinh( 2√c ⟨z, a_k⟩ / ((1 − c‖z‖²) ‖a_k‖) ) with z = (−p_k) ⊕ x;
    4⟨x − p_k, a_k⟩ at c = 0.  It is the signed distance of x to the hyperplane times λ_{p_k} ‖a_k‖.

    x: [..., d], inside the ball.  p: [K, d], inside the ball.  a: [K, d], any tangent vectors at p.  Returns [..., K].
    from_origin: the a given are tangent vectors at the origin, transported to p: the normals are (1 − c‖p_k‖²) a_k, so
        that λ_{p_k} ‖normal‖ = 2 ‖a_k‖, as HIE's official code has them.
    z is never formed: the denominators of ⟨z, a⟩ and 1 − c‖z‖² cancel, and with β = 1 − c‖p‖², κ = 2⟨p, â⟩/β the
    argument is √c (λ_x ⟨x, â + cκp⟩ − (λ_x − 1) κ).  At a_k = 0 the logit is 0 and so is its gradient.
    In float32 that argument has an error of about 1e-7 λ_x λ_p. It shows only where x and p are near each other and
    both near the sphere: at the margin 1e-3 up to 0.1, for an argument that goes up to 1e6.
    Source: Ganea et al. 2018, Hyperbolic Neural Networks; HIE, hyperbolic MLR.
    """
    x, p, a = prepare(c, x, p, a)
    if p.dim() != 2 or a.shape != p.shape:
        raise ValueError(f"p and a must both be [classes, d], got {tuple(p.shape)} and {tuple(a.shape)}")
    beta = alpha_of(p, c)
    direction, norm = _direction(a)
    kappa = 2 * dot(p, direction) / beta
    w = direction + (c * kappa).to(p.dtype) * p
    return _logits(x, w, kappa, 2 * norm if from_origin else 2 * norm / beta, c)


def unidirectional_logits(x: Tensor, z: Tensor, r: Tensor, c: Scalar) -> Tensor:
    """Logits of the regression whose class k has a direction z_k and a distance r_k instead of a point and a normal.

    v_k(x) = (2‖z_k‖/√c) arsinh( √c λ_x ⟨x, z_k/‖z_k‖⟩ cosh(2√c r_k) − (λ_x − 1) sinh(2√c r_k) );
    4(⟨x, z_k⟩ − ‖z_k‖ r_k) at c = 0.  It equals `mlr_logits` with p_k = exp₀(r_k z_k/‖z_k‖), a_k = z_k/cosh²(√c r_k).

    x: [..., d], inside the ball.  z: [K, d].  r: [K].  Returns [..., K].  At z_k = 0 value and gradient are 0.
    Beyond 2√c |r| = 30 sinh is continued linearly in r, so that no logit overflows.
    Source: Shimizu et al. 2021, Hyperbolic Neural Networks++; Poincaré ResNet, hyperplane score.
    """
    x, z = prepare(c, x, z)
    if z.dim() != 2 or r.shape != z.shape[:1]:
        raise ValueError(f"z must be [classes, d] and r [classes], got {tuple(z.shape)} and {tuple(r.shape)}")
    direction, norm = _direction(z)
    r = r.double().unsqueeze(-1)
    sinh = 2 * r * sinhc((4 * c * r.square()).clamp(max=_LARGEST_OFFSET**2))  # sinh(2√c r)/√c
    cosh = (1 + c * sinh.square()).sqrt()
    return _logits(x, cosh.to(z.dtype) * direction, sinh, 2 * norm, c)
