"""Augmentation in batch against torchvision and PIL: the same law of the draws, the same pixels for the same draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from hypimg import _torchvision
from hypimg.data import augment as module
from hypimg.data.augment import Augment, Draws
from hypimg.errors import UserError

_torchvision.load()
from torchvision.transforms import RandomCrop, RandomResizedCrop  # noqa: E402
from torchvision.transforms import functional as TF  # noqa: E402

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sizes(count: int, height: int, width: int) -> Tensor:
    return torch.tensor([[height, width]]).expand(count, 2)


def photos(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Images with smooth parts, edges and noise: uint8 [count, height, width, channels]."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = rng.uniform(-20, 20, (count, 2, channels))
    image = 128 + 90 * np.sin(
        y[None, ..., None] * waves[:, None, None, 0] + x[None, ..., None] * waves[:, None, None, 1]
    )
    image += 40 * (x > 0.6)[None, ..., None] + rng.normal(0, 12, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def boxes(*rows: tuple[int, int, int, int]) -> Draws:
    """Draws of these boxes (top, left, height, width) and nothing else."""
    whole, ones = torch.tensor(rows), torch.ones(len(rows))
    return Draws(*whole.unbind(1), torch.zeros(len(rows), dtype=torch.bool), ones, ones.clone(), ones.clone())


def cropped(image: Tensor, draws: Draws, i: int, size: int) -> Tensor:
    """torchvision's crop, antialiased resize and flip of one image uint8 [H, W, C] → float32 [C, S, S] in 0…1."""
    pixels = image.permute(2, 0, 1).float() / 255
    box = [int(getattr(draws, name)[i]) for name in ("top", "left", "height", "width")]
    result = TF.resized_crop(pixels, *box, [size, size], antialias=True)
    return TF.hflip(result) if draws.flip[i] else result


# Boxes of a 150×200 image: up, down, elongated, tiny, at the edges, whole.
BOXES = [(0, 0, 20, 25), (30, 40, 110, 120), (3, 5, 140, 12), (70, 0, 9, 200), (149, 199, 1, 1), (0, 0, 150, 200)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 32, 84, 224])
def test_same_box_gives_torchvisions_pixels(size: int, channels: int) -> None:
    images, draws = photos(len(BOXES), 150, 200, channels), boxes(*BOXES)
    ours = Augment(size).apply(images, draws) / 255
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.float32
    for i in range(len(BOXES)):
        torch.testing.assert_close(ours[i], cropped(images[i], draws, i, size), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [16, 84, 224])
def test_same_box_gives_pils_pixels_but_for_its_rounding(size: int) -> None:
    images, draws = photos(len(BOXES), 150, 200), boxes(*BOXES)
    ours = Augment(size).apply(images, draws)
    for i, (top, left, height, width) in enumerate(BOXES):
        image = Image.fromarray(images[i].numpy()).crop((left, top, left + width, top + height))
        theirs = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32)
        off = np.abs(ours[i].permute(1, 2, 0).numpy() - theirs)
        assert off.mean() < 0.6 and off.max() < 2  # of 255: PIL rounds to whole numbers after each axis


def test_plain_grid_sampling_would_fail_here() -> None:
    """The bound of the tests above tells antialiased from plain bilinear."""
    images, draws = photos(1, 150, 200), boxes(BOXES[-1])
    plain = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear")
    assert (plain - Augment(16).apply(images, draws)).abs().mean() > 3


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (20, 31, 3)])
def test_whole_image_at_its_own_size_stays_exactly(shape: tuple[int, int, int]) -> None:
    images = photos(5, *shape)
    plain = Augment(scale=None, flip=None)
    draws = plain.draw(sizes(5, *shape[:2]), seeded())
    assert torch.equal(plain.apply(images, draws), images.permute(0, 3, 1, 2).float())
    mirror = Augment(scale=None, flip=1)
    draws = mirror.draw(sizes(5, *shape[:2]), seeded())
    assert torch.equal(mirror.apply(images, draws), images.flip(2).permute(0, 3, 1, 2).float())


