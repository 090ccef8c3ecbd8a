"""Layers of Poincaré ResNet: against slow references, by their laws, and as modules among torch's."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import poincare_reference as reference
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from poincare_reference import agree, gap, randomise, tensor
from torch import nn

from hypimg.errors import UserError
from hypimg.geometry import means, poincare
from hypimg.models.backbones.poincare_resnet import PoincareResNet
from hypimg.nn import (
    AngularBall,
    Euclidean,
    HIEBall,
    MobiusResidual,
    PoincareAvgPool2d,
    PoincareBall,
    PoincareBatchNorm2d,
    PoincareConv2d,
    PoincareLinear,
    TangentReLU,
)
from hypimg.nn.poincare import freeze, fused, norms_with
from hypimg.training.diagnosis import first_non_finite
from hypimg.training.statistics import norm_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
MARGIN = 1e-5  # the official code's in float64
seeds = st.integers(0, 2**20)


@pytest.fixture(autouse=True)
def plain_form(monkeypatch):
    """The layers as torch operations, which most of these tests are about."""
    monkeypatch.setenv("HYPIMG_NATIVE", "0")


def ball(c=0.3, learn_c=False, margin=MARGIN):
    return PoincareBall(c, learn_c, margin)


def trained(module, **inputs):
    """A module's inputs and parameters by name."""
    return {**inputs, **dict(module.named_parameters())}


# --- the formulas ----------------------------------------------------------------------------------------------------

# How long tangent vectors are, and the margin: with the second, the cap is active in each layer's input and output.
CAPS = [(0.8, MARGIN), (4.0, 4e-3)]


def vectors(*shape, size, seed=0, dim=1):
    """Of lengths from 0 to beyond `size`."""
    share = tensor(*(1 if d == dim else n for d, n in enumerate(shape)), seed=seed + 9).abs().clamp(max=1)
    return (tensor(*shape, seed=seed, size=size) * share).requires_grad_()


def capped(u, layer, dim=1):
    """The share of tangent vectors that reach the clip sphere."""
    return ((u * layer.ball.c**0.5).norm(dim=dim) > layer.limit * (1 - 1e-9)).double().mean()


@pytest.mark.parametrize(("size", "margin"), CAPS)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_printed_formula(size, margin, inverted, bias):
    layer = randomise(PoincareLinear(5, 4, ball(0.7, True, margin), bias, inverted_lambda=inverted))
    u = vectors(6, 5, size=size)
    tangents, scores = reference.linear(layer, u)
    agree(layer(u), tangents, trained(layer, u=u))
    agree(layer.scores(u), scores, trained(layer, u=u))
    assert (0 < capped(u, layer) < 1) == (size == 4)
    assert layer(u.view(2, 3, 5)).shape == layer.scores(u.view(2, 3, 5)).shape == (2, 3, 4)
    assert torch.equal(layer(u[0])[None], layer(u[:1])) and layer(u[:0]).shape == (0, 4)


@pytest.mark.parametrize(("size", "margin"), CAPS)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"),
    [(3, 1, 1, True), (1, 2, 0, True), ((2, 3), (2, 1), (0, 2), True), (3, 2, 1, False)],
)
def test_convolution_is_the_printed_formula_of_fields(form, size, margin, inverted, kernel, stride, padding, bias):
    sizes = 2, 3, kernel, ball(0.7, True, margin), stride, padding
    layer = randomise(PoincareConv2d(*sizes, bias, inverted_lambda=inverted))
    u = vectors(2, 2, 5, 6, size=size)
    expected = reference.convolution(layer, u)
    agree(layer(u), expected, trained(layer, u=u))
    assert (0 < capped(u, layer) < 1) == (size == 4)
    assert inverted or (0 < capped(expected, layer) < 1) == (size == 4)
    assert layer(u).shape == nn.functional.conv2d(u, layer.weight, None, stride, padding).shape


@pytest.mark.parametrize(("size", "margin"), CAPS)
@pytest.mark.parametrize("mean", ["midpoint", "frechet"])
def test_batch_norm_is_the_printed_formula(size, margin, mean):
    layer = randomise(PoincareBatchNorm2d(3, ball(0.7, True, margin), mean))
    with torch.no_grad():
        layer.weight.fill_(30.0 if size == 4 else 1.3)
    u = vectors(4, 3, 4, 4, size=size if mean == "midpoint" else size / 2)
    expected = reference.normed(layer, u)
    # what three Newton steps leave where many points lie on the clip sphere; 1e-6 was seen
    digits = {"value": 1e-8, "slope": 1e-5} if mean == "frechet" and size == 4 else {}
    agree(layer(u), expected, trained(layer, u=u), **digits)
    assert (0 < capped(expected, layer) < 1) == (size == 4)


