"""Row scalars: the numbers per point from which the formulas of the Poincaré ball are made.

Everything is a linear combination of the given vectors whose coefficients depend on inner
products alone. These coefficients are computed in float64: 1 − c‖x‖² from a float32 sum
has a relative error of 3e-5 at norm 1 − 1e-3 and 3e-3 at 1 − 1e-5, from a float64 sum none to speak of. With
α = 1 − c‖x‖², β = 1 − c‖y‖², s = ‖x − y‖² and u = c s/(αβ) no formula subtracts nearly equal numbers, and with the
even functions tanh(√t)/√t, asinh(√u)/√u, sinh(√t)/√t none divides by a norm or by c: value and gradient (in the points,
in the vectors and in c) hold at 0, at x = y and at c = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hypimg.geometry._scalars import Scalar, arsinh, batched, safe_sqrt


def prepare(c: Scalar, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Check c and the vectors, and bring the vectors to one dtype, float32 at least."""
    if isinstance(c, Tensor):
        if c.dim() != 0:
            raise ValueError(f"c must be a float or a 0-dim tensor, got shape {tuple(c.shape)}")
    elif not 0 <= c < math.inf:
        raise ValueError(f"c must be a finite number >= 0, got {c}")
    dtype = torch.float32
    for x in tensors:
        if not x.is_floating_point():
            raise TypeError(f"points and vectors must be floating point, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != tensors[0].shape[-1]:
            shapes = [tuple(t.shape) for t in tensors]
            raise ValueError(f"points and vectors must share their last dimension, got {shapes}")
        dtype = torch.promote_types(dtype, x.dtype)
    return tuple(x.to(dtype) for x in tensors)


# Rows are summed in float64 by blocks that stay in the processor's cache; a float64 copy of the whole is never made.
_BLOCK = 1 << 17  # numbers
_WHOLE = 1 << 18  # as few need no blocks


def _sums(make: Callable[..., tuple[Tensor, Tensor]], tensors: Sequence[Tensor], c: Scalar | None = None) -> Tensor:
    """⟨a, b⟩ in float64, [..., 1], of the rows a, b = make(*tensors); with c exact enough for 1 − c ⟨a, a⟩."""
    x = tensors[0]
    compiling = torch.compiler.is_compiling()
    if c is not None and compiling and x.device.type == "cpu" and x.dtype == torch.float32:
        # Compiled float64 sums are slow on CPU (their lanes are added one by one), so: the squares' multiples of about
        # 2⁻²²/c, whose float32 sum is exact up to 4/c, and the small rest.
        a, b = make(*tensors)
        product = a.double() * b.double()
        rounder = 2.0**30 / (c + 1e-30)
        coarse = (product + rounder) - rounder
        sums = (part.float().sum(-1, keepdim=True).double() for part in (coarse, product - coarse))
        return next(sums) + next(sums)
    if compiling or x.device.type != "cpu" or x.dtype == torch.float64 or x.numel() < _WHOLE:
        a, b = make(*tensors)
        wide = a.double()
        return (wide * (wide if b is a else b.double())).sum(-1, keepdim=True)
    flat = [t.reshape(-1, t.shape[-1]) for t in tensors]
    total = x.new_empty(len(flat[0]), 1, dtype=torch.float64)
    height = max(1, _BLOCK // x.shape[-1])
    buffer = x.new_empty(height, x.shape[-1], dtype=torch.float64)
    for *parts, out in zip(*(t.split(height) for t in flat), total.split(height), strict=True):
        a, b = make(*parts)
        wide = buffer[: len(a)].copy_(a)
        torch.sum(wide.mul_(wide if b is a else b.double()), -1, keepdim=True, out=out)
    return total.reshape(*x.shape[:-1], 1)


def _itself(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x


class _Square(torch.autograd.Function):
    """‖x‖². Keeps x alone; plain autograd would keep it in float64."""

    @staticmethod
    def forward(x: Tensor, c: Scalar | None) -> Tensor:
        return _sums(_itself, [x], c)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return (2 * grad).to(x.dtype) * x, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _Square.apply(batched(info, in_dims, inputs)[0], None), 0


class _Inner(torch.autograd.Function):
    """⟨x, y⟩ of equal shapes."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _sums(lambda x, y: (x, y), [x, y])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, y = ctx.saved_tensors
        grad = grad.to(x.dtype)
        return grad * y, grad * x

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _Inner.apply(*batched(info, in_dims, inputs)), 0


def _sum(sign: int, x: Tensor, y: Tensor, f: Tensor | None = None) -> Tensor:
    """f y + sign x."""
    if f is not None:
        return (f * y).add_(x, alpha=sign)
    return y + x if sign > 0 else y - x


class _Gap(torch.autograd.Function):
    """‖f y + sign x‖² of equal shapes. Keeps its inputs, not the sum."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, f: Tensor | None, sign: int) -> Tensor:
        return _sums(lambda *rows: _itself(_sum(sign, *rows)), [x, y] if f is None else [x, y, f])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.sign = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, y, f = ctx.saved_tensors
        to_sum = (2 * grad).to(x.dtype) * _sum(ctx.sign, x, y, f)
        to_x = to_sum if ctx.sign > 0 else -to_sum
        if f is None:
            return to_x, to_sum, None, None
        return to_x, f * to_sum, (to_sum * y).sum(-1, keepdim=True), None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _Gap.apply(*batched(info, in_dims, inputs)), 0


class _Move(torch.autograd.Function):
    """a (f y + sign x) + b x of equal shapes, with a, b and f numbers per row. Keeps its inputs, not the sum."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, x: Tensor, y: Tensor, f: Tensor | None, sign: int) -> Tensor:
        return _sum(sign, x, y, f).mul_(a).add_(b * x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.sign = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, b, x, y, f = ctx.saved_tensors
        to_a = (grad * _sum(ctx.sign, x, y, f)).sum(-1, keepdim=True)
        to_b = (grad * x).sum(-1, keepdim=True)
        to_x = (a + b if ctx.sign > 0 else b - a) * grad
        if f is None:
            return to_a, to_b, to_x, a * grad, None, None
        return to_a, to_b, to_x, (a * f) * grad, a * (grad * y).sum(-1, keepdim=True), None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _Move.apply(*batched(info, in_dims, inputs)), 0


def square_of(x: Tensor, c: Scalar | None = None) -> Tensor:
    """‖x‖² in float64, [..., 1]. Give c where 1 − c‖x‖² is to be formed."""
    if x.numel() < _WHOLE and not torch.compiler.is_compiling():
        wide = x.double()  # so small a copy may be kept, and a Function's own time would show
        return (wide * wide).sum(-1, keepdim=True)
    return _Square.apply(x, c.detach() if isinstance(c, Tensor) else c)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ in float64, [..., 1]."""
    return _Inner.apply(*torch.broadcast_tensors(x, y))


def gap(x: Tensor, y: Tensor, sign: int = -1, f: Tensor | None = None) -> Tensor:
    """‖f y + sign x‖² in float64, [..., 1], from the sum itself: right however much cancels. f per row; None: 1."""
    return _Gap.apply(*torch.broadcast_tensors(x, y), f, sign)


def move(a: Tensor, b: Tensor, x: Tensor, y: Tensor, sign: int, f: Tensor | None = None) -> Tensor:
    """a (f y + sign x) + b x with numbers a, b, f per row, in the vectors' dtype."""
    rows = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1], x.shape[:-1], y.shape[:-1])
    x, y = (t.expand(*rows, t.shape[-1]) for t in (x, y))
    a, b = (t.to(x.dtype).expand(*rows, 1) for t in (a, b))
    return _Move.apply(a, b, x, y, f, sign)


def length(q: Tensor, c: Scalar, dtype: torch.dtype) -> Tensor:
    """(2/√c) arsinh √(c q), the hyperbolic length of q = ‖x − y‖²/(αβ), in `dtype`."""
    return 2 * arsinh(safe_sqrt(q).to(dtype), c)


def alpha_of(x: Tensor, c: Scalar) -> Tensor:
    """1 − c‖x‖² in float64, [..., 1]."""
    return 1 - c * square_of(x, c)


def inverse_of(x: Tensor, c: Scalar) -> Tensor:
    """1/(1 − c‖x‖²) in the dtype of x, [..., 1]; NaN outside the ball, where it would pass for a distance's."""
    alpha = alpha_of(x, c)
    return torch.where(alpha > 0, 1 / alpha, torch.nan).to(x.dtype)
