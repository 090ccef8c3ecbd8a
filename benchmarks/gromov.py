"""Speed of δ-hyperbolicity and accuracy of the distances before it; one JSON line each.

    python benchmarks/gromov.py [threads=1] [rounds=5] [sets=features,clusters,gaussian,disc] > benchmarks/gromov.jsonl

The peer is the published formula in numpy, row by row (the official code makes an N × N × N array, which at N = 1000 is
8 GB). At N = 3000 ten of its rows are timed and taken for all; the line says so. Every δ is compared with the peer's
before anything is timed (at N = 3000 with the dense search and with those rows). "features": ReLU, rank 8.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

import numpy as np
import torch
from measure import interleaved, report
from torch import Tensor

from hypimg.geometry import _gromov_numba, gromov

COMPILE = """
import sys, time
import torch
from hypimg.geometry import gromov
d = gromov.euclidean_distances(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)))
started = time.perf_counter()
from hypimg.geometry import _gromov_numba
for kernel in ("pruned", "dense"):
    _gromov_numba.search(d, gromov._nearby_order(d), 0, 0.0, kernel)
print(time.perf_counter() - started)
"""


def distances(kind: str, n: int) -> Tensor:
    """[n, n] float32: what the searches are timed on."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "disc":  # uniform in the hyperbolic area of a disk of radius 6.1, by the law of cosines
        share = torch.rand(n, generator=generator, dtype=torch.float64)
        r, turn = torch.acosh(1 + share * (math.cosh(6.1) - 1)), 2 * math.pi * torch.rand(n, generator=generator)
        near = torch.outer(r.sinh(), r.sinh()) * (turn.unsqueeze(1) - turn).cos()
        d = torch.acosh((torch.outer(r.cosh(), r.cosh()) - near).clamp(min=1)).fill_diagonal_(0)
        return ((d + d.T) / 2).float()
    if kind == "clusters":
        x = 3 * normal(20, 64)[torch.randint(20, (n,), generator=generator)] + 0.5 * normal(n, 64)
    else:
        x = normal(n, 64) if kind == "gaussian" else (normal(n, 8) @ normal(8, 512)).relu()
    return gromov.euclidean_distances(x).float()


def numpy_rows(d: np.ndarray, rows: range | None = None) -> float:
    """The published formula, row by row."""
    a = (d[0][:, None] + d[0] - d) / 2
    return max(float((np.minimum(a[i], a).max(1) - a[i]).max()) for i in rows or range(len(a)))


def torch_rows(d: Tensor) -> float:
    """The same in torch, with one buffer."""
    a = (d[0].unsqueeze(1) + d[0] - d) / 2
    buffer = torch.empty_like(a)
    return max(float((torch.minimum(row, a, out=buffer).amax(1) - row).amax()) for row in a)


def thousand(kind: str, rounds: int) -> None:
    d = distances(kind, 1000)
    order = gromov._nearby_order(d)
    double, single = d.double().numpy(), d.numpy()
    works = {
        "numpy_float64": lambda: numpy_rows(double),
        "numpy_float32": lambda: numpy_rows(single),
        "torch_rows": lambda: torch_rows(d),
        "torch": lambda: float(gromov.delta_hyperbolicity(d, 0, "torch")),
        "numba": lambda: float(gromov.delta_hyperbolicity(d, 0, "numba")),
        "numba_dense": lambda: _gromov_numba.search(gromov._checked(d), order, 0, 0.0, "dense")[0] / 2,
    }
    deltas = {name: work() for name, work in works.items()}
    assert deltas["torch"] == deltas["numba"] == deltas["numba_dense"], deltas
    for name in ("numpy_float64", "numpy_float32", "torch_rows"):
        assert abs(deltas[name] - deltas["numba"]) < 1e-6 * float(d.amax()), deltas
    seconds = interleaved(works, rounds, 1)
    ratios = {
        f"{name}_vs_float64": seconds["numpy_float64"] / seconds[name] for name in ("numba", "numba_dense", "torch")
    }
    ratios |= {
        f"{name}_vs_float32": seconds["numpy_float32"] / seconds[name] for name in ("numba", "numba_dense", "torch")
    }
    milliseconds = {f"{name}_ms": 1e3 * taken for name, taken in seconds.items()}
    report("δ N=1000", set=kind, delta=deltas["numba"], **ratios, **milliseconds)


