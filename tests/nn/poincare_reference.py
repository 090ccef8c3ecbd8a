"""Poincaré ResNet written slowly: in coordinates of the ball, with fields, gyrations and exp/log pairs, as printed.

Vectors and points lie along the last dimension; c is a float or a 0-dim tensor; float64 is meant. The modules of
`hypimg.nn` lend their parameters and options, and nothing else of them is used. Sources: PR and HNN++ for the formulas;
the official code of PR for what `inverted_lambda`, `residual.axis = "rows"` and the order of projections stand for.
"""

from __future__ import annotations

import torch
from scipy.special import beta
from torch import Tensor, nn

from hypimg.geometry import means

TINY = 1e-15  # norms are floored here: at 0 the maps are then the identity, with its gradient


def norm(x):
    return x.norm(dim=-1, keepdim=True).clamp(min=TINY)


def project(x, c, margin):
    longest, length = (1 - margin) / c**0.5, norm(x)
    return torch.where(length > longest, x / length * longest, x)


def exp0(v, c, margin):
    s = c**0.5 * norm(v)
    return project(s.tanh() * v / s, c, margin)


def log0(x, c):
    s = c**0.5 * norm(x)
    return s.atanh() * x / s


def add(x, y, c):
    xy, xx, yy = (x * y).sum(-1, keepdim=True), (x * x).sum(-1, keepdim=True), (y * y).sum(-1, keepdim=True)
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy)


def conformal(x, c):
    return 2 / (1 - c * (x * x).sum(-1, keepdim=True))


def exp(x, v, c, margin):
    s = c**0.5 * norm(v)
    return project(add(x, (conformal(x, c) * s / 2).tanh() * v / s, c), c, margin)


def log(x, y, c):
    w = add(-x, y, c)
    s = c**0.5 * norm(w)
    return 2 / conformal(x, c) * s.atanh() * w / s


def dist(x, y, c):
    return 2 / c**0.5 * (c**0.5 * add(-x, y, c).norm(dim=-1)).atanh()


def gyration(u, v, w, c):
    """−(u ⊕ v) ⊕ (u ⊕ (v ⊕ w)), of a w shortened into the ball: the map is linear."""
    short = (0.1 / c**0.5 / norm(w)).detach()
    return add(-add(u, v, c), add(u, add(v, short * w, c), c), c) / short


def transport(x, y, v, c):
    return conformal(x, c) / conformal(y, c) * gyration(y, -x, v, c)


def scores(x, z, r, c, inverted=False):
    """v_k of points [..., n] for directions z [K, n] and offsets r [K]."""
    lam = 2 * (1 - c * (x * x).sum(-1, keepdim=True)) if inverted else conformal(x, c)
    length = z.norm(dim=1)
    angle = 2 * c**0.5 * r
    inside = lam * c**0.5 * (x @ (z / length[:, None]).T) * angle.cosh() - (lam - 1) * angle.sinh()
    return 2 * length / c**0.5 * inside.asinh()


def fully_connected(x, z, r, c, margin, inverted=False):
    w = (c**0.5 * scores(x, z, r, c, inverted)).sinh() / c**0.5
    return project(w / (1 + (1 + c * (w * w).sum(-1, keepdim=True)).sqrt()), c, margin)


def concatenate(tangents, c, margin):
    """β-concatenation of points of equal size, given by their log₀ (so projected as one point, not one by one)."""
    size = tangents[0].shape[-1]
    ratio = float(beta(len(tangents) * size / 2, 0.5) / beta(size / 2, 0.5))
    return exp0(torch.cat([ratio * u for u in tangents], -1), c, margin)


def midpoint(x, c):
    """Of points [..., n, d]: [..., d]."""
    lam = conformal(x, c)
    f = (lam * x).sum(-2) / (lam - 1).sum(-2)
    return f / (1 + (1 - c * (f * f).sum(-1, keepdim=True)).sqrt())


def mean_of(x, c, kind):
    return midpoint(x, c) if kind == "midpoint" else means.frechet_mean(x, c, tolerance=1e-13).point


def batch_norm(x, mean, variance, gain, bias, c, margin, eps=1e-6):
    """Of points [n, d], with variance None by that of the points about the mean."""
    if variance is None:
        variance = dist(x, mean, c).square().mean()
    target = exp0(bias, c, margin)
    v = transport(mean, target, log(mean, x, c), c)
    return exp(target, (gain / (variance + eps)).sqrt() * v, c, margin)


# --- the layers, from the parameters of ours: tangent vectors at the origin in and out -------------------------------


