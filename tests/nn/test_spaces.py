"""Euclidean space and the Poincaré ball as heads see them."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hypimg.errors import UserError
from hypimg.geometry import means, poincare
from hypimg.nn.linear import HyperbolicMLR
from hypimg.nn.spaces import AngularBall, Euclidean, HIEBall, PoincareBall, Space

SPACES = {
    "euclidean": Euclidean,
    "ball": PoincareBall,
    "ball_full": lambda: PoincareBall(0.3, learn_c=True, margin=1e-2, clip_features=2.0, rescale_gradient=True),
    "angular": lambda: AngularBall(0.4),
    "angular_learned": lambda: AngularBall(0.4, learn_c=True, rescale_gradient=True),
    "hie": HIEBall,
    "hie_learned": lambda: HIEBall(0.05, learn_c=True),
}


@pytest.fixture(params=sorted(SPACES))
def space(request) -> Space:
    return SPACES[request.param]()


@pytest.fixture
def features():
    return 2 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def test_every_space_answers_every_question(space, features):
    x = space.embed(features)
    y = x.roll(1, 0)
    assert x.shape == features.shape
    assert space.dist(x, y).shape == space.dist0(x).shape == space.clipped(x).shape == (12,)
    assert space.clipped(x).dtype == torch.bool
    assert space.cdist(x, y[:5]).shape == (12, 5)
    assert space.cdist(x.expand(3, 12, 4), y[:5].expand(3, 5, 4)).shape == (3, 12, 5)
    torch.testing.assert_close(space.cdist(x, y).diagonal(), space.dist(x, y), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(space.dist(x, torch.zeros_like(x)), space.dist0(x), rtol=2e-3, atol=2e-3)
    assert space.logmap0(x).shape == x.shape
    assert space.midpoint(x).shape == (4,)
    assert space.midpoint(x.reshape(3, 4, 4), dim=0).shape == (4, 4)
    w = torch.rand(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(space.midpoint(x, 3 * w), space.midpoint(x, w), rtol=1e-4, atol=1e-4)
    logits = space.hyperplanes(4, 7)(x)
    assert logits.shape == (12, 7)
    assert space.c.shape == () and space.c.dtype == torch.float32
    loss = logits.square().mean() + space.cdist(x, y).mean() + space.dist0(x).mean() + space.midpoint(x).sum()
    for parameter in space.parameters():
        (gradient,) = torch.autograd.grad(loss, parameter)
        assert gradient.isfinite() and gradient != 0


def test_every_space_copies_saves_and_loads(space, features):
    model = nn.ModuleDict({"space": space, "head": space.hyperplanes(4, 3)})
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 0.1
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True))
    outputs = [m["head"](m["space"].embed(features)) for m in (model, twin)]
    assert torch.equal(*outputs)
    assert torch.equal(model["space"].c, twin["space"].c)


def test_every_tensor_of_a_space_moves_with_it(space):
    """What DDP, .to() and EMA see is registered: no tensor hides in an attribute."""
    registered = {*space._parameters, *space._buffers, *space._modules}
    hidden = [k for k, v in vars(space).items() if isinstance(v, torch.Tensor) and k not in registered]
    assert not hidden
    moved = space.to("meta")
    assert moved.c.device.type == "meta"


def test_every_space_compiles_vmaps_and_ignores_autocast(space, features):
    torch._dynamo.reset()
    head = space.hyperplanes(4, 3)

    def model(f):
        return head(space.embed(f))

    expected = model(features)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.func.vmap(model)(features), expected, rtol=1e-5, atol=1e-5)
    if not isinstance(space, Euclidean):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(features), expected)
            assert space.embed(features.bfloat16()).dtype == torch.float32


def test_distances_of_pairs_do_not_wait_for_a_gpu(features, monkeypatch):
    """Mode auto looks at values on the host; on a GPU, here one without memory (fake tensors), it must not be asked."""
    monkeypatch.setattr(poincare, "cdist", lambda x, y, c, mode="auto": (x.device.type, mode))
    assert PoincareBall().cdist(features, features) == ("cpu", "auto")
    with FakeTensorMode():
        there = torch.zeros(12, 4, device="cuda")
    assert PoincareBall().cdist(there, there) == ("cuda", "exact")


def test_euclidean_space_is_plain(features):
    space, y = Euclidean(), features.roll(1, 0)
    assert space.embed(features) is features
    assert space.logmap0(features) is features
    assert float(space.c) == 0
    torch.testing.assert_close(space.dist(features, y), (features - y).norm(dim=-1))
    torch.testing.assert_close(space.dist0(features), features.norm(dim=-1))
    assert not space.cdist(features, features).diagonal().any()
    torch.testing.assert_close(space.midpoint(features), features.mean(0))
    w = torch.rand(12)
    torch.testing.assert_close(space.midpoint(features, w), (w @ features) / w.sum())
    assert not space.clipped(100 * features).any()
    assert isinstance(space.hyperplanes(4, 3), nn.Linear)
    assert not list(space.parameters()) and not space.state_dict() and not space.no_weight_decay()


@pytest.mark.parametrize("c", [1e-6, 0.05, 0.1, 1.0, 10.0])
def test_ball_embeds_by_expmap0_within_the_margin(features, c):
    ball, f = PoincareBall(c), features / c**0.5
    x = ball.embed(f)
    torch.testing.assert_close(x, poincare.project(poincare.expmap0(f, c), c, 1e-3), rtol=1e-6, atol=0)
    assert x.norm(dim=-1).max() <= (1 - 1e-3) * (1 + 1e-6) / c**0.5
    assert torch.equal(ball.clipped(x), f.norm(dim=-1) > math.atanh(1 - 1e-3) / c**0.5)
    y = x.roll(1, 0)
    assert torch.equal(ball.dist(x, y), poincare.dist(x, y, c))
    assert torch.equal(ball.cdist(x, y), poincare.cdist(x, y, c))
    assert torch.equal(ball.dist0(x), poincare.dist0(x, c))
    assert torch.equal(ball.logmap0(x), poincare.logmap0(x, c))
    assert torch.equal(ball.midpoint(x), means.midpoint(x, c))
    assert isinstance(ball.hyperplanes(4, 3), HyperbolicMLR)


def test_clipped_points_are_those_within_a_millionth_of_the_clip_sphere():
    ball = PoincareBall(4.0, margin=1e-2)
    x = torch.tensor([[0.99], [0.99 * (1 - 5e-7)], [0.99 * (1 - 2e-6)], [0.0]], dtype=torch.float64) / 2
    assert ball.clipped(x).tolist() == [True, True, False, False]
    f = 100 * torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))
    assert ball.clipped(ball.embed(f)).all()
    assert HIEBall(0.7).clipped(HIEBall(0.7).embed(f)).all()


def test_features_are_clipped_before_the_exponential_map(features):
    ball = PoincareBall(1.0, clip_features=1.5)
    length = features.norm(dim=-1, keepdim=True)
    shortened = features * (1.5 / length).clamp(max=1)
    torch.testing.assert_close(ball.embed(features), poincare.expmap0(shortened, 1.0), rtol=1e-6, atol=0)
    assert not ball.clipped(ball.embed(features)).any()
    short = features / length
    assert torch.equal(ball.embed(short), PoincareBall(1.0).embed(short))
    zero = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ball.embed(zero).sum(), zero)
    assert torch.equal(gradient, torch.ones(1, 4))


def test_gradient_of_an_embedding_is_rescaled_by_the_inverse_metric(features):
    plain, rescaled = PoincareBall(0.5), PoincareBall(0.5, rescale_gradient=True)
    f = torch.cat([features, torch.zeros(1, 4)]).requires_grad_()
    assert torch.equal(plain.embed(f), rescaled.embed(f))
    weight = torch.randn(13, 4, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((ball.embed(f) * weight).sum(), f)[0] for ball in (plain, rescaled)]
    factor = (1 - 0.5 * plain.embed(f).detach().double().square().sum(-1, keepdim=True)).square() / 4
    torch.testing.assert_close(gradients[1], (gradients[0] * factor).float(), rtol=1e-5, atol=1e-11)
    assert float(factor[-1]) == 0.25
    assert float(factor.min()) == pytest.approx(1.0e-6, rel=2e-3)  # on the clip sphere of margin 1e-3


def test_a_configured_c_is_the_effective_c_at_step_0():
    for c in (0.1, 0.05, 1 / 3, 1e-6, 10.0):
        for learn_c in (False, True):
            ball = PoincareBall(c, learn_c=learn_c)
            assert torch.equal(ball.c, torch.tensor(c, dtype=torch.float32))
        fixed = PoincareBall(c)
        assert fixed.curvature == c  # not rounded to float32
        assert torch.equal(fixed.half().c, torch.tensor(c, dtype=torch.float32))


def test_learnable_c_stays_within_a_factor_of_ten_and_comes_back():
    ball = PoincareBall(0.2, learn_c=True)
    assert ball.no_weight_decay() == [ball.log_ratio]
    assert [name for name, _ in ball.named_parameters()] == ["log_ratio"]
    assert not PoincareBall(0.2).no_weight_decay() and not list(PoincareBall(0.2).parameters())
    (at_start,) = torch.autograd.grad(ball.c, ball.log_ratio)
    assert float(at_start) == pytest.approx(0.2)
    for value, expected in ((math.log(2), 0.4), (math.log(20), 2.0), (50.0, 2.0), (-50.0, 0.02)):
        ball.log_ratio.data.fill_(value)
        assert float(ball.c.detach()) == pytest.approx(expected, rel=1e-6)
        for sign in (1.0, -1.0):  # what lowers sign · c
            (gradient,) = torch.autograd.grad(sign * ball.c, ball.log_ratio)
            outward = abs(value) > math.log(10) and (gradient < 0) == (value > 0) and gradient != 0
            assert not outward
    ball.log_ratio.data.fill_(2.4)  # an overshoot
    optimizer = torch.optim.SGD(ball.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        ball.c.backward()
        optimizer.step()
    assert float(ball.c.detach()) < 2.0


def test_c_learns_from_distances(features):
    ball = PoincareBall(0.5, learn_c=True).double()
    x = 0.3 * features.double() / features.norm(dim=-1).max()
    value = ball.dist(x, x.roll(1, 0)).sum()
    (gradient,) = torch.autograd.grad(value, ball.log_ratio)
    step = 1e-5
    up, down = (poincare.dist(x, x.roll(1, 0), 0.5 * math.exp(s)).sum() for s in (step, -step))
    assert float(gradient) == pytest.approx(float(up - down) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("make", [PoincareBall, AngularBall, HIEBall])
@pytest.mark.parametrize(
    "arguments, line",
    [
        ({"c": 0.0}, "c=0.0: must be a finite number > 0; for c = 0 use space=euclidean"),
        ({"c": -1.0}, "c=-1.0: must be"),
        ({"c": math.inf}, "c=inf: must be"),
        ({"c": math.nan}, "c=nan: must be"),
        ({"c": "one"}, "c=one: must be"),
        ({"margin": 0.0}, "margin=0.0: must be > 0 and < 1"),
        ({"margin": 1.0}, "margin=1.0: must be > 0 and < 1"),
    ],
)
def test_values_that_make_no_ball_are_refused(make, arguments, line):
    with pytest.raises(UserError) as caught:
        make(**arguments)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("make", [PoincareBall, HIEBall])
@pytest.mark.parametrize("length", [0.0, -2.0])
def test_a_length_to_clip_features_to_is_positive(make, length):
    with pytest.raises(UserError, match=f"clip_features={length}: must be a finite number > 0"):
        make(clip_features=length)


def test_a_space_shows_its_settings():
    assert "PoincareBall(c=0.05, margin=0.001)" in repr(PoincareBall(0.05))
    assert "learn_c=True" in repr(SPACES["ball_full"]())
    assert "clip_features=2, rescale_gradient=True" in repr(SPACES["ball_full"]())


@pytest.mark.parametrize("c", [1e-3, 0.05, 1.0, 10.0])
def test_the_angular_ball_puts_every_direction_on_the_clip_sphere(features, c):
    ball = AngularBall(c)
    f = torch.cat([features, 1e-6 * features, 1e6 * features])
    x = ball.embed(f)
    torch.testing.assert_close(x.norm(dim=-1), torch.full((36,), (1 - 1e-3) / c**0.5), rtol=1e-6, atol=0)
    torch.testing.assert_close(x / x.norm(dim=-1, keepdim=True), f / f.norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert ball.clipped(x).all()
    torch.testing.assert_close(x[:12], x[12:24], rtol=1e-5, atol=1e-6 / c**0.5)
    torch.testing.assert_close(ball.project(x), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("c", "margin"), [(0.05, 1e-3), (1.0, 1e-3), (4.0, 0.2)])
def test_angular_distances_are_the_documented_function_of_the_angle(c, margin):
    angles = torch.tensor([0.0, 1e-6, 1e-3, 0.1, 1.0, math.pi / 2, 3.0, math.pi], dtype=torch.float64)
    f = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.linspace(0.1, 9, len(angles))[:, None]
    ball = AngularBall(c, margin=margin)
    x = ball.embed(f)
    expected = 2 / c**0.5 * torch.asinh(2 * (1 - margin) * (angles / 2).sin() / (1 - (1 - margin) ** 2))
    torch.testing.assert_close(ball.dist(x, x[:1].expand_as(x)), expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ball.cdist(x, x[:1])[:, 0], expected, rtol=1e-7, atol=1e-9)


def test_the_curvature_of_the_angular_ball_is_a_temperature_alone(features):
    """Distances, midpoints in units of the radius, and so ProtoNet's logits times √c are the same for every c."""
    scaled, means_, gradients = [], [], []
    for c in (1e-3, 0.05, 1.0, 7.0):
        ball = AngularBall(c)
        f = features.double().requires_grad_()
        x = ball.embed(f)
        prototypes = ball.midpoint(x.view(4, 3, 4), dim=0)
        distances = ball.cdist(x, prototypes) * c**0.5
        scaled.append(distances.detach())
        means_.append((prototypes * c**0.5).detach())
        gradients.append(torch.autograd.grad(distances.sum(), f)[0])
    for values in (scaled, means_, gradients):
        for other in values[1:]:
            torch.testing.assert_close(other, values[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rescale_gradient", [False, True])
def test_zero_features_have_no_direction_and_stay_at_the_origin_with_a_finite_gradient(rescale_gradient):
    ball = AngularBall(0.3, rescale_gradient=rescale_gradient)
    f = torch.cat([torch.zeros(2, 4), torch.ones(1, 4)]).requires_grad_()
    x = ball.embed(f)
    assert not x[:2].any() and ball.clipped(x).tolist() == [False, False, True]
    loss = ball.cdist(x, x).sum() + ball.dist0(x).sum() + ball.midpoint(x).sum()
    (gradient,) = torch.autograd.grad(loss, f)
    assert gradient.isfinite().all()
