"""Signed distances to hyperplanes of the Poincaré ball, as logits of a multinomial logistic regression."""

from __future__ import annotations

import torch
from torch import Tensor

from hypimg.geometry._rows import alpha_of, prepare, square_of
from hypimg.geometry._scalars import Scalar, arsinh, arsinh_, arsinh_by_c, batched, per_batch, sinhc

# A normal shorter than this has no direction in float32: it counts as 0.
_SHORTEST_NORMAL = 1e-30

# sinh of a larger offset 2√c r would overflow float32 when squared; from here on it grows linearly.
_LARGEST_OFFSET = 30.0


class _Logits(torch.autograd.Function):
    """scale · arsinh(√c z)/√c, and z, with z_ik = λ_i ⟨x_i, w_k⟩ − (λ_i − 1) t_k: one matrix product; backward two.

    x: [..., n, d], w: [..., K, d], t and scale: [..., 1, K].
    """

    @staticmethod
    def forward(x: Tensor, w: Tensor, t: Tensor, scale: Tensor, c: Scalar) -> tuple[Tensor, Tensor, Tensor]:
        lam = (2 / alpha_of(x, c)).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            z = (lam * x) @ w.mT
        z -= (lam - 1) * t
        return arsinh_(z.abs(), c).copysign_(z).mul_(scale), z, lam

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, c = inputs
        ctx.c = None if isinstance(c, Tensor) else c
        ctx.save_for_backward(*tensors, *output, *([c] if isinstance(c, Tensor) else []))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_z: Tensor | None, grad_lam: Tensor | None):
        x, w, t, scale, logits, z, lam, *held = ctx.saved_tensors
        c = held[0] if held else ctx.c
        to_z, to_scale, to_c = grad_z, None, None
        if grad is not None:
            by_z = (z * z).mul_(c).add_(1).rsqrt_() * grad * scale
            to_z = by_z if grad_z is None else by_z + grad_z
            # scale is 0 for a class without a direction; its length has gradient 0 there
            to_scale = (grad * logits).sum(-2, keepdim=True) / torch.where(scale > 0, scale, 1)
            if ctx.needs_input_grad[4]:
                to_c = (grad * scale * arsinh_by_c(z, c)).sum_to_size(c.shape)
        if to_z is None:
            to_z = torch.zeros_like(z)
        with torch.autocast(x.device.type, enabled=False):
            to_scaled, to_w = to_z @ w, to_z.mT @ (lam * x)
            to_lam = (to_scaled * x).sum(-1, keepdim=True) - to_z @ t.mT
            to_t = (1 - lam).mT @ to_z
        if grad_lam is not None:
            to_lam = to_lam + grad_lam
        slope = to_lam * lam * lam  # ∂λ/∂x = c λ² x, ∂λ/∂c = λ² ‖x‖²/2
        if ctx.needs_input_grad[4]:
            by_lam = (slope * (x * x).sum(-1, keepdim=True) / 2).sum_to_size(c.shape)
            to_c = by_lam if to_c is None else to_c + by_lam
        return lam * to_scaled + (c * slope) * x, to_w, to_t, to_scale, to_c

    @staticmethod
    def vmap(info, in_dims, *inputs):
        *tensors, c = inputs
        tensors = batched(info, in_dims[:4], tensors)
        return _Logits.apply(*tensors, per_batch(c, in_dims[4], tensors[0])), (0, 0, 0)


def _logits(x: Tensor, w: Tensor, t: Tensor, scale: Tensor, c: Scalar) -> Tensor:
    """Both regressions: scale · arsinh(√c z)/√c with z = λ_x ⟨x, w⟩ − (λ_x − 1) t.

    x: [..., d], w: [K, d], t and scale: [K, 1] in float64.  Returns [..., K].
    """
    rows = x.reshape(-1, x.shape[-1])
    t, scale = t.mT.to(x.dtype), scale.mT.to(x.dtype)
    if torch.compiler.is_compiling():
        lam = (2 / alpha_of(rows, c)).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            z = (lam * rows) @ w.mT - (lam - 1) * t
        logits = scale * arsinh(z, c)
    else:
        logits, _, _ = _Logits.apply(rows, w, t, scale, c)
    return logits.reshape(*x.shape[:-1], w.shape[0])


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩, [..., 1], summed in the vectors' own dtype: nothing is subtracted from it."""
    return (x * y).sum(-1, keepdim=True).double()


def _inverse_norm(a: Tensor) -> tuple[Tensor, Tensor]:
    """1/‖a‖ and ‖a‖ in float64, [..., 1]; both 0 with gradient 0 where a = 0."""
    square = square_of(a)
    present = square > _SHORTEST_NORMAL**2
    inverse = torch.where(present, torch.where(present, square, 1.0).rsqrt(), 0.0)
    return inverse, inverse * square


