"""Training augmentation in batch: crops, jitter and flips as a few products per batch, on the images' device.

The laws are torchvision's (`RandomResizedCrop`, `ColorJitter` in fixed order, `RandomHorizontalFlip`), the numbers come
from one generator. A crop, its antialiased bilinear resize and a flip are linear along each axis: out = Wy image Wxᵀ
with few weights per row of Wy [S, H] and Wx [S, W], none outside the image's box. Each product is one `embedding_bag`
over the whole batch: weighted sums of a few table rows, first over the images' rows, then over their columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hypimg.errors import UserError

TRIES = 10  # boxes drawn before the central one is taken: torchvision's RandomResizedCrop.get_params
GREY = (0.2989, 0.587, 0.114)  # weights of R, G, B: torchvision's rgb_to_grayscale
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}  # float32 pixels worked on at a time: what a cache holds; 256 MB


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random choices for B images; tensors [B], on the CPU unless moved.

    top, left, height, width: the box in pixels (int64), on the padded image where there is padding.
    flip: mirrored left to right, after the crop (bool). brightness, contrast, saturation: factors (float32).
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor

    def __len__(self) -> int:
        return len(self.top)

    def rows(self, index: slice | Tensor) -> Draws:
        """The choices of some of the images."""
        return Draws(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def shifted(self, corners: Tensor) -> Draws:
        """The boxes moved by corners [B, 2] (down, right): drawn for a region of the image, used on the whole."""
        return dataclasses.replace(self, top=self.top + corners[:, 0], left=self.left + corners[:, 1])

    def to(self, device: str | torch.device) -> Draws:
        """The same on a device, in two small copies. `apply` does this by itself; `apply_ragged` wants the CPU's."""
        if self.top.device == torch.device(device):
            return self
        box = _moved(torch.stack([self.top, self.left, self.height, self.width]), device)
        other = torch.stack([self.flip.float(), self.brightness, self.contrast, self.saturation])
        flip, brightness, contrast, saturation = _moved(other, device).unbind()
        return Draws(box[0], box[1], box[2], box[3], flip > 0, brightness, contrast, saturation)


