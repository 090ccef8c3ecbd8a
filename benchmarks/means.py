"""Speed of the means; one JSON line each, ours and the peer interleaved in this process.

    python benchmarks/means.py [threads=1] [rounds=5]

64 sets of n points of norm r/√c in 64 dimensions, float32, c = 1. HypLL's mean in float32 stops when no step exceeds
1e-6, or at its cap of 1000 iterations, without telling which: its line names the residual that it leaves, in float64.
The lines are also written to means.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypll.manifolds.poincare_ball.math import stats
from measure import interleaved, report
from torch import Tensor

from hypimg.geometry import means, poincare

SETS, D, C = 64, 64, 1.0


def sets(n: int, norm: float) -> Tensor:
    x = torch.randn(SETS, n, D, generator=torch.Generator().manual_seed(n))
    return norm * x / x.norm(dim=-1, keepdim=True)


def residual(m: Tensor, x: Tensor) -> float:
    """The largest Riemannian norm of the gradient at m, in float64."""
    m, x = m.double(), x.double()
    force = poincare.logmap(m.unsqueeze(-2), x, C).mean(-2)
    return float((poincare.conformal_factor(m, C) * force.norm(dim=-1)).max())


def hypll_mean(x: Tensor) -> Tensor:
    return stats.frechet_mean(x, torch.tensor(C, dtype=x.dtype), vec_dim=-1, batch_dim=1)


def with_gradient(mean: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
    leaf = x.clone().requires_grad_()
    return lambda: torch.autograd.grad(mean(leaf).sum(), leaf)


def frechet(n: int, norm: float, rounds: int) -> dict[str, Any]:
    """Forward times of ours, of HypLL in both precisions and of our midpoint; and ours and HypLL's with gradient."""
    x = sets(n, norm)
    wide = x.double()
    seconds = interleaved(
        {
            "ours": lambda: means.frechet_mean(x, C),
            "hypll": lambda: hypll_mean(x),
            "hypll64": lambda: hypll_mean(wide),
            "midpoint": lambda: means.midpoint(x, C),
            "both": with_gradient(lambda x: means.frechet_mean(x, C).point, x),
            "hypll both": with_gradient(hypll_mean, x),
        },
        rounds=rounds,
        warmup=1,
    )
    found = means.frechet_mean(wide, C)
    capped = (
        seconds["hypll"] > 10 * seconds["hypll64"]
    )  # it needs fewer iterations than in float64 unless it never stops
    return report(
        f"Fréchet mean of {SETS} sets of {n} × {D} at norm {norm:g}",
        iterations=found.iterations,
        residual=float(found.residual.max()),
        ms=1e3 * seconds["ours"],
        ms_midpoint=1e3 * seconds["midpoint"],
        hypll_float32=seconds["hypll"] / seconds["ours"],
        hypll_float32_with_gradient=seconds["hypll both"] / seconds["both"],
        hypll_float32_at_its_cap=capped,
        hypll_float32_residual=residual(hypll_mean(x), x),
        hypll_float64=seconds["hypll64"] / seconds["ours"],
        hypll_float64_residual=residual(hypll_mean(wide), wide),
        goal="at most 4 iterations to 1e-10; at least 7 × faster than HypLL in float32 (n = 100)",
    )


def main(words: list[str]) -> None:
    options = {"threads": "1", "rounds": "5"} | dict(word.split("=") for word in words)
    torch.set_num_threads(int(options["threads"]))
    lines = [frechet(n, norm, int(options["rounds"])) for n in (5, 100) for norm in (0.5, 0.9, 0.99, 0.999)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(__file__).with_suffix(".jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
