"""Distances of all pairs, by blocks of rows: one matrix product each way, nothing larger than the output is kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypimg.geometry._scalars import Scalar, arsinh_, arsinh_by_c, batched, per_batch, safe_sqrt, sinh

# A pair is near if ‖x − y‖² < this share of ‖x‖² + ‖y‖²: there ‖x‖² + ‖y‖² − 2⟨x, y⟩ has lost its digits.
NEAR = 0.2

# Above this share of near pairs, differences of all pairs cost less than mending the near ones.
MANY = 0.08

SMALL = 1e-37  # against 0/0

BLOCK = 1 << 18  # pairs worked on at a time: a few buffers of this size fit the second-level cache
ROWS = 64  # but no fewer rows, which would waste the matrix product
GATHERED = 1 << 17  # numbers gathered at a time


class Side(NamedTuple):
    """One of the two sets: points [..., n, d], 1/(1 − c‖x‖²) [..., n, 1], and their factors of the matrix products."""

    points: Tensor
    inverse: Tensor
    gram: Tensor  # times the other's: ‖x_i − y_j‖² a_i b_j
    bound: Tensor  # times the other's: NEAR (‖x_i‖² + ‖y_j‖²) a_i b_j

    def rows(self, rows: slice) -> Side:
        return Side(*(t[..., rows, :] for t in self))


def sides(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Side, Side]:
    xx, yy = ((t * t).sum(-1, keepdim=True) for t in (x, y))
    one_x, one_y = torch.ones_like(xx), torch.ones_like(yy)
    left, right = torch.cat([-2 * x, xx, one_x], -1) * a, torch.cat([y, one_y, yy], -1) * b
    near_left, near_right = torch.cat([xx, one_x], -1) * (NEAR * a), torch.cat([one_y, yy], -1) * b
    return Side(x, a, left, near_left), Side(y, b, right, near_right)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ rightᵀ in the dtype of its factors, under autocast too."""
    with torch.autocast(left.device.type, enabled=False):
        return torch.matmul(left, right.mT, out=out)


