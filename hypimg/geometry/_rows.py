"""Row scalars: the numbers per point from which the formulas of the Poincaré ball are made.

Everything is a linear combination of the given vectors whose coefficients depend on inner
products alone. These coefficients are computed in float64: 1 − c‖x‖² from a float32 sum
has a relative error of 3e-5 at norm 1 − 1e-3 and 3e-3 at 1 − 1e-5, from a float64 sum none to speak of. With
α = 1 − c‖x‖², β = 1 − c‖y‖², s = ‖x − y‖² and u = c s/(αβ) no formula subtracts nearly equal numbers, and with the
even functions tanh(√t)/√t, asinh(√u)/√u, sinh(√t)/√t none divides by a norm or by c: value and gradient (in the points,
in the vectors and in c) hold at 0, at x = y and at c = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Scalar = float | Tensor

# Below this argument an even function is summed as a series: its closed form is 0/0 at 0 and its derivative loses
# eps/argument of its digits near it. With five terms series and closed form are equally good here.
_SERIES_BELOW = {torch.float32: 5e-2, torch.float64: 1e-3}


def prepare(c: Scalar, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Check c and the vectors, and bring the vectors to one dtype, float32 at least."""
    if isinstance(c, Tensor):
        if c.dim() != 0:
            raise ValueError(f"c must be a float or a 0-dim tensor, got shape {tuple(c.shape)}")
    elif not c >= 0:
        raise ValueError(f"c must be >= 0, got {c}")
    dtype = torch.float32
    for x in tensors:
        if not x.is_floating_point():
            raise TypeError(f"points and vectors must be floating point, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != tensors[0].shape[-1]:
            shapes = [tuple(t.shape) for t in tensors]
            raise ValueError(f"points and vectors must share their last dimension, got {shapes}")
        dtype = torch.promote_types(dtype, x.dtype)
    return tuple(x.to(dtype) for x in tensors)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ in float64, [..., 1]."""
    return (x.double() * y.double()).sum(-1, keepdim=True)


def square_of(x: Tensor) -> Tensor:
    """‖x‖² in float64, [..., 1]."""
    x = x.double()
    return (x * x).sum(-1, keepdim=True)  # square() is pow, whose backward is slower


def _even(t: Tensor, series: tuple[float, ...], closed: Callable[[Tensor], Tensor]) -> Tensor:
    """An even function of √t: `series` (coefficients of 1, t, t², …) near 0, else `closed`.

    Each branch sees only arguments that it can take, so the branch not chosen sends 0, not NaN, into the gradient.
    """
    limit = _SERIES_BELOW[t.dtype]
    near, far = t.clamp(max=limit), t.clamp(min=limit)
    total = near * series[-1] + series[-2]
    for coefficient in reversed(series[:-2]):
        total = total * near + coefficient
    return torch.where(t < limit, total, closed(far))


class _Tanhc(torch.autograd.Function):
    """tanhc with its derivative in closed form: a third of autograd's operations in the hot path."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor) -> Tensor:
        def closed(t: Tensor) -> Tensor:
            root = t.sqrt()
            return root.tanh() / root

        return _even(t, (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835), closed)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        t, value = ctx.saved_tensors  # input and output alone, so a second derivative is right too
        series = (-1 / 3, 4 / 15, -17 / 105, 248 / 2835, -1382 / 31185)
        return grad * _even(t, series, lambda far: (1 - far * value * value - value) / (2 * far))


def tanhc(t: Tensor) -> Tensor:
    """tanh(√t)/√t for t ≥ 0."""
    return _Tanhc.apply(t)


def sinhc(t: Tensor) -> Tensor:
    """sinh(√t)/√t for t ≥ 0."""

    def closed(t: Tensor) -> Tensor:
        root = t.sqrt()
        return root.sinh() / root

    return _even(t, (1.0, 1 / 6, 1 / 120, 1 / 5040, 1 / 362880), closed)


class _Asinhc(torch.autograd.Function):
    """asinhc with its derivative in closed form, as _Tanhc."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        def closed(u: Tensor) -> Tensor:
            root = u.sqrt()
            # log1p instead of asinh, which is ten times slower on CPU.
            return (root + u / (1 + (1 + u).sqrt())).log1p() / root

        return _even(u, (1.0, -1 / 6, 3 / 40, -15 / 336, 105 / 3456), closed)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        u, value = ctx.saved_tensors
        series = (-1 / 6, 3 / 20, -15 / 112, 35 / 288, -315 / 2816)
        return grad * _even(u, series, lambda far: ((1 + far).rsqrt() - value) / (2 * far))


def asinhc(u: Tensor) -> Tensor:
    """asinh(√u)/√u for u ≥ 0."""
    return _Asinhc.apply(u)


def safe_sqrt(q: Tensor) -> Tensor:
    """√q for q > 0, else 0 with gradient 0."""
    positive = q > 0
    return torch.where(positive, torch.where(positive, q, 1.0).sqrt(), 0.0)


def length(q: Tensor, c: Scalar) -> Tensor:
    """(2/√c) asinh √(c q) = 2 √q asinhc(c q), the hyperbolic length of q = ‖x − y‖²/(αβ)."""
    return 2 * safe_sqrt(q) * asinhc(c * q)


def alpha_of(x: Tensor, c: Scalar) -> Tensor:
    """1 − c‖x‖² in float64, [..., 1]."""
    return 1 - c * square_of(x)
