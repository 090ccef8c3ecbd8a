"""Training augmentation in batch: crops, jitter and flips as a few products per batch, on the images' device.

The laws are torchvision's (`RandomResizedCrop`, `ColorJitter` in fixed order, `RandomHorizontalFlip`), the numbers come
from one generator. A crop and its antialiased bilinear resize are linear along each axis, so for a batch they are two
products: out = Wy · image · Wxᵀ with Wy [S, H] and Wx [S, W] per image, zero outside the image's box.
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
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}  # float32 pixels worked on at a time: what a cache holds; 256 MB


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

    def to(self, device: str | torch.device) -> Draws:
        """The same on a device. `apply` does this by itself; `apply_ragged` wants them on the CPU."""
        return Draws(*(getattr(self, field.name).to(device, non_blocking=True) for field in dataclasses.fields(self)))


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
            room = 2 * (self.padding or 0) + 1
            top, left = (u[:, 2 * TRIES : 2 * TRIES + 2] * room).long().clamp_(max=room - 1).unbind(1)
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
        _, height, width, _ = images.shape
        size = (self.size or height, self.size or width)
        out = _empty(len(images), size, images.shape[3], images.device)
        step = _chunk(images.device, images[0].numel()) if len(images) else 1
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            pixels = images[part].float()
            if self.padding:
                edge = self.padding
                pixels = F.pad(pixels, (0, 0, edge, edge, edge, edge), value=self.fill)
            mine = draws.rows(part).to(images.device)
            out[part] = self._work(pixels, mine, mine.top, mine.left, size)
        return out

    def apply_ragged(self, flat: Tensor, offsets: Tensor, shapes: Tensor, channels: int, draws: Draws) -> Tensor:
        """The same for images of many sizes, which lie one after another in flat uint8 [total].

        offsets [B]: where each begins in `flat`; shapes [B, 2]: height and width; channels: 1 or 3. `draws` must be on
        the CPU: they say how much memory is needed. Only rows of the boxes are read, in chunks of similar boxes.
        """
        if self.size is None:
            raise UserError("augment.size", None, "images of many sizes need one to be brought to")
        if self.padding:
            raise UserError("augment.padding", self.padding, "images of many sizes are not padded; use augment.scale")
        device, size = flat.device, (self.size, self.size)
        out = _empty(len(draws), size, channels, device)
        if not len(draws):
            return out
        largest = int(draws.height.max()) * int(draws.width.max()) * channels
        order = (draws.height * draws.width).argsort(descending=True, stable=True)
        offsets, widths = offsets.to(device), shapes[:, 1].to(device)
        for part in order.split(_chunk(device, largest)):
            mine, there = draws.rows(part), part.to(device, non_blocking=True)
            rows, columns = int(mine.height.max()), int(mine.width.max())
            mine = mine.to(device)
            width, length = widths[there], columns * channels
            start = offsets[there] + (mine.top * width + mine.left) * channels
            # A window may reach beyond its image's right edge (those pixels get no weight), but not beyond the end of
            # `flat`: there it begins further left.
            last = start + (mine.height - 1) * width * channels
            shift = ((last + length - len(flat)).clamp_(min=0) + channels - 1).div_(channels, rounding_mode="floor")
            row = torch.arange(rows, device=device).minimum(mine.height[:, None] - 1)
            starts = (start - shift * channels)[:, None] + row * (width * channels)[:, None]
            windows = flat.unfold(0, length, 1).index_select(0, starts.flatten()).float()
            windows = windows.view(len(part), rows, columns, channels)
            out.index_copy_(0, there, self._work(windows, mine, torch.zeros_like(shift), shift, size))
        return out

    def _work(self, pixels: Tensor, draws: Draws, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes at (top, left) [B] of float pixels [B, H, W, C] → [B, C, *size], laid out in memory as [B, x, C, y]."""
        batch, rows, columns, channels = pixels.shape
        down = _weights(top, draws.height, None, rows, size[0])
        along = _weights(left, draws.width, draws.flip if self.flip else None, columns, size[1])
        with torch.autocast(pixels.device.type, enabled=False):
            half = torch.bmm(pixels.view(batch, rows, columns * channels).transpose(1, 2), down.transpose(1, 2))
            planes = torch.bmm(along, half.view(batch, columns, channels * size[0]))
        planes = planes.view(batch, size[1], channels, size[0])
        if self.brightness:
            planes.mul_(draws.brightness.view(-1, 1, 1, 1)).clamp_(0, 255)
        if self.contrast:
            mean = _grey(planes).mean(dim=(1, 2, 3), keepdim=True)
            planes.lerp_(mean, (1 - draws.contrast).view(-1, 1, 1, 1)).clamp_(0, 255)
        if self.saturation and channels == 3:
            planes.lerp_(_grey(planes), (1 - draws.saturation).view(-1, 1, 1, 1)).clamp_(0, 255)
        return planes.permute(0, 2, 3, 1)


def _empty(batch: int, size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {channels}")
    return torch.empty(batch, *size, channels, device=device).permute(0, 3, 1, 2)


def _chunk(device: torch.device, pixels: int) -> int:
    """How many images of at most this many float32 pixels are worked on at a time."""
    return max(1, CHUNK[device.type] // max(1, pixels))


def _weights(start: Tensor, length: Tensor, flip: Tensor | None, taps: int, size: int) -> Tensor:
    """The weights [B, size, taps] that resize `length` [B] of `taps` pixels, from `start` [B] on, to `size`.

    Antialiased bilinear as in PIL and torchvision: output i looks at (i + ½) · length/size with a triangle of half
    width max(length/size, 1), cut off at the ends of the box, weights summing to 1. Images with flip [B] are mirrored.
    """
    scale = length.float() / size
    begin, slope = start.float(), scale
    if flip is not None:
        begin = torch.where(flip, begin + length, begin)
        slope = torch.where(flip, -scale, scale)
    centre = torch.addcmul(begin[:, None], slope[:, None], torch.arange(size, device=start.device) + 0.5)
    tap = torch.arange(taps, device=start.device)
    inside = (tap >= start[:, None]) & (tap < (start + length)[:, None])
    weights = (centre[:, :, None] - (tap + 0.5)).abs_()
    weights.div_(scale.clamp(min=1)[:, None, None]).neg_().add_(1).clamp_(min=0).mul_(inside[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _grey(planes: Tensor) -> Tensor:
    """[B, x, C, y] → [B, x, 1, y]"""
    if planes.shape[2] == 1:
        return planes
    red, green, blue = planes.split(1, dim=2)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
