"""The Euclidean counterpart of Poincaré ResNet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hypimg.errors import UserError
from hypimg.models.backbones.cifar_resnet import CifarResNet


def as_printed(net: CifarResNet, images: Tensor) -> Tensor:
    """Layer by layer, with the batch norm written out."""

    def norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        scale, shift = (p.view(-1, 1, 1) for p in (layer.weight, layer.bias))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def convolve(layer: nn.Conv2d, x: Tensor, stride: int, padding: int) -> Tensor:
        return nn.functional.conv2d(x, layer.weight, layer.bias, stride, padding)

    x = norm(net.norm, convolve(net.conv, images, 1, 1)).clamp(min=0)
    for number, block in enumerate(net.blocks):
        stride = 2 if number in (len(net.blocks) // 3, 2 * len(net.blocks) // 3) else 1
        y = norm(block.norm1, convolve(block.conv1, x, stride, 1)).clamp(min=0)
        y = norm(block.norm2, convolve(block.conv2, y, 1, 1))
        x = (y + (convolve(block.shortcut, x, 2, 0) if stride == 2 else x)).clamp(min=0)
    return x.flatten(2).mean(-1)


@pytest.mark.parametrize("depth", [8, 14])
def test_it_is_the_network_as_printed(depth: int) -> None:
    torch.manual_seed(0)
    net = CifarResNet((3, 12, 8), depth=depth, widths=(2, 3, 4)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    images = torch.randn(3, 3, 12, 8, dtype=torch.float64)
    found, expected = net(images), as_printed(net, images)
    assert found.shape == (3, 4) and net.out_features == 4
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        *(torch.autograd.grad(y.square().sum(), list(net.parameters())) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("depth", "widths", "count"),
    [(20, (8, 16, 32), 69_082), (32, (8, 16, 32), 118_138)],
)
def test_there_are_as_many_parameters_as_in_the_official_code(depth: int, widths: tuple, count: int) -> None:
    net = CifarResNet((3, 32, 32), depth=depth, widths=widths)
    assert sum(p.numel() for p in net.parameters()) + 10 * widths[-1] + 10 == count


def test_evaluation_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    net = CifarResNet((3, 8, 8), depth=8, widths=(2, 3, 4)).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    net(images)
    net.eval()
    torch.testing.assert_close(net(images[:1]), net(images)[:1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"depth": 18}, r"backbone.depth=18: must be 6 b \+ 2"),
        ({"widths": (4, 8)}, r"backbone.widths=\[4, 8\]: must be three"),
        ({"image_shape": (3, 3, 8)}, "image_shape=3×8: is too small"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(options: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        CifarResNet(**{"image_shape": (3, 32, 32), **options})
