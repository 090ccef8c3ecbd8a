"""δ-hyperbolicity in the sense of Gromov: how far a finite metric space is from a tree, and which c that suggests.

The functions look at their input on the host (they check it, and search with bounds that depend on it) and give no
gradient: they are for analysis, not for a training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Method = Literal["auto", "numba", "torch"]

# δ_rel of the hyperbolic plane of curvature −1 as far as it can be drawn, by which c is read off. "paper" is HIE's k:
# δ of thin triangles, ln(1 + √2), over what its text calls the diameter, 12.204, which is the radius (in float32) of a
# disk of Euclidean radius 1 − 1e-5. "hyperbolic_plane" is four-point δ, as measured here, over that disk's diameter.
DELTA_CONSTANTS = {"paper": 0.144, "hyperbolic_plane": math.log(2) / (2 * math.atanh(1 - 1e-5))}

_ROUNDING = 1e-4  # share of the diameter by which rounding may break symmetry, the diagonal or the triangle inequality
_TILE = 32  # points per leaf of the ordering, and columns per bound
_NUMBA_PAYS = 1000**3  # triples from which on numba repays its import and compilation
_BLOCK = (2**20, 2**26)  # entries of a block of the torch search: what stays in a CPU's cache, what fills a GPU
_FEW = 0.25  # share of pairs below which picking them out is cheaper than taking all, in the torch search
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}

# (distances, order, base, best) → (max(2 δ_p, best) over the points in `order`, least doubled Gromov product)
Search = Callable[[Tensor, Tensor, int, float], tuple[float, float]]


def delta_hyperbolicity(distances: Tensor, base: int | Literal["all"] = 0, method: Method = "auto") -> Tensor:
    """Gromov's δ of a finite metric space, from one base point (as the papers' code) or exactly.

    δ_p = max_{i,j} [ max_k min(A_ik, A_kj) − A_ij ],  A_ij = (d_pi + d_pj − d_ij)/2, the Gromov product at p = base.
    δ = max_p δ_p is the four-point constant: half of what the largest of d_xy + d_zw, d_xz + d_yw, d_xw + d_yz exceeds
    the second by, at most. δ_p ≤ δ ≤ 2 δ_p. 0 for a tree, ln 2 for the hyperbolic plane of curvature −1.

    distances: [N, N], N ≥ 4, float32 or float64.  base: an index (−1 is the last), or "all" for δ, which takes N/4
    times as long; `delta_by_base` gives the spread over base points.  method: "numba" (needs the extra `fast`, CPU
    tensors, uses torch's number of threads), "torch" (where the tensor is), or "auto": numba where it is there and the
    work is worth its compilation (some seconds once, then kept on disk). All give the same bits, in O(N²) memory.
    Returns a 0-dim tensor in the dtype and on the device of `distances`, without gradient.
    Raises TypeError (not a tensor of float32 or float64, base not an int) and ValueError: not [N, N], fewer than 4
    points, negative or non-finite entries, asymmetry, a diagonal or a violated triangle inequality at p beyond
    rounding (1e-4 of the diameter), base out of range, an unknown method.
    Source: HIE, δ-hyperbolicity (which says that δ does not depend on p); Gromov 1987.
    """
    d = _checked(distances)
    first = 0 if base == "all" else _index(base, len(d))
    order = _nearby_order(d)
    if base != "all":
        return d.new_tensor(_doubled_delta(_search(d, 1, method), d, order, first) / 2)
    search = _search(d, len(d) // 4, method)
    best = 0.0
    # The four-point constant is symmetric in its points, so each quadruple is looked at from its first alone.
    for p in range(len(d) - 3):
        best = _doubled_delta(search, d, order[p:], int(order[p]), best)
    return d.new_tensor(best / 2)


def delta_by_base(distances: Tensor, bases: Sequence[int], method: Method = "auto") -> Tensor:
    """δ_p for several base points p, whose spread tells how much the choice of one matters: δ_p ≤ max_p δ_p ≤ 2 δ_p.

    distances: [N, N], method, errors and source: as in `delta_hyperbolicity`.  bases: indices.  Returns [len(bases)].
    """
    d = _checked(distances)
    indices = [_index(base, len(d)) for base in bases]
    order = _nearby_order(d)
    search = _search(d, len(indices), method)
    return d.new_tensor([_doubled_delta(search, d, order, p) / 2 for p in indices])


def relative_delta(distances: Tensor, base: int | Literal["all"] = 0, method: Method = "auto") -> Tensor:
    """δ_rel = 2 δ / diameter, in [0, 1]: 0 for a tree, and free of the unit of the distances.

    Arguments and errors as `delta_hyperbolicity`; ValueError too if all distances are 0.  It shrinks with the dimension
    of unstructured features too, so a low value alone does not prove a hierarchy.   Source: HIE, δ-hyperbolicity.
    """
    delta = delta_hyperbolicity(distances, base, method)
    diameter = distances.detach().amax()
    if diameter == 0:
        raise ValueError("relative δ needs two different points; all distances are 0")
    return (2 * delta / diameter).clamp(max=1)  # 1 is reached, and rounding passes it


def curvature_from_delta(delta_rel: float | Tensor, constant: str = "paper") -> float:
    """The c at which the hyperbolic plane has this δ_rel: c = (k/δ_rel)².

    constant: "paper", k = 0.144, HIE's 2 ln(1 + √2)/12.204: δ of thin triangles, over a radius called diameter; or
    "hyperbolic_plane", k = 2 ln 2/24.412 = 0.0568: δ as `delta_hyperbolicity` measures it, over the diameter of the
    disk of Euclidean radius 1 − 1e-5, so that points spread evenly over that disk give back c = 1. The first is 6.4
    times the second. Both are a rule of thumb: no result of the paper uses such a c.

    delta_rel: a number in [0, 1], or a 0-dim tensor.  Returns a float; inf for 0, a tree.  ValueError otherwise.
    Source: HIE, δ-hyperbolicity.
    """
    if constant not in DELTA_CONSTANTS:
        raise ValueError(f"constant must be one of {', '.join(DELTA_CONSTANTS)}, got {constant!r}")
    value = float(delta_rel)
    if not 0 <= value <= 1:
        raise ValueError(f"relative δ must be in [0, 1], got {value}")
    return (DELTA_CONSTANTS[constant] / value) ** 2 if value else math.inf


def euclidean_distances(features: Tensor) -> Tensor:
    """‖x_i − x_j‖ for all rows, from differences summed in float64: ‖x‖² + ‖y‖² − 2⟨x, y⟩ loses near pairs.

    features: [N, D], N ≥ 1, floating point and finite.  Returns [N, N] in their dtype (float32 for float16 and
    bfloat16), exactly symmetric, with 0 on the diagonal and between equal rows, without gradient. O(N² + N D) memory.
    Raises TypeError for other dtypes, ValueError for other shapes and non-finite features.
    Source: HIE, Table 2 (the distance between features).
    """
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if features.dim() != 2 or 0 in features.shape:
        raise ValueError(f"features must be [N, D], not empty, got shape {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("features hold values that are not finite")
    n, dtype = len(features), torch.promote_types(features.dtype, torch.float32)
    condensed = torch.nn.functional.pdist(features.detach().double()).to(dtype)
    upper = condensed.new_zeros(n, n)
    for i, row in enumerate(condensed.split(list(range(n - 1, 0, -1))) if n > 1 else ()):
        upper[i, i + 1 :] = row
    return upper + upper.T


def _index(base: object, n: int) -> int:
    if isinstance(base, bool) or not isinstance(base, int):
        raise TypeError(f'base must be an int or "all", got {base!r}')
    if not -n <= base < n:
        raise ValueError(f"base must be in [{-n}, {n}), got {base}")
    return base % n


def _checked(distances: Tensor) -> Tensor:
    """The matrix without gradient and exactly symmetric, or an error that says what it is not."""
    if not isinstance(distances, Tensor) or distances.dtype not in _INTEGER:
        raise TypeError(f"distances must be a float32 or float64 tensor, got {getattr(distances, 'dtype', distances)}")
    d = distances.detach()
    if d.dim() != 2 or d.shape[0] != d.shape[1]:
        raise ValueError(f"distances must be a square matrix, got shape {tuple(d.shape)}")
    n = len(d)
    if n < 4:
        raise ValueError(f"δ needs at least 4 points, got {n}")
    low, high = (float(extreme) for extreme in torch.aminmax(d))
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("distances hold values that are not finite")
    if low < 0:
        raise ValueError(f"distances must be >= 0, got {low}")
    slack = _ROUNDING * high
    if float(d.diagonal().amax()) > slack:
        raise ValueError(f"distances must be 0 on the diagonal, got {float(d.diagonal().amax())}")
    blocks = [(slice(i, i + 256), slice(0, i + 256)) for i in range(0, n, 256)]
    if not all(torch.equal(d[rows, columns], d[columns, rows].T) for rows, columns in blocks):
        worst = max(float((d[rows, columns] - d[columns, rows].T).abs().amax()) for rows, columns in blocks)
        if worst > slack:
            raise ValueError(f"distances must be symmetric, got a difference of {worst}")
        d = (d + d.T) / 2
    return d


def _nearby_order(d: Tensor) -> Tensor:
    """The points, [N], such that runs of _TILE lie close together: halved by the distance to a far point, again and
    again. Bounds over runs are then tight; δ itself does not depend on the order."""
    leaves, stack = [], [torch.arange(len(d), device=d.device)]
    while stack:
        points = stack.pop()
        if len(points) <= _TILE:
            leaves.append(points)
            continue
        far = points[d[points[0], points].argmax()]
        points = points[d[far, points].argsort()]
        half = max(1, len(points) // (2 * _TILE)) * _TILE
        stack += [points[half:], points[:half]]
    return torch.cat(leaves)


def _search(d: Tensor, bases: int, method: str) -> Search:
    """The search that `method` names."""
    if method not in ("auto", "numba", "torch"):
        raise ValueError(f'method must be "auto", "numba" or "torch", got {method!r}')
    if method == "numba" and d.device.type != "cpu":
        raise ValueError(f"method='numba' needs a CPU tensor, got one on {d.device}; use method='torch'")
    pays = d.device.type == "cpu" and bases * len(d) ** 3 >= _NUMBA_PAYS
    if method == "torch" or (method == "auto" and not pays):
        return _torch_search
    try:
        from hypimg.geometry import _gromov_numba
    except ImportError as error:
        if method == "auto":
            return _torch_search
        raise ImportError("method='numba' needs numba: pip install 'hypimg[fast]', or use method='torch'") from error
    return _gromov_numba.search


def _doubled_delta(search: Search, d: Tensor, order: Tensor, base: int, best: float = 0.0) -> float:
    """2 δ_p over the points in `order`, or `best` if that is larger, from distances that are a metric at p."""
    doubled, lowest = search(d, order, base, best)
    if lowest < -_ROUNDING * float(d.amax()):
        raise ValueError(f"distances break the triangle inequality at point {base} by {-lowest}")
    return doubled


def _torch_search(distances: Tensor, order: Tensor, base: int, best: float) -> tuple[float, float]:
    """max(2 δ_p, best) over the points in `order`, and the least doubled Gromov product.

    Pairs i > j in blocks that stay in cache. A pair is left out if the tile maxima of its rows cannot beat the best so
    far, which is exact as min and rounded subtraction are monotone; where few pairs are left out, no more is asked.
    """
    from_base = distances[base, order]
    values = (from_base.unsqueeze(1) + from_base).sub_(distances[order][:, order])
    lowest = float(values.amin())
    values = values.clamp_(min=0).add_(0)  # + 0 makes 0 of −0, whose bits are not in order
    # Numbers that are not negative have the order of their bits, and on a CPU integer minima are the faster ones.
    bits = values.view(_INTEGER[values.dtype]) if values.device.type == "cpu" else values
    n = len(bits)
    tops = torch.nn.functional.pad(bits, (0, -n % _TILE))
    tops.diagonal().zero_()  # k = i and k = j give at most 0, so the bounds leave them out
    tops = tops.view(n, -1, _TILE).amax(2)
    step = max(1, _BLOCK[values.device.type == "cuda"] // n)
    asked = left = 0

    def excess(table: Tensor, i: int, js: slice | Tensor) -> Tensor:
        return torch.minimum(table[i], table[js]).amax(1).view(values.dtype).sub_(values[i, js])

    spread = range(n - 1, 0, -max(1, n // _TILE))
    for i in [*spread, *sorted(set(range(1, n)) - set(spread), reverse=True)]:
        parts: list[slice | Tensor] = [slice(first, min(i, first + step)) for first in range(0, i, step)]
        if asked < n * _TILE / 4 or left < _FEW * asked:
            survivors = (excess(tops, i, slice(0, i)) > best).nonzero().squeeze(1)
            asked, left = asked + i, left + len(survivors)
            if len(survivors) < _FEW * i:
                parts = [js for js in survivors.split(step) if len(js)]
        for js in parts:
            best = max(best, float(excess(bits, i, js).amax()))
    return best, lowest