class _Planes(torch.autograd.Function):
    """w = a/‖a‖ + c κ p, κ = 2⟨p, a⟩/(‖a‖ β), ‖a‖ and β = 1 − c‖p‖² of p and a [..., K, d]: float64 but for w."""

    @staticmethod
    def forward(p: Tensor, a: Tensor, c: Scalar) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        beta = alpha_of(p, c)
        inverse, norm = _inverse_norm(a)
        kappa = 2 * inverse * _inner(p, a) / beta
        return (inverse.to(a.dtype) * a).add_((c * kappa).to(p.dtype) * p), kappa, norm, beta

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        p, a, c = inputs
        ctx.c = None if isinstance(c, Tensor) else c
        ctx.save_for_backward(p, a, *output[1:], *([c] if isinstance(c, Tensor) else []))

    @staticmethod
    def backward(ctx, to_w: Tensor, to_kappa: Tensor, to_norm: Tensor, to_beta: Tensor):
        p, a, kappa, norm, beta, *held = ctx.saved_tensors
        c = held[0] if held else ctx.c
        inverse = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1.0), 0.0)
        along_a, along_p = _inner(to_w, a), _inner(to_w, p)
        to_kappa = to_kappa + c * along_p
        to_inner = 2 * to_kappa * inverse / beta
        to_beta = to_beta - to_kappa * kappa / beta
        # of ‖a‖²: through 1/‖a‖, whose part in κ is κ‖a‖, and through ‖a‖
        to_square = inverse * (to_norm - inverse * inverse * (along_a + to_kappa * kappa * norm)) / 2
        scalars = (inverse, to_inner, 2 * to_square, c * kappa, -2 * c * to_beta)
        of_a, cross, of_aa, of_p, of_pp = (t.to(p.dtype) for t in scalars)
        to_a = of_a * to_w + cross * p + of_aa * a
        to_p = of_p * to_w + cross * a + of_pp * p
        to_c = None
        if ctx.needs_input_grad[2]:
            to_c = (kappa * along_p - to_beta * square_of(p)).sum_to_size(c.shape)
        return to_p, to_a, to_c

    @staticmethod
    def vmap(info, in_dims, *inputs):
        p, a = batched(info, in_dims[:2], inputs[:2])
        return _Planes.apply(p, a, per_batch(inputs[2], in_dims[2], p)), (0, 0, 0, 0)


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
    both near the sphere: at the margin 1e-3 up to 0.1, for an argument that goes up to 1e6; the gradients of such a
    pair are wrong likewise. Use float64 there.
    Source: Ganea et al. 2018, Hyperbolic Neural Networks; HIE, hyperbolic MLR.
    """
    x, p, a = prepare(c, x, p, a)
    if p.dim() != 2 or a.shape != p.shape:
        raise ValueError(f"p and a must both be [classes, d], got {tuple(p.shape)} and {tuple(a.shape)}")
    w, kappa, norm, beta = _Planes.apply(p, a, c)
    return _logits(x, w, kappa, 2 * norm if from_origin else 2 * norm / beta, c)


def unidirectional_logits(x: Tensor, z: Tensor, r: Tensor, c: Scalar) -> Tensor:
    """Logits of the regression whose class k has a direction z_k and a distance r_k instead of a point and a normal.

    v_k(x) = (2‖z_k‖/√c) arsinh( √c λ_x ⟨x, z_k/‖z_k‖⟩ cosh(2√c r_k) − (λ_x − 1) sinh(2√c r_k) );
    4(⟨x, z_k⟩ − ‖z_k‖ r_k) at c = 0.  It equals `mlr_logits` with p_k = exp₀(r_k z_k/‖z_k‖), a_k = z_k/cosh²(√c r_k).

    x: [..., d], inside the ball.  z: [K, d].  r: [K].  Returns [..., K].  At z_k = 0 value and gradient are 0.
    Beyond 2√c |r| = 30 sinh is continued linearly in r: no logit overflows up to |r| = 1e15/√c, but there logits and
    slopes are no longer the formula's.
    Source: Shimizu et al. 2021, Hyperbolic Neural Networks++; Poincaré ResNet, hyperplane score.
    """
    x, z = prepare(c, x, z)
    if z.dim() != 2 or r.shape != z.shape[:1]:
        raise ValueError(f"z must be [classes, d] and r [classes], got {tuple(z.shape)} and {tuple(r.shape)}")
    inverse, norm = _inverse_norm(z)
    r = r.double().unsqueeze(-1)
    sinh = 2 * r * sinhc((4 * c * r.square()).clamp(max=_LARGEST_OFFSET**2))  # sinh(2√c r)/√c
    cosh = (1 + c * sinh.square()).sqrt()
    return _logits(x, (cosh * inverse).to(z.dtype) * z, sinh, 2 * norm, c)
