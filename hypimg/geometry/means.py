"""Means of points of the Poincaré ball."""

from __future__ import annotations

from torch import Tensor

from hypimg.geometry._rows import Scalar, alpha_of, prepare, safe_sqrt


def midpoint(x: Tensor, c: Scalar, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Einstein midpoint (the same point as the Poincaré gyromidpoint): HIE's mean, its prototypes.

    m = S/(L + √(L² − c‖S‖²)) with S = Σ w λ x, L = Σ w (λ − 1);  the weighted mean at c = 0.
    In Klein coordinates k it is Σ w γ k / Σ w γ with γ = λ − 1.

    x: [..., n, ..., d], inside the ball, averaged over `dim` (not the last).  weights: x's shape without its last
    dimension (or broadcasting to it), ≥ 0, not all 0.  Returns x's shape without `dim`.  One point is its own midpoint.
    Summed in float64: L² and c‖S‖² are nearly equal near the sphere.
    Source: HIE, Einstein midpoint; Poincaré ResNet, Poincaré midpoint.
    """
    (x,) = prepare(c, x)
    if dim % x.dim() == x.dim() - 1:
        raise ValueError("dim must not be the last dimension: it holds the coordinates")
    lam = 2 / alpha_of(x, c)
    w = lam.new_ones(()) if weights is None else weights.double().unsqueeze(-1)
    total = (w * lam * x.double()).sum(dim)
    mass = (w * (lam - 1)).sum(dim)
    length = safe_sqrt(mass.square() - c * total.square().sum(-1, keepdim=True))
    return (total / (mass + length)).to(x.dtype)
