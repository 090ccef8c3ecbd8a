"""LeNet as the official HIE code trains it on MNIST."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hypimg.errors import UserError


class LeNet(nn.Module):
    """Two blocks of convolution, ReLU and 2×2 max-pooling, a hidden layer, and a linear layer to the embedding.

    image_shape: (channels, height, width).  dim: size of the features, ≥ 1.
    `forward`: images [N, C, H, W] → features [N, dim], before any map into a curved space.
    Source: the MNIST example of HIE's official code (widths 20 and 50, 5×5, 500 hidden units).
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        dim: int,
        widths: Sequence[int] = (20, 50),
        kernel_size: int = 5,
        padding: int = 0,
        hidden: int = 500,
    ):
        super().__init__()
        channels, height, width = image_shape
        after = [
            _after_block(_after_block(size, kernel_size, padding), kernel_size, padding) for size in (height, width)
        ]
        if min(after) < 1:
            raise UserError("backbone.kernel_size", kernel_size, f"leaves nothing of images of {height}×{width} pixels")
        self.conv1 = nn.Conv2d(channels, widths[0], kernel_size, padding=padding)
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel_size, padding=padding)
        self.hidden = nn.Linear(widths[1] * after[0] * after[1], hidden)
        self.out = nn.Linear(hidden, dim)
        self.out_features = dim

    def forward(self, images: Tensor) -> Tensor:
        # ReLU commutes with max-pooling, values and gradients alike; after it, it touches a quarter of the numbers.
        x = nn.functional.max_pool2d(self.conv1(images), 2).relu()
        x = nn.functional.max_pool2d(self.conv2(x), 2).relu()
        return self.out(self.hidden(x.flatten(1)).relu())


def _after_block(size: int, kernel_size: int, padding: int) -> int:
    return (size + 2 * padding - kernel_size + 1) // 2
