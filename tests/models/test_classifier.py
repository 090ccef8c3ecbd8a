from __future__ import annotations

import copy

import pytest
import torch

from hypimg.errors import UserError
from hypimg.models.backbones.lenet import LeNet
from hypimg.models.classifier import Classifier
from hypimg.models.heads import MLR, Linear
from hypimg.nn.spaces import Euclidean, HIEBall, PoincareBall

SPACES = {"euclidean": Euclidean, "ball": lambda: PoincareBall(0.1), "learned": lambda: PoincareBall(0.1, learn_c=True)}
SPACES["official"] = lambda: HIEBall(0.1)


def _classifier(space: str, head: type = MLR) -> Classifier:
    torch.manual_seed(0)
    room = SPACES[space]()
    return Classifier(LeNet((1, 28, 28), dim=4), room, head(room, 4, 10))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("head", [MLR, Linear])
def test_every_head_works_in_every_space(space: str, head: type) -> None:
    model = _classifier(space, head)
    images = torch.randn(3, 1, 28, 28)
    logits, points = model(images, with_points=True)
    assert logits.shape == (3, 10) and points.shape == (3, 4)
    assert torch.equal(model(images), logits) and torch.equal(model.embed(images), points)
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_lenet_is_the_network_of_the_official_code() -> None:
    net = LeNet((1, 28, 28), dim=2)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (20, 1, 5, 5),
        "conv2.weight": (50, 20, 5, 5),
        "hidden.weight": (500, 800),
        "out.weight": (2, 500),
    }


def test_relu_after_pooling_is_relu_before_it() -> None:
    net = LeNet((1, 28, 28), dim=2).double()
    images = torch.randn(2, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    x = torch.nn.functional.max_pool2d(net.conv1(images).relu(), 2)
    x = torch.nn.functional.max_pool2d(net.conv2(x).relu(), 2)
    printed = net.out(net.hidden(x.flatten(1)).relu())
    ours = net(images)
    assert torch.equal(ours, printed)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), images) for y in (ours, printed)), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0)


def test_a_learned_curvature_exists_once() -> None:
    model = _classifier("learned")
    assert sum(name.endswith("log_ratio") for name, _ in model.named_parameters()) == 1
    twin = copy.deepcopy(model)
    assert twin.head.hyperplanes.ball is twin.space and twin.space is not model.space
    assert float(model.space.c) == pytest.approx(0.1, rel=1e-7)
    twin.load_state_dict(model.state_dict())


def test_an_image_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(UserError, match="kernel_size=5: leaves nothing of images of 8×8"):
        LeNet((1, 8, 8), dim=2)