def differences(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖ from differences, [..., n, m]."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def squares(x: Side, y: Side, mode: str, out: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    """q = ‖x_i − y_j‖² a_i b_j of one block and the mask of its near pairs, None if it has none; q None: too many."""
    q = product(x.gram, y.gram, out).clamp_(min=0)
    if mode == "matmul":
        return q, None
    excess = product(x.bound, y.bound).sub_(q.detach())
    try:
        near = excess > 0 if excess.numel() and not float(excess.amax()) <= 0 else None  # NaN hides no near pair
        share = int(near.sum()) / near.numel() if near is not None else 0.0
    except RuntimeError as error:  # vmap shows no values
        if "vmap" not in str(error):
            raise
        near, share = None, 1.0
    if share >= MANY:
        return None, None
    return (q, None) if near is None else (_mended(x, y, q, near), near)


def _near_pairs(near: Tensor, d: int):
    """Indices of x, of y and of the pair, some at a time."""
    rows = max(1, GATHERED // d)
    for part in zip(*(index.split(rows) for index in near.nonzero(as_tuple=True)), strict=True):
        yield part[:-1], (*part[:-2], part[-1]), part


def _mended(x: Side, y: Side, q: Tensor, near: Tensor) -> Tensor:
    """q with its near pairs computed from differences."""
    for at_x, at_y, pair in _near_pairs(near, x.points.shape[-1]):
        step = x.points[at_x] - y.points[at_y]
        q[pair] = (step * step).sum(-1) * (x.inverse[at_x] * y.inverse[at_y]).squeeze(-1)
    return q


class Pairs(torch.autograd.Function):
    """d(x_i, y_j) of x [..., n, d], y [..., m, d]; a = 1/(1 − c‖x‖²) [..., n, 1] and b = 1/(1 − c‖y‖²) [..., m, 1].

    Keeps its inputs; the output too in mode exact, where going back to q from it costs less than q. With
    q = ‖x − y‖² a b: ∂d/∂q = 1/√(q + c q²), ∂q/∂x = 2 (x − y) a b.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Scalar, mode: str) -> Tensor:
        d = x.new_empty(*x.shape[:-1], y.shape[-2])
        all_x, other = sides(x, y, a, b)
        for rows in blocks(d.shape):
            here, out = all_x.rows(rows), d[..., rows, :]
            if mode == "exact" or squares(here, other, mode, out)[0] is None:
                out.copy_(differences(here.points, y)).mul_(here.inverse.sqrt()).mul_(b.sqrt().mT)
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
        all_x, other = sides(x, y, a, b)
        of_x, of_a = [], []
        of_y, of_b = torch.zeros_like(y), torch.zeros_like(b)
        of_c = torch.zeros_like(c) if ctx.needs_input_grad[4] else None
        for rows in blocks(grad.shape):
            here = all_x.rows(rows)
            by_d = grad.narrow(-2, rows.start, here.points.shape[-2])  # indexing fails where gradients are batched
            near = lengths = None
            if ctx.mode == "exact":
                q = sinh(d[..., rows, :], c, share=0.5).square()
                lengths = (q / (here.inverse * b.mT)).sqrt()
            else:
                mended, near = squares(here, other, ctx.mode)
                if mended is None:
                    lengths = differences(here.points, y)
                    mended = lengths.square() * here.inverse * b.mT
                q = mended
            root = safe_sqrt(q) if torch.is_grad_enabled() else q.sqrt()
            if of_c is not None:
                of_c = of_c + (2 * by_d * arsinh_by_c(root, c)).sum_to_size(c.shape)
            # 1/√(q + c q²) as √q/(q √(1 + c q)): 0 where the points coincide
            by_q = (by_d * root).div_(((c * q).add_(1).sqrt_() * q).add_(SMALL))
            to_x, to_y = _to_points(here, other, by_q, near, lengths)
            of_x.append(to_x)
            of_y = of_y + to_y
            weighed = q * by_q  # the derivatives in a and b are its sums over a and b
            of_a.append(weighed.sum(-1, keepdim=True) / here.inverse)
            of_b = of_b + weighed.sum(-2).unsqueeze(-1) / b
        return torch.cat(of_x, -2), of_y, torch.cat(of_a, -2), of_b, of_c, None

    @staticmethod
    def vmap(info, in_dims, x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Scalar, mode: str):
        tensors = batched(info, in_dims[:4], (x, y, a, b))
        c = per_batch(c, in_dims[4], tensors[0])
        return Pairs.apply(*tensors, c, "exact" if mode == "auto" else mode), 0


def blocks(shape: torch.Size) -> list[slice]:
    """Rows of a [..., n, m] to work on at a time."""
    n = max(1, shape[-2])
    height = min(n, max(ROWS, BLOCK * n // max(BLOCK, shape.numel())))
    return [slice(start, start + height) for start in range(0, n, height)]


def _to_points(x: Side, y: Side, by_q: Tensor, near: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Σ_j by_q 2 (x_i − y_j) a_i b_j for x, and minus its sum over i for y, of one block; from `lengths` if given."""
    (px, a), (py, b) = x[:2], y[:2]
    if lengths is not None:
        weight = 2 * by_q * a * b.mT
        if torch.is_grad_enabled():  # torch.cdist has no second derivative; plain differences have
            step = weight.unsqueeze(-1) * (px.unsqueeze(-2) - py.unsqueeze(-3))
            return step.sum(-2), -step.sum(-3)
        weight *= lengths
        to_x = torch.ops.aten._cdist_backward(weight, px, py, 2.0, lengths)
        return to_x, torch.ops.aten._cdist_backward(weight.mT.contiguous(), py, px, 2.0, lengths.mT.contiguous())
    far = by_q if near is None else torch.where(near, 0, by_q)
    from_y = product(far, (b * torch.cat([py, torch.ones_like(b)], -1)).mT)
    from_x = product(far.mT, (a * torch.cat([px, torch.ones_like(a)], -1)).mT)
    to_x = 2 * a * (px * from_y[..., -1:] - from_y[..., :-1])
    to_y = 2 * b * (py * from_x[..., -1:] - from_x[..., :-1])
    if near is None:
        return to_x, to_y
    for at_x, at_y, pair in _near_pairs(near, px.shape[-1]):
        step = (2 * by_q[pair].unsqueeze(-1) * a[at_x] * b[at_y]) * (px[at_x] - py[at_y])
        to_x = to_x.index_put(at_x, step, accumulate=True)
        to_y = to_y.index_put(at_y, -step, accumulate=True)
    return to_x, to_y