def test_batch_norm_by_stored_statistics_is_the_printed_formula():
    layer = randomise(PoincareBatchNorm2d(3, ball(0.7, True), statistics="running"))
    layer(tensor(4, 3, 4, 4))
    layer.eval()
    u = tensor(2, 3, 4, 4, seed=1).requires_grad_()
    c = layer.ball.curvature
    seen = poincare.expmap0(tensor(4, 3, 4, 4).movedim(1, -1).flatten(0, -2), c).detach()
    mean = means.midpoint(seen, c)
    variance = poincare.dist(seen, mean, c).square().mean()
    # stored in Lorentz coordinates of the unit hyperboloid: the mean moves with c
    moved = (mean.detach() * c.detach() ** 0.5 / c**0.5, variance.detach())
    agree(layer(u), reference.normed(layer, u, moved), trained(layer, u=u))


@pytest.mark.parametrize(("size", "margin"), CAPS)
@pytest.mark.parametrize("axis", ["channels", "rows"])
def test_residual_is_the_mobius_sum(size, margin, axis):
    layer, dim = randomise(MobiusResidual(ball(0.7, True, margin), axis)), {"channels": 1, "rows": 3}[axis]
    branch, skip = (vectors(2, 3, 4, 5, seed=s, size=size, dim=dim) for s in (0, 1))
    # of two points on the clip sphere the sum has 1 − c‖x‖² about 1e-5, which the reference rounds at 1e-16
    digits = {"value": 1e-9, "slope": 1e-7} if size == 4 else {}
    agree(layer(branch, skip), reference.residual(layer, branch, skip), trained(layer, x=branch, y=skip), **digits)
    assert (0 < capped(branch, layer, dim) < 1) == (size == 4)


@pytest.mark.parametrize("mean", ["tangent", "midpoint"])
def test_pooling_is_the_mean_of_windows(mean):
    layer = randomise(PoincareAvgPool2d(ball(0.7, True), mean=mean))
    u = tensor(2, 3, 4, 5).requires_grad_()
    inputs = trained(layer, u=u) if mean == "midpoint" else {"u": u}
    agree(layer(u)[..., 0, 0], reference.pooled(layer, u), inputs)
    windows = PoincareAvgPool2d(layer.ball, (2, 3), mean)
    found = windows(u)
    assert found.shape == (2, 3, 2, 1)
    assert gap(found[:, :, 1, 0], reference.pooled(layer, u[:, :, 2:4, 0:3])) < 1e-12


@pytest.mark.parametrize("mean", ["midpoint", "frechet"])
@pytest.mark.parametrize("statistics", ["batch", "frozen"])
@pytest.mark.parametrize("inverted", [False, True])
def test_one_pass_is_the_modules_one_after_another(form, mean, statistics, inverted):
    space = ball(0.7, True)
    conv = randomise(PoincareConv2d(2, 3, 3, space, padding=1, inverted_lambda=inverted))
    norm, residual = randomise(PoincareBatchNorm2d(3, space, mean)), MobiusResidual(space)
    u, skip = tensor(2, 2, 4, 4).requires_grad_(), tensor(2, 3, 4, 4, seed=1).requires_grad_()
    if statistics == "frozen":
        with norms_with(norm, "running"):
            norm(conv(u))
        freeze(norm)
    root = space.curvature**0.5
    inputs = {**trained(conv, u=u, skip=skip), "gain": norm.weight, "bias of the norm": norm.bias}
    agree(
        fused(root * u, conv, norm, root * skip, relu=True) / root,
        residual(norm(conv(u)), skip).relu(),
        inputs,
        value=1e-12,
        slope=1e-10,
    )


# --- laws ------------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 6), st.integers(0, 4), st.sampled_from([1e-3, 0.1, 1.0, 3.0]))
def test_the_identity_layer_is_the_identity_and_appends_zeros(seed, n, more, c):
    layer = PoincareLinear(n, n + more, ball(c), init="identity").double()
    u = tensor(7, n, seed=seed) / c**0.5
    short = u * (u.norm(dim=1, keepdim=True) * c**0.5).clamp(min=1e-9).reciprocal().clamp(max=4)
    for v in (short.clamp(-1 / c**0.5, 1 / c**0.5), torch.zeros(1, n, dtype=torch.float64)):
        assert (layer(v) - nn.functional.pad(v, (0, more))).abs().max() * c**0.5 < 1e-11


