"""Nearest neighbours and ranks in the Poincaré ball, without the matrix of distances and almost without its formula.

For one query x, d(x, y) grows with ‖x − y‖²/(1 − c‖y‖²), which one matrix product gives for a block of queries (near
pairs computed again from differences); hyperbolic functions are applied to what is kept. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hypimg.geometry._pairs import blocks, differences, sides, squares
from hypimg.geometry._rows import inverse_of, prepare
from hypimg.geometry._scalars import Scalar, arsinh_

_COUNTABLE = 1 << 24  # ones that float32 adds up exactly; sums of bool or int64 take four times as long


@torch.no_grad()
def topk(x: Tensor, y: Tensor, c: Scalar, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest y of every x: (distances, indices), both [n, k], nearest first.

    x: [n, d] queries, y: [m, d] gallery, inside the ball; 1 ≤ k ≤ m, else ValueError.
    As exact as `poincare.cdist` in mode auto: near pairs are computed from differences, others to about 1e-6 of their
    distance, so the order of two y nearer to a tie than that is open. Points outside the ball and NaN come last (NaN).
    Source: the formula of `poincare.dist`.
    """
    x, y = _matrices(x, y, c)
    if not 1 <= k <= len(y):
        raise ValueError(f"k must be from 1 to the size of the gallery ({len(y)}), got {k}")
    a = inverse_of(x, c)
    distances = x.new_empty(len(x), k)
    indices = torch.empty(len(x), k, dtype=torch.long, device=x.device)
    for rows, order in _orders(x, y, c):
        smallest, indices[rows] = order.topk(k, dim=1, largest=False)
        distances[rows] = arsinh_(smallest.mul_(a[rows]).sqrt_(), c, times=2)
    return distances, indices


@torch.no_grad()
def rank_by_distance(x: Tensor, y: Tensor, c: Scalar, matches: Tensor, exclude: Tensor | None = None) -> Tensor:
    """How many gallery points are nearer to each query than its true matches: the ranks from which mAP and CMC follow.

    x: [n, d] queries, y: [m, d] gallery, inside the ball.  matches: int64 [n, j], gallery indices of each query's true
    matches, filled up with −1.  exclude: int64 [n, e], gallery indices that do not count for a query (in
    re-identification the same person seen by the same camera), filled up with −1.  Returns int64 [n, j]: 0 is the
    nearest; −1 where `matches` has −1. A match that is itself excluded ranks behind all that count.
    As exact as `topk`: a tie within about 1e-6 may be broken either way. A query or match that is NaN or outside the
    ball ranks last, and such a gallery point counts as nearer: a broken model gains nothing.
    Raises ValueError for other shapes or dtypes and for indices beyond the gallery's size.   Source: ours.
    """
    x, y = _matrices(x, y, c)
    for name, index in (("matches", matches), ("exclude", exclude)):
        if index is not None and (index.dtype != torch.long or index.dim() != 2 or len(index) != len(x)):
            raise ValueError(f"{name} must be int64 [{len(x)}, ...], got {index.dtype} {tuple(index.shape)}")
        if index is not None and index.numel() and (int(index.min()) < -1 or int(index.max()) >= len(y)):
            raise ValueError(f"{name} must hold indices from -1 to {len(y) - 1}")
    if len(y) > _COUNTABLE:
        raise ValueError(f"a gallery of more than {_COUNTABLE} points cannot be counted in float32, got {len(y)}")
    ranks = torch.full_like(matches, -1)
    if not len(y):
        return ranks
    for rows, order in _orders(x, y, c):
        wanted = matches[rows]
        if exclude is not None:
            skipped = torch.where(exclude[rows] >= 0, exclude[rows], len(y))
            order = torch.cat([order, order.new_empty(len(order), 1)], 1).scatter_(1, skipped, torch.inf)[:, :-1]
        reference, farther = order.gather(1, wanted.clamp(min=0)), torch.empty_like(order)
        for column in range(wanted.shape[1]):
            torch.ge(order, reference[:, column : column + 1], out=farther)  # no number is farther than NaN, nor NaN
            count = farther.sum(1).long()
            ranks[rows, column] = torch.where(wanted[:, column] >= 0, len(y) - count, -1)
    return ranks


def _matrices(x: Tensor, y: Tensor, c: Scalar) -> tuple[Tensor, Tensor]:
    x, y = prepare(c, x, y)
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(f"x must be [n, d] and y [m, d], got {tuple(x.shape)} and {tuple(y.shape)}")
    return x, y


def _orders(x: Tensor, y: Tensor, c: Scalar) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of queries, and ‖x − y‖²/(1 − c‖y‖²) of each with every y, [rows, m]: it orders as the distance does."""
    b = inverse_of(y, c)
    queries, gallery = sides(x, y, torch.ones_like(x[:, :1]), b)
    for rows in blocks(torch.Size([len(x), len(y)])):
        here = queries.rows(rows)
        order, _ = squares(here, gallery, "auto")
        yield rows, differences(here.points, y).square() * b.mT if order is None else order