@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", TF.adjust_brightness),
        ("contrast", TF.adjust_contrast),
        ("saturation", TF.adjust_saturation),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_jitter_is_torchvisions(name: str, adjust: Any, channels: int) -> None:
    images = photos(8, 24, 24, channels)
    one: dict[str, Any] = {name: 1.0}  # factors 0…2: darkest to clipped
    augment = Augment(scale=None, flip=None, **one)
    draws = augment.draw(sizes(8, 24, 24), seeded())
    getattr(draws, name)[0] = 0.0
    ours = augment.apply(images, draws) / 255
    for i in range(8):
        theirs = adjust(images[i].permute(2, 0, 1).float() / 255, float(getattr(draws, name)[i]))
        torch.testing.assert_close(ours[i], theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 1 << 14, 1 << 22])
def test_all_together_is_torchvisions_in_the_official_order(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.CHUNK, "cpu", chunk)
    images, augment = photos(12, 60, 44), Augment(28, **JITTER)
    draws = augment.draw(sizes(12, 60, 44), seeded(1))
    ours = augment.apply(images, draws) / 255
    assert draws.flip.any() and not draws.flip.all()
    for i in range(12):
        image = cropped(images[i], draws, i, 28)
        image = TF.adjust_brightness(image, float(draws.brightness[i]))
        image = TF.adjust_contrast(image, float(draws.contrast[i]))
        image = TF.adjust_saturation(image, float(draws.saturation[i]))
        torch.testing.assert_close(ours[i], image, atol=2e-5, rtol=0)


def ragged(shapes: list[tuple[int, int]], channels: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Images, their pixels in one row, where each begins, their sizes."""
    images = [photos(1, *shape, channels)[0] for shape in shapes]
    ends = torch.tensor([image.numel() for image in images]).cumsum(0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    return images, torch.cat([image.flatten() for image in images]), starts, torch.tensor(shapes)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk", [1, 1 << 15, 1 << 26])
def test_images_of_many_sizes_come_out_as_each_alone(
    channels: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.CHUNK, "cpu", chunk)
    shapes = [
        (40, 60),
        (60, 40),
        (9, 7),
        (90, 30),
        (31, 100),
        (1, 1),
        (5, 3),
    ]  # the last one ends the buffer, and is small
    images, flat, starts, shape = ragged(shapes, channels)
    augment = Augment(24, **JITTER)
    for seed in range(4):
        draws = augment.draw(shape, seeded(seed))
        ours = augment.apply_ragged(flat, starts, shape, channels, draws)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        alone = [augment.apply(image[None], draws.rows(slice(i, i + 1))) for i, image in enumerate(images)]
        torch.testing.assert_close(ours, torch.cat(alone), atol=1e-3, rtol=0)
        chosen = torch.tensor([3, 0, 0, 6])
        again = augment.apply_ragged(flat, starts[chosen], shape[chosen], channels, draws.rows(chosen))
        torch.testing.assert_close(again, ours[chosen], atol=1e-3, rtol=0)


def test_equal_sizes_are_the_same_either_way_and_in_parts() -> None:
    images, augment = photos(9, 50, 40), Augment(20, **JITTER)
    draws = augment.draw(sizes(9, 50, 40), seeded())
    whole = augment.apply(images, draws)
    starts = torch.arange(9) * images[0].numel()
    torch.testing.assert_close(
        augment.apply_ragged(images.flatten(), starts, sizes(9, 50, 40), 3, draws), whole, atol=1e-3, rtol=0
    )
    assert torch.equal(augment.apply(images[2:5], draws.rows(slice(2, 5))), whole[2:5])


def test_a_region_is_cropped_like_an_image_of_its_size() -> None:
    images, augment = photos(6, 50, 40), Augment(16, **JITTER)
    draws = augment.draw(sizes(6, 30, 25), seeded())
    corner = torch.tensor([[11, 8]]).expand(6, 2)
    inside = augment.apply(images[:, 11:41, 8:33].contiguous(), draws)
    torch.testing.assert_close(augment.apply(images, draws.shifted(corner)), inside, atol=1e-3, rtol=0)


def theirs(height: int, width: int, count: int, ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> np.ndarray:
    """torchvision's boxes [count, 4]: top, left, height, width."""
    image = torch.empty(3, height, width, device="meta")
    torch.manual_seed(5)
    return np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], list(ratio)) for _ in range(count)])