@given(seeds, st.sampled_from([0.01, 0.3, 2.0]), st.sampled_from(["midpoint", "frechet"]))
def test_all_layers_scale_with_the_curvature(seed, c, mean):
    """√c f_c(u) = f_1(√c u), with lengths among the parameters scaled alike."""
    u, v = tensor(2, 2, 4, 4, seed=seed), tensor(2, 3, 4, 4, seed=seed + 1)

    def run(space, scale):
        conv = randomise(PoincareConv2d(2, 3, 3, space, padding=1), seed)
        linear, norm = randomise(PoincareLinear(3, 2, space), seed), PoincareBatchNorm2d(3, space, mean, eps=0.0)
        randomise(norm, seed)
        with torch.no_grad():
            for lengths in (conv.bias, linear.bias, norm.bias):
                lengths *= scale
            norm.weight *= scale**2  # a variance
        y = MobiusResidual(space)(norm(conv(scale * u)), scale * v)
        return linear(PoincareAvgPool2d(space, mean="midpoint")(y).flatten(1)) / scale

    assert gap(run(ball(c), c**-0.5), run(ball(1.0), 1.0)) < 1e-9


@given(seeds, st.integers(1, 4), st.sampled_from(["midpoint", "frechet"]), st.sampled_from([0.1, 1.0]))
def test_batch_norm_sets_the_variance_about_its_bias(seed, d, mean, c):
    layer = randomise(PoincareBatchNorm2d(d, ball(c), mean), seed)
    u = tensor(3, d, 3, 3, seed=seed, size=0.5)
    y = poincare.expmap0(layer(u).movedim(1, -1).flatten(0, -2), c).detach()
    target = poincare.expmap0(layer.bias, c).detach()
    before = poincare.expmap0(u.movedim(1, -1).flatten(0, -2), c)
    middle = means.midpoint(before, c) if mean == "midpoint" else means.frechet_mean(before, c).point
    variance = poincare.dist(before, middle, c).square().mean()
    expected = (layer.weight * variance / (variance + layer.eps)).item()
    assert poincare.dist(y, target, c).square().mean().item() == pytest.approx(expected, rel=1e-8)
    if mean == "frechet":  # logarithms at the mean sum to 0, and stay so when scaled; those at a midpoint do not
        assert poincare.dist(means.frechet_mean(y, c).point, target, c) < 1e-6


@given(seeds, st.integers(1, 4), st.sampled_from(["midpoint", "frechet"]))
def test_batch_norm_does_not_see_translations_and_turns_with_rotations(seed, d, mean):
    """Without bias; up to a rotation, by which translations fail to commute."""
    space = ball(0.4)
    layer = PoincareBatchNorm2d(d, space, mean).double()
    u, by = tensor(3, d, 3, 3, seed=seed, size=0.5), tensor(1, d, 1, 1, seed=seed + 1, size=0.5)
    y, moved = layer(u), layer(MobiusResidual(space)(by.expand_as(u), u))
    vectors, others = (t.movedim(1, -1).flatten(0, -2) for t in (y, moved))
    assert gap(others @ others.T, vectors @ vectors.T) < 1e-7
    turn = torch.linalg.qr(tensor(d, d, seed=seed + 2))[0]
    turned = layer(torch.einsum("ij,njhw->nihw", turn, u))
    assert gap(turned, torch.einsum("ij,njhw->nihw", turn, y)) < 1e-8


@given(seeds, st.integers(1, 5), st.sampled_from(["channels", "rows"]))
def test_nothing_added_is_nothing_changed(seed, d, axis):
    residual = MobiusResidual(ball(0.4), axis)
    u = tensor(2, d, 3, 3, seed=seed)
    nothing = torch.zeros_like(u)
    assert gap(residual(u, nothing), u) < 1e-12 and gap(residual(nothing, u), u) < 1e-12
    assert (residual(u, -u).abs() < 1e-6).all()


def test_the_branch_comes_first():
    u, v = tensor(1, 2, 1, 1), tensor(1, 2, 1, 1, seed=1)
    residual = MobiusResidual(ball(1.0))
    x, y = (poincare.expmap0(t.flatten(), 1.0) for t in (u, v))
    assert gap(residual(u, v).flatten(), poincare.logmap0(poincare.mobius_add(x, y, 1.0), 1.0)) < 1e-12
    assert gap(residual(v, u), residual(u, v)) > 0.01


