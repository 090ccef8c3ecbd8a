"""Float32 accuracy of hypimg, geoopt and HypLL against 50-digit arithmetic, from the origin to the sphere.

    python benchmarks/numerics.py

Over c, norm and separation (the grid below), D = 32: the largest relative error of distances, of logmap∘expmap and of
the MLR, and the count of non-finite values and gradients. The oracle takes the float32 numbers that the libraries got,
as exact integers, and the c that each library used: geoopt and HypLL round c to float32. Nothing is projected first;
HypLL's exponential map projects to norm (1 − 4e-3)/√c on its own, as its users meet it.
Writes numerics.jsonl (a line per operation, library, c and norm), numerics.md and the figure numerics.{png,pdf,txt}
beside this file.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import product
from typing import Any

import mpmath
import numerics_report
import numpy as np
import torch
from mpmath import mpf
from numerics_report import BANDS
from torch import Tensor

from hypimg.geometry import hyperplanes, poincare

D = 32
CURVATURES = (1e-3, 0.1, 1.0, 10.0)
NEAR = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3)  # separations in units of the norm
FAR = ("0.66", "diameter", "random", "origin")  # 0.66: s/(‖x‖² + ‖y‖²) = 0.22, just above where cdist's auto repairs
STEPS = (1e-3, 1e-2, 0.1, 1.0, 3.0)  # √c times the hyperbolic length of a tangent vector
ROUNDING = 2.0**-24  # one rounding of float32

Record = dict[str, Any]
Operation = Callable[..., Tensor]
Operations = tuple[dict[str, Operation], float]
Library = Callable[[float], Operations]


# The grid


def directions(count: int, generator: torch.Generator) -> Tensor:
    v = torch.randn(count, D, generator=generator, dtype=torch.float64)
    return v / v.norm(dim=-1, keepdim=True)


def pairs(c: float, norm: float, per_kind: int) -> tuple[Tensor, Tensor]:
    """x and y [P, D] in float32 at this norm: `per_kind` of each NEAR separation, then of each FAR one."""
    generator = torch.Generator().manual_seed(0)
    x = directions((len(NEAR) + len(FAR)) * per_kind, generator)
    aside = directions(len(x), generator)
    apart = torch.tensor([*NEAR, float(FAR[0])], dtype=torch.float64).repeat_interleave(per_kind).unsqueeze(-1)
    y = x[: len(apart)] + apart * aside[: len(apart)]
    y = torch.where(apart > 0, y / y.norm(dim=-1, keepdim=True), x[: len(apart)])
    opposite, random = -x[len(apart) : len(apart) + per_kind], aside[-2 * per_kind : -per_kind]
    y = torch.cat([y, opposite, random, torch.zeros(per_kind, D, dtype=torch.float64)])
    radius = norm / c**0.5
    return (radius * x).float(), (radius * y).float()


def steps(c: float, norm: float, per_kind: int) -> tuple[Tensor, Tensor]:
    """x and vectors v [P, D] in float32: sideways, outward, inward, of each length in STEPS that stays in the grid."""
    generator = torch.Generator().manual_seed(1)
    kinds = [(length, way) for length in STEPS for way in ("sideways", "outward", "inward")]
    x = directions(len(kinds) * per_kind, generator)
    v = directions(len(x), generator)
    for start, (length, way) in zip(range(0, len(x), per_kind), kinds, strict=True):
        rows = slice(start, start + per_kind)
        if way != "sideways":
            v[rows] = x[rows] if way == "outward" else -x[rows]
        v[rows] *= length * (1 - norm**2) / 2 / c**0.5
    x, v = (norm / c**0.5 * x).float(), v.float()
    end = c**0.5 * poincare.expmap(x.double(), v.double(), c).norm(dim=-1)
    inside = 1 - end >= (0.99e-5 if norm <= 1 - 1e-5 else 4e-7)
    return x[inside], v[inside]


def mlr(c: float, norm: float, per_kind: int) -> dict[str, tuple[Tensor, ...]]:
    """x [P, D] with points p and normals a [K, D], or directions z [K, D] and distances r [K]; all in float32.

    Half of the p lie at this norm, half at half of it; each x of "near p" is p ⊕ u with √c ‖u‖ = 0.3.
    """
    generator = torch.Generator().manual_seed(2)
    count = 2 * per_kind
    x = norm * directions(2 * count, generator)
    p = directions(count, generator)
    p *= torch.where(torch.arange(count) % 2 == 0, norm, 0.5 * norm).unsqueeze(-1)
    near = poincare.mobius_add(p, 0.3 * directions(count, generator), 1.0)
    sizes = 10 ** torch.linspace(-2, 1, count, dtype=torch.float64).unsqueeze(-1)
    a, z = (sizes * directions(count, generator) for _ in range(2))
    r = (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1) * math.atanh(norm)
    x, near, p, r = ((tensor / c**0.5).float() for tensor in (x, near, p, r))
    a, z = a.float(), z.float()
    return {"MLR (p, a)": (x, p, a), "MLR near p": (near, p, a), "MLR (z, r)": (x, z, r)}


# The oracle: float32 numbers times 2^149 are integers, so inner products are exact; the rest has 50 digits.

mpmath.mp.dps = 50
SCALE = mpf(2) ** -298


def integers(x: Tensor) -> np.ndarray:
    return np.array([[int(v) for v in row] for row in np.ldexp(x.double().numpy(), 149)], dtype=object)


def inner(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """⟨x_i, y_j⟩ of integer rows, [n, m] of mpf."""
    return np.array([[SCALE * mpf(int(v)) for v in row] for row in x.dot(y.T)], dtype=object)


def squares(x: np.ndarray) -> np.ndarray:
    """‖x_i‖² of integer rows, [n] of mpf."""
    return np.array([SCALE * mpf(int(v)) for v in (x * x).sum(1)], dtype=object)


def each(function: Callable[[mpf], mpf], array: np.ndarray) -> np.ndarray:
    """The function of each mpf, rounded to float64."""
    return np.frompyfunc(lambda value: float(function(value)), 1, 1)(array).astype(np.float64)


def exact_cdist(x: Tensor, y: Tensor, c: float) -> np.ndarray:
    """(2/√c) arsinh √(c ‖x_i − y_j‖²/((1 − c‖x_i‖²)(1 − c‖y_j‖²)))."""
    xs, ys, k = integers(x), integers(y), mpf(c)
    xx, yy = squares(xs)[:, None], squares(ys)
    # 90 digits of integers minus 90 digits of integers: s is exact where x = y, and has 50 digits elsewhere.
    s = (xs * xs).sum(1)[:, None] + (ys * ys).sum(1) - 2 * xs.dot(ys.T)
    u = np.frompyfunc(lambda value: SCALE * mpf(int(value)), 1, 1)(s) * k / ((1 - k * xx) * (1 - k * yy))
    return each(lambda value: 2 / mpmath.sqrt(k) * mpmath.asinh(mpmath.sqrt(value)), u)


def exact_logits(x: Tensor, p: Tensor, a: Tensor, c: float) -> np.ndarray:
    """(λ_p ‖a‖/√c) arsinh(2√c ⟨z, a⟩/((1 − c‖z‖²) ‖a‖)) with z = (−p) ⊕ x, whose denominator cancels."""
    xs, ps, ns, k = integers(x), integers(p), integers(a), mpf(c)
    xx, pp, pa = squares(xs)[:, None], squares(ps), inner(ps, ns).diagonal()
    along = (1 - k * pp) * inner(xs, ns) - (1 - 2 * k * inner(xs, ps) + k * xx) * pa
    norm = np.array([mpmath.sqrt(v) for v in squares(ns)], dtype=object)
    argument = 2 * mpmath.sqrt(k) * along / ((1 - k * pp) * (1 - k * xx) * norm)
    return each(lambda v: v, 2 / (1 - k * pp) * norm / mpmath.sqrt(k)) * each(mpmath.asinh, argument)


def exact_unidirectional(x: Tensor, z: Tensor, r: Tensor, c: float) -> np.ndarray:
    """(2‖z‖/√c) arsinh(√c λ_x ⟨x, z/‖z‖⟩ cosh(2√c r) − (λ_x − 1) sinh(2√c r))."""
    xs, zs, root = integers(x), integers(z), mpmath.sqrt(mpf(c))
    lam = 2 / (1 - mpf(c) * squares(xs)[:, None])
    norm = np.array([mpmath.sqrt(v) for v in squares(zs)], dtype=object)
    offsets = [2 * root * mpf(v) for v in r.double().tolist()]
    cosh, sinh = (np.array([f(v) for v in offsets], dtype=object) for f in (mpmath.cosh, mpmath.sinh))
    argument = root * lam * inner(xs, zs) / norm * cosh - (lam - 1) * sinh
    return each(lambda v: v, 2 * norm / root) * each(mpmath.asinh, argument)


# The libraries: each gives the operations that it has, for one c; and tells the c that it uses.


def hypimg(c: float) -> Operations:
    return {
        "dist": lambda x, y: poincare.dist(x, y, c),
        "cdist auto": lambda x, y: poincare.cdist(x, y, c),
        "cdist exact": lambda x, y: poincare.cdist(x, y, c, "exact"),
        "cdist matmul": lambda x, y: poincare.cdist(x, y, c, "matmul"),
        "logmap∘expmap": lambda x, v: poincare.logmap(x, poincare.expmap(x, v, c), c),
        "MLR (p, a)": lambda x, p, a: hyperplanes.mlr_logits(x, p, a, c),
        "MLR near p": lambda x, p, a: hyperplanes.mlr_logits(x, p, a, c),
        "MLR (z, r)": lambda x, z, r: hyperplanes.unidirectional_logits(x, z, r, c),
    }, c


def geoopt(c: float) -> Operations:
    from geoopt.manifolds.stereographic import math as stereographic

    k = torch.tensor(-c)

    def logits(x: Tensor, p: Tensor, a: Tensor) -> Tensor:
        distance = stereographic.dist2plane(x.unsqueeze(1), p, a, k=k, signed=True)
        return stereographic.lambda_x(p, k=k) * a.norm(dim=-1) * distance

    return {
        "dist": lambda x, y: stereographic.dist(x, y, k=k),
        "cdist": lambda x, y: stereographic.dist(x.unsqueeze(1), y, k=k),
        "logmap∘expmap": lambda x, v: stereographic.logmap(x, stereographic.expmap(x, v, k=k), k=k),
        "MLR (p, a)": logits,
        "MLR near p": logits,
    }, -float(k)


def hypll(c: float) -> Operations:
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.manifolds.poincare_ball.math import diffgeom, linalg

    # By default HypLL's c is softplus(value); this makes it the value.
    ball = PoincareBall(Curvature(c, constraining_strategy=lambda value: value))
    k = ball.c().detach()
    return {
        "dist": lambda x, y: diffgeom.dist(x, y, k),
        "cdist": lambda x, y: diffgeom.cdist(x[None], y[None], k)[0],
        "logmap∘expmap": lambda x, v: diffgeom.logmap(x, diffgeom.expmap(x, v, k), k),
        "MLR (z, r)": lambda x, z, r: linalg.poincare_hyperplane_dists(x, z.mT, r, k),
    }, float(k)


LIBRARIES: dict[str, Library] = {"hypimg": hypimg, "geoopt": geoopt, "hypll": hypll}


# Measuring


def measure(
    libraries: dict[str, Library] = LIBRARIES,
    curvatures: tuple[float, ...] = CURVATURES,
    norms: tuple[float, ...] = tuple(norm for band in BANDS.values() for norm in band),
    per_kind: int = 6,
) -> Iterator[Record]:
    """One record per operation, library, c and norm: the largest error, the distance of equal points, the counts."""
    for c, norm in product(curvatures, norms):
        inputs = {"dist": pairs(c, norm, per_kind), "logmap∘expmap": steps(c, norm, per_kind), **mlr(c, norm, per_kind)}
        exact: dict[float, dict[str, np.ndarray]] = {}
        for name, library in libraries.items():
            operations, used_c = library(c)
            if used_c not in exact:
                exact[used_c] = {
                    "dist": exact_cdist(*inputs["dist"], used_c),
                    **{key: exact_logits(*inputs[key], used_c) for key in ("MLR (p, a)", "MLR near p")},
                    "MLR (z, r)": exact_unidirectional(*inputs["MLR (z, r)"], used_c),
                }
            for operation, function in operations.items():
                key = "dist" if operation.startswith("cdist") else operation
                numbers = judge(operation, function, inputs[key], exact[used_c].get(key), used_c)
                yield {"operation": operation, "library": name, "c": c, "norm": norm, **numbers}


def judge(operation: str, function: Operation, given: tuple[Tensor, ...], exact: Any, c: float) -> Record:
    """The record's numbers. What `error` is relative to depends on the operation: see ERRORS."""
    values, counts = finite_counts(function, given)
    if operation == "logmap∘expmap":
        errors = np.linalg.norm(values - given[1].double().numpy(), axis=1)
        return {"error": largest(errors / trip_unit(*given, c)), **counts}
    if operation == "MLR near p":
        return {"error": largest(np.abs(values - exact) / logit_unit(*given, exact, c)), **counts}
    if operation.startswith("MLR"):
        return {"error": largest(np.abs(values - exact) / np.abs(exact).max(1, keepdims=True)), **counts}
    exact = exact.diagonal() if operation == "dist" else exact
    equal = exact == 0
    numbers = {"error": largest((np.abs(values - exact) / np.where(equal, 1, exact))[~equal]), **counts}
    of_equal = largest(np.abs(values[equal]))
    numbers["of_equal"] = None if of_equal is None else c**0.5 * of_equal
    if operation == "cdist auto":  # the far ones once more, alone, where it takes the matrix product
        far = len(exact) * len(NEAR) // (len(NEAR) + len(FAR))
        values = function(given[0], given[1][far:]).double().numpy()
        errors = [numbers["error"], largest(np.abs(values / exact[:, far:] - 1))]
        numbers["error"] = max((error for error in errors if error is not None), default=None)
        numbers["not_finite"] += int((~np.isfinite(values)).sum())
    if operation == "cdist matmul":
        numbers["square_error"] = square_error(values, *given, exact, c)
    return numbers


