"""The Poincaré ball under half precision, autocast, torch.compile and vmap."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from hypimg.geometry import poincare as pb

C = 0.7


def inputs(points, dtype=torch.float32, n=6, d=4):
    return points(0, n, d, C, dtype), points(1, n, d, C, dtype), 0.5 * points(2, n, d, C, dtype)


@pytest.mark.parametrize("c", [C, torch.tensor(C)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_float32_or_float64(points, call, dtype, c):
    x, y, v = (t.to(dtype) * 0.9 for t in inputs(points))
    result = call(x, y, v, c)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype != torch.float64:
        assert torch.equal(result, call(x.float(), y.float(), v.float(), c))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(points, call, dtype):
    arguments = inputs(points)
    with torch.autocast("cpu", dtype=dtype):
        inside = call(*arguments, C)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, call(*arguments, C))


def test_mixed_dtypes_meet_in_the_wider(points):
    x, y, _ = inputs(points)
    assert pb.dist(x.double(), y, C).dtype == torch.float64
    assert pb.expmap(x.bfloat16(), y, C).dtype == torch.float32
    # A number per point, or c, does not widen the points.
    r = torch.rand(6, dtype=torch.float64)
    c = torch.tensor(C, dtype=torch.float64)
    assert pb.mobius_scalar_mul(r, x, c).dtype == pb.geodesic(r, x, y, c).dtype == torch.float32


def test_points_broadcast(points, call):
    x, y, v = inputs(points)
    name = call.__name__
    if name.startswith("cdist"):
        assert call(x.expand(2, 1, 6, 4), y.expand(3, 6, 4), v, C).shape == (2, 3, 6, 6)
        return
    paired = call(x.unsqueeze(1), y.unsqueeze(1), v.unsqueeze(1), C)
    assert torch.equal(paired.squeeze(1), call(x, y, v, C))
    assert torch.allclose(call(x[2], y[2], v[2], C), call(x, y, v, C)[2], rtol=1e-6, atol=0)


def test_compiles_to_one_graph(points, call):
    torch._dynamo.reset()
    x, y, v = inputs(points)
    c = torch.tensor(C, requires_grad=True)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected = call(x, y, v, c) if call.__name__ != "cdist_auto" else pb.cdist(x, y, c, "exact")
    torch.testing.assert_close(compiled(x, y, v, c), expected, rtol=1e-6, atol=0)
    (ours,) = torch.autograd.grad(compiled(x, y, v, c).sum(), c, allow_unused=True)
    (theirs,) = torch.autograd.grad(expected.sum(), c, allow_unused=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_vmap_is_a_loop(points, call):
    batches = [torch.stack([t, t.flip(0)]) for t in inputs(points)]
    curvatures = torch.tensor([C, C / 2])
    looped = torch.stack([call(x, y, v, c) for x, y, v, c in zip(*batches, curvatures, strict=True)])
    together = vmap(call)(*batches, curvatures)
    torch.testing.assert_close(together, looped, rtol=1e-5, atol=1e-6)
    one_batched = vmap(call, in_dims=(0, None, None, None))(batches[0], batches[1][0], batches[2][0], C)
    torch.testing.assert_close(one_batched[0], call(*(b[0] for b in batches), C), rtol=1e-5, atol=1e-6)


def test_gradients_per_sample(points, call):
    arguments = tuple((0.9 * t + 0.01).requires_grad_() for t in inputs(points, torch.float64))
    alone = grad(lambda *a: call(*(t.unsqueeze(0) for t in a), C).sum(), argnums=(0, 1, 2))
    together = vmap(alone)(*arguments)
    rows = [call(*(t[i : i + 1] for t in arguments), C).sum() for i in range(len(arguments[0]))]
    looped = torch.autograd.grad(sum(rows), arguments, allow_unused=True)
    for ours, expected in zip(together, looped, strict=True):
        expected = torch.zeros_like(ours) if expected is None else expected
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_cdist_auto_looks_and_chooses(points):
    x, y, _ = inputs(points)
    x, y = x[x.norm(dim=-1) > 0.1], -x[x.norm(dim=-1) > 0.1]
    far = y[:1]
    assert torch.equal(pb.cdist(x[:1], far, C), pb.cdist(x[:1], far, C, "matmul"))
    assert torch.equal(pb.cdist(x, x, C), pb.cdist(x, x, C, "exact"))


def test_batched_gradients_are_a_loop(points, call):
    x, y, v = (0.9 * t + 0.01 for t in inputs(points, torch.float64))
    arguments = tuple(t.requires_grad_() for t in (x, y, v))
    value = call(*arguments, C)
    weights = torch.stack([torch.ones_like(value), torch.linspace(-1, 1, value.numel()).double().reshape(value.shape)])
    options = {"allow_unused": True, "retain_graph": True}
    together = torch.autograd.grad(value, arguments, weights, is_grads_batched=True, **options)
    looped = [torch.autograd.grad(value, arguments, one, **options) for one in weights]
    for i, ours in enumerate(together):
        if ours is not None:
            torch.testing.assert_close(ours, torch.stack([one[i] for one in looped]), rtol=1e-9, atol=1e-12)