def test_layers_become_euclidean_as_the_curvature_vanishes():
    space = ball(1e-12)
    conv = randomise(PoincareConv2d(2, 3, 3, space, stride=2, padding=1))
    norm, linear = randomise(PoincareBatchNorm2d(3, space)), randomise(PoincareLinear(2, 3, space))
    u, v, x = tensor(3, 2, 5, 5), tensor(3, 3, 4, 4), tensor(4, 2)
    ratio = float(reference.beta(9, 0.5) / reference.beta(1, 0.5))
    moved = 2 * conv.weight.flatten(1).norm(dim=1) * conv.bias
    expected = 2 * ratio * nn.functional.conv2d(u, conv.weight, None, 2, 1) - moved[:, None, None]
    assert gap(conv(u), expected) < 1e-9
    flat = 2 * x @ linear.weight.T - 2 * linear.weight.norm(dim=1) * linear.bias
    assert gap(linear(x), flat) < 1e-9 and gap(linear.scores(x), 2 * flat) < 1e-9
    apart = v - v.mean((0, 2, 3), keepdim=True)
    variance = 4 * apart.square().sum(1).mean()  # distances are twice the Euclidean ones
    expected = (norm.weight / (variance + norm.eps)).sqrt() * apart + norm.bias.view(-1, 1, 1)
    assert gap(norm(v), expected) < 1e-9
    assert gap(MobiusResidual(space)(v, 2 * v), 3 * v) < 1e-9
    assert gap(PoincareAvgPool2d(space, mean="midpoint")(v), v.mean((2, 3), keepdim=True)) < 1e-9


@pytest.mark.parametrize("mean", ["tangent", "midpoint"])
def test_the_mean_of_a_constant_map_is_the_constant(mean):
    u = tensor(2, 3, 1, 1)
    assert gap(PoincareAvgPool2d(ball(), mean=mean)(u.expand(2, 3, 4, 5)), u) < 1e-12


def test_the_relu_is_that_of_tangent_vectors():
    u = tensor(2, 3, 4, 4)
    assert torch.equal(TangentReLU()(u), u.clamp(min=0))


# --- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "taps"),
    [  # (channel, row, column) that outputs 0, 1, … copy, of fields 3×2 of 2 channels
        ("channel_major", [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)]),
        ("first_pixel", [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (1, 1, 0), (0, 1, 1)]),
    ],
)
def test_the_readings_of_the_identity(init, taps):
    layer = PoincareConv2d(2, 7, (3, 2), ball(), init=init)
    expected = torch.zeros(7, 2, 3, 2)
    for output, tap in enumerate(taps):
        expected[(output, *tap)] = 0.5
    assert torch.equal(layer.weight, expected) and torch.equal(layer.bias, torch.zeros(7))
    with torch.no_grad():
        layer.weight.fill_(3), layer.bias.fill_(3)
    layer.reset_parameters()
    assert torch.equal(layer.weight, expected) and torch.equal(layer.bias, torch.zeros(7))


def test_the_centre_is_copied_as_far_as_channels_go():
    layer = PoincareConv2d(2, 3, (3, 5), ball(), init="centre")
    expected = torch.zeros(3, 2, 3, 5)
    expected[0, 0, 1, 2] = expected[1, 1, 1, 2] = 0.5
    assert torch.equal(layer.weight, expected)
    assert torch.equal(
        PoincareConv2d(3, 2, 1, ball(), init="centre").weight.flatten(1), torch.tensor([[0.5, 0, 0], [0, 0.5, 0]])
    )


def test_the_identity_of_a_convolution_1x1_is_the_identity():
    u = tensor(2, 3, 4, 4)
    for init in ("channel_major", "first_pixel", "centre"):
        layer = PoincareConv2d(3, 5, 1, ball(), init=init).double()
        assert gap(layer(u), nn.functional.pad(u, (0, 0, 0, 0, 0, 2))) < 1e-12


def test_normal_directions_have_the_printed_deviation():
    torch.manual_seed(0)
    for layer, n, m in (
        (PoincareConv2d(8, 16, 3, ball(), init="hnnpp"), 72, 16),
        (PoincareLinear(40, 30, ball()), 40, 30),
    ):
        assert layer.weight.std().item() == pytest.approx((2 * n * m) ** -0.5, rel=0.07)
        assert abs(layer.weight.mean().item()) < 0.1 * (2 * n * m) ** -0.5
    assert torch.equal(PoincareLinear(2, 3, ball(), init="identity").weight, torch.eye(3, 2) / 2)


@pytest.mark.parametrize("channels", [4, 8, 16, 32])
def test_the_gain_of_one_convolution_is_what_was_measured(channels):
    """0.31-0.34 with any identity and 0.47/√C with normal directions, at c = 0.1, tangent norms of 0.5, no padding."""
    torch.manual_seed(channels)
    u = torch.randn(4, channels, 24, 24) * 0.5 / channels**0.5
    for init in ("channel_major", "first_pixel", "centre", "hnnpp"):
        draws = 8 if init == "hnnpp" else 1
        with torch.no_grad():
            made = [PoincareConv2d(channels, channels, 3, ball(0.1), init=init)(u) for _ in range(draws)]
        gain = float(torch.stack(made).norm(dim=2).mean() / u.norm(dim=1).mean())
        assert 0.31 < gain < 0.345 if init != "hnnpp" else 0.44 < gain * channels**0.5 < 0.5, (init, gain)


