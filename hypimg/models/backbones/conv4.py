"""4-Conv, the small network of few-shot learning, as the official HIE code builds it or with its features flattened."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hypimg.errors import UserError

BLOCKS = 4
POOLS = ("global_max", "flatten")


class Conv4(nn.Module):
    """Four blocks of convolution 3×3 (padding 1, with bias), batch norm, ReLU and 2×2 max-pooling.

    image_shape: (channels, height, width), at least 16 pixels a side.  dim: size of the features.
    pool: `global_max`, as the official code: the last block has `dim` filters and one max-pooling takes what is left
        to 1×1 (5×5 there, 84 → 42 → 21 → 10 → 5 → 1).  So a larger `dim` is a larger network: with colour images
        1,002,432 parameters for dim 1600, 113,088 for dim 64.
        `flatten`, the usual reading: the last block has `width` filters and all its places are features, so `dim` must
        be their number, for width 64 at 84 pixels 64·5·5 = 1600 (113,088 parameters).
    width: filters of the first three blocks, and of the fourth with `flatten`.
    `forward`: images [N, C, H, W] → features [N, dim], ≥ 0, before any map into a curved space.
    Raises UserError for smaller images, an unknown `pool`, or a `dim` that flattening does not give.
    Source: the `ConvNet` backbone of HIE's few-shot code; torch's default initialisation, as there.
    """

    def __init__(self, image_shape: Sequence[int], *, dim: int, width: int = 64, pool: str = "global_max"):
        super().__init__()
        channels, *size = image_shape
        if pool not in POOLS:
            raise UserError("backbone.pool", pool, f"must be {' or '.join(POOLS)}")
        if width < 1:
            raise UserError("backbone.width", width, "must be ≥ 1")
        pixels = "×".join(map(str, size))
        left = [n // 2**BLOCKS for n in size]
        if min(left) < 1:
            raise UserError("dataset.image_shape", pixels, "is too small; 4-Conv takes images from 16×16 pixels")
        flat = width * left[0] * left[1]
        if pool == "flatten" and dim != flat:
            product = f"{width}·{left[0]}·{left[1]}"
            remedy = f"set dim={flat}, or backbone.pool=global_max, which takes any"
            raise UserError("dim", dim, f"flattened, 4-Conv has {product} features of {pixels} pixels; {remedy}")
        widths = [channels, width, width, width, width if pool == "flatten" else dim]
        self.convolutions = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 3, padding=1) for i in range(BLOCKS))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in widths[1:])
        self.pool = pool
        self.out_features = dim

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # ReLU commutes with max-pooling, values and gradients alike; after it, it touches a quarter of the numbers.
            x = nn.functional.max_pool2d(norm(convolution(x)), 2).relu()
        if self.pool == "global_max":
            x = nn.functional.max_pool2d(x, x.shape[2:])
        return x.flatten(1)
