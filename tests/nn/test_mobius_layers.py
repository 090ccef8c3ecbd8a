"""Layers whose inputs and outputs are points of the ball."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hypimg.geometry import poincare
from hypimg.nn.linear import MobiusConcat, MobiusLinear
from hypimg.nn.spaces import HIEBall, PoincareBall

ROOT = Path(__file__).resolve().parent.parent.parent


def printed_times(m, x, c):
    """M ⊗ x = (1/√c) tanh( (‖Mx‖/‖x‖) artanh(√c ‖x‖) ) Mx/‖Mx‖, and 0 where Mx = 0, a row at a time in float64."""
    rows = []
    for row in x.double():
        moved = m.double() @ row
        if not moved.any():
            rows.append(moved)
            continue
        angle = moved.norm() / row.norm() * (c**0.5 * row.norm()).atanh()
        rows.append(angle.tanh() / c**0.5 * moved / moved.norm())
    return torch.stack(rows)


def printed_add(x, y, c):
    xy, xx, yy = (x * y).sum(-1, keepdim=True), (x * x).sum(-1, keepdim=True), (y * y).sum(-1, keepdim=True)
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy)


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("c", [0.05, 1.0, 10.0])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_printed_formula(c, bias):
    torch.manual_seed(0)
    ball = PoincareBall(c)
    layer = MobiusLinear(5, 3, ball, bias=bias)
    x = ball.embed(0.6 * features(20, 5) / c**0.5)
    expected = printed_times(layer.weight, x, c)
    if bias:
        with torch.no_grad():
            layer.bias /= c**0.5
        b = layer.bias.detach().double()
        expected = printed_add(expected, (c**0.5 * b.norm()).tanh() / c**0.5 * b / b.norm(), c)
    torch.testing.assert_close(layer(x), expected.float(), rtol=1e-5, atol=1e-6 / c**0.5)
    assert layer(x).shape == (20, 3) and layer(x.reshape(4, 5, 5)).shape == (4, 5, 3)
    assert layer(x[0]).shape == (3,)
    origin = layer(torch.zeros(5))
    torch.testing.assert_close(origin, ball.expmap0(layer.bias) if bias else torch.zeros(3))


@pytest.mark.parametrize("c", [0.05, 1.0, 10.0])
def test_concat_is_the_printed_formula(c):
    torch.manual_seed(0)
    ball = PoincareBall(c)
    layer = MobiusConcat(5, 2, 3, ball)
    x, y = ball.embed(0.6 * features(20, 5) / c**0.5), ball.embed(0.6 * features(20, 2, 1) / c**0.5)
    expected = printed_add(printed_times(layer.weight1, x, c), printed_times(layer.weight2, y, c), c)
    torch.testing.assert_close(layer(x, y), expected.float(), rtol=1e-5, atol=1e-6 / c**0.5)
    assert layer(x.reshape(4, 5, 5), y.reshape(4, 5, 2)).shape == (4, 5, 3)


def test_layers_become_linear_as_the_curvature_vanishes():
    torch.manual_seed(0)
    ball = PoincareBall(1e-10)
    linear, concat = MobiusLinear(5, 3, ball), MobiusConcat(5, 2, 3, ball)
    x, y = features(20, 5), features(20, 2, 1)
    torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight, linear.bias))
    torch.testing.assert_close(concat(x, y), x @ concat.weight1.T + y @ concat.weight2.T)


def test_layers_without_bias_compose_as_their_matrices_do():
    torch.manual_seed(0)
    ball = PoincareBall(0.7)
    first, second = MobiusLinear(5, 4, ball, bias=False), MobiusLinear(4, 3, ball, bias=False)
    x = ball.embed(features(20, 5))
    product = MobiusLinear(5, 3, ball, bias=False)
    with torch.no_grad():
        product.weight.copy_(second.weight @ first.weight)
    torch.testing.assert_close(second(first(x)), product(x), rtol=1e-5, atol=1e-6)


def test_layers_start_as_torchs_linear():
    torch.manual_seed(0)
    linear = MobiusLinear(16, 500, PoincareBall())
    for weight in (linear.weight.detach(), linear.bias.detach()):
        assert 0.24 < float(weight.abs().max()) <= 0.25
    concat = MobiusConcat(12, 4, 500, PoincareBall())
    for weight in (concat.weight1.detach(), concat.weight2.detach()):
        assert 0.24 < float(weight.abs().max()) <= 0.25
    assert repr(linear).startswith("MobiusLinear(\n  in_features=16, out_features=500, bias=True")
    assert "in1_features=12, in2_features=4, out_features=500" in repr(concat)
    assert MobiusLinear(3, 2, PoincareBall(), bias=False).bias is None


# The official arithmetic squares norms in float32, which overflows at 1e20.
@pytest.mark.parametrize("make, size", [(PoincareBall, s) for s in (0, 1e-20, 1, 1e3, 1e20)] + [(HIEBall, 1)])
def test_points_stay_within_the_margin_with_finite_gradients(make, size):
    torch.manual_seed(0)
    ball = make(0.5, learn_c=True)
    linear, concat = MobiusLinear(5, 3, ball), MobiusConcat(3, 5, 3, ball)
    with torch.no_grad():
        for parameter in (*linear.parameters(), *concat.parameters()):
            if parameter is not ball.log_ratio:
                parameter *= size
    x = ball.embed(30 * features(20, 5))
    x = torch.cat([x, 0.1 * x, torch.zeros(1, 5)])
    y = concat(linear(x), x)
    with torch.no_grad():
        without_bias = MobiusLinear(5, 3, ball, bias=False)
        without_bias.weight *= size
    for points in (linear(x), y, without_bias(x)):
        assert (points.norm(dim=-1) * 0.5**0.5 <= (1 - 1e-3) * (1 + 1e-6)).all()
    (y.sum() + ball.dist0(linear(x)).sum()).backward()
    for parameter in (*linear.parameters(), *concat.parameters()):
        assert parameter.grad.isfinite().all()


def test_no_optimizer_takes_the_bias_out_of_the_ball():
    ball = PoincareBall(1.0)
    layer = MobiusLinear(3, 3, ball)
    target = torch.tensor([1.0, 0.0, 0.0])
    for optimizer in (torch.optim.SGD(layer.parameters(), lr=10.0), torch.optim.Adam(layer.parameters(), lr=5.0)):
        for _ in range(20):
            optimizer.zero_grad()
            loss = (layer(torch.zeros(4, 3)) - target).square().sum()
            loss.backward()
            optimizer.step()
            assert loss.isfinite() and ball.expmap0(layer.bias).norm().item() <= 0.999 * (1 + 1e-6)


def test_points_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"points must be \[..., 5\], got shape \(7, 4\)"):
        MobiusLinear(5, 3, PoincareBall())(torch.zeros(7, 4))
    with pytest.raises(ValueError, match=r"points must be \[..., 2\], got shape \(7, 3\)"):
        MobiusConcat(5, 2, 3, PoincareBall())(torch.zeros(7, 5), torch.zeros(7, 3))


def test_a_learnable_c_is_shared_through_copies_and_the_state_dict():
    ball = PoincareBall(0.5, learn_c=True)
    model = nn.ModuleDict({"space": ball, "linear": MobiusLinear(5, 3, ball), "concat": MobiusConcat(3, 5, 2, ball)})

    def output(model):
        x = model["space"].embed(features(6, 5))
        return model["concat"](model["linear"](x), x)

    twin = copy.deepcopy(model)
    assert twin["linear"].ball is twin["concat"].ball is twin["space"] and twin["space"] is not ball
    (gradient,) = torch.autograd.grad(output(model).sum(), ball.log_ratio)
    assert gradient.isfinite() and gradient != 0
    with torch.no_grad():
        twin["space"].log_ratio += 0.5
    assert not torch.equal(output(twin), output(model))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(output(twin), output(model))
    names = sorted(name for name, _ in model.named_parameters())
    assert names == ["concat.weight1", "concat.weight2", "linear.bias", "linear.weight", "space.log_ratio"]


def test_low_precision_compile_and_vmap():
    torch._dynamo.reset()
    torch.manual_seed(0)
    ball = PoincareBall(1.0, learn_c=True)
    layer = nn.ModuleList([MobiusLinear(5, 3, ball), MobiusConcat(3, 5, 2, ball)])

    def run(x):
        return layer[1](layer[0](x), x)

    x = ball.embed(features(6, 5))
    expected = run(x)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(x), expected)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.func.vmap(run)(x), expected)
    low = copy.deepcopy(layer[0]).bfloat16()
    assert low(0.5 * x.bfloat16()).dtype == torch.float32
    assert layer[0].double()(x.double()).dtype == torch.float64


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    """DDP over gloo, half of the batch on each rank."""
    command = [sys.executable, str(Path(__file__).with_name("ddp_worker.py")), str(tmp_path / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors


def test_half_the_tangent_length_is_half_the_distance_from_the_origin():
    """M = I/2 halves distances to the origin, which no Euclidean halving does."""
    ball = PoincareBall(1.0)
    layer = MobiusLinear(4, 4, ball, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4) / 2)
    x = ball.embed(features(8, 4))
    torch.testing.assert_close(ball.dist0(layer(x)), ball.dist0(x) / 2)
    torch.testing.assert_close(layer(x), poincare.mobius_scalar_mul(0.5, x, 1.0))