@pytest.mark.parametrize("init", ["channel_major", "first_pixel", "centre"])
def test_directions_that_start_at_zero_are_trained(init):
    layer = PoincareConv2d(1, 12, 3, ball(0.1), init=init)
    zero = layer.weight.flatten(1).norm(dim=1) == 0
    assert zero.any()
    layer(torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert (layer.weight.grad.flatten(1).norm(dim=1) > 1e-2).all()
    layer = PoincareLinear(3, 5, ball(0.1), init="identity")
    layer.scores(torch.ones(2, 3)).sum().backward()
    assert (layer.weight.grad.norm(dim=1) > 1e-2).all()


# --- as modules ------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """One layer of each kind over one ball."""

    def __init__(self, learn_c=True, mean="midpoint", statistics="batch", margin=1e-3):
        super().__init__()
        torch.manual_seed(0)
        self.ball = PoincareBall(0.3, learn_c, margin)
        self.conv, self.norm = PoincareConv2d(3, 4, 3, self.ball, padding=1), PoincareBatchNorm2d(4, self.ball, mean)
        self.norm.statistics = statistics
        self.skip, self.residual = PoincareConv2d(3, 4, 1, self.ball), MobiusResidual(self.ball)
        self.pool, self.relu = PoincareAvgPool2d(self.ball, mean="midpoint"), TangentReLU()
        self.linear = PoincareLinear(4, 5, self.ball)

    def forward(self, images):
        u = self.relu(self.residual(self.norm(self.conv(images)), self.skip(images)))
        return self.linear.scores(self.pool(u).flatten(1))


def images(*shape, seed=0):
    return tensor(*shape, seed=seed).float()


def gradients(model, x):
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))


@pytest.mark.parametrize("mean", ["midpoint", "frechet"])
def test_low_precision_is_computed_in_float32(mean):
    model = Small(mean=mean)
    x = images(2, 3, 6, 6)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(found.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        assert torch.equal(a, b)
    rounded = x.bfloat16()
    assert torch.equal(model(rounded), model(rounded.float()))
    for layer, low in ((model.norm, x[:, :1].expand(2, 4, 6, 6)), (model.pool, x), (model.linear, x[..., 0, :4])):
        assert layer(low.half()).dtype == torch.float32


def test_a_model_in_half_precision_computes_in_float32():
    model = Small(statistics="running").bfloat16()
    x = images(2, 3, 6, 6)
    twin = copy.deepcopy(model).float()
    found, expected = model(x.bfloat16()), twin(x.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(model, x), gradients(twin, x), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))
    assert model.eval()(x).isfinite().all()


def test_copies_share_one_ball_and_the_state_goes_round():
    model = Small(statistics="running")
    x = images(4, 3, 6, 6)
    model(x)
    twin = copy.deepcopy(model)
    balls = {id(module.ball) for module in twin.modules() if hasattr(module, "ball")}
    assert balls == {id(twin.ball)} and twin.ball is not model.ball
    names = [name for name, _ in model.named_parameters()]
    assert names.count("ball.log_ratio") == 1 and sum("log_ratio" in name for name in names) == 1
    with torch.no_grad():
        twin.ball.log_ratio += 0.5
        twin.norm.running_mean += 1
    assert not torch.allclose(twin(x), model(x))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x)) and torch.equal(twin.eval()(x), model.eval()(x))
    assert torch.equal(twin.norm.batches_seen, model.norm.batches_seen)


def compiled_like_eager(run, inputs, rtol=1e-4):
    """One graph, the same values and gradients."""
    torch._dynamo.reset()
    found, expected = torch.compile(run, fullgraph=True, backend="aot_eager")(), run()
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-5 * float(b.abs().max()))


