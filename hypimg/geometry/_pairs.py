"""Distances of all pairs, by blocks of rows: one matrix product each way, nothing larger than the output is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from hypimg.geometry._rows import Scalar, arsinh_, arsinh_by_c, batched, per_batch, safe_sqrt, sinh

# A pair is near if ‖x − y‖² < this share of ‖x‖² + ‖y‖²: there ‖x‖² + ‖y‖² − 2⟨x, y⟩ has lost its digits.
NEAR = 0.2

# Above this share of near pairs, differences of all pairs cost less than mending the near ones.
MANY = 0.08

SMALL = 1e-37  # against 0/0

BLOCK = 1 << 18  # pairs worked on at a time: a few buffers of this size fit the second-level cache
GATHERED = 1 << 17  # numbers gathered at a time


def gram(x: Tensor, y: Tensor, a: Tensor, b: Tensor, xx: Tensor, yy: Tensor, out: Tensor | None = None) -> Tensor:
    """‖x_i − y_j‖² a_i b_j as one matrix product of width d + 2; x [..., n, d], a and xx [..., n, 1]."""
    left = torch.cat([-2 * x, xx, torch.ones_like(xx)], -1) * a
    right = torch.cat([y, torch.ones_like(yy), yy], -1) * b
    with torch.autocast(x.device.type, enabled=False):
        return torch.matmul(left, right.mT, out=out).clamp_(min=0)


def differences(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖ from differences, [..., n, m]."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _near(x: Tensor, y: Tensor, a: Tensor, b: Tensor, xx: Tensor, yy: Tensor, q: Tensor) -> Tensor:
    """Which pairs are near, of q = ‖x_i − y_j‖² a_i b_j; bool [..., n, m]."""
    left, right = torch.cat([xx, torch.ones_like(xx)], -1) * (NEAR * a), torch.cat([torch.ones_like(yy), yy], -1) * b
    with torch.autocast(x.device.type, enabled=False):
        return q < left @ right.mT


def _share(near: Tensor) -> float:
    """The share of near pairs; 1 where vmap does not show values."""
    try:
        return int(near.sum()) / max(1, near.numel()) if bool(near.any()) else 0.0
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return 1.0


def _mended(x: Tensor, y: Tensor, a: Tensor, b: Tensor, q: Tensor, near: Tensor) -> Tensor:
    """q with its near pairs computed from differences."""
    *lead, i, j = near.nonzero(as_tuple=True)
    rows = max(1, GATHERED // x.shape[-1])
    for part in zip(*(index.split(rows) for index in (*lead, i, j)), strict=True):
        at_x, at_y = part[:-1], (*part[:-2], part[-1])
        step = x[at_x] - y[at_y]
        q[part] = (step * step).sum(-1) * (a[at_x] * b[at_y]).squeeze(-1)
    return q


def _squares(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, xx: Tensor, yy: Tensor, mode: str, out: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """q = ‖x_i − y_j‖² a_i b_j of one block and the mask of its near pairs, None if it has none; q None: too many."""
    q = gram(x, y, a, b, xx, yy, out)
    if mode == "matmul":
        return q, None
    near = _near(x, y, a, b, xx, yy, q.detach())
    share = _share(near)
    if share >= MANY:
        return None, None
    return (_mended(x, y, a, b, q, near), near) if share else (q, None)


class Pairs(torch.autograd.Function):
    """d(x_i, y_j) of x [..., n, d], y [..., m, d]; a = 1/(1 − c‖x‖²) [..., n, 1] and b = 1/(1 − c‖y‖²) [..., m, 1].

    Keeps its inputs; the output too in mode exact, where going back to q from it costs less than q. With
    q = ‖x − y‖² a b: ∂d/∂q = 1/√(q + c q²), ∂q/∂x = 2 (x − y) a b.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Scalar, mode: str) -> Tensor:
        d = x.new_empty(*x.shape[:-1], y.shape[-2])
        xx, yy = ((t * t).sum(-1, keepdim=True) for t in (x, y))
        for rows in _blocks(d):
            here, out = (x[..., rows, :], y, a[..., rows, :], b, xx[..., rows, :], yy), d[..., rows, :]
            if mode == "exact" or _squares(*here, mode, out)[0] is None:
                out.copy_(differences(here[0], y)).mul_(here[2].sqrt()).mul_(b.sqrt().mT)
            else:
                out.sqrt_()
            arsinh_(out, c, times=2)
        return d

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, c, ctx.mode = inputs
        ctx.c = None if isinstance(c, Tensor) else c
        kept = output if ctx.mode == "exact" else None
        ctx.save_for_backward(*tensors, kept, *([c] if isinstance(c, Tensor) else []))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, y, a, b, d, *held = ctx.saved_tensors
        c = held[0] if held else ctx.c
        xx, yy = ((t * t).sum(-1, keepdim=True) for t in (x, y))
        of_x, of_a = [], []
        of_y, of_b = torch.zeros_like(y), torch.zeros_like(b)
        of_c = torch.zeros_like(c) if ctx.needs_input_grad[4] else None
        for rows in _blocks(grad):
            here, by_d = (x[..., rows, :], y, a[..., rows, :], b, xx[..., rows, :], yy), grad[..., rows, :]
            near = lengths = None
            if ctx.mode == "exact":
                q = sinh(d[..., rows, :], c, share=0.5).square()
                lengths = (q / (here[2] * b.mT)).sqrt()
            else:
                squares, near = _squares(*here, ctx.mode)
                if squares is None:
                    lengths = differences(here[0], y)
                    squares = lengths.square() * here[2] * b.mT
                q = squares
            root = safe_sqrt(q) if torch.is_grad_enabled() else q.sqrt()
            if of_c is not None:
                of_c = of_c + (2 * by_d * arsinh_by_c(root, c)).sum_to_size(c.shape)
            # 1/√(q + c q²) as √q/(q √(1 + c q)): 0 where the points coincide
            by_q = (root / ((c * q).add_(1).sqrt_() * q).add_(SMALL)).mul_(by_d)
            to_x, to_y = _to_points(*here, by_q, near, lengths)
            of_x.append(to_x)
            of_y = of_y + to_y
            weighed = q * by_q  # the derivatives in a and b are its sums over a and b
            of_a.append(weighed.sum(-1, keepdim=True) / here[2])
            of_b = of_b + weighed.sum(-2).unsqueeze(-1) / b
        return torch.cat(of_x, -2), of_y, torch.cat(of_a, -2), of_b, of_c, None

    @staticmethod
    def vmap(info, in_dims, x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Scalar, mode: str):
        tensors = batched(info, in_dims[:4], (x, y, a, b))
        c = per_batch(c, in_dims[4], tensors[0])
        return Pairs.apply(*tensors, c, "exact" if mode == "auto" else mode), 0


