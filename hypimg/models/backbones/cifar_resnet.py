"""ResNet-20, -32, -44, -56 for CIFAR: the Euclidean counterpart of Poincaré ResNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hypimg.models.backbones.poincare_resnet import blocks_of


class CifarResNet(nn.Module):
    """ResNet for small images of depth 6 b + 2, laid out as `PoincareResNet`.

    image_shape: (channels, height, width).  depth: 20, 32, 44, 56, …  widths: channels of the three groups.
    `forward`: images [N, C, H, W] → features [N, widths[-1]].
    Convolutions have a bias and torch's initialisation, shortcuts that change the shape are a convolution 1×1 with
    bias and without norm, batch norm keeps running statistics.
    Source: the official code of PR; He et al. 2016, section 4.2.
    """

    def __init__(self, image_shape: Sequence[int], *, depth: int = 20, widths: Sequence[int] = (4, 8, 16)):
        super().__init__()
        blocks = blocks_of(depth, widths, image_shape)
        self.conv = nn.Conv2d(image_shape[0], widths[0], 3, padding=1)
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(_Block(*sizes) for sizes in blocks))
        self.out_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.norm(self.conv(images)).relu()).mean((2, 3))


class _Block(nn.Module):
    def __init__(self, width: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, stride, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        same = stride == 1 and width == channels
        self.shortcut = None if same else nn.Conv2d(width, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()