def test_a_pass_compiles_to_one_graph():
    model = Small()
    u, skip = images(2, 3, 6, 6).requires_grad_(), images(2, 4, 6, 6, seed=1).requires_grad_()
    inputs = [u, skip, *model.conv.parameters(), model.norm.weight, model.norm.bias]
    compiled_like_eager(lambda: fused(model.conv.scaled(u), model.conv, model.norm, skip, relu=True), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("mean", ["midpoint", "frechet"])
def test_all_layers_compile_to_one_graph(mean):
    model = Small(mean=mean)
    x = images(2, 3, 6, 6).requires_grad_()
    compiled_like_eager(lambda: model(x), [x, *model.parameters()])


def test_running_statistics_are_kept_by_a_compiled_norm():
    torch._dynamo.reset()
    norm = PoincareBatchNorm2d(3, ball(), statistics="running")
    twin, u = copy.deepcopy(norm), images(2, 3, 4, 4)
    torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="eager")(u), twin(u))
    for a, b in zip(norm.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    freeze(norm)
    torch.testing.assert_close(norm(u), twin.eval()(u))


def test_gradients_of_two_processes_are_those_of_their_halves(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("poincare_ddp_worker.py")), str(tmp_path / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors


def test_the_learned_curvature_has_the_gradient_of_finite_differences():
    for mean in ("midpoint", "frechet"):
        model = randomise(Small(mean=mean))
        x, root = tensor(2, 3, 4, 4, size=0.5), model.ball.log_ratio
        (gradient,) = torch.autograd.grad(model(x).square().sum(), root)
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                root += step
                values.append(model(x).square().sum())
        assert float(gradient) == pytest.approx(float(values[0] - values[1]) / 2e-5, rel=1e-6)


def test_one_image_is_a_batch():
    for mean in ("midpoint", "frechet"):
        model = Small(mean=mean)
        y = model(images(1, 3, 6, 6))
        assert y.shape == (1, 5) and y.isfinite().all()


# --- statistics ------------------------------------------------------------------------------------------------------


def test_batch_statistics_depend_on_the_other_images_even_in_evaluation():
    model = Small().eval()
    x = images(4, 3, 6, 6)
    assert (model(x)[:2] - model(x[:2])).abs().max() > 1e-3
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[order]), model(x)[order])
    assert int(model.norm.batches_seen) == 0


def test_running_statistics_average_what_training_saw():
    norm = PoincareBatchNorm2d(3, ball(), statistics="running", momentum=0.4).double()
    batches = [tensor(2, 3, 4, 4, seed=s) for s in range(4)]
    points = [poincare.expmap0(u.movedim(1, -1).flatten(0, -2), 0.3) for u in batches]
    mean, excess, variance = None, None, None
    for number, (u, x) in enumerate(zip(batches, points, strict=True)):
        norm(u)
        middle = means.midpoint(x, 0.3)
        spread = poincare.dist(x, middle, 0.3).square().mean()
        square = 0.3 * middle.square().sum()
        lorentz = 2 * 0.3**0.5 * middle / (1 - square), 2 * square / (1 - square)
        share = max(1 / (number + 1), 0.4)
        before = (0.0, 0.0, 0.0) if mean is None else (mean, excess, variance)
        mean, excess, variance = (b + share * (n - b) for b, n in zip(before, (*lorentz, spread), strict=True))
    assert int(norm.batches_seen) == 4
    assert gap(norm.running_mean, mean) < 1e-12 and gap(norm.running_excess, excess) < 1e-12
    assert gap(norm.running_variance, variance) < 1e-12
    norm.eval()
    together = norm(batches[0])
    assert gap(norm(batches[0][:1]), together[:1]) < 1e-14
    assert int(norm.batches_seen) == 4
    norm.momentum = None  # the plain average
    norm.train()
    norm(batches[0])
    assert int(norm.batches_seen) == 5
    assert gap(norm.running_variance, variance + (norm_variance(batches[0]) - variance) / 5) < 1e-12


def norm_variance(u, c=0.3):
    x = poincare.expmap0(u.movedim(1, -1).flatten(0, -2), c)
    return poincare.dist(x, means.midpoint(x, c), c).square().mean()


def test_statistics_of_one_batch_give_what_the_batch_gave():
    norm = randomise(PoincareBatchNorm2d(3, ball(), statistics="running"))
    u = tensor(4, 3, 4, 4)
    expected = norm(u)
    assert gap(norm.eval()(u), expected) < 1e-10
    freeze(norm)
    assert norm.statistics == "frozen" and gap(norm.train()(u), expected) < 1e-10
    assert int(norm.batches_seen) == 1


def test_statistics_are_set_for_a_while():
    model = Small()
    x = images(4, 3, 6, 6)
    expected = model(x)
    with pytest.raises(ZeroDivisionError), norms_with(model, "running"):
        assert model.norm.statistics == "running"
        model(x)
        raise ZeroDivisionError
    assert model.norm.statistics == "batch" and int(model.norm.batches_seen) == 1
    assert torch.equal(model(x), expected)
    with pytest.raises(UserError, match=r"statistics=runing: .*running"), norms_with(model, "runing"):
        pass