def _blocks(d: Tensor) -> list[slice]:
    """Rows of d [..., n, m] to work on at a time."""
    n = max(1, d.shape[-2])
    height = max(1, BLOCK * n // max(BLOCK, d.numel()))
    return [slice(start, start + height) for start in range(0, n, height)]


def _to_points(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    xx: Tensor,
    yy: Tensor,
    by_q: Tensor,
    near: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Σ_j by_q 2 (x_i − y_j) a_i b_j for x, and minus its sum over i for y, of one block; from `lengths` if given."""
    if lengths is not None:
        weight = 2 * by_q * a * b.mT
        if torch.is_grad_enabled():  # torch.cdist has no second derivative; plain differences have
            step = weight.unsqueeze(-1) * (x.unsqueeze(-2) - y.unsqueeze(-3))
            return step.sum(-2), -step.sum(-3)
        weight *= lengths
        to_x = torch.ops.aten._cdist_backward(weight, x, y, 2.0, lengths)
        return to_x, torch.ops.aten._cdist_backward(weight.mT.contiguous(), y, x, 2.0, lengths.mT.contiguous())
    far = by_q if near is None else torch.where(near, 0, by_q)
    with torch.autocast(x.device.type, enabled=False):
        from_y = far @ (b * torch.cat([y, torch.ones_like(yy)], -1))
        from_x = far.mT @ (a * torch.cat([x, torch.ones_like(xx)], -1))
    to_x = 2 * a * (x * from_y[..., -1:] - from_y[..., :-1])
    to_y = 2 * b * (y * from_x[..., -1:] - from_x[..., :-1])
    if near is None:
        return to_x, to_y
    *lead, i, j = near.nonzero(as_tuple=True)
    rows = max(1, GATHERED // x.shape[-1])
    for part in zip(*(index.split(rows) for index in (*lead, i, j)), strict=True):
        at_x, at_y = part[:-1], (*part[:-2], part[-1])
        step = (2 * by_q[part].unsqueeze(-1) * a[at_x] * b[at_y]) * (x[at_x] - y[at_y])
        to_x = to_x.index_put(at_x, step, accumulate=True)
        to_y = to_y.index_put(at_y, -step, accumulate=True)
    return to_x, to_y