def three_thousand(kind: str, rounds: int) -> None:
    d = distances(kind, 3000)
    single, rows = d.numpy(), range(0, 3000, 300)
    works = {
        "numpy_float32_10_rows": lambda: numpy_rows(single, rows),
        "numpy_products": lambda: numpy_rows(single, range(1)),
        "numba": lambda: float(gromov.delta_hyperbolicity(d, 0, "numba")),
        "numba_dense": lambda: (
            _gromov_numba.search(gromov._checked(d), gromov._nearby_order(d), 0, 0.0, "dense")[0] / 2
        ),
    }
    deltas = {name: work() for name, work in works.items()}
    deltas["torch"] = float(gromov.delta_hyperbolicity(d, 0, "torch"))
    assert deltas["torch"] == deltas["numba"] == deltas["numba_dense"] >= deltas["numpy_float32_10_rows"] * (1 - 1e-6)
    seconds = interleaved(works, rounds, 1)
    per_row = (seconds["numpy_float32_10_rows"] - seconds["numpy_products"]) / 9
    numpy_seconds = seconds["numpy_products"] + 2999 * per_row
    ratios = {f"{name}_vs_float32": numpy_seconds / seconds[name] for name in ("numba", "numba_dense")}
    milliseconds = {f"{name}_ms": 1e3 * seconds[name] for name in ("numba", "numba_dense")}
    report("δ N=3000", set=kind, delta=deltas["numba"], **ratios, **milliseconds, numpy_float32_s=numpy_seconds,
           numpy="extrapolated from 10 rows")  # fmt: skip


def compilation() -> None:
    """Import and compilation of the numba search, in fresh processes: with an empty cache, then with a full one."""
    import tempfile

    with tempfile.TemporaryDirectory() as cache:
        seconds = [
            float(
                subprocess.check_output([sys.executable, "-c", COMPILE], env={**os.environ, "NUMBA_CACHE_DIR": cache})
            )
            for _ in range(2)
        ]
    report("numba import and compilation", first_s=seconds[0], cached_s=seconds[1])


def all_base_points() -> None:
    d = distances("features", 300)
    started = time.perf_counter()
    exact = float(gromov.delta_hyperbolicity(d, "all", "numba"))
    seconds = time.perf_counter() - started
    by_base = gromov.delta_by_base(d, range(300), "numba")
    report("δ over all base points N=300", set="features", delta=exact, seconds=seconds,
           base_points_max=float(by_base.amax()), base_points_min=float(by_base.amin()))  # fmt: skip


def feature_distances(rounds: int) -> None:
    """1000 ReLU features in 2048 dimensions, a tenth of them near copies; errors against differences in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 2048, generator=generator).relu()
    x[900:] = x[:100] + 1e-4 * torch.randn(100, 2048, generator=generator)
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    works = {"hypimg": lambda: gromov.euclidean_distances(x), "torch_cdist": lambda: torch.cdist(x, x)}
    off = ~torch.eye(1000, dtype=torch.bool)
    errors = {f"{name}_error": float(((work() - exact).abs() / exact)[off].amax()) for name, work in works.items()}
    assert errors["hypimg_error"] < 1e-7
    seconds = interleaved(works, rounds, 1)
    diagonal = float(torch.cdist(x, x).diagonal().amax())
    milliseconds = {f"{name}_ms": 1e3 * taken for name, taken in seconds.items()}
    report("feature distances 1000 × 2048", **errors, torch_cdist_diagonal=diagonal, **milliseconds)


def main() -> None:
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    torch.set_num_threads(int(words.get("threads", "1")))
    rounds = int(words.get("rounds", "5"))
    kinds = words.get("sets", "features,clusters,gaussian,disc").split(",")
    for kind in kinds:
        thousand(kind, rounds)
    for kind in kinds:
        three_thousand(kind, rounds if kind == "features" else 1)
    all_base_points()
    feature_distances(rounds)
    compilation()


if __name__ == "__main__":
    main()