def test_frozen_statistics_that_were_never_stored_are_refused():
    norm, u = PoincareBatchNorm2d(3, ball()), images(2, 3, 4, 4)
    freeze(norm)  # has nothing to freeze
    assert norm.statistics == "batch"
    norm(u)  # what batch statistics see is not stored
    norm.statistics = "frozen"
    with pytest.raises(UserError, match=r"statistics=frozen: .*none .*stored"):
        norm(u)
    other = PoincareBatchNorm2d(3, ball(), statistics="running")
    other(u)
    norm.load_state_dict(other.state_dict())
    torch.testing.assert_close(norm(u), other.eval()(u))
    assert torch.equal(copy.deepcopy(norm)(u), norm(u))
    norm.load_state_dict(PoincareBatchNorm2d(3, ball()).state_dict())
    with pytest.raises(UserError, match="stored"):
        norm(u)


# --- the Fréchet mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "d"), [(0.3, 4), (2.7, 16), (4.1, 4)])
def test_the_length_of_the_last_newton_step_is_kept(spread, d):
    direction = tensor(4, d, 6, 6).float()
    u = spread / 2 * direction / direction.norm(dim=1, keepdim=True) + 0.1
    norm = PoincareBatchNorm2d(d, ball(1.0), "frechet")
    y = norm(u)
    assert y.isfinite().all() and 0 <= norm.newton < 1e-4 and not norm.newton.requires_grad
    assert "newton" not in norm.state_dict()
    midpoint = PoincareBatchNorm2d(d, ball(1.0))
    midpoint(u)
    assert midpoint.newton == 0 and gap(midpoint(u), y) > 1e-6


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: PoincareConv2d(3, 4, 3, ball())(torch.zeros(2, 4, 8, 8)), r"\(2, 4, 8, 8\): must be \[N, 3, H, W\]"),
        (lambda: PoincareConv2d(3, 4, 3, ball())(torch.zeros(3, 8, 8)), r"\(3, 8, 8\): must be \[N, 3, H, W\]"),
        (lambda: PoincareConv2d(3, 4, 5, ball())(torch.zeros(2, 3, 4, 8)), r"smaller than the field \(5, 5\)"),
        (lambda: PoincareConv2d(3, 4, 2, ball(), init="centre"), "kernel_size=2: is even and has no centre"),
        (lambda: PoincareConv2d(3, 4, (3, 2), ball(), init="centre"), "is even and has no centre"),
        (lambda: PoincareConv2d(3, 4, 0, ball()), "kernel_size=0: must be one or two whole numbers ≥ 1"),
        (lambda: PoincareConv2d(3, 4, (3, 3, 3), ball()), r"kernel_size=\(3, 3, 3\): must be one or two"),
        (lambda: PoincareConv2d(3, 4, 3, ball(), stride=0), "stride=0: must be one or two whole numbers ≥ 1"),
        (lambda: PoincareConv2d(3, 4, 3, ball(), padding=-1), "padding=-1: must be one or two whole numbers ≥ 0"),
        (lambda: PoincareConv2d(3, 4, 3, ball(), init="center"), "init=center: unknown; did you mean centre"),
        (lambda: PoincareLinear(3, 4, ball(), init="identiy"), "init=identiy: unknown; did you mean identity"),
        (lambda: PoincareLinear(3, 4, ball())(torch.zeros(2, 4)), r"tangents=\(2, 4\): must be \[..., 3\]"),
        (lambda: PoincareLinear(3, 4, ball()).scores(torch.zeros(4)), r"tangents=\(4,\): must be \[..., 3\]"),
        (lambda: PoincareBatchNorm2d(3, ball(), "mid"), "mean=mid: unknown; did you mean midpoint"),
        (lambda: PoincareBatchNorm2d(3, ball(), statistics="bach"), "statistics=bach: unknown; did you mean batch"),
        (lambda: PoincareBatchNorm2d(3, ball())(torch.zeros(2, 4, 5, 5)), r"must be \[N, 3, H, W\]"),
        (lambda: MobiusResidual(ball(), "row"), "axis=row: unknown; did you mean rows"),
        (lambda: MobiusResidual(ball())(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)), "must be one shape"),
        (lambda: PoincareAvgPool2d(ball(), 5)(torch.zeros(2, 3, 4, 8)), "smaller than 5×5"),
        (lambda: PoincareAvgPool2d(ball())(torch.zeros(3, 4, 8)), r"must be \[N, "),
        (lambda: PoincareAvgPool2d(ball(), mean="tangents"), "pooling=tangents: unknown; did you mean tangent"),
        (lambda: PoincareLinear(3, 4, PoincareBall(0.0)), r"c=0.0: must be a finite number > 0"),
        (lambda: PoincareConv2d(3, 4, 3, PoincareBall(-1.0)), r"c=-1.0: must be a finite number > 0"),
        (lambda: PoincareConv2d(3, 4, 3, Euclidean()), "space=Euclidean: a Poincaré layer needs a PoincareBall"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, line):
    with pytest.raises(UserError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- extreme input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["midpoint", "frechet"])