def offsets(layer: nn.Module) -> Tensor:
    return torch.zeros_like(layer.weight.flatten(1)[:, 0]) if layer.bias is None else layer.bias


def linear(layer, u):
    """Tangent vectors and scores of a PoincareLinear."""
    c, margin = layer.ball.curvature, layer.ball.margin
    x, plane = exp0(u, c, margin), (layer.weight, offsets(layer), c)
    return log0(fully_connected(x, *plane, margin, layer.inverted_lambda), c), scores(x, *plane, layer.inverted_lambda)


def convolution(layer, u):
    """Field by field: tangent vectors [N, C, H, W] → [N, K, H′, W′]."""
    c, margin = layer.ball.curvature, layer.ball.margin
    (height, width), (down, right), (top, left) = layer.kernel_size, layer.stride, layer.padding
    u = nn.functional.pad(u.movedim(1, -1), (0, 0, left, left, top, top))
    last_row, last_column = u.shape[1] - height, u.shape[2] - width
    field = [
        u[:, row : row + last_row + 1 : down, column : column + last_column + 1 : right]
        for row in range(height)
        for column in range(width)
    ]
    z = layer.weight.permute(0, 2, 3, 1).flatten(1)  # position by position, as the field is joined
    y = fully_connected(concatenate(field, c, margin), z, offsets(layer), c, margin, layer.inverted_lambda)
    return log0(y, c).movedim(-1, 1)


def normed(layer, u, statistics=None):
    """PoincareBatchNorm2d by the batch's own statistics, or by (mean [d], variance [])."""
    c, margin = layer.ball.curvature, layer.ball.margin
    x = exp0(u.movedim(1, -1), c, margin)
    flat = x.flatten(0, 2)
    mean, variance = statistics or (mean_of(flat, c, layer.mean), None)
    y = batch_norm(flat, mean, variance, layer.weight, layer.bias, c, margin, layer.eps)
    return log0(y.unflatten(0, x.shape[:3]), c).movedim(-1, 1)


def residual(layer, branch, skip):
    c, margin = layer.ball.curvature, layer.ball.margin
    axis = {"channels": 1, "rows": 3}[layer.axis]
    x, y = (exp0(u.movedim(axis, -1), c, margin) for u in (branch, skip))
    return log0(add(x, y, c), c).movedim(-1, axis)


def pooled(layer, u):
    """Of whole images: [N, C]."""
    c, margin = layer.ball.curvature, layer.ball.margin
    flat = u.flatten(2).mT
    return flat.mean(1) if layer.mean == "tangent" else log0(midpoint(exp0(flat, c, margin), c), c)


def resnet(net, images):
    """Features of a PoincareResNet [N, C]."""

    def relu(u):
        return u.relu() if net.relu else u

    u = relu(normed(net.norm, convolution(net.conv, images)))
    for block in net.blocks:
        v = relu(normed(block.norm1, convolution(block.conv1, u)))
        v = normed(block.norm2, convolution(block.conv2, v))
        u = relu(residual(block.residual, v, u if block.shortcut is None else convolution(block.shortcut, u)))
    return pooled(net.pool, u)


def conv_net(net, images):
    """Features of a PoincareConvNet [N, C]."""
    u = images
    for layer in net.layers:
        u = convolution(layer.conv, u)
        u = (u if layer.norm is None else normed(layer.norm, u)).relu()
    return pooled(net.pool, u)


# --- comparing -------------------------------------------------------------------------------------------------------


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter of Poincaré layers drawn anew, in float64: no zero offsets, no unit gains, a moved c."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith("log_ratio"):
                parameter.fill_(0.2)
            elif parameter.dim() == 0:
                parameter.copy_((0.3 * draw).exp())
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * draw)
            else:
                parameter.copy_(draw / parameter[0].numel() ** 0.5)
    return module


def tensor(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest number."""
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape and found.isfinite().all() and expected.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def _gradients(total: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, list(inputs.values()), retain_graph=True)


def agree(found: Tensor, expected: Tensor, inputs: dict[str, Tensor], value: float = 1e-10, slope: float = 1e-8):
    """Two outputs are one within `value`, and the gradients of one random sum of them in all inputs within `slope`."""
    assert gap(found, expected) < value, gap(found, expected)
    weights = tensor(*expected.shape, seed=77)
    ours, theirs = (_gradients((weights * y).sum(), inputs) for y in (found, expected))
    for name, a, b in zip(inputs, ours, theirs, strict=True):
        assert gap(a, b) < slope, f"{name}: {gap(a, b)}"
        assert b.abs().max() > 0, f"{name} takes no part"
