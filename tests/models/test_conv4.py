from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hypimg import config
from hypimg.errors import UserError
from hypimg.models.backbones.conv4 import Conv4
from hypimg.run import instantiate

FORMS = [
    ((3, 84, 84), {"dim": 1600}),
    ((3, 84, 84), {"dim": 1600, "pool": "flatten"}),
    ((3, 32, 32), {"dim": 96}),
    ((3, 32, 32), {"dim": 256, "pool": "flatten"}),
    ((1, 28, 28), {"dim": 64}),
    ((1, 28, 28), {"dim": 64, "pool": "flatten"}),
    ((3, 40, 33), {"dim": 8}),
    ((1, 40, 33), {"dim": 32, "pool": "flatten", "width": 8}),
]


def _as_printed(net: Conv4) -> nn.Sequential:
    """The network layer by layer as the official code lists it, with the same parameters."""
    layers: list[nn.Module] = []
    for convolution, norm in zip(net.convolutions, net.norms, strict=True):
        layers += [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, *([nn.AdaptiveMaxPool2d(1)] if net.pool == "global_max" else []), nn.Flatten())


def _net(shape: tuple[int, int, int], options: dict, dtype: torch.dtype = torch.float64) -> tuple[Conv4, Tensor]:
    torch.manual_seed(0)
    net = Conv4(shape, **options).to(dtype)
    with torch.no_grad():
        for norm in net.norms:
            norm.weight.uniform_(-1, 1)  # pooling does not commute with a negative scale, so the order shows
            norm.bias.uniform_(-1, 1)
    return net, torch.randn(4, *shape, dtype=dtype)


@pytest.mark.parametrize(("shape", "options"), FORMS)
def test_it_is_the_network_as_printed(shape: tuple[int, int, int], options: dict) -> None:
    net, images = _net(shape, options)
    printed = _as_printed(copy.deepcopy(net))
    ours, theirs = net(images), printed(images)
    assert ours.shape == (4, options["dim"]) and net.out_features == options["dim"]
    assert torch.equal(ours, theirs)
    direction = torch.randn_like(ours)
    found = torch.autograd.grad((ours * direction).sum(), list(net.convolutions.parameters()))
    expected = torch.autograd.grad((theirs * direction).sum(), [p for m in printed[::4] for p in m.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    for norm, twin in zip(net.norms, [m for m in printed if isinstance(m, nn.BatchNorm2d)], strict=True):
        assert torch.equal(norm.running_mean, twin.running_mean) and torch.equal(norm.running_var, twin.running_var)


@pytest.mark.parametrize(
    ("options", "count"),
    [({"dim": 1600}, 1_002_432), ({"dim": 64}, 113_088), ({"dim": 1600, "pool": "flatten"}, 113_088)],
)
def test_a_larger_dim_is_a_larger_network_unless_flattened(options: dict, count: int) -> None:
    assert sum(p.numel() for p in Conv4((3, 84, 84), **options).parameters()) == count


def test_the_untrained_features_have_the_norms_that_put_them_on_the_clip_sphere() -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 84, 84)
    for dim, norm in ((64, 20), (512, 57)):  # measured for the official network (FACTS B7)
        with torch.no_grad():
            assert Conv4((3, 84, 84), dim=dim)(images).norm(dim=1).mean() == pytest.approx(norm, rel=0.05)


def test_one_image_in_evaluation_mode_has_the_features_that_it_has_in_a_batch() -> None:
    net, images = _net((3, 32, 32), {"dim": 8})
    net(images)
    net.eval()
    batch = net(images)
    for i in range(4):
        torch.testing.assert_close(net(images[i : i + 1]), batch[i : i + 1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(batch, net.train()(images))


def test_memory_format_and_compilation_change_nothing() -> None:
    net, images = _net((3, 32, 32), {"dim": 8})
    twin = copy.deepcopy(net).to(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True)
    expected = net(images)
    gradient = torch.autograd.grad(expected.square().sum(), net.convolutions[0].weight)[0]
    for other in (twin, compiled):
        found = other(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        found.square().sum().backward()
    for other in (twin, compiled._orig_mod):
        torch.testing.assert_close(other.convolutions[0].weight.grad, gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "options", "line"),
    [
        ((3, 15, 84), {"dim": 8}, "image_shape=15×84: is too small; .* from 16×16 pixels"),
        (
            (3, 84, 84),
            {"dim": 512, "pool": "flatten"},
            r"dim=512: .*64·5·5 .*84×84 pixels; set dim=1600, or .*global_max",
        ),
        ((3, 32, 32), {"dim": 8, "pool": "mean"}, "pool=mean: must be global_max or flatten"),
        ((3, 32, 32), {"dim": 8, "width": 0}, "width=0: must be ≥ 1"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(shape: tuple[int, int, int], options: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        Conv4(shape, **options)


def test_the_configs_build_both_forms() -> None:
    official = instantiate(config.compose(["backbone=conv4", "dim=1600"]).backbone, (3, 84, 84))
    flat = instantiate(config.compose(["backbone=conv4_flatten", "dim=1600"]).backbone, (3, 84, 84))
    assert (official.norms[3].num_features, flat.norms[3].num_features) == (1600, 64)
    assert official.out_features == flat.out_features == 1600
