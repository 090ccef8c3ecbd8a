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

Scalar = float | Tensor

# Below this argument an even function is summed as a series: its closed form is 0/0 at 0 and its derivative loses
# eps/argument of its digits near it. With five terms series and closed form are equally good here.
_SERIES_BELOW = {torch.float32: 5e-2, torch.float64: 1e-3}

# From this square on tanh(√t) is 1 in either dtype.
ALMOST_ONE = 400.0

_SMALLEST_C = 1e-30  # stands for c = 0 where √c divides


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


def _sums(x: Tensor, y: Tensor, c: Scalar | None = None) -> Tensor:
    """⟨x, y⟩ in float64, [..., 1]; with c, of y = x, exact enough for 1 − c‖x‖²."""
    compiling = torch.compiler.is_compiling()
    if c is not None and compiling and x.device.type == "cpu" and x.dtype == torch.float32:
        # Compiled float64 sums are slow on CPU (their lanes are added one by one), so: the squares' multiples of about
        # 2⁻²²/c, whose float32 sum is exact up to 4/c, and the small rest.
        square = x.double() * y.double()
        rounder = 2.0**30 / (c + 1e-30)
        coarse = (square + rounder) - rounder
        sums = (part.float().sum(-1, keepdim=True).double() for part in (coarse, square - coarse))
        return next(sums) + next(sums)
    if compiling or x.device.type != "cpu" or x.dtype == torch.float64 or x.numel() < _WHOLE:
        wide = x.double()
        return (wide * (wide if y is x else y.double())).sum(-1, keepdim=True)
    rows, other = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
    total = x.new_empty(rows.shape[0], 1, dtype=torch.float64)
    height = max(1, _BLOCK // x.shape[-1])
    a = x.new_empty(height, x.shape[-1], dtype=torch.float64)
    b = a if y is x else torch.empty_like(a)
    for block, other_block, out in zip(rows.split(height), other.split(height), total.split(height), strict=True):
        a, b = a[: len(block)], b[: len(block)]
        a.copy_(block)
        if y is not x:
            b.copy_(other_block)
        torch.sum(torch.mul(a, b, out=a), -1, keepdim=True, out=out)
    return total.reshape(*x.shape[:-1], 1)


def batched(info, in_dims: Sequence, inputs: Sequence) -> list:
    """Inputs with the batch dimension of vmap first: functions of rows do not mind how many there are."""
    return [
        x if not isinstance(x, Tensor) else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(inputs, in_dims, strict=True)
    ]


def per_batch(c: Scalar, dim: int | None, like: Tensor) -> Scalar:
    """c under vmap: a number per batch, made to multiply `like`, whose first dimension is the batch."""
    if dim is None or not isinstance(c, Tensor):
        return c
    c = c.movedim(dim, 0).to(like.dtype)
    return c.reshape(*c.shape, *[1] * (like.dim() - c.dim()))


class _Square(torch.autograd.Function):
    """‖x‖². Keeps x alone; plain autograd would keep it in float64."""

    @staticmethod
    def forward(x: Tensor, c: Scalar | None) -> Tensor:
        return _sums(x, x, c)

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
        return _sums(x, y)

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


def _sum(x: Tensor, y: Tensor, f: Tensor | None, sign: int) -> Tensor:
    y = y if f is None else f * y
    return y + x if sign > 0 else y - x


class _Gap(torch.autograd.Function):
    """‖f y + sign x‖² of equal shapes. Keeps its inputs, not the sum."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, f: Tensor | None, sign: int) -> Tensor:
        total = _sum(x, y, f, sign)
        return _sums(total, total)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.sign = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, y, f = ctx.saved_tensors
        to_sum = (2 * grad).to(x.dtype) * _sum(x, y, f, ctx.sign)
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
        return (a * _sum(x, y, f, sign)).add_(b * x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.sign = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, b, x, y, f = ctx.saved_tensors
        to_a = (grad * _sum(x, y, f, ctx.sign)).sum(-1, keepdim=True)
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
    return _Square.apply(x, c.detach() if isinstance(c, Tensor) else c)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ in float64, [..., 1]."""
    return _Inner.apply(*torch.broadcast_tensors(x, y))


def gap(x: Tensor, y: Tensor, sign: int = -1, f: Tensor | None = None) -> Tensor:
    """‖f y + sign x‖² in float64, [..., 1], from the sum itself: right however much cancels. f per row; None: 1."""
    return _Gap.apply(*torch.broadcast_tensors(x, y), f, sign)


def move(a: Tensor, b: Tensor, x: Tensor, y: Tensor, sign: int, f: Tensor | None = None) -> Tensor:
    """a (f y + sign x) + b x with numbers a, b, f per row, in the vectors' dtype."""
    x, y = torch.broadcast_tensors(x, y)
    a, b = (t.to(x.dtype).expand(*x.shape[:-1], 1) for t in (a, b))
    return _Move.apply(a, b, x, y, f, sign)


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


def root_of(c: Scalar) -> Scalar:
    """√c to divide by: of c = 0 it is so small a number that what follows is the Euclidean limit to the last digit."""
    if isinstance(c, Tensor):
        # A tensor of no dimension in float64 leaves float32 vectors float32 and is itself not rounded.
        return (c.double() if c.dim() == 0 else c).clamp(min=_SMALLEST_C).sqrt()
    return math.sqrt(max(c, _SMALLEST_C))


def arsinh_(z: Tensor, c: Scalar, times: float = 1.0) -> Tensor:
    """times · arsinh(√c z)/√c in place, for z ≥ 0; times · z at c = 0."""
    root = root_of(c)
    w = z.mul_(root)
    # log1p instead of asinh, which is ten times slower on CPU.
    square = w * w
    rest = (square + 1).sqrt_().add_(1)
    return w.add_(square.div_(rest)).log1p_().mul_(times / root)


def sinh(d: Tensor, c: Scalar, share: float = 1.0) -> Tensor:
    """sinh(share √c d)/√c; share d at c = 0."""
    root = root_of(c)
    return (d * (share * root)).sinh_().div_(root)


def arsinh_by_c(z: Tensor, c: Scalar) -> Tensor:
    """The derivative of arsinh(√c z)/√c in c; −z³/6 at c = 0."""
    u, limit = c * z * z, _SERIES_BELOW[z.dtype]
    near = u < limit
    small, far = torch.where(near, z, 0.0), torch.where(near, limit**0.5 / root_of(c), z)
    v = c * small * small
    series = -1 / 6 + v * (3 / 20 + v * (-15 / 112 + v * (35 / 288 - v * (315 / 2816))))
    closed = (far * (1 + c * far * far).rsqrt() - arsinh(far, c)) / (2 * root_of(c) ** 2)
    return torch.where(near, small * small * small * series, closed)


class _Arsinh(torch.autograd.Function):
    """arsinh(√c z)/√c: the derivatives are simple where those of its parts are many."""

    @staticmethod
    def forward(z: Tensor, c: Scalar) -> Tensor:
        return arsinh_(z.abs(), c).copysign_(z)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        z, c = inputs
        ctx.c = None if isinstance(c, Tensor) else c
        ctx.save_for_backward(z, *([c] if isinstance(c, Tensor) else []))

    @staticmethod
    def backward(ctx, grad: Tensor):
        z, *held = ctx.saved_tensors
        c = held[0] if held else ctx.c
        to_c = (grad * arsinh_by_c(z, c)).sum_to_size(c.shape) if ctx.needs_input_grad[1] else None
        return grad * (1 + c * z * z).rsqrt(), to_c

    @staticmethod
    def vmap(info, in_dims, z: Tensor, c: Scalar):
        (z,) = batched(info, in_dims[:1], (z,))
        return _Arsinh.apply(z, per_batch(c, in_dims[1], z)), 0


def arsinh(z: Tensor, c: Scalar) -> Tensor:
    """arsinh(√c z)/√c, odd in z; z at c = 0."""
    return _Arsinh.apply(z, c)


def safe_sqrt(q: Tensor) -> Tensor:
    """√q, with gradient 0 at 0."""
    zero = q == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, q).sqrt())


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
