"""HIEBall against a slow float32 rendering of what the official code does, one number after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypimg.geometry import poincare
from hypimg.nn.spaces import HIEBall, PoincareBall

f32 = np.float32
EPS = f32(1e-5)


def artanh(x):
    x = np.clip(f32(x), -1 + EPS, 1 - EPS)
    return f32(0.5) * (np.log(1 + x) - np.log(1 - x))


def embed(v, c):
    root = f32(c) ** f32(0.5)
    norm = max(np.linalg.norm(v), EPS)
    x = np.tanh(np.clip(root * norm, f32(-15), f32(15))) * v / (root * norm)
    norm, longest = max(np.linalg.norm(x), EPS), f32(1 - 1e-3) / root
    return x / norm * longest if norm > longest else x


def dist(x, y, c):
    x, c = -x, f32(c)
    xy, xx, yy = x @ y, x @ x, y @ y
    moved = ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c * c * xx * yy + EPS)
    root = np.sqrt(c)
    return f32(2) / root * artanh(root * np.linalg.norm(moved))


def klein_mean(points, c):
    c = f32(c)
    k = [2 * x / (1 + c * (x @ x)) for x in points]
    gamma = [1 / np.sqrt(1 - c * (p @ p)) for p in k]
    mean = sum(g * p for g, p in zip(gamma, k, strict=True)) / sum(gamma)
    return mean / (1 + np.sqrt(1 - c * (mean @ mean)))


@pytest.mark.parametrize("c", [0.005, 0.05, 1.0])
def test_hie_ball_is_the_official_arithmetic(c):
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(20, 5, generator=generator) * torch.logspace(-6, 2, 20).unsqueeze(-1) / c**0.5
    v[0] = 0
    ball = HIEBall(c)
    x = ball.embed(v)
    slow = torch.tensor(np.stack([embed(row, c) for row in v.numpy()]))
    torch.testing.assert_close(x, slow, rtol=1e-6, atol=0)
    inside = x[:14] * 0.9  # nearer to the sphere two orders of summing differ by more than they agree
    rows = inside.numpy()
    distances = torch.tensor([[dist(a, b, c) for b in rows] for a in rows])
    torch.testing.assert_close(ball.cdist(inside, inside), distances, rtol=1e-4, atol=1e-5 / c**0.5)
    torch.testing.assert_close(ball.dist(inside, inside.roll(1, 0)), ball.cdist(inside, inside.roll(1, 0)).diagonal())
    to_origin = torch.tensor(
        [2 / f32(c) ** f32(0.5) * artanh(f32(c) ** f32(0.5) * np.linalg.norm(r)) for r in x.numpy()]
    )
    torch.testing.assert_close(ball.dist0(x), to_origin.float(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ball.midpoint(inside), torch.tensor(klein_mean(rows, c)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ball.logmap0(inside), poincare.logmap0(inside, c), rtol=1e-4, atol=1e-6)


def test_no_official_distance_exceeds_12_2():
    ball = HIEBall(1.0)
    x = torch.tensor([[1 - 1e-3, 0.0]])
    assert float(ball.dist(x, -x)) == pytest.approx(12.2047, abs=2e-3)
    assert float(PoincareBall(1.0).dist(x, -x)) == pytest.approx(15.20, abs=5e-3)
    assert float(ball.dist0(torch.tensor([[1.0, 0.0]]))) == pytest.approx(12.2047, abs=2e-3)
    assert float(HIEBall(0.25).dist(2 * x, -2 * x)) == pytest.approx(2 * 12.2047, abs=4e-3)


@pytest.mark.parametrize("norm, error", [(0.5, 3e-5), (0.9, 6e-4), (0.99, 0.05), (0.999, 2.8)])
def test_official_distances_are_wrong_by_the_known_amounts(norm, error):
    angles = torch.linspace(0.1, 3.1, 50)
    x = norm * torch.stack([angles.cos(), angles.sin()], -1)
    y = torch.tensor([[norm, 0.0]])
    worst = (HIEBall(1.0).dist(x, y) - PoincareBall(1.0).dist(x, y)).abs().max()
    assert error / 3 < float(worst) < 3 * error


def test_official_artanh_does_not_cut_the_gradient():
    ball = HIEBall(1.0)
    x = torch.tensor([[1 - 1e-6, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(ball.dist0(x).sum(), x)
    held = 1 - 1e-5
    assert float(gradient[0, 0]) == pytest.approx(2 / (1 - held**2), rel=1e-2)


def test_official_prototype_of_one_point_falls_short():
    x = torch.tensor([[0.6, 0.8]]) * 0.999
    official = HIEBall(1.0).midpoint(x)
    # The round trip through Klein coordinates loses the last digits of 1 − c‖k‖², about 5e-7 here.
    assert float(official.norm()) == pytest.approx(0.999, abs=1e-4)
    assert float(official.norm()) != pytest.approx(0.999, abs=2e-6)
    assert float(PoincareBall(1.0).midpoint(x).norm()) == pytest.approx(0.999, abs=1e-7)


def test_official_gradients_are_rescaled_by_the_initial_c():
    ball = HIEBall(0.5, learn_c=True)
    with torch.no_grad():
        ball.log_ratio.fill_(0.7)
    f = 0.4 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    f.requires_grad_()
    x = ball.embed(f)
    ball.rescale_gradient = False
    plain = ball.embed(f)
    assert torch.equal(x, plain)
    (rescaled,), (gradient,) = (torch.autograd.grad(p.sum(), f) for p in (x, plain))
    factor = (1 - 0.5 * plain.detach().square().sum(-1, keepdim=True)).square() / 4
    torch.testing.assert_close(rescaled, gradient * factor)
    assert HIEBall().rescale_gradient and not PoincareBall().rescale_gradient
