"""Speed of the training augmentation; one JSON line each, both arms of a ratio in this process, interleaved.

    python benchmarks/augment.py [threads=1] [rounds=9] [images=100] [device=cpu|cuda]

1. against a loader that takes image by image through PIL: the same crops, jitter and flips, the same normalised result,
   from pixels that lie decoded in memory; for photographs also as such loaders work, from JPEGs (in memory, too);
2. what the whole path of the data adds to a training step of 4-Conv on an episode of 5-way 1-shot with 15 queries, 80
   images (forward, prototypes, backward, Adam), against the same step on a fixed batch that lies on the device: drawing
   the episode, its generators, the images' choices, cutting them out of what is resident, normalising.
The images are generated: the work does not depend on the pixels.
"""

from __future__ import annotations

import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import interleaved, report
from PIL import Image, ImageEnhance
from torch import Tensor

from hypimg.data.augment import Augment, Draws
from hypimg.data.dataset import Found, ImageDataset
from hypimg.data.episodes import EpisodeSampler
from hypimg.data.resident import ResidentImages, ResidentOriginals, read_part
from hypimg.data.store import Decoded, ImageStore, open_or_fill
from hypimg.models.backbones.conv4 import Conv4
from hypimg.models.heads import ProtoNet
from hypimg.nn.spaces import PoincareBall
from hypimg.training.seeding import generator

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}  # HIE's
WAY, SHOT, QUERY = 5, 1, 15  # of an episode, HIE's 1-shot training


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
    augment, drawn = Augment(size, **JITTER), torch.Generator().manual_seed(0)
    fixed = bool((shapes == shapes[0]).all())
    pixels = flat.view(len(shapes), *shapes[0].tolist(), 3) if fixed else flat

    def ours() -> Tensor:
        draws = augment.draw(shapes, drawn)
        if fixed:
            return normalised(augment.apply(pixels, draws))
        return normalised(augment.apply_ragged(pixels, starts, shapes, 3, draws))

    jpegs = []
    for image in images:
        jpegs.append(io.BytesIO())
        image.save(jpegs[-1], "JPEG", quality=90)
    arms = {"ours": ours, "PIL": lambda: image_by_image(images, augment.draw(shapes, drawn), size)}
    if size > 32:  # CIFAR is published decoded, the photographs of few-shot work are JPEGs
        arms["JPEG"] = lambda: image_by_image(
            (Image.open(file).convert("RGB") for file in jpegs), augment.draw(shapes, drawn), size
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


class Generated(ImageDataset):
    """Images of one size, or of many that a test sees a cut of."""

    name, where, splits, num_classes, decoder_version = "generated", "nowhere", ("train",), 1, 1

    def __init__(self, size: int):
        self.image_shape = (3, size, size)
        super().__init__(MEAN.tolist(), STD.tolist())

    def _locate(self, data_dir: Path) -> Found | None:
        return None

    def _decode(self, found: Found) -> Decoded:
        raise NotImplementedError


def stored(folder: Path, shapes: Tensor, classes: int, images: int) -> ImageStore:
    """A store of `images` of each class, noise in these shapes by turns."""
    count = classes * images
    noise = np.random.default_rng(0)
    sizes = shapes[torch.arange(count) % len(shapes)].tolist()
    pixels = (noise.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes)
    fixed = bool((shapes == shapes[0]).all())
    columns = {"label": np.arange(count) % classes, "split": np.zeros(count, np.int64)}
    names = {"label": [str(label) for label in range(classes)], "split": ["train"]}
    decoded = Decoded(np.stack(list(pixels)) if fixed else pixels, columns, names, "generated", False)
    return open_or_fill(folder, "generated", "0" * 64, lambda: decoded)


def share_of_a_step(case: str, store: ImageStore, size: int, rounds: int, device: str) -> None:
    """Case 2: a step of 4-Conv on an episode drawn from the store, as training takes it, against a fixed batch."""
    dataset, augment = Generated(size), Augment(size, **JITTER)
    if store.ragged:
        images: ResidentImages = ResidentOriginals(dataset, store, store.indices(), augment, device)
    else:
        part = read_part(dataset, store, store.indices())
        images = ResidentImages(part, dataset.mean, dataset.std, device, augment)
    sampler = EpisodeSampler(images.labels, WAY, SHOT, QUERY, images.names)
    model = Conv4((3, size, size), dim=512).to(device).train()
    space = PoincareBall(0.05)
    head, labels = ProtoNet(space, 512, WAY), torch.arange(WAY, device=device).repeat(QUERY)
    optimizer = torch.optim.Adam(model.parameters())
    steps = itertools.count()

    def data() -> Tensor:
        number = next(steps)
        (indices,) = sampler.sample(1, generator(0, "episodes", number))
        return images.take(indices, generator(0, "augmentation", number))[0]

    batch_there = data()

    def step(batch: Callable[[], Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = head(space.embed(model(batch())), WAY, SHOT)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    times = interleaved({"fixed": lambda: step(lambda: batch_there), "ours": lambda: step(data), "data": data}, rounds)
    report(
        f"augmentation: added to a 4-Conv step, {case}",
        images=len(batch_there),
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
    # Classes and images of each: as CIFAR-FS has them; of the others fewer, for their size.
    held = dict(zip(cases, ((64, 600), (64, 60), (20, 20)), strict=True))
    for case, (shapes, size) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            share_of_a_step(case, stored(Path(folder), shapes, *held[case]), size, rounds, device)


if __name__ == "__main__":
    main(sys.argv[1:])
