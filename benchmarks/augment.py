"""Speed of the training augmentation; one JSON line each, both arms of a ratio in this process, interleaved.

    python benchmarks/augment.py [threads=1] [rounds=9] [images=100] [device=cpu|cuda]

1. against a loader that takes image by image through PIL: the same crops, jitter and flips, the same normalised result,
   from pixels that lie decoded in memory; for photographs also as such loaders work, from JPEGs (in memory, too);
2. what it adds to a training step of 4-Conv (forward, backward, Adam), against a fixed batch that lies on the device.
The photographs are generated: the work does not depend on the pixels.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from measure import interleaved, report
from PIL import Image, ImageEnhance
from torch import Tensor

from hypimg.data.augment import Augment, Draws
from hypimg.models.backbones.conv4 import Conv4

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}  # HIE's


def normalised(pixels: Tensor) -> Tensor:
    """0…255 → what a model takes."""
    scale, shift = (1 / (255 * STD)).to(pixels.device), (-MEAN / STD).to(pixels.device)
    return torch.addcmul(shift.view(-1, 1, 1), pixels, scale.view(-1, 1, 1))


def image_by_image(images: Iterable[Image.Image], draws: Draws, size: int) -> Tensor:
    """The batch as a loader of the official code makes it, in this process."""
    batch = []
    boxes = torch.stack([draws.left, draws.top, draws.left + draws.width, draws.top + draws.height], dim=1).tolist()
    factors = torch.stack([draws.brightness, draws.contrast, draws.saturation], dim=1).tolist()
    for image, box, (brightness, contrast, saturation), flip in zip(
        images, boxes, factors, draws.flip.tolist(), strict=True
    ):
        image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
        image = ImageEnhance.Brightness(image).enhance(brightness)
        image = ImageEnhance.Contrast(image).enhance(contrast)
        image = ImageEnhance.Color(image).enhance(saturation)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)  # ToTensor
        batch.append(pixels.sub_(MEAN[:, None, None]).div_(STD[:, None, None]))
    return torch.stack(batch)


def photographs(shapes: Tensor) -> tuple[list[Image.Image], Tensor, Tensor]:
    """Images of these sizes [N, 2]: as PIL's, and as one row of pixels with where each begins."""
    noise = torch.Generator().manual_seed(0)
    images = []
    for height, width in shapes.tolist():
        coarse = torch.rand(1, 3, 8, 8, generator=noise)
        smooth = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
        images.append((255 * smooth).to(torch.uint8).contiguous())
    starts = torch.tensor([0, *(image.numel() for image in images[:-1])]).cumsum(0)
    return [Image.fromarray(image.numpy()) for image in images], torch.cat([i.flatten() for i in images]), starts


def against_pil(case: str, shapes: Tensor, size: int, rounds: int) -> None:
    """Case 1: images that lie decoded in memory → a normalised batch, draws included in both arms."""
    images, flat, starts = photographs(shapes)
    augment, generator = Augment(size, **JITTER), torch.Generator().manual_seed(0)
    fixed = bool((shapes == shapes[0]).all())
    stored = flat.view(len(shapes), *shapes[0].tolist(), 3) if fixed else flat

    def ours() -> Tensor:
        draws = augment.draw(shapes, generator)
        if fixed:
            return normalised(augment.apply(stored, draws))
        return normalised(augment.apply_ragged(stored, starts, shapes, 3, draws))

    jpegs = []
    for image in images:
        jpegs.append(io.BytesIO())
        image.save(jpegs[-1], "JPEG", quality=90)
    arms = {"ours": ours, "PIL": lambda: image_by_image(images, augment.draw(shapes, generator), size)}
    if size > 32:  # CIFAR is published decoded, the photographs of few-shot work are JPEGs
        arms["JPEG"] = lambda: image_by_image(
            (Image.open(file).convert("RGB") for file in jpegs), augment.draw(shapes, generator), size
        )
    times = interleaved(arms, rounds)
    for arm, what in (("PIL", "decoded images"), ("JPEG", "JPEGs")):
        if arm in times:
            report(
                f"augmentation: image by image through PIL from {what} / ours, {case}",
                images=len(shapes),
                ratio=times[arm] / times["ours"],
                goal=">= 2",
                ours_ms=1e3 * times["ours"],
                pil_ms=1e3 * times[arm],
            )


def share_of_a_step(case: str, shapes: Tensor, size: int, rounds: int, device: str) -> None:
    """Case 2: a 4-Conv step on augmented images of the data, against the same step on a fixed batch."""
    _, flat, starts = photographs(shapes)
    flat, batch = flat.to(device), len(shapes)
    fixed = bool((shapes == shapes[0]).all())
    stored = flat.view(batch, *shapes[0].tolist(), 3) if fixed else flat
    labels, order = torch.arange(batch, device=device) % 5, torch.arange(batch, device=device)
    augment, generator = Augment(size, **JITTER), torch.Generator().manual_seed(0)
    model = Conv4((3, size, size), dim=512).to(device).train()
    optimizer = torch.optim.Adam(model.parameters())

    def augmented() -> Tensor:
        draws = augment.draw(shapes, generator)
        if fixed:
            return normalised(augment.apply(stored.index_select(0, order), draws))
        return normalised(augment.apply_ragged(stored, starts, shapes, 3, draws))

    batch_there = augmented()

    def step(images: Callable[[], Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images())[:, :5], labels).backward()
        optimizer.step()

    times = interleaved(
        {"fixed": lambda: step(lambda: batch_there), "ours": lambda: step(augmented), "data": augmented}, rounds
    )
    report(
        f"augmentation: added to a 4-Conv step, {case}",
        images=batch,
        ratio=times["ours"] / times["fixed"],
        data_by_step=times["data"] / times["fixed"],
        goal="<= 1.1",
        step_ms=1e3 * times["fixed"],
        data_ms=1e3 * times["data"],
    )


def main(words: list[str]) -> None:
    options = {"threads": "1", "rounds": "9", "images": "100", "device": ""} | dict(word.split("=") for word in words)
    torch.set_num_threads(int(options["threads"]))
    rounds, count = int(options["rounds"]), int(options["images"])
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    noise = torch.Generator().manual_seed(1)
    short, long = (torch.randint(low, high + 1, (count,), generator=noise) for low, high in ((330, 420), (450, 500)))
    cases = {
        "32×32": (torch.tensor([[32, 32]]).repeat(count, 1), 32),
        "84×84": (torch.tensor([[84, 84]]).repeat(count, 1), 84),
        "about 375×500 → 84×84": (torch.stack([short, long], dim=1), 84),
    }
    for case, (shapes, size) in cases.items():
        against_pil(case, shapes, size, rounds)
    for case, (shapes, size) in cases.items():
        share_of_a_step(case, shapes, size, rounds, device)


if __name__ == "__main__":
    main(sys.argv[1:])