@pytest.mark.parametrize(("height", "width"), [(84, 84), (375, 500), (32, 32), (120, 300)])
def test_boxes_follow_torchvisions_law(height: int, width: int) -> None:
    count = 1500
    draws = Augment(84).draw(sizes(6 * count, height, width), seeded(3))
    ours = torch.stack([draws.top, draws.left, draws.height, draws.width], dim=1).numpy()
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()

    def features(box: np.ndarray) -> list[np.ndarray]:
        top, left, h, w = box.T
        room_y, room_x = np.maximum(height - h, 1), np.maximum(width - w, 1)
        return [h * w / (height * width), w / h, h, w, top, left, top / room_y, left / room_x]

    for mine, reference in zip(features(ours), features(theirs(height, width, count)), strict=True):
        assert stats.ks_2samp(mine, reference).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(400, 10), (9, 600), (1, 1), (3, 50)])
def test_images_that_no_box_fits_fall_back_to_torchvisions_central_one(height: int, width: int) -> None:
    draws = Augment(8).draw(sizes(500, height, width), seeded())
    ours = torch.stack([draws.top, draws.left, draws.height, draws.width], dim=1).numpy()
    reference = theirs(height, width, 200)

    def commonest(found: np.ndarray) -> tuple[list[int], float]:
        values, counts = np.unique(found, axis=0, return_counts=True)
        return values[counts.argmax()].tolist(), counts.max() / len(found)

    (mine, share), (other, other_share) = commonest(ours), commonest(reference)
    assert mine == other and abs(share - other_share) < 0.12
    assert Augment(8).apply(photos(500, height, width), draws).isfinite().all()


def test_flips_and_factors_are_uniform() -> None:
    draws = Augment(8, brightness=0.4, contrast=0.2, saturation=None, flip=0.3).draw(sizes(20000, 9, 9), seeded())
    assert abs(draws.flip.float().mean() - 0.3) < 0.015
    assert stats.kstest(draws.brightness.numpy(), "uniform", (0.6, 0.8)).pvalue > 1e-3
    assert stats.kstest(draws.contrast.numpy(), "uniform", (0.8, 0.4)).pvalue > 1e-3
    assert (draws.saturation == 1).all()
    assert abs(np.corrcoef(draws.brightness.numpy(), draws.contrast.numpy())[0, 1]) < 0.03


