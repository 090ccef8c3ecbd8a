"""ResNet-12 and ResNet-18 for small images, as the official HIE code trains them on few-shot tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hypimg.errors import UserError

SLOPE = 0.1  # of ResNet-12's leaky ReLU


class ResNet18(nn.Module):
    """ResNet-18 with a stem for small images: convolution 3×3 of stride 1, no max-pooling after it.

    image_shape: (channels, height, width).  dim: size of the features, which is the width of the last stage: 512 in the
    official code, 11,168,832 parameters with colour images.
    Stages of 2 basic blocks, widths 64, 128, 256, dim, strides 1, 2, 2, 2; a shortcut that changes shape is a
    convolution 1×1 with batch norm; then a global max-pooling and no linear layer.  Kaiming normal initialisation by
    fan-out.  The modules bear torchvision's names.
    `forward`: images [N, C, H, W] → features [N, dim], ≥ 0, before any map into a curved space.
    Source: the few-shot code of HIE; a `dim` other than 512 is ours.
    """

    def __init__(self, image_shape: Sequence[int], *, dim: int = 512):
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, stride=1)
        self.layer2 = _stage(64, 128, stride=2)
        self.layer3 = _stage(128, 256, stride=2)
        self.layer4 = _stage(256, dim, stride=2)
        self.out_features = dim
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return _global_max(x)


class _BasicBlock(nn.Module):
    def __init__(self, width: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and width == channels
        self.downsample = None if same else _shortcut(width, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def _stage(width: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_BasicBlock(width, channels, stride), _BasicBlock(channels, channels, 1))


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions 3×3, each ending in 2×2 max-pooling, and a global max-pooling.

    image_shape: (channels, height, width), at least 16 pixels a side.  dim: size of the features, which is the width of
    the last block: 512 in the official code, 7,996,800 parameters with colour images.
    dropout: share of the numbers that training zeroes after each block, in [0, 1): one by one after the first two
        blocks, in squares after the last two.
    block_size: side of these squares in places, at most that of the feature map (at 84 pixels 10 and 5, so 5).
    `forward`: images [N, C, H, W] → features [N, dim], before any map into a curved space.  Training draws the masks
    from torch's global generator, so who seeds it before a step decides them.
    Raises UserError for smaller images and for options out of range.
    Known of the few-shot code of HIE: the widths 64, 128, 256, 512, leaky ReLU of slope 0.1, the two poolings, dropout
    0.1 and squares of 5.  Chosen here, as the networks of this family have it: the shortcut is a convolution 1×1 with
    batch norm, the last leaky ReLU of a block comes after the sum, the squares drop a constant share from the first
    step on (no schedule), and the initialisation is that of ResNet-18.
    """

    def __init__(self, image_shape: Sequence[int], *, dim: int = 512, dropout: float = 0.1, block_size: int = 5):
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 16:
            pixels = f"{height}×{width}"
            raise UserError("dataset.image_shape", pixels, "is too small; ResNet-12 takes images from 16×16 pixels")
        if not 0 <= dropout < 1:
            raise UserError("backbone.dropout", dropout, "must be ≥ 0 and < 1")
        if block_size < 1:
            raise UserError("backbone.block_size", block_size, "must be ≥ 1")
        widths = (channels, 64, 128, 256, dim)
        self.blocks = nn.ModuleList(_ThreeConvolutions(widths[i], widths[i + 1]) for i in range(4))
        self.dropout, self.block_size = dropout, block_size
        self.out_features = dim
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.training and self.dropout > 0:
                x = nn.functional.dropout(x, self.dropout) if i < 2 else drop_squares(x, self.dropout, self.block_size)
        return _global_max(x)


class _ThreeConvolutions(nn.Module):
    def __init__(self, width: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.leaky_relu(self.bn1(self.conv1(x)), SLOPE)
        y = nn.functional.leaky_relu(self.bn2(self.conv2(y)), SLOPE)
        y = self.bn3(self.conv3(y)) + self.downsample(x)
        # An increasing function commutes with max-pooling; after it, it touches a quarter of the numbers.
        return nn.functional.leaky_relu(nn.functional.max_pool2d(y, 2), SLOPE)


def drop_squares(x: Tensor, share: float, size: int) -> Tensor:
    """DropBlock: zero squares of size×size places, about `share` of all, and scale the rest so that its sum is kept.

    x [N, C, H, W]; a size beyond H or W is cut to it.  Squares lie within the map; each of the (H−h+1)·(W−w+1) places
    where one may start is drawn with probability γ = share/(h·w) · H·W/((H−h+1)·(W−w+1)); the share dropped is a little
    less where squares overlap.  What is left is multiplied by numbers / numbers left, over the whole batch.
    Source: Ghiasi, Lin, Le, "DropBlock" (2018), Algorithm 1, squares of one channel.
    """
    height, width = x.shape[2:]
    h, w = min(size, height), min(size, width)
    starts = (height - h + 1, width - w + 1)
    probability = share / (h * w) * height * width / (starts[0] * starts[1])
    drawn = (torch.rand(*x.shape[:2], *starts, device=x.device) < probability).to(x.dtype)
    padded = nn.functional.pad(drawn, (w - 1, w - 1, h - 1, h - 1))
    kept = 1 - nn.functional.max_pool2d(padded, (h, w), stride=1)
    return x * (kept * (kept.numel() / kept.sum(dtype=torch.float32).clamp(min=1))).to(x.dtype)


def _shortcut(width: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _global_max(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, x.shape[2:]).flatten(1)