class Augment:
    """Crop, resize, brightness, contrast, saturation, flip: in this order, each with its own choice per image.

    size: side of the square result; None: the images' own height and width.
    scale, ratio: a random resized crop: share of the image's area, uniform; width/height, log-uniform. None: no such
    crop. padding: instead of it, a box of the image's own size anywhere on the image with this many pixels of `fill`
    (0…255) around. Neither: the whole image.
    brightness, contrast, saturation: factor uniform in 1 ± this (at most 1; None or 0: left as it is).
    flip: probability of a mirrored image.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: Sequence[float] | None = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        flip: float | None = 0.5,
        padding: int | None = None,
        fill: float = 0.0,
    ):
        if size is not None and size < 1:
            raise UserError("augment.size", size, "must be ≥ 1, or null for the images' own size")
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise UserError("augment.scale", list(scale), "must be [low, high] with 0 < low ≤ high ≤ 1, or null")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < math.inf:
            raise UserError("augment.ratio", list(ratio), "must be [low, high] with 0 < low ≤ high")
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"augment.{name}", value, "must be in 0…1: the factor is uniform in 1 ± this")
        if flip is not None and not 0 <= flip <= 1:
            raise UserError("augment.flip", flip, "must be a probability, 0…1")
        if padding is not None and padding < 1:
            raise UserError("augment.padding", padding, "must be ≥ 1, or null")
        if padding is not None and scale is not None:
            raise UserError("augment.padding", padding, "is another crop than augment.scale: set one of them to null")
        if not 0 <= fill <= 255:
            raise UserError("augment.fill", fill, "must be in 0…255")
        self.size, self.padding, self.fill = size, padding, fill
        self.scale = None if scale is None else (float(scale[0]), float(scale[1]))
        self.ratio = (float(ratio[0]), float(ratio[1]))
        self.brightness, self.contrast, self.saturation = brightness or 0.0, contrast or 0.0, saturation or 0.0
        self.flip = flip or 0.0

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Draws:
        """The random choices for images of these sizes: int64 [B, 2] (height, width), on the CPU.

        One call of the generator, `rand(B, 26)` in float64, whatever is switched on: 10 areas, 10 log ratios, top,
        left, flip, brightness, contrast, saturation. So two settings that differ in one switch share all the rest.
        """
        u = torch.rand(len(sizes), 2 * TRIES + 6, dtype=torch.float64, generator=generator)
        top, left, height, width = self._boxes(sizes, u)

        def factor(column: int, strength: float) -> Tensor:
            return ((1 - strength) + 2 * strength * u[:, column]).float()

        return Draws(
            top,
            left,
            height,
            width,
            u[:, -4] < self.flip,
            factor(-3, self.brightness),
            factor(-2, self.contrast),
            factor(-1, self.saturation),
        )

    def _boxes(self, sizes: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height, width from the sizes [B, 2] and uniform numbers u [B, ≥ 22]."""
        full_h, full_w = sizes.unbind(1)
        if self.scale is None:
            span = 2 * (self.padding or 0)
            top, left = (u[:, 2 * TRIES : 2 * TRIES + 2] * (span + 1)).long().clamp_(max=span).unbind(1)
            return top, left, full_h, full_w
        low, high = self.scale
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        area = (full_h * full_w)[:, None] * (low + (high - low) * u[:, :TRIES])
        aspect = (log_low + (log_high - log_low) * u[:, TRIES : 2 * TRIES]).exp_()
        tried = torch.stack([area / aspect, area * aspect], dim=2).sqrt_().round_().long()  # [B, 10, 2]
        fits = ((tried > 0) & (tried <= sizes[:, None])).all(dim=2)
        first = fits.int().argmax(dim=1)[:, None, None].expand(-1, 1, 2)
        box = tried.gather(1, first).squeeze(1)
        # none fits: the largest central box with a permitted ratio
        shape = full_w / full_h
        tall, wide = shape < self.ratio[0], shape > self.ratio[1]
        central = torch.stack(
            [
                torch.where(tall, (full_w.double() / self.ratio[0]).round().long(), full_h),
                torch.where(wide, (full_h.double() * self.ratio[1]).round().long(), full_w),
            ],
            dim=1,
        )
        any_fits = fits.any(dim=1, keepdim=True)
        box = torch.where(any_fits, box, central)
        room = sizes - box
        offset = (u[:, 2 * TRIES : 2 * TRIES + 2] * (room + 1)).long().minimum(room)
        offset = torch.where(any_fits, offset, room // 2)
        return offset[:, 0], offset[:, 1], box[:, 0], box[:, 1]

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 [B, H, W, C] (C = 1 or 3) → float32 [B, C, S, S] in 0…255, channels last in memory, on their device."""
        batch, height, width, channels = images.shape
        size = (self.size or height, self.size or width)
        out, draws = _empty(batch, size, channels, images.device), draws.to(images.device)
        edge = self.padding or 0
        rows, columns = height + 2 * edge, width + 2 * edge
        step = _chunk(images.device, rows * columns * channels)
        nth = torch.arange(batch, device=images.device) % step
        begin = torch.stack([nth * rows + draws.top, nth * columns + draws.left])
        taps, weights = _taps(draws, begin, size, _most_taps(height, width, size))
        for part in _slices(batch, step):
            pixels = images[part].float()
            if edge:
                pixels = F.pad(pixels, (0, 0, edge, edge, edge, edge), value=self.fill)
            planes = _resized(pixels.flatten(0, 1), taps[:, part], weights[:, part], size)
            out[part] = self._jittered(planes, draws.rows(part)).permute(0, 2, 3, 1)
        return out

    def apply_ragged(
        self,
        flat: Tensor,
        offsets: Tensor,
        shapes: Tensor,
        channels: int,
        draws: Draws,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """The same for images of many sizes, which lie one after another in flat uint8 [total].

        offsets [B]: where each begins in `flat`; shapes [B, 2]: height and width; channels: 1 or 3. Only the boxes are
        read, in chunks of boxes of similar width, and brought to `device` (None: that of `flat`). Offsets, shapes and
        draws are the CPU's: they say how much memory is needed.
        """
        if self.size is None:
            raise UserError("augment.size", None, "images of many sizes need one to be brought to")
        if self.padding:
            raise UserError("augment.padding", self.padding, "images of many sizes are not padded; use augment.scale")
        size = (self.size, self.size)
        out = _empty(len(draws), size, channels, flat.device if device is None else torch.device(device))
        if not len(draws):
            return out
        order = draws.width.argsort(stable=True)
        draws, offset, pitch = draws.rows(order), offsets[order], shapes[order, 1] * channels
        pixels = (draws.height * draws.width).cumsum(0) * channels
        counts = (pixels // CHUNK[out.device.type]).unique_consecutive(return_counts=True)[1]
        chunk = torch.arange(len(counts)).repeat_interleave(counts)
        end = counts.cumsum(0)
        # All windows of a chunk are as wide as its widest box, the last one. They may reach beyond the right edges of
        # their images (those pixels get no weight), but not beyond the end of `flat`: there they begin further left.
        columns = draws.width[end - 1][chunk]
        start = offset + draws.top * pitch + draws.left * channels
        beyond = (start + (draws.height - 1) * pitch + columns * channels - len(flat)).clamp_(min=0)
        shift = (beyond + channels - 1).div_(channels, rounding_mode="floor")
        # The boxes' rows one below another, and where each begins in `flat`.
        below = torch.cat([torch.zeros(1, dtype=torch.int64), draws.height.cumsum(0)])
        first, height = start - shift * channels - below[:-1] * pitch, draws.height
        table = _moved(torch.stack([first, pitch, height]), flat.device)
        first, along = table[:2].repeat_interleave(table[2], dim=1, output_size=int(below[-1]))
        starts = first.addcmul_(along, torch.arange(len(along), device=flat.device))
        top = below[:-1] - below[(end - counts)[chunk]]
        nth = torch.arange(len(draws)) - (end - counts)[chunk]
        begin = _moved(torch.stack([top, nth * columns + shift]), out.device)
        there, order = draws.to(out.device), _moved(order, out.device)
        largest = _most_taps(int(height.max()), int(columns[-1]), size)
        taps, weights = _taps(there, begin, size, largest)
        # Two buffers for all chunks: fresh memory for each costs a CPU a tenth to a fifth of the time.
        most = int(((below[end] - below[end - counts]) * draws.width[end - 1]).max()) * channels
        found, floats = torch.empty(most, dtype=torch.uint8, device=flat.device), torch.empty(most, device=out.device)
        for last, count in zip(end.tolist(), counts.tolist(), strict=True):
            part, wide = slice(last - count, last), int(columns[last - 1])
            here = starts[int(below[last - count]) : int(below[last])]
            windows = found[: len(here) * wide * channels].view(len(here), -1)
            torch.index_select(flat.unfold(0, wide * channels, 1), 0, here, out=windows)
            rows = floats[: windows.numel()].view(-1, wide, channels)
            rows.copy_(_moved(windows, out.device).view_as(rows))
            most = _most_taps(int(height[part].max()), wide, size)
            planes = _resized(rows, taps[:, part, :, :most], weights[:, part, :, :most], size)
            out.index_copy_(0, order[part], self._jittered(planes, there.rows(part)).permute(0, 2, 3, 1))
        return out

    def _jittered(self, planes: Tensor, draws: Draws) -> Tensor:
        """[B, x, C, y], changed in place: torchvision's adjust_brightness, adjust_contrast, adjust_saturation."""
        if self.brightness:
            planes.mul_(draws.brightness.view(-1, 1, 1, 1)).clamp_(0, 255)
        if self.contrast:
            factor, mean = draws.contrast.view(-1, 1, 1, 1), _grey(planes).mean(dim=(1, 2, 3), keepdim=True)
            planes.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255)
        if self.saturation and planes.shape[2] == 3:
            planes.lerp_(_grey(planes), (1 - draws.saturation).view(-1, 1, 1, 1)).clamp_(0, 255)
        return planes