def largest(errors: np.ndarray) -> float | None:
    """Of the finite ones: the others are counted. None if no value is finite."""
    finite = errors[np.isfinite(errors)]
    return float(finite.max()) if finite.size else None


def finite_counts(function: Operation, given: tuple[Tensor, ...]) -> tuple[np.ndarray, dict[str, int]]:
    """The values in float64, and how many values and rows of gradients are not finite, of how many."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    values = function(*leaves)
    gradients = torch.autograd.grad(values.sum(), leaves)
    rows = torch.cat([gradient.reshape(len(gradient), -1).isfinite().all(1) for gradient in gradients])
    return values.detach().double().numpy(), {
        "values": values.numel(),
        "not_finite": int((~values.isfinite()).sum()),
        "gradients": len(rows),
        "gradients_not_finite": int((~rows).sum()),
    }


def trip_unit(x: Tensor, v: Tensor, c: float) -> np.ndarray:
    """What one rounding of y = exp_x(v) and one of v make of v: ε (λ_y ‖y‖/λ_x + ‖v‖), [P]."""
    x, v = x.double(), v.double()
    y = poincare.expmap(x, v, c)
    stretch = poincare.conformal_factor(y, c) / poincare.conformal_factor(x, c)
    return (ROUNDING * (stretch * y.norm(dim=-1) + v.norm(dim=-1))).numpy()


def logit_unit(x: Tensor, p: Tensor, a: Tensor, exact: np.ndarray, c: float) -> np.ndarray:
    """What one rounding of x and of p makes of the logits, and one of the logits themselves, [P, K]."""
    jacobians = torch.func.vmap(
        torch.func.jacrev(lambda x, p: hyperplanes.mlr_logits(x, p, a.double(), c), argnums=(0, 1)), in_dims=(0, None)
    )(x.double(), p.double())
    by_x = jacobians[0].norm(dim=-1) * x.double().norm(dim=-1, keepdim=True)
    by_p = jacobians[1].diagonal(dim1=1, dim2=2).norm(dim=1) * p.double().norm(dim=-1)
    return ROUNDING * ((by_x + by_p).numpy() + np.abs(exact))


def square_error(values: np.ndarray, x: Tensor, y: Tensor, exact: np.ndarray, c: float) -> float | None:
    """The largest error of ‖x − y‖² that explains the values, in units of 1e-7 (‖x‖² + ‖y‖²)."""
    xx, yy = (z.double().square().sum(-1).numpy() for z in (x, y))
    weight = (1 - c * xx)[:, None] * (1 - c * yy) / c
    half = c**0.5 / 2 * values
    s, true = weight * np.sinh(half) ** 2, weight * np.sinh(c**0.5 / 2 * exact) ** 2
    # Less what rounding d makes of s: ds/s = √c d coth(√c d/2) dd/d, two roundings at least and at most four.
    rounding = 4 * ROUNDING * s * 2 * half / np.tanh(np.maximum(half, 1e-30))
    return largest(np.maximum(np.abs(s - true) - rounding, 0) / (xx[:, None] + yy) / 1e-7)


def main() -> None:
    """Measure, write the records, draw."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    records = [{key: short(value) for key, value in record.items()} for record in measure()]
    versions = {name: metadata.version(name) for name in numerics_report.PACKAGES}
    lines = [{**versions, "dimension": D, "dtype": "float32", "digits": mpmath.mp.dps}, *records]
    numerics_report.RECORDS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    numerics_report.main()
    print(f"{len(records)} records in {time.perf_counter() - started:.0f} s")


def short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) and value < 0.5 else value


if __name__ == "__main__":
    main()
