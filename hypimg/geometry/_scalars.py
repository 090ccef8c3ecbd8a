"""Functions of one number from which the formulas are made: even functions of a root, arsinh, and their derivatives."""

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
_SMALLEST_SQUARE = 1e-30  # stands for 0 where a root divides


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


def _tanh_by_root(t: Tensor) -> Tensor:
    root = t.sqrt()
    return root.tanh() / root


def _asinh_by_root(u: Tensor) -> Tensor:
    root = u.sqrt()
    # log1p instead of asinh, which is ten times slower on CPU.
    return (root + u / (1 + (1 + u).sqrt())).log1p() / root


class _Tanhc(torch.autograd.Function):
    """tanhc with its derivative in closed form: a third of autograd's operations in the hot path."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor) -> Tensor:
        return _even(t, (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835), _tanh_by_root)

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


class _Sinhc(torch.autograd.Function):
    """sinhc with its derivative in closed form, as _Tanhc."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor) -> Tensor:
        root = t.clamp(min=_SMALLEST_SQUARE).sqrt()  # sinh of a short number is that number: no series
        return root.sinh() / root

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        t, value = ctx.saved_tensors
        series = (1 / 6, 1 / 60, 1 / 1680, 1 / 90720)
        return grad * _even(t, series, lambda far: (far.sqrt().cosh() - value) / (2 * far))


def sinhc(t: Tensor) -> Tensor:
    """sinh(√t)/√t for t ≥ 0."""
    return _Sinhc.apply(t)


class _Asinhc(torch.autograd.Function):
    """asinhc with its derivative in closed form, as _Tanhc."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return _even(u, (1.0, -1 / 6, 3 / 40, -15 / 336, 105 / 3456), _asinh_by_root)

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
    """√c to divide by; of c = 0 a number so small that lengths up to 1e7 come out as the Euclidean limit exactly."""
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