def _empty(batch: int, size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {channels}")
    return torch.empty(batch, *size, channels, device=device).permute(0, 3, 1, 2)


def _moved(tensor: Tensor, device: str | torch.device) -> Tensor:
    """On the device; to a GPU without waiting for what it does."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def _chunk(device: torch.device, pixels: int) -> int:
    """How many images of at most this many float32 pixels are worked on at a time."""
    return max(1, CHUNK[device.type] // max(1, pixels))


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, total, step)]


def _most_taps(height: int, width: int, size: tuple[int, int]) -> int:
    """How many rows or columns lie at most within the triangle of one result when boxes are at most height × width."""
    return math.ceil(2 * max(height / size[0], width / size[1], 1.0))


def _taps(draws: Draws, begin: Tensor, size: tuple[int, int], most: int) -> tuple[Tensor, Tensor]:
    """Which rows and columns of its box each row and column of a result sums up, and with what weights.

    Two tensors [2, B, max(size), most], rows first: taps counted on from begin [2, B] (int32), weights (float32).
    Antialiased bilinear as in PIL and torchvision: result i looks at (i + ½) · scale, where scale = box/size, with a
    triangle of half width max(scale, 1), cut off at the ends of the box, weights summing to 1.
    """
    device = draws.top.device
    length = torch.stack([draws.height, draws.width]).float()[:, :, None]
    scale = torch.stack([draws.height / size[0], draws.width / size[1]])[:, :, None]
    centre = scale * (torch.arange(max(size), device=device) + 0.5)
    centre[1] = torch.where(draws.flip[:, None], length[1] - centre[1], centre[1])
    reach = scale.clamp(min=1)
    wanted = (centre - reach + 0.5).floor_()[..., None] + torch.arange(most, device=device)
    weights = (wanted + 0.5).sub_(centre[..., None]).abs_().div_(reach[..., None]).neg_().add_(1).clamp_(min=0)
    taps = wanted.clamp(min=0).minimum(length[..., None] - 1)
    weights.masked_fill_(taps != wanted, 0)
    return taps.int().add_(begin[..., None, None]), weights.div_(weights.sum(dim=3, keepdim=True))


def _resized(rows: Tensor, taps: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """The boxes of B images: float rows [R, W, C] of all of them, taps and weights of `_taps` → [B, x, C, y]."""
    total, columns, channels = rows.shape
    batch = taps.shape[1]
    half = _weighted_sums(rows.view(total, -1), taps[0, :, : size[0]], weights[0, :, : size[0]])
    half = half.view(batch, size[0], columns, channels).permute(0, 2, 3, 1).reshape(batch * columns, -1)
    planes = _weighted_sums(half, taps[1, :, : size[1]], weights[1, :, : size[1]])
    return planes.view(batch, size[1], channels, size[0])


def _weighted_sums(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Σ_k weights[…, k] · table[index[…, k]]: one row of table [R, D] for each of the leading places → [places, D]."""
    index, weights = index.flatten(0, 1), weights.flatten(0, 1)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)


def _grey(planes: Tensor) -> Tensor:
    """[B, x, C, y] → [B, x, 1, y]"""
    if planes.shape[2] == 1:
        return planes
    red, green, blue = planes.split(1, dim=2)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
