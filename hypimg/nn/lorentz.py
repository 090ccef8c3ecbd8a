"""Layers of the Poincaré ball in Lorentz coordinates: the plain form, made of torch operations and autograd alone.

Two kinds of tensors, both [N, C, H, W], with the C numbers of a pixel as one vector:
- a scaled tangent U = √c u of a tangent vector u at the origin, s = ‖U‖;
- the spatial part W of a point X = (X₀, W) of the unit hyperboloid, X₀ = √(1 + ‖W‖²): W = (sinh 2s/s) U.
The point of the ball is x = W/(√c (1 + X₀)), λ_x = 1 + X₀ and √c d(x, y) = arccosh(X₀Y₀ − ⟨X, Y⟩). In these
coordinates a convolution, a batch norm and a Möbius sum are linear combinations of the vectors at hand, with a few
numbers per pixel as coefficients, and c occurs only in scalings.

Time coordinates are kept as excesses x = X₀ − 1 = ‖W‖²/(1 + X₀): cosh − 1 from a rounded cosh has no digits near 1.
Nothing looks at a value on the host. Vectors lie along dimension `dim` of their tensors, by default the channels.
Source: Poincaré ResNet; the hyperboloid and the ball are isometric, so these are its formulas in other coordinates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hypimg.geometry._scalars import ALMOST_ONE, arsinh, asinhc, safe_sqrt, sinhc, tanhc

CHANNELS = 1

# Beyond this sinh is not followed: float32 squares of it are still finite, and every margin cuts long before.
LARGEST_ANGLE = 30.0

NEWTON_STEPS = 2  # before the one that is differentiated; from the midpoint they reach 1e-10
_SHORTEST_DIRECTION = 1e-15  # of a hyperplane; the official code's
_SINGULAR = 1e-12  # of ‖·‖² in a direction that has none


class Planes(NamedTuple):
    """The K hyperplanes of a layer with directions z_k and offsets r_k, in the form that the layers take.

    weight: z_k/‖z_k‖ · cosh(2√c r_k), shape of z.  shift: sinh(2√c r_k) [K].  steepness: 2‖z_k‖ [K].
    """

    weight: Tensor
    shift: Tensor
    steepness: Tensor


class Norm(NamedTuple):
    """What a batch norm does to points: to which mean and with which spread.

    gain: γ [].  bias: √c β [K], a scaled tangent.  c: 0-dim tensor or float.  eps: added to the variance.
    frechet: the Fréchet mean instead of the midpoint.
    """

    gain: Tensor
    bias: Tensor
    c: Tensor | float
    eps: float
    frechet: bool


def longest_tangent(margin: float) -> float:
    """artanh(1 − margin): the length of a scaled tangent whose point lies on the clip sphere."""
    return math.atanh(1 - margin) if margin else LARGEST_ANGLE / 2


def beta_ratio(fan_in: int, channels: int) -> float:
    """β(n/2, ½)/β(nᵢ/2, ½): what a tangent is scaled by when n/nᵢ of them are concatenated (HNN++)."""

    def log_beta(a: float) -> float:
        return math.lgamma(a) - math.lgamma(a + 0.5)  # + lgamma(½), which cancels

    return math.exp(log_beta(fan_in / 2) - log_beta(channels / 2))


def planes(z: Tensor, r: Tensor | None, c: Tensor | float) -> Planes:
    """z: [K, ...], r: [K] or None (0).  At z_k = 0 the score is 0 and its gradient in z_k that of a short z_k."""
    norm = safe_sqrt(z.flatten(1).square().sum(1)).clamp(min=_SHORTEST_DIRECTION)
    scale = 1 / norm
    if r is None:
        shift = torch.zeros_like(norm)
    else:
        # linear in r from LARGEST_ANGLE on, so that no offset overflows
        shift = 2 * c**0.5 * r * sinhc((4 * c * r.square()).clamp(max=LARGEST_ANGLE**2))
        scale = scale * (1 + shift.square()).sqrt()
    # contiguous: weights in channels last would bring the convolution's result there
    return Planes((z * scale.view(-1, *[1] * (z.dim() - 1))).contiguous(), shift, 2 * norm)


class _SumOfSquares(torch.autograd.Function):
    """With one pass over all channels in the backward, where autograd makes two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return x.square().sum(dim, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return 2 * grad * ctx.saved_tensors[0], None


def sum_of_squares(x: Tensor, dim: int = CHANNELS) -> Tensor:
    return _SumOfSquares.apply(x, dim)


def inner(x: Tensor, y: Tensor, dim: int = CHANNELS) -> Tensor:
    return (x * y).sum(dim, keepdim=True)


def excess(square: Tensor) -> Tensor:
    """X₀ − 1 of ‖W‖²."""
    return square / (1 + (1 + square).sqrt())


def _shortened(square: Tensor, limit: float) -> Tensor:
    """The factor that brings a vector of this ‖·‖² to at most `limit`."""
    return (square / limit**2).clamp(min=1).rsqrt()


def points_of(u: Tensor, limit: float, dim: int = CHANNELS) -> Tensor:
    """exp₀: scaled tangents → points, of tangents longer than `limit` those of length `limit`."""
    square = sum_of_squares(u, dim)
    return _lift(square, limit) * u


def _lift(square: Tensor, limit: float) -> Tensor:
    """sinh(2s′)/s with s′ = min(s, limit)."""
    return 2 * sinhc(4 * square.clamp(max=limit * limit)) * _shortened(square, limit)


def tangents_of(w: Tensor, dim: int = CHANNELS) -> Tensor:
    """log₀: points → scaled tangents."""
    return 0.5 * asinhc(sum_of_squares(w, dim)) * w


def project(w: Tensor, limit: float, dim: int = CHANNELS) -> Tensor:
    """Points farther out than exp₀ of a tangent of length `limit`, brought there."""
    return _shortened(sum_of_squares(w, dim), math.sinh(2 * limit)) * w


def scores(products: Tensor, square: Tensor, p: Planes, limit: float, inverted: bool) -> Tensor:
    """√c v_k of HNN++ = 2‖z_k‖ arsinh( (sinh 2s/s) P_k − cosh 2s · sinh 2√c r_k ), [N, K, ...].

    products: P_k = ⟨U, weight_k⟩ [N, K, ...].  square: s² [N, 1, ...].
    inverted: with 2(1 − c‖x‖²) for λ, as the official code of Poincaré ResNet has it.
    """
    cut = square.clamp(max=limit * limit)
    if inverted:
        tanh = tanhc(cut)
        lam = 2 * (1 - cut * tanh.square())
        slope, level = lam * tanh * _shortened(square, limit), lam - 1
    else:
        half = sinhc(cut)  # sinh s/s
        beyond = cut * half.square()  # sinh² s
        slope, level = 2 * half * (1 + beyond).sqrt() * _shortened(square, limit), 1 + 2 * beyond
    shape = (1, -1, *[1] * (products.dim() - 2))
    return p.steepness.view(shape) * arsinh(slope * products - level * p.shift.view(shape), 1.0)


class _Sinh(torch.autograd.Function):
    """sinh, with √(1 + sinh²) for its derivative: a third of the time of cosh."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return v.sinh()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (1 + ctx.saved_tensors[0].square()).sqrt()


def points_of_scores(v: Tensor, limit: float, dim: int = CHANNELS) -> Tensor:
    """The point whose signed distances to the coordinate hyperplanes are the scores: W_k = sinh(√c v_k), projected."""
    return project(_Sinh.apply(F.hardtanh(v, -LARGEST_ANGLE, LARGEST_ANGLE)), limit, dim)


class _Conv2d(torch.autograd.Function):
    """F.conv2d whose backward has channels last on a CPU: with so few channels it takes a third of the time."""

    @staticmethod
    def forward(u: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return F.conv2d(u, weight, None, stride, padding)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        u, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(u, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        layout = torch.channels_last if grad.device.type == "cpu" else torch.contiguous_format
        grad, u, weight = (t.contiguous(memory_format=layout) for t in (grad, *ctx.saved_tensors))
        wanted = [*ctx.needs_input_grad[:2], False]
        back = torch.ops.aten.convolution_backward(
            grad, u, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, wanted
        )
        return *(None if b is None else b.contiguous() for b in back[:2]), None, None


def convolution(
    u: Tensor, p: Planes, stride: tuple[int, int], padding: tuple[int, int], limit: float, inverted: bool
) -> Tensor:
    """Scaled tangents [N, C, H, W] → points [N, K, H′, W′]; the planes' weights [K, C, h, w]."""
    height, width = p.weight.shape[2:]
    ratio = beta_ratio(height * width * u.shape[1], u.shape[1])
    products = _Conv2d.apply(u, ratio * p.weight, stride, padding)
    field = sum_of_squares(u)
    if padding[0] > height // 2 or padding[1] > width // 2:  # more than avg_pool2d takes
        field, padding = F.pad(field, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
    if (height, width) != (1, 1):
        field = F.avg_pool2d(field, (height, width), stride, padding, divisor_override=1)
    elif stride != (1, 1):
        field = field[..., :: stride[0], :: stride[1]]
    return points_of_scores(scores(products, ratio**2 * field, p, limit, inverted), limit)


def midpoint(w: Tensor, dims: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """The normalised sum of the points over `dims`, kept as dimensions of size 1: the Poincaré gyromidpoint."""
    mean, time = w.mean(dims, keepdim=True), excess(sum_of_squares(w)).mean(dims, keepdim=True)
    mean, time = mean.double(), time.double()
    # time² + 2 time + 1 − ‖mean‖²
    length = (1 + time * (2 + time) - sum_of_squares(mean)).clamp(min=1e-30).sqrt()
    return (mean / length).to(w.dtype)


def pooled(u: Tensor, window: tuple[int, int], limit: float) -> Tensor:
    """Scaled tangents [N, C, H, W] → those of the midpoints of windows side by side [N, C, H′, W′]."""
    w = points_of(u, limit)
    mean = F.avg_pool2d(w, window).double()
    time = F.avg_pool2d(excess(sum_of_squares(w)), window).double()
    length = (1 + time * (2 + time) - sum_of_squares(mean)).clamp(min=1e-30).sqrt()
    return tangents_of((mean / length).to(w.dtype))


def frechet_mean(w: Tensor, steps: int = NEWTON_STEPS) -> tuple[Tensor, Tensor]:
    """The Fréchet mean of all points [N, K, H, W] → [1, K, 1, 1], and the length of the last Newton step [].

    `steps` Newton steps from the midpoint without gradient, then one with: of that one the mean before and the Hessian
    are held constant, which is the gradient of the implicit function theorem.
    """
    with torch.no_grad():
        mean = midpoint(w)
        for _ in range(steps):
            mean, _ = _newton(w, mean)
    return _newton(w, mean)


def _newton(w: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """One Newton step towards the Fréchet mean, in the frame whose origin is `mean`, and its length."""
    m = excess(sum_of_squares(mean))
    x = excess(sum_of_squares(w))
    g = _gap(x, m, inner(w, mean))
    seen = w - mean * ((2 + x + g) / (2 + m))  # the points' spatial parts in that frame
    square = g * (2 + g)
    pull = asinhc(square)  # d/sinh d
    force = (pull * seen).mean((0, 2, 3))
    with torch.no_grad():
        flat = seen.transpose(0, 1).flatten(1)
        along = (pull * (1 + g)).reshape(1, -1)  # d coth d, the curvature across the direction of a point
        radial = (1 - along) / square.reshape(1, -1).clamp(min=_SINGULAR)
        radial = torch.where(square.reshape(1, -1) > _SINGULAR, radial, -1 / 3)
        hessian = (radial * flat) @ flat.T / flat.shape[1]
        hessian.diagonal().add_(along.mean())
    step = torch.linalg.solve_ex(hessian.double(), force.double())[0]  # `solve` would wait for a GPU
    length = step.square().sum()
    away = (sinhc(length.clamp(max=ALMOST_ONE)) * step).to(w.dtype).view(1, -1, 1, 1)
    return mobius_sum(mean, away), safe_sqrt(length).to(w.dtype)


def _gap(x: Tensor, y: Tensor, product: Tensor) -> Tensor:
    """X₀Y₀ − ⟨X, Y⟩ − 1 = cosh(√c d) − 1 of two excesses and the product of the spatial parts."""
    return (x + y + x * y - product).clamp(min=0)


def moved(w: Tensor, mean: Tensor, variance: Tensor | None, norm: Norm, limit: float) -> tuple[Tensor, Tensor]:
    """Points [N, K, H, W] moved so that `mean` [1, K, 1, 1] becomes exp₀(β) and their variance γ; and the variance [].

    log at the mean, parallel transport to exp₀(β), times √(γ/(variance + eps)), exp. variance: None: that of the points
    about the mean, the mean of d².   Source: Poincaré ResNet, batch normalisation.
    """
    bias = points_of(norm.bias.view(1, -1, 1, 1), limit)
    m, b = excess(sum_of_squares(mean)), excess(sum_of_squares(bias))
    x = excess(sum_of_squares(w))
    e = _gap(x, m, inner(w, mean))
    h = _gap(x, b, inner(w, bias))
    f = _gap(m, b, inner(mean, bias))
    square = e * (2 + e)  # sinh² d
    ratio = asinhc(square)  # d/sinh d
    distance2 = square * ratio.square()
    if variance is None:
        variance = distance2.mean() / norm.c
    gain = norm.gain / (variance + norm.eps)
    scaled = (gain * distance2).clamp(max=LARGEST_ANGLE**2)
    shrink = sinhc(scaled)
    stretch = gain.sqrt() * shrink * ratio  # sinh(γd)/sinh d
    cosh = (1 + scaled * shrink.square()).sqrt()
    to_mean = -stretch * (2 + e + h) / (2 + f)
    to_bias = stretch * (e + f + e * f - h) / (2 + f) + cosh
    return project(stretch * w + to_mean * mean + to_bias * bias, limit), variance


def mobius_sum(z: Tensor, y: Tensor, dim: int = CHANNELS) -> Tensor:
    """z ⊕ y: the boost by z applied to y."""
    zz, yy = sum_of_squares(z, dim), sum_of_squares(y, dim)
    time_z, time_y = (1 + zz).sqrt(), (1 + yy).sqrt()
    time = time_z * time_y + inner(z, y, dim)
    return y + z * ((time_y + time) / (1 + time_z))


class _Products(torch.autograd.Function):
    """‖t‖², ‖v‖² and ⟨t, v⟩ along `dim`, kept as a dimension of size 1."""

    @staticmethod
    def forward(t: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        tt, vv, tv = (torch.linalg.vecdot(x, y, dim=dim).unsqueeze(dim) for x, y in ((t, t), (v, v), (t, v)))
        return tt, vv, tv

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, to_tt: Tensor, to_vv: Tensor, to_tv: Tensor) -> tuple[Tensor, Tensor, None]:
        t, v = ctx.saved_tensors
        return (to_tv * v).addcmul_(2 * to_tt, t), (to_tv * t).addcmul_(2 * to_vv, v), None


class _Mixture(torch.autograd.Function):
    """α t + δ v with numbers α, δ per vector along `dim`."""

    @staticmethod
    def forward(alpha: Tensor, t: Tensor, delta: Tensor, v: Tensor, dim: int) -> Tensor:
        return (alpha * t).addcmul_(delta, v)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.dim = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        alpha, t, delta, v = ctx.saved_tensors
        to_alpha, to_delta = (torch.linalg.vecdot(grad, x, dim=ctx.dim).unsqueeze(ctx.dim) for x in (t, v))
        return to_alpha, alpha * grad, to_delta, delta * grad, None


def residual(branch: Tensor, skip: Tensor, limit: float, dim: int = CHANNELS) -> Tensor:
    """Scaled tangents branch, skip → log₀(exp₀(branch) ⊕ exp₀(skip)), a combination of the two."""
    tt, vv, tv = _Products.apply(branch, skip, dim)
    a, b = _lift(tt, limit), _lift(vv, limit)
    z, y = excess(a.square() * tt), excess(b.square() * vv)
    time = z + y + z * y + a * b * tv  # X₀ − 1 of the sum
    scale = 0.5 * asinhc((time * (2 + time)).clamp(min=0))
    return _Mixture.apply(scale * a * (2 + y + time) / (2 + z), branch, scale * b, skip, dim)


class Layer(NamedTuple):
    """What a layer made: scaled tangents [N, K, H, W] and, of a layer with batch norm, what the batch was like.

    mean: of the points before the norm [1, K, 1, 1].  variance: of them about it [].  newton: length of the last step
    towards a Fréchet mean [], 0 for a midpoint.  All three without gradient.
    """

    tangents: Tensor
    mean: Tensor | None = None
    variance: Tensor | None = None
    newton: Tensor | None = None


def layer(
    u: Tensor,
    p: Planes,
    stride: tuple[int, int],
    padding: tuple[int, int],
    limit: float,
    inverted: bool = False,
    norm: Norm | None = None,
    skip: Tensor | None = None,
    relu: bool = False,
) -> Layer:
    """Convolution → [batch norm by the batch's own statistics] → [⊕ skip] → [ReLU] of scaled tangents [N, C, H, W].

    skip: scaled tangents of the result's shape, the right summand of ⊕.
    """
    w = convolution(u, p, stride, padding, limit, inverted)
    mean = variance = newton = None
    if norm is not None:
        if norm.frechet:
            mean, newton = frechet_mean(w)
        else:
            mean, newton = midpoint(w), w.new_zeros(())
        w, variance = moved(w, mean, None, norm, limit)
        mean, variance, newton = mean.detach(), variance.detach(), newton.detach()
    if skip is not None:
        w = mobius_sum(w, points_of(skip, limit))
    tangents = tangents_of(w)
    return Layer(tangents.relu() if relu else tangents, mean, variance, newton)
