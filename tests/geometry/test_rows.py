"""Sums over coordinates: in float64 however they are made."""

from __future__ import annotations

import pytest
import torch

from hypimg.geometry import _rows


def test_sums_by_blocks_are_the_sums():
    x, y = torch.randn(2, 3000, 100, generator=torch.Generator().manual_seed(0)).unbind()
    assert x.numel() > _rows._WHOLE
    torch.testing.assert_close(_rows.square_of(x), x.double().square().sum(-1, keepdim=True), rtol=1e-14, atol=0)
    torch.testing.assert_close(_rows.dot(x, y), (x.double() * y.double()).sum(-1, keepdim=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        _rows.square_of(x.reshape(30, 100, 100)).reshape(-1, 1), _rows.square_of(x), rtol=0, atol=0
    )


@pytest.mark.parametrize("c", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("d", [2, 64, 1024])
def test_compiled_sums_are_exact_near_the_sphere(c, d):
    x = torch.nn.functional.normalize(torch.randn(50, d, generator=torch.Generator().manual_seed(d)).double(), dim=-1)
    x = (x * (1 - torch.logspace(-1, -5, 50).unsqueeze(-1)) / c**0.5).float()
    alpha = 1 - c * x.double().square().sum(-1, keepdim=True)
    compiled = torch.compile(lambda x: _rows.alpha_of(x, c), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, alpha, rtol=1e-6, atol=0)
