"""Poincaré ResNet, whose every layer works in the Poincaré ball, and the plain networks of its Figure 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from hypimg.errors import UserError
from hypimg.nn.poincare import MobiusResidual, PoincareAvgPool2d, PoincareBatchNorm2d, PoincareConv2d, fused
from hypimg.nn.spaces import PoincareBall


class PoincareResNet(nn.Module):
    """ResNet for small images of depth 6 b + 2: a stem, and b blocks in each of three groups, strides 1, 2, 2.

    image_shape: (channels, height, width); normalised pixels are read as tangent vectors at the origin.
    ball: shared with the head.  depth: 20, 32, 44, 56, …  widths: channels of the groups, 4, 8, 16 or 8, 16, 32 in PR.
    `forward`: images [N, C, H, W] → tangent vectors at the origin [N, widths[-1]], the pooled features.
    Block: convolution 3×3, norm, ReLU, convolution 3×3, norm, ⊕ input, ReLU. Where the shape changes the input goes
    through a convolution 1×1 of stride 2, with bias and without norm.

    init: of the convolutions, see `PoincareConv2d`.  norm_mean, statistics: see `PoincareBatchNorm2d`.
    pooling: `tangent` or `midpoint`, see `PoincareAvgPool2d`.  relu: False: without any (PR, Figure 3).
    inverted_lambda, residual_axis: what PR's official code does: λ upside down, and ⊕ along image rows.
    Raises UserError for depths and widths that there are not, and for images smaller than 4×4.
    Source: PR, section 4; what the paper leaves open (stem, shortcut, pooling) is the official code's.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        ball: PoincareBall,
        *,
        depth: int = 20,
        widths: Sequence[int] = (4, 8, 16),
        init: str = "channel_major",
        norm_mean: str = "midpoint",
        statistics: str = "batch",
        pooling: str = "tangent",
        relu: bool = True,
        inverted_lambda: bool = False,
        residual_axis: str = "channels",
    ):
        super().__init__()
        blocks = blocks_of(depth, widths, image_shape)
        conv = partial(PoincareConv2d, ball=ball, init=init, inverted_lambda=inverted_lambda)
        norm = partial(PoincareBatchNorm2d, ball=ball, mean=norm_mean, statistics=statistics)
        residual = MobiusResidual(ball, residual_axis)
        self.relu = relu
        self.conv, self.norm = conv(image_shape[0], widths[0], 3, padding=1), norm(widths[0])
        self.blocks = nn.Sequential(*(_Block(*sizes, relu, conv, norm, residual) for sizes in blocks))
        self.pool = PoincareAvgPool2d(ball, mean=pooling)
        self.out_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        with self.pool.ball.held():
            u = fused(self.conv.scaled(images.contiguous()), self.conv, self.norm, relu=self.relu)
            return self.pool(self.pool.unscaled(self.blocks(u))).flatten(1)


class _Block(nn.Module):
    """Takes and returns scaled tangents √c u."""

    def __init__(
        self,
        width: int,
        channels: int,
        stride: int,
        relu: bool,
        conv: Callable[..., PoincareConv2d],
        norm: Callable[..., PoincareBatchNorm2d],
        residual: MobiusResidual,
    ):
        super().__init__()
        self.conv1, self.norm1 = conv(width, channels, 3, stride=stride, padding=1), norm(channels)
        self.conv2, self.norm2 = conv(channels, channels, 3, padding=1), norm(channels)
        same = stride == 1 and width == channels
        self.shortcut = None if same else conv(width, channels, 1, stride=stride)
        self.residual, self.relu = residual, relu

    def forward(self, u: Tensor) -> Tensor:
        skip = u if self.shortcut is None else fused(u, self.shortcut)
        v = fused(u, self.conv1, self.norm1, relu=self.relu)
        if self.residual.axis == "channels":
            return fused(v, self.conv2, self.norm2, skip, self.relu)
        branch = fused(v, self.conv2, self.norm2)
        v = self.residual.of_scaled(branch, skip)
        return v.relu() if self.relu else v


def blocks_of(depth: int, widths: Sequence[int], image_shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """(channels in, channels out, stride) of each block of a ResNet for small images of this depth."""
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise UserError("backbone.depth", depth, "must be 6 b + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, …")
    if len(widths) != 3 or not all(isinstance(width, int) and width >= 1 for width in widths):
        raise UserError("backbone.widths", list(widths), "must be three whole numbers ≥ 1, such as [4, 8, 16]")
    if min(image_shape[1:]) < 4:
        pixels = f"{image_shape[1]}×{image_shape[2]}"
        raise UserError("dataset.image_shape", pixels, "is too small for two halvings; take images from 4×4 pixels")
    blocks, width = [], widths[0]
    for group, channels in enumerate(widths):
        for position in range((depth - 2) // 6):
            blocks.append((width, channels, 2 if group and not position else 1))
            width = channels
    return blocks


class PoincareConvNet(nn.Module):
    """Plain network of PR's Figure 2b, 2c: convolutions 3×3, each followed by ReLU, and an average over all pixels.

    image_shape, ball, init, inverted_lambda, norm_mean, statistics: as in `PoincareResNet`.
    widths: channels of the convolutions, four or six in PR; its numbers are lost. A convolution whose width is not that
        of the one before has stride 2, but for the first.
    norm: a batch norm after each convolution.
    `forward`: images [N, C, H, W] → tangent vectors at the origin [N, widths[-1]].
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        ball: PoincareBall,
        *,
        widths: Sequence[int] = (8, 8, 16, 16),
        init: str = "channel_major",
        norm: bool = False,
        norm_mean: str = "midpoint",
        statistics: str = "batch",
        inverted_lambda: bool = False,
    ):
        super().__init__()
        if not widths or not all(isinstance(width, int) and width >= 1 for width in widths):
            raise UserError("backbone.widths", list(widths), "must be whole numbers ≥ 1, one for each convolution")
        layers, before = [], image_shape[0]
        for position, width in enumerate(widths):
            stride = 2 if position and width != before else 1
            conv = PoincareConv2d(before, width, 3, ball, stride, 1, True, init, inverted_lambda)
            layers.append(_Layer(conv, PoincareBatchNorm2d(width, ball, norm_mean, statistics) if norm else None))
            before = width
        self.layers = nn.Sequential(*layers)
        self.pool = PoincareAvgPool2d(ball)
        self.out_features = before

    def forward(self, images: Tensor) -> Tensor:
        with self.pool.ball.held():
            return self.pool(self.pool.unscaled(self.layers(self.pool.scaled(images.contiguous())))).flatten(1)


class _Layer(nn.Module):
    """conv → [norm] → ReLU of scaled tangents."""

    def __init__(self, conv: PoincareConv2d, norm: PoincareBatchNorm2d | None):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, u: Tensor) -> Tensor:
        return fused(u, self.conv, self.norm, relu=True)
