from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypimg import _torchvision
from hypimg.errors import UserError
from hypimg.models.backbones.resnet import ResNet12, ResNet18, drop_squares


def _randomised(net: nn.Module) -> nn.Module:
    """Random scales and shifts, some scales negative, so that the order of normalising and pooling shows."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(-1, 1)
                module.bias.uniform_(-1, 1)
    return net


def test_resnet18_is_torchvisions_with_another_stem_and_max_pooling() -> None:
    torch.manual_seed(0)
    net = _randomised(ResNet18((3, 32, 32), dim=512))
    theirs = _torchvision.load().models.resnet18()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool, theirs.avgpool, theirs.fc = nn.Identity(), nn.AdaptiveMaxPool2d(1), nn.Identity()
    theirs.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    ours, expected = net(images), theirs(images)
    assert ours.shape == (2, 512) and net.out_features == 512
    assert torch.equal(ours, expected)
    (ours.square().sum() + expected.square().sum()).backward()
    for (name, a), b in zip(net.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def _resnet12_as_printed(net: ResNet12, x: Tensor) -> Tensor:
    for block in net.blocks:
        y = F.leaky_relu(block.bn1(block.conv1(x)), 0.1)
        y = F.leaky_relu(block.bn2(block.conv2(y)), 0.1)
        y = block.bn3(block.conv3(y))
        x = F.max_pool2d(F.leaky_relu(y + block.downsample(x), 0.1), 2)
    return x.amax((2, 3))


def test_resnet12_without_dropout_is_the_network_as_printed() -> None:
    torch.manual_seed(0)
    net = _randomised(ResNet12((1, 37, 32), dim=24, dropout=0)).double()
    images = torch.randn(3, 1, 37, 32, dtype=torch.float64)
    ours, printed = net(images), _resnet12_as_printed(copy.deepcopy(net), images)
    assert ours.shape == (3, 24) and net.out_features == 24
    assert torch.equal(ours, printed)
    twin = copy.deepcopy(net)
    net(images).square().sum().backward()
    _resnet12_as_printed(twin, images).square().sum().backward()
    for (name, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize(("network", "count"), [(ResNet18, 11_168_832), (ResNet12, 7_996_800)])
def test_the_last_stage_is_as_wide_as_dim(network: type, count: int) -> None:
    assert sum(p.numel() for p in network((3, 84, 84), dim=512).parameters()) == count
    assert network((3, 32, 32), dim=12)(torch.randn(2, 3, 32, 32)).shape == (2, 12)


@pytest.mark.parametrize("network", [ResNet12, ResNet18])
def test_weights_start_as_kaiming_normal_by_fan_out(network: type) -> None:
    torch.manual_seed(0)
    for name, module in network((3, 32, 32), dim=128).named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06), name


def test_resnet18_halves_three_times_and_resnet12_four_times() -> None:
    sizes: list[int] = []
    big, small = ResNet18((3, 84, 84), dim=8).eval(), ResNet12((3, 84, 84), dim=8).eval()
    for stage in (big.layer1, big.layer2, big.layer3, big.layer4):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    for block in small.blocks:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    with torch.inference_mode():
        big(torch.zeros(1, 3, 84, 84)), small(torch.zeros(1, 3, 84, 84))
    assert sizes == [84, 42, 21, 11, 42, 21, 10, 5]


@pytest.mark.parametrize("network", [ResNet12, ResNet18])
def test_one_image_in_evaluation_mode_has_the_features_that_it_has_in_a_batch(network: type) -> None:
    torch.manual_seed(0)
    net = network((3, 16, 16), dim=8).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    net(images)
    net.eval()
    assert torch.equal(net(images), net(images))
    torch.testing.assert_close(net(images[1:2]), net(images)[1:2], rtol=1e-10, atol=1e-10)


def test_compiled_and_copied_networks_agree() -> None:
    torch.manual_seed(0)
    net = ResNet12((3, 16, 16), dim=8).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True)
    outputs = []
    for call in (net, compiled):
        torch.manual_seed(5)  # the masks of dropout are drawn from the global generator alone
        outputs.append(call(images))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)
    for a, b in zip(net.parameters(), compiled._orig_mod.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-8)


def test_the_masks_are_a_function_of_the_seed_and_absent_in_evaluation() -> None:
    torch.manual_seed(0)
    net = ResNet12((3, 32, 32), dim=16)
    images = torch.randn(4, 3, 32, 32)

    def after(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return net(images)

    first = after(1)
    assert torch.equal(after(1), first) and not torch.equal(after(2), first)
    net.eval()
    assert torch.equal(after(1), after(2))


def test_the_first_two_blocks_drop_numbers_and_the_last_two_squares() -> None:
    net = ResNet12((3, 80, 80), dim=8, dropout=0.3, block_size=3)
    images = torch.randn(2, 3, 80, 80)
    torch.manual_seed(4)
    found = net(images)
    torch.manual_seed(4)
    x = F.dropout(net.blocks[1](F.dropout(net.blocks[0](images), 0.3)), 0.3)
    x = drop_squares(net.blocks[3](drop_squares(net.blocks[2](x), 0.3, 3)), 0.3, 3)
    torch.testing.assert_close(found, x.amax((2, 3)))


def _squares_one_by_one(x: Tensor, share: float, size: int) -> Tensor:
    """The paper's Algorithm 1 with loops, drawing in the same order."""
    n, channels, height, width = x.shape
    h, w = min(size, height), min(size, width)
    rows, columns = height - h + 1, width - w + 1
    gamma = share / (h * w) * height * width / (rows * columns)
    drawn = torch.rand(n, channels, rows, columns)
    mask = torch.ones_like(x)
    for i, k, r, c in (drawn < gamma).nonzero().tolist():
        mask[i, k, r : r + h, c : c + w] = 0
    return x * mask * (mask.numel() / mask.sum())


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 4, 10, 10), 5), ((3, 4, 9, 7), 3), ((40, 6, 2, 2), 5), ((40, 8, 6, 3), 4)]
)
def test_drop_squares_is_dropblock(shape: tuple[int, ...], size: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    found = drop_squares(x, 0.2, size)
    torch.manual_seed(3)
    torch.testing.assert_close(found, _squares_one_by_one(x, 0.2, size))
    assert (found == 0).any() and (found != 0).any()


@pytest.mark.parametrize("side", [10, 5, 2])
def test_drop_squares_drops_about_its_share_and_keeps_the_sum(side: int) -> None:
    torch.manual_seed(0)
    dropped = drop_squares(torch.ones(200, 64, side, side), 0.1, 5)
    assert 0.085 < (dropped == 0).float().mean().item() < 0.105  # overlaps cost a little of the 10 %
    assert dropped.mean().item() == pytest.approx(1, rel=1e-5)


def test_drop_squares_stays_finite_where_nothing_is_left() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    outcomes = [drop_squares(x, 0.9, 2) for _ in range(20)]
    assert any((y == 0).all() for y in outcomes) and all(torch.isfinite(y).all() for y in outcomes)
    assert all(torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all() for y in outcomes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_drop_squares_keeps_the_type(dtype: torch.dtype) -> None:
    assert drop_squares(torch.ones(2, 3, 6, 6, dtype=dtype), 0.1, 5).dtype == dtype


@pytest.mark.parametrize(
    ("shape", "options", "line"),
    [
        ((3, 32, 15), {}, "image_shape=32×15: is too small; .* from 16×16 pixels"),
        ((3, 32, 32), {"dropout": 1.0}, r"dropout=1.0: must be ≥ 0 and < 1"),
        ((3, 32, 32), {"block_size": 0}, "block_size=0: must be ≥ 1"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(shape: tuple[int, int, int], options: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        ResNet12(shape, dim=8, **options)
