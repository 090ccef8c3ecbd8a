"""Hyperbolic multinomial logistic regression as a layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from hypimg.geometry import hyperplanes, poincare
from hypimg.nn.linear import HyperbolicMLR
from hypimg.nn.spaces import HIEBall, PoincareBall


def printed_logits(x, q, a_raw, c):
    """The official parametrisation as it is printed: p = exp₀(q) is left where tanh puts it."""
    norm = q.norm(dim=-1, keepdim=True).clamp_min(1e-5)
    p = (c**0.5 * norm).tanh() * q / (c**0.5 * norm)
    a = a_raw * (1 - c * p.square().sum(-1, keepdim=True))
    x = x.unsqueeze(1)
    xp, xx, pp = -(x * p).sum(-1, keepdim=True), x.square().sum(-1, keepdim=True), p.square().sum(-1, keepdim=True)
    z = ((1 - c * pp) * x - (1 + 2 * c * xp + c * xx) * p) / (1 + 2 * c * xp + c**2 * pp * xx)
    argument = 2 * c**0.5 * (z * a).sum(-1) / ((1 - c * z.square().sum(-1)) * a.norm(dim=-1))
    return 2 / (1 - c * pp.squeeze(-1)) * a.norm(dim=-1) / c**0.5 * argument.asinh()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 2, generator=generator), torch.randint(10, (64,), generator=generator)


@pytest.mark.parametrize("c", [0.05, 1.0])
def test_logits_are_the_official_ones_inside_the_ball(batch, c):
    ball = PoincareBall(c)
    head = HyperbolicMLR(2, 10, ball).double()
    x = ball.embed(batch[0].double() * 0.3)
    torch.testing.assert_close(head(x), printed_logits(x, head.offset, head.normal, c), rtol=1e-9, atol=1e-12)


def test_printed_form_is_nan_from_a_far_offset_and_ours_trains(batch):
    """From √c ‖q‖ ≥ 9.02 float32 tanh is 1 and λ_p infinite: what users of the official code met on MNIST at c = 1."""
    features, labels = batch
    ball = PoincareBall(1.0)
    head = HyperbolicMLR(2, 10, ball)
    with torch.no_grad():
        head.offset[3] = torch.tensor([9.1, 0.0])
    x = ball.embed(features)

    q, a = (t.detach().clone().requires_grad_() for t in (head.offset, head.normal))
    printed = nn.functional.cross_entropy(printed_logits(x, q, a, 1.0), labels)
    gradients = torch.autograd.grad(printed, (q, a))
    assert not printed.isfinite() or not all(g.isfinite().all() for g in gradients)

    parameters = nn.Parameter(features.clone()), *head.parameters()
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(ball.embed(parameters[0])), labels)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    poincare_norm = head.offsets.norm(dim=-1)
    assert poincare_norm.max() <= (1 - 1e-3) * (1 + 1e-6)


@pytest.mark.parametrize("length", [8.9, 9.1, 40.0, 1e4, 1e20])
def test_values_and_gradients_are_finite_for_any_offset(batch, length):
    for ball in (PoincareBall(1.0), HIEBall(1.0), PoincareBall(1.0, learn_c=True)):
        head = HyperbolicMLR(2, 10, ball)
        with torch.no_grad():
            head.offset[:5] *= length / head.offset[:5].norm(dim=-1, keepdim=True)
            head.normal[4] = 0.0
        x = ball.embed(batch[0] * length)
        loss = nn.functional.cross_entropy(head(x), batch[1])
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in head.parameters())


def test_offsets_and_normals_give_the_logits(batch):
    ball = PoincareBall(0.7, learn_c=True)
    head = HyperbolicMLR(2, 10, ball)
    x = ball.embed(batch[0])
    assert head.offsets.shape == head.normals.shape == (10, 2)
    torch.testing.assert_close(hyperplanes.mlr_logits(x, head.offsets, head.normals, ball.c), head(x))
    length = poincare.conformal_factor(head.offsets, ball.c) * head.normals.norm(dim=-1)
    torch.testing.assert_close(length, 2 * head.normal.norm(dim=-1))
    assert hyperplanes.mlr_logits(head.offsets, head.offsets, head.normals, ball.c).diagonal().abs().max() < 1e-6


def test_starts_kaiming_uniform_with_slope_root_five():
    torch.manual_seed(0)
    head = HyperbolicMLR(16, 500, PoincareBall())
    for weight in (head.normal.detach(), head.offset.detach()):
        assert weight.shape == (500, 16)
        assert weight.abs().max() == pytest.approx(1 / math.sqrt(16), rel=1e-2)
        assert weight.std() == pytest.approx(1 / math.sqrt(3 * 16), rel=2e-2)
    assert not torch.equal(head.normal, head.offset)


def test_five_steps_of_training_give_these_losses(batch):
    """Golden numbers, made by this test on torch 2.13.0 (CPU)."""
    torch.manual_seed(0)
    ball = PoincareBall(0.5, rescale_gradient=True)
    head = HyperbolicMLR(2, 10, ball)
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.5)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(head(ball.embed(layer(batch[0]))), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx([4.0614305, 2.8303914, 2.3932426, 2.2514548, 2.1953192], rel=2e-6)


def test_copies_keep_one_ball_and_the_same_logits(batch):
    ball = PoincareBall(1.0, learn_c=True)
    model = nn.ModuleDict({"space": ball, "head": ball.hyperplanes(2, 10)})
    twin = copy.deepcopy(model)
    assert twin["head"].ball is twin["space"] and twin["space"] is not ball
    with torch.no_grad():
        twin["space"].log_ratio += 0.5
    x = ball.embed(batch[0])
    assert not torch.equal(twin["head"](x), model["head"](x))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin["head"](x), model["head"](x))
    names = [name for name, _ in model.named_parameters()]
    assert sorted(names) == ["head.normal", "head.offset", "space.log_ratio"]


def test_gradients_under_ddp_are_the_plain_ones(batch, tmp_path):
    torch.manual_seed(0)
    ball = PoincareBall(0.5, learn_c=True, rescale_gradient=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.space, self.head = nn.Linear(2, 2), ball, ball.hyperplanes(2, 10)

        def forward(self, x):
            return self.head(self.space.embed(self.layer(x)))

    model = Model()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # a second pass fails if a parameter got no gradient in the first
            model.zero_grad()
            nn.functional.cross_entropy(parallel(batch[0]), batch[1]).backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_low_precision_compile_and_vmap(batch):
    torch._dynamo.reset()
    ball = PoincareBall(1.0, learn_c=True)
    head = HyperbolicMLR(2, 10, ball)
    x = ball.embed(batch[0])
    expected = head(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x), expected)
    assert copy.deepcopy(head).bfloat16()(x).dtype == torch.float32
    assert head.double()(x.double()).dtype == torch.float64
    head.float()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.func.vmap(head)(x), expected, rtol=1e-5, atol=1e-5)
