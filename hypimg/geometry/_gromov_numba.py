"""The compiled search behind `gromov`: exact, O(N²) memory, several cores. Needs numba; imported only when asked for.

Gromov products are kept doubled, d_pi + d_pj − d_ij ≥ 0. Numbers that are not negative have the order of their bit
patterns, and compilers turn integer min and max into vector instructions, float ones not; so kernels compare `bits` and
subtract in `values`, two views of one memory. Products are padded with zeros to whole tiles, which no maximum sees.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

TILE = 32
_CHUNK = 1024  # columns of a pass over a tile: both its row blocks stay in the second-level cache
_THREADS_PAY = 512  # points from which on the work outweighs starting threads
_SAMPLE = 32  # rows looked at first: they raise the bound and tell whether pruning pays
_WORTH_PRUNING = 0.5  # share of the sample's pairs that survive their bound, above which the dense kernel is faster

_INTEGER = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code for one thread that leaves the interpreter to others, kept on disk where that can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


@_compiled
def _build(distances, order, from_base, values, bits, tops, rows):
    """Doubled products of the points in `order`, and per row and tile of columns the largest off the diagonal.

    Returns by how much a product was below 0.
    """
    n = order.size
    lowest = 0.0
    for i in rows:
        row = distances[order[i]]
        for j in range(n):
            value = (from_base[i] + from_base[j]) - row[order[j]]
            if value > 0:
                values[i, j] = value  # else it stays 0: a rounding below 0, and −0, whose bits are not in order
            elif value < lowest:
                lowest = value
        own = bits[i, i]
        bits[i, i] = 0
        for tile in range(tops.shape[1]):
            top = bits[i, tile * TILE]
            for k in range(tile * TILE, tile * TILE + TILE):
                top = max(top, bits[i, k])
            tops[i, tile] = top
        bits[i, i] = own
    return -lowest


@_compiled
def _pruned(values, bits, tops, top_values, reach, rows, shared, survivors):
    """The largest max_k min(A_ik, A_jk) − A_ij over i in `rows` and j < i that is above shared[0], else shared[0].

    k = i and k = j give at most 0, so the row maxima `reach` and the tile maxima `tops` leave out the diagonal. min and
    rounded subtraction are monotone: a bound that does not beat the best so far proves that the pair does not.
    """
    tiles = tops.shape[1]
    scratch = np.empty(1, bits.dtype)
    scratch_value = scratch.view(values.dtype)
    best = shared[0]
    for i in rows:
        best = max(best, shared[0])
        for j in range(i):
            a = values[i, j]
            if min(reach[i], reach[j]) - a <= best:
                continue
            bound = tops[i, 0] * 0
            for tile in range(tiles):
                bound = max(bound, min(tops[i, tile], tops[j, tile]))
            scratch[0] = bound
            if scratch_value[0] - a <= best:
                continue
            survivors[i] += 1
            found = bound * 0
            for tile in range(tiles):
                top = min(top_values[i, tile], top_values[j, tile])
                if top - a > best and min(tops[i, tile], tops[j, tile]) > found:
                    for k in range(tile * TILE, tile * TILE + TILE):
                        found = max(found, min(bits[i, k], bits[j, k]))
            scratch[0] = found
            best = max(best, scratch_value[0] - a)
        shared[0] = max(best, shared[0])  # a hint to other threads; what counts is what each returns
    return best


@_compiled
def _dense(values, bits, rows, shared):
    """As `_pruned` for the tiles of rows that start at `rows`, without bounds; 4 × 2 pairs share what they load."""
    size = bits.shape[1]
    found = np.empty((TILE, TILE), bits.dtype)
    found_value = found.view(values.dtype)
    best = shared[0]
    for i0 in rows:
        for j0 in range(0, i0 + TILE, TILE):
            found[:] = 0
            for k0 in range(0, size, _CHUNK):
                k1 = min(size, k0 + _CHUNK)
                for i in range(0, TILE, 4):
                    p, q = bits[i0 + i, k0:k1], bits[i0 + i + 1, k0:k1]
                    r, s = bits[i0 + i + 2, k0:k1], bits[i0 + i + 3, k0:k1]
                    for j in range(0, TILE, 2):
                        x, y = bits[j0 + j, k0:k1], bits[j0 + j + 1, k0:k1]
                        px, qx, rx, sx = found[i, j], found[i + 1, j], found[i + 2, j], found[i + 3, j]
                        py, qy, ry, sy = found[i, j + 1], found[i + 1, j + 1], found[i + 2, j + 1], found[i + 3, j + 1]
                        for k in range(k1 - k0):
                            u, v = x[k], y[k]
                            px, qx = max(px, min(p[k], u)), max(qx, min(q[k], u))
                            rx, sx = max(rx, min(r[k], u)), max(sx, min(s[k], u))
                            py, qy = max(py, min(p[k], v)), max(qy, min(q[k], v))
                            ry, sy = max(ry, min(r[k], v)), max(sy, min(s[k], v))
                        found[i, j], found[i + 1, j], found[i + 2, j], found[i + 3, j] = px, qx, rx, sx
                        found[i, j + 1], found[i + 1, j + 1], found[i + 2, j + 1], found[i + 3, j + 1] = py, qy, ry, sy
            for i in range(TILE):
                for j in range(min(TILE, i0 + i - j0)):
                    best = max(best, found_value[i, j] - values[i0 + i, j0 + j])
        shared[0] = max(best, shared[0])
    return best


def _in_threads(kernel: Callable[[np.ndarray], float], rows: np.ndarray, size: int) -> float:
    """max of kernel(part) over parts of `rows` of a size × size matrix, on as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads == 1 or size < _THREADS_PAY:
        return kernel(rows)
    parts = [rows[first :: 8 * threads] for first in range(min(len(rows), 8 * threads))]
    with ThreadPoolExecutor(threads) as pool:
        return max(pool.map(kernel, parts))


def search(distances: Tensor, order: Tensor, base: int, best: float, kernel: str = "auto") -> tuple[float, float]:
    """max(2 δ_p, best) over the points in `order`, and the least doubled Gromov product (0 if none is negative).

    distances: [N, N] on the CPU, checked and symmetric.  order: [n] indices, near points beside each other (this only
    decides how much is pruned).  base: index of p.  kernel: "pruned", "dense", or "auto", which tries some rows.
    """
    d, points = distances.numpy(), order.numpy()
    n, from_base = len(points), d[base, points]
    size = -(-n // TILE) * TILE
    values = np.zeros((size, size), d.dtype)
    bits = values.view(_INTEGER[d.dtype])
    tops = np.zeros((size, size // TILE), bits.dtype)
    lowest = -_in_threads(lambda rows: _build(d, points, from_base, values, bits, tops, rows), np.arange(n), size)

    shared = np.array([best])
    step = 1 if kernel == "pruned" else max(1, n // _SAMPLE)
    sample = np.arange(n - 1, 0, -step)
    if kernel != "dense":
        reach = tops.max(1).view(d.dtype)
        survivors = np.zeros(size, np.int64)

        def pruned(rows: np.ndarray) -> float:
            return _pruned(values, bits, tops, tops.view(d.dtype), reach, rows, shared, survivors)

        shared[0] = _in_threads(pruned, sample, size)
        if kernel == "pruned" or survivors.sum() <= _WORTH_PRUNING * sample.sum():
            rest = np.setdiff1d(np.arange(n), sample)[::-1]
            return max(float(shared[0]), _in_threads(pruned, rest, size)), lowest
    return _in_threads(lambda rows: _dense(values, bits, rows, shared), np.arange(0, size, TILE)[::-1], size), lowest