@pytest.mark.parametrize("c", [0.1, 1.0])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-6, 1e4, 1e15])
@pytest.mark.parametrize("constant", [False, True])
def test_values_and_gradients_stay_finite(form, mean, c, size, constant):
    model = Small(mean=mean, margin=4e-3)
    model.ball.start_c = c
    x = size * (torch.ones(2, 3, 6, 6) if constant else images(2, 3, 6, 6))
    x.requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_hooks_see_each_layer_of_a_fused_network_and_change_nothing() -> None:
    network = PoincareResNet((3, 8, 8), ball(0.1), depth=8, widths=(2, 3, 4)).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected, seen = network(images), []
    for name, module in network.named_modules():
        if isinstance(module, PoincareConv2d | PoincareBatchNorm2d):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    torch.testing.assert_close(network(images), expected)
    assert seen[:4] == ["conv", "norm", "blocks.0.conv1", "blocks.0.norm1"] and "blocks.2.shortcut" in seen


def test_the_diagnosis_names_the_norm_whose_gain_became_negative() -> None:
    network = PoincareResNet((3, 8, 8), ball(0.1), depth=8, widths=(2, 3, 4))
    with torch.no_grad():
        network.blocks[1].norm1.weight.fill_(-1)
    images = torch.randn(2, 3, 8, 8)
    assert first_non_finite(network, images) == "the output of layer blocks.1.norm1 (PoincareBatchNorm2d)"


def test_a_held_curvature_is_computed_once_and_has_the_same_gradient(monkeypatch) -> None:
    space = ball(0.3, learn_c=True)
    layers = [PoincareLinear(3, 3, space), PoincareLinear(3, 3, space)]
    u = torch.randn(4, 3)

    def gradient() -> torch.Tensor:
        loss = layers[1](layers[0](u)).square().sum()
        return torch.autograd.grad(loss, space.log_ratio)[0]

    expected = gradient()
    with space.held(), space.held():
        torch.testing.assert_close(gradient(), expected)
        assert space.curvature is space.curvature
    assert space.curvature is not space.curvature


@pytest.mark.parametrize("kind", [HIEBall, AngularBall])
def test_layers_take_the_plain_ball_alone(kind) -> None:
    with pytest.raises(UserError, match=f"space={kind.__name__}: a Poincaré layer needs a PoincareBall"):
        PoincareLinear(3, 4, kind(0.1))


def test_sizes_that_are_no_counts_are_named() -> None:
    for build, wrong in (
        (lambda: PoincareConv2d(0, 4, 3, ball()), "in_channels=0"),
        (lambda: PoincareConv2d(3, -4, 3, ball()), "out_channels=-4"),
        (lambda: PoincareConv2d(3, 4, 2.5, ball()), r"kernel_size=2\.5"),
        (lambda: PoincareConv2d(3, 4, (3, 1.0), ball()), "kernel_size"),
        (lambda: PoincareLinear(3, 2.5, ball()), r"out_features=2\.5"),
        (lambda: PoincareBatchNorm2d(4, ball(), eps=-1.0), r"eps=-1\.0"),
        (lambda: PoincareResNet((3, 8, 8), ball(), widths=(2, 2, 2.5)), "widths"),
        (lambda: setattr(PoincareBatchNorm2d(4, ball()), "statistics", "frozn"), "did you mean frozen"),
    ):
        with pytest.raises(UserError, match=wrong):
            build()


def test_a_skip_of_another_shape_is_refused_in_both_forms(form) -> None:
    conv = PoincareConv2d(3, 4, 3, ball(), padding=1)
    with pytest.raises(UserError, match="branch and skip"):
        fused(torch.randn(2, 3, 8, 8), conv, PoincareBatchNorm2d(4, ball()), torch.randn(2, 4, 1, 1))


def test_the_step_of_newton_is_noted_in_place_for_the_log() -> None:
    norm = PoincareBatchNorm2d(4, ball(), mean="frechet")
    buffer = norm.newton
    with torch.inference_mode():
        norm(torch.randn(3, 4, 5, 5))
    assert norm.newton is buffer and 0 < norm_metrics(norm)["newton"] < 1e-3
    assert norm_metrics(PoincareBatchNorm2d(4, ball())) == {}


def test_stored_statistics_give_the_same_in_both_forms(form, monkeypatch) -> None:
    network = PoincareResNet((3, 8, 8), ball(0.1), depth=8, widths=(2, 3, 4), statistics="running").double()
    network(torch.randn(6, 3, 8, 8, dtype=torch.float64))
    network.eval()
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        without = network(image)
    torch.testing.assert_close(without, network(image).detach(), rtol=1e-11, atol=1e-12)
