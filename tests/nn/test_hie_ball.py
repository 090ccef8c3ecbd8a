"""HIEBall against a slow float32 rendering of what the official code does, one number after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypimg.geometry import poincare
from hypimg.nn.linear import HIEMLR, HyperbolicMLR
from hypimg.nn.spaces import HIEBall, PoincareBall

f32 = np.float32
EPS = f32(1e-5)


def artanh(x):
    x = np.clip(f32(x), -1 + EPS, 1 - EPS)
    return f32(0.5) * (np.log(1 + x) - np.log(1 - x))


def embed(v, c):
    root = f32(c) ** f32(0.5)
    norm = max(np.linalg.norm(v), EPS)
    return project(np.tanh(np.clip(root * norm, f32(-15), f32(15))) * v / (root * norm), c)


def project(x, c):
    norm, longest = max(np.linalg.norm(x), EPS), f32(1 - 1e-3) / f32(c) ** f32(0.5)
    return x / norm * longest if norm > longest else x


def add(x, y, c):
    c, xy, xx, yy = f32(c), x @ y, x @ x, y @ y
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c * c * xx * yy + EPS)


def dist(x, y, c):
    root = np.sqrt(f32(c))
    return f32(2) / root * artanh(root * np.linalg.norm(add(-x, y, c)))


def logmap0(x, c):
    root, norm = np.sqrt(f32(c)), max(np.linalg.norm(x), EPS)
    return x / norm / root * artanh(root * norm)


def logit(x, q, a_raw, c):
    """One class: p = exp₀(q), not projected, a = a_raw (1 − c‖p‖²), and the official arsinh."""
    c = f32(c)
    root = np.sqrt(c)
    norm = max(np.linalg.norm(q), EPS)
    p = np.tanh(np.clip(root * norm, f32(-15), f32(15))) * q / (root * norm)
    a = a_raw * (1 - c * (p @ p))
    z = add(-p, x, c)
    t = 2 * root * (z @ a) / ((1 - c * (z @ z)) * np.linalg.norm(a))
    arsinh = np.log(max(t + np.sqrt(1 + t * t), EPS))
    return 2 / (1 - c * (p @ p)) * np.linalg.norm(a) / root * arsinh


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
    logs = torch.tensor(np.stack([logmap0(row, c) for row in rows]))
    torch.testing.assert_close(ball.logmap0(inside), logs, rtol=1e-5, atol=0)
    torch.testing.assert_close(ball.logmap0(inside), poincare.logmap0(inside, c), rtol=1e-4, atol=1e-6)
    sums = torch.tensor(np.stack([add(a, b, c) for a, b in zip(rows, inside.roll(1, 0).numpy(), strict=True)]))
    torch.testing.assert_close(ball.mobius_add(inside, inside.roll(1, 0)), sums, rtol=1e-4, atol=1e-6)
    clipped = torch.tensor(np.stack([project(row, c) for row in 2 * rows]))
    torch.testing.assert_close(ball.project(2 * inside), clipped, rtol=1e-6, atol=0)
    head = HIEBall(c, official_mlr=True).hyperplanes(5, 3)
    q, a = head.offset.detach().numpy(), head.normal.detach().numpy()
    logits = torch.tensor([[logit(row, q[k], a[k], c) for k in range(3)] for row in rows])
    torch.testing.assert_close(head(inside), logits, rtol=1e-3, atol=1e-4)


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


def test_official_logits_are_near_ours_inside_the_ball_and_share_their_parameters():
    torch.manual_seed(0)
    official, ours = (HIEBall(1.0, official_mlr=chosen).hyperplanes(2, 10) for chosen in (True, False))
    assert type(official) is HIEMLR and type(ours) is HyperbolicMLR
    ours.load_state_dict(official.state_dict())
    x = HIEBall(1.0).embed(0.5 * torch.randn(64, 2))
    error = (official(x) - ours(x)).abs().max().item()
    assert 1e-7 < error < 1e-3
    torch.testing.assert_close(official.normals, ours.normals)
    assert "official_mlr=True" in repr(official) and "official_mlr" not in repr(ours)


def test_official_logits_are_nan_from_a_far_offset():
    head = HIEBall(1.0, official_mlr=True).hyperplanes(2, 10)
    with torch.no_grad():
        head.offset[3] = torch.tensor([9.1, 0.0])
    logits = head(HIEBall(1.0).embed(torch.randn(5, 2)))
    assert logits[:, 3].isnan().all() and logits[:, :3].isfinite().all()


def test_official_arsinh_is_wrong_for_large_negative_arguments():
    """At −1e4 it gives −11.51 for −9.90: x + √(1 + x²) is 0 in float32 and held at 1e-5."""
    c = 1.0
    head = HIEBall(c, official_mlr=True).hyperplanes(2, 1)
    with torch.no_grad():
        head.offset.zero_()
        head.normal.copy_(torch.tensor([[1.0, 0.0]]))
    x = torch.tensor([[-0.9999, 0.0], [0.9999, 0.0]])  # 2 x₁/(1 − c‖x‖²) is ∓ 1e4
    below, above = head(x)[:, 0].tolist()
    assert below == pytest.approx(2 * -11.5129, rel=1e-4)
    assert above == pytest.approx(2 * 9.9035, rel=2e-2)  # the 1e-5 in the denominator of ⊕ makes 1 %
