"""`cdist` where pairs are near, in blocks, and in its gradients, against `dist` of every pair in float64."""

from __future__ import annotations

import pytest
import torch

from hypimg.geometry import _pairs
from hypimg.geometry import poincare as pb


def sets(near: int, margin: float, c: float, dtype=torch.float32, n: int = 40, m: int = 50, d: int = 8):
    """Random points on the clip sphere and inside, of which `near` pairs lie at 1e-7 to 1e-2 from each other."""
    generator = torch.Generator().manual_seed(near)
    x, y = (torch.nn.functional.normalize(torch.randn(k, d, generator=generator).double(), dim=-1) for k in (n, m))
    x, y = (t * (1 - margin) * torch.rand(len(t), 1, generator=generator).double() ** 0.1 for t in (x, y))
    steps = torch.logspace(-7, -2, max(near, 1)).double().unsqueeze(-1)
    y[:near] = x[:near] * (1 - steps[:near])
    x[n - 1], y[m - 1] = 0.0, 0.0
    return tuple((t / c**0.5).to(dtype) for t in (x, y))


def every_pair(x, y, c):
    return pb.dist(x.double().unsqueeze(-2), y.double().unsqueeze(-3), c)


def near_share(x, y, c):
    one, other = _pairs.sides(
        x, y, *(1 / (1 - c * t.double().square().sum(-1, keepdim=True)).to(x.dtype) for t in (x, y))
    )
    return float((_pairs.product(one.gram, other.gram) < _pairs.product(one.bound, other.bound)).double().mean())


@pytest.mark.parametrize("c", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("margin", [0.1, 1e-3, 1e-5])
@pytest.mark.parametrize("near", [0, 20, 40])
def test_auto_keeps_six_digits_however_many_pairs_are_near(near, margin, c):
    x, y = sets(near, margin, c)
    ours, theirs = pb.cdist(x, y, c), every_pair(x, y, c)
    positive = theirs > 0
    assert float(((ours - theirs).abs() / theirs)[positive].max()) < 1.5e-6
    assert bool((ours[~positive] == 0).all())


def test_some_near_pairs_are_mended_and_many_are_not():
    assert 0 < near_share(*sets(20, 1e-3, 1.0), 1.0) < _pairs.MANY
    x, _ = sets(0, 1e-3, 1.0, n=8)
    assert near_share(x, x, 1.0) > _pairs.MANY
    assert torch.equal(pb.cdist(x, x, 1.0), pb.cdist(x, x, 1.0, "exact"))


@pytest.mark.parametrize("mode", ["auto", "exact"])
@pytest.mark.parametrize("blocks", [_pairs.BLOCK, 150])
@pytest.mark.parametrize("near", [0, 20])
def test_gradients_are_those_of_dist(near, blocks, mode, monkeypatch):
    monkeypatch.setattr(_pairs, "BLOCK", blocks)
    monkeypatch.setattr(_pairs, "ROWS", 1)
    monkeypatch.setattr(_pairs, "GATHERED", 64)
    x, y = sets(near, 1e-3, 1.0)
    weights = torch.rand(len(x), len(y), generator=torch.Generator().manual_seed(1))
    single = tuple(t.clone().requires_grad_() for t in (x, y, torch.tensor(1.0)))
    double = tuple(t.double().requires_grad_() for t in (x, y, torch.tensor(1.0)))
    ours = torch.autograd.grad((weights * pb.cdist(*single, mode)).sum(), single)
    theirs = torch.autograd.grad((weights * every_pair(*double)).sum(), double)
    for a, b in zip(ours, theirs, strict=True):
        scale = b.norm(dim=-1, keepdim=True) if b.dim() else b.abs()
        assert float(((a - b).abs() / (scale + 1e-6 * b.abs().max())).max()) < 1e-5


@pytest.mark.parametrize("mode", ["auto", "exact", "matmul"])
@pytest.mark.parametrize("block", [_pairs.BLOCK, 300])
def test_batches_are_a_loop(mode, block, monkeypatch):
    monkeypatch.setattr(_pairs, "BLOCK", block)
    monkeypatch.setattr(_pairs, "ROWS", 1)
    x, y = sets(20, 1e-3, 1.0)
    x, y = x.reshape(4, 10, 8), y.reshape(1, 50, 8)
    together = pb.cdist(x, y, 1.0, mode)
    looped = torch.stack([pb.cdist(rows, y[0], 1.0, mode) for rows in x])
    far = looped > 0.5  # by matmul near pairs are wrong, differently in each block
    torch.testing.assert_close(together[far], looped[far], rtol=2e-6, atol=0)
    if mode != "matmul":
        torch.testing.assert_close(together, looped, rtol=2e-6, atol=0)


def test_second_derivatives_hold_where_pairs_are_near():
    x, y = sets(3, 0.3, 1.0, torch.float64, n=6, m=8, d=3)
    x, y = x + 0.01, y - 0.02  # no distance is 0
    y[0] = x[0] + 1e-2
    assert near_share(x, y, 1.0) > 0
    for t in (x, y):
        t.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, y: pb.cdist(x, y, 1.0), (x, y), atol=1e-4, rtol=1e-3)


def test_empty_sets_have_no_distances():
    x = torch.zeros(0, 3, requires_grad=True)
    d = pb.cdist(x, torch.zeros(4, 3), 1.0)
    assert d.shape == (0, 4)
    d.sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 3)
