"""Nearest neighbours and ranks in the Poincaré ball, without the matrix of distances and almost without its formula.

For one query x, d(x, y) grows with ‖x − y‖²/(1 − c‖y‖²), which one matrix product gives for a block of queries; the
hyperbolic functions are applied to what is kept. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hypimg.geometry._pairs import BLOCK
from hypimg.geometry._rows import Scalar, alpha_of, arsinh_, prepare


@torch.no_grad()
def topk(x: Tensor, y: Tensor, c: Scalar, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest y of every x: (distances, indices), both [n, k], nearest first.

    x: [n, d] queries, y: [m, d] gallery, inside the ball; 1 ≤ k ≤ m, else ValueError.
    The distances are those of `poincare.dist`, from differences. Who is among the k is decided by a matrix product in
    which ‖x − y‖² has an error of about 1e-7 (‖x‖² + ‖y‖²): at the k-th place two y so near to a tie may be swapped.
    Source: the formula of `poincare.dist`.
    """
    x, y = _matrices(x, y, c)
    if not 1 <= k <= len(y):
        raise ValueError(f"k must be from 1 to the size of the gallery ({len(y)}), got {k}")
    a, b = ((1 / alpha_of(t, c)).to(x.dtype) for t in (x, y))
    distances = x.new_empty(len(x), k)
    indices = torch.empty(len(x), k, dtype=torch.long, device=x.device)
    for rows, order in _orders(x, y, b):
        nearest = order.topk(k, dim=1, largest=False).indices
        step = y[nearest] - x[rows].unsqueeze(1)  # [rows, k, d]
        root = step.mul_(step).sum(-1).mul_(a[rows]).mul_(b[nearest, 0]).sqrt_()
        exact, by_distance = arsinh_(root, c, times=2).sort(dim=1, stable=True)
        distances[rows], indices[rows] = exact, nearest.gather(1, by_distance)
    return distances, indices


@torch.no_grad()
def rank_by_distance(x: Tensor, y: Tensor, c: Scalar, matches: Tensor, exclude: Tensor | None = None) -> Tensor:
    """How many gallery points are nearer to each query than its true matches: the ranks from which mAP and CMC follow.

    x: [n, d] queries, y: [m, d] gallery, inside the ball.  matches: int64 [n, j], gallery indices of each query's true
    matches, filled up with −1.  exclude: int64 [n, e], gallery indices that do not count for a query (in
    re-identification the same person seen by the same camera), filled up with −1.  Returns int64 [n, j]: 0 is the
    nearest; −1 where `matches` has −1. Gallery points equally near do not count: of ties, every one gets the best rank.
    Raises ValueError for other shapes or dtypes and for indices beyond the gallery's size.   Source: ours.
    """
    x, y = _matrices(x, y, c)
    for name, index in (("matches", matches), ("exclude", exclude)):
        if index is not None and (index.dtype != torch.long or index.dim() != 2 or len(index) != len(x)):
            raise ValueError(f"{name} must be int64 [{len(x)}, ...], got {index.dtype} {tuple(index.shape)}")
        if index is not None and index.numel() and (int(index.min()) < -1 or int(index.max()) >= len(y)):
            raise ValueError(f"{name} must hold indices from -1 to {len(y) - 1}")
    b = (1 / alpha_of(y, c)).to(x.dtype)
    ranks = torch.full_like(matches, -1)
    for rows, order in _orders(x, y, b):
        wanted = matches[rows]
        if exclude is not None:
            skipped = torch.where(exclude[rows] >= 0, exclude[rows], len(y))
            order = torch.cat([order, order.new_empty(len(order), 1)], 1).scatter_(1, skipped, torch.inf)[:, :-1]
        reference = order.gather(1, wanted.clamp(min=0))
        for column in range(wanted.shape[1]):
            nearer = (order < reference[:, column : column + 1]).sum(1)
            ranks[rows, column] = torch.where(wanted[:, column] >= 0, nearer, -1)
    return ranks


def _matrices(x: Tensor, y: Tensor, c: Scalar) -> tuple[Tensor, Tensor]:
    x, y = prepare(c, x, y)
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(f"x must be [n, d] and y [m, d], got {tuple(x.shape)} and {tuple(y.shape)}")
    return x, y


def _orders(x: Tensor, y: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of queries, and ‖x − y‖² b of each with every y, [rows, m]: it orders as the distance does."""
    xx, yy = ((t * t).sum(-1, keepdim=True) for t in (x, y))
    left = torch.cat([-2 * x, xx, torch.ones_like(xx)], -1)
    right = (torch.cat([y, torch.ones_like(yy), yy], -1) * b).mT
    height = max(1, BLOCK // max(1, len(y)))
    for start in range(0, len(x), height):
        rows = slice(start, start + height)
        with torch.autocast(x.device.type, enabled=False):
            yield rows, left[rows] @ right