def test_the_same_generator_draws_the_same_and_switches_share_the_rest() -> None:
    first, again = (Augment(8, **JITTER).draw(sizes(50, 40, 30), seeded(7)) for _ in range(2))
    without = Augment(8, flip=None).draw(sizes(50, 40, 30), seeded(7))
    for name in ("top", "left", "height", "width", "flip", "brightness", "contrast", "saturation"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        if name in ("top", "left", "height", "width"):
            assert torch.equal(getattr(first, name), getattr(without, name))
    generator = seeded(7)
    one, two = (Augment(8).draw(sizes(50, 40, 30), generator) for _ in range(2))
    assert not torch.equal(one.top, two.top)


def test_padded_crop_is_torchvisions() -> None:
    images = photos(40, 12, 10)
    augment = Augment(scale=None, padding=4, fill=127.5, flip=None)
    draws = augment.draw(sizes(40, 12, 10), seeded())
    ours = augment.apply(images, draws)
    padded = TF.pad(images.permute(0, 3, 1, 2).float(), [4], fill=127.5)
    for i in range(40):
        top, left = int(draws.top[i]), int(draws.left[i])
        assert torch.equal(ours[i], padded[i, :, top : top + 12, left : left + 10])
    many = augment.draw(sizes(4000, 12, 10), seeded())
    torch.manual_seed(0)
    reference = np.array([RandomCrop.get_params(padded[0], (12, 10))[:2] for _ in range(1000)])
    assert set(many.top.tolist()) == set(many.left.tolist()) == set(range(9)) == set(reference[:, 0].tolist())
    for mine in (many.top, many.left):
        assert stats.chisquare(np.bincount(mine.numpy(), minlength=9)).pvalue > 1e-3


def test_nothing_is_drawn_elsewhere_and_images_stay() -> None:
    images, augment = photos(4, 20, 20), Augment(16, **JITTER)
    before, state = images.clone(), torch.get_rng_state()
    draws = augment.draw(sizes(4, 20, 20), seeded())
    kept = draws.rows(slice(None)).brightness.clone()
    augment.apply(images, draws)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws.brightness, kept)


def test_no_images_give_none() -> None:
    augment, empty = Augment(16, **JITTER), torch.empty(0, 20, 20, 3, dtype=torch.uint8)
    draws = augment.draw(torch.empty(0, 2, dtype=torch.int64), seeded())
    assert augment.apply(empty, draws).shape == (0, 3, 16, 16)
    none = torch.empty(0, dtype=torch.int64)
    assert augment.apply_ragged(empty.flatten(), none, none.view(0, 2), 3, draws).shape == (0, 3, 16, 16)


def test_float32_under_autocast() -> None:
    images, augment = photos(4, 40, 40), Augment(16, **JITTER)
    draws = augment.draw(sizes(4, 40, 40), seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment.apply(images, draws)
    assert torch.equal(inside, augment.apply(images, draws))


@pytest.mark.parametrize("device", ["cpu", "cuda"][: 1 + torch.cuda.is_available()])
def test_every_device_gives_the_same_without_waiting_for_it(device: str) -> None:
    images, augment = photos(30, 50, 40), Augment(20, **JITTER)
    draws = augment.draw(sizes(30, 50, 40), seeded())
    there, starts = images.to(device), torch.arange(30) * images[0].numel()
    flat = there.flatten()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        ours = augment.apply(there, draws)
        also = augment.apply_ragged(flat, starts, sizes(30, 50, 40), 3, draws)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(ours.cpu(), augment.apply(images, draws), atol=1e-3, rtol=0)
    torch.testing.assert_close(also, ours, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": 0}, "size"),
        ({"scale": [0.0, 1.0]}, "scale"),
        ({"scale": [0.5, 0.2]}, "scale"),
        ({"scale": [0.5, 1.5]}, "scale"),
        ({"scale": [0.5]}, "scale"),
        ({"scale": [math.nan, 1.0]}, "scale"),
        ({"ratio": [-1.0, 1.0]}, "ratio"),
        ({"ratio": [2.0, 1.0]}, "ratio"),
        ({"brightness": -0.1}, "brightness"),
        ({"contrast": 1.5}, "contrast"),
        ({"saturation": math.nan}, "saturation"),
        ({"flip": 2.0}, "flip"),
        ({"scale": None, "padding": 0}, "padding"),
        ({"padding": 4}, "padding"),
        ({"fill": 300.0}, "fill"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=rf"^augment\.{name}="):
        Augment(**options)


def test_images_of_many_sizes_need_a_size_and_take_no_padding() -> None:
    _, flat, starts, shape = ragged([(6, 5), (4, 7)], 3)
    for augment, name in ((Augment(), "size"), (Augment(8, scale=None, padding=2), "padding")):
        draws = augment.draw(shape, seeded())
        with pytest.raises(UserError, match=f"augment.{name}"):
            augment.apply_ragged(flat, starts, shape, 3, draws)
