"""Points of the ball for the tests of this folder, and one call of each function of `poincare`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypimg.geometry import poincare as pb


def _points(seed: int, n: int, d: int, c: float, dtype: torch.dtype, margin: float = 1e-3) -> Tensor:
    """n points with random directions: half have norms uniform up to the clip sphere, half are 10⁻¹, 10⁻², … away from
    the clip sphere or from the origin, one lies on the clip sphere and one at the origin."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=-1, keepdim=True)
    shares = torch.rand(n, generator=generator, dtype=torch.float64)
    half = n // 2
    steps = 10.0 ** -torch.arange(1, n - half + 1, dtype=torch.float64).clamp(max=6)
    shares[half:] = torch.where(torch.arange(n - half) % 2 == 0, 1 - steps, steps)
    shares[-2:] = torch.tensor([1.0, 0.0])
    x = (x * (shares[torch.randperm(n, generator=generator)] * (1 - margin) / c**0.5).unsqueeze(-1)).to(dtype)
    return pb.project(x, c, margin)


@pytest.fixture(scope="session")
def points() -> Callable[..., Tensor]:
    """points(seed, n, d, c, dtype, margin=1e-3) → [n, d], from the origin to the clip sphere."""
    return _points


def _matrix(x: Tensor) -> Tensor:
    d, dtype = x.shape[-1], torch.promote_types(x.dtype, torch.float32)
    return torch.linspace(-1, 1, d * d, dtype=dtype).sin().reshape(d, d)


CALLS: dict[str, Callable[..., Tensor]] = {
    "conformal_factor": lambda x, y, v, c: pb.conformal_factor(x, c),
    "project": lambda x, y, v, c: pb.project(v, c, 1e-3),
    "mobius_add": lambda x, y, v, c: pb.mobius_add(x, y, c),
    "mobius_scalar_mul": lambda x, y, v, c: pb.mobius_scalar_mul(0.3, x, c),
    "mobius_matvec": lambda x, y, v, c: pb.mobius_matvec(_matrix(x), x, c),
    "gyration": lambda x, y, v, c: pb.gyration(x, y, v, c),
    "expmap0": lambda x, y, v, c: pb.expmap0(v, c),
    "expmap0_margin": lambda x, y, v, c: pb.expmap0(v, c, 1e-3),
    "logmap0": lambda x, y, v, c: pb.logmap0(x, c),
    "expmap": lambda x, y, v, c: pb.expmap(x, v, c),
    "logmap": lambda x, y, v, c: pb.logmap(x, y, c),
    "transport": lambda x, y, v, c: pb.transport(x, y, v, c),
    "dist": lambda x, y, v, c: pb.dist(x, y, c),
    "dist0": lambda x, y, v, c: pb.dist0(x, c),
    "cdist_auto": lambda x, y, v, c: pb.cdist(x, y, c),
    "cdist_exact": lambda x, y, v, c: pb.cdist(x, y, c, "exact"),
    "cdist_matmul": lambda x, y, v, c: pb.cdist(x, y, c, "matmul"),
    "geodesic": lambda x, y, v, c: pb.geodesic(0.3, x, y, c),
    "to_klein": lambda x, y, v, c: pb.to_klein(x, c),
    "from_klein": lambda x, y, v, c: pb.from_klein(x, c),
}


@pytest.fixture(params=sorted(CALLS))
def call(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Each function of `poincare` in turn, as call(x, y, v, c) of points x, y [n, d] and vectors v [n, d]."""
    function = CALLS[request.param]
    function.__name__ = request.param
    return function
