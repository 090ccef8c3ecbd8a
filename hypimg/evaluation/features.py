"""Features of many images by a pretrained encoder: streamed in batches, kept for reuse."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hypimg.data.folder import read_image
from hypimg.data.preprocess import normalise
from hypimg.data.store import ImageStore
from hypimg.errors import UserError
from hypimg.models.encoders import Encoder, Preprocessing

FEATURES_VERSION = 1  # raised when the same image, encoder and preprocessing give other features
# On one CPU thread a small batch keeps its activations in the cache: EfficientNet-Lite0 encodes 38 images a second in
# batches of 4, 26 of 8 and 16 to 20 of 32 to 64.
BATCH_SIZE = {"cpu": 4, "cuda": 256}
READERS = 8  # threads that decode files while the encoder works
SECONDS_BETWEEN_LINES = 20.0
MOST_ELONGATED = 16  # longer side over shorter

log = logging.getLogger(__name__)

T = TypeVar("T")


def of_store(
    store: ImageStore,
    indices: np.ndarray,
    encoder: Encoder,
    *,
    device: str = "cpu",
    batch_size: int | None = None,
) -> np.ndarray:
    """Features of stored images, float32 [len(indices), D], in that order; grey images are taken as grey RGB.

    Kept beside the store as features/<digest>.npy, the digest over the data, the indices, the encoder with its weights,
    and the preprocessing, and read from there the next time.
    """
    path = store.path.parent / "features" / f"{_digest(store, indices, encoder)}.npy"
    kept = _read_kept(path, len(indices))
    if kept is not None:
        return kept
    batches, _ = _encode(
        lambda row: store.image(int(indices[row])),
        len(indices),
        encoder,
        f"{encoder.name} on {store.name}",
        device=device,
        batch_size=batch_size,
    )
    features = np.concatenate(batches)
    _keep(path, features)
    return features


def of_files(
    paths: Sequence[Path],
    encoder: Encoder,
    *,
    device: str = "cpu",
    batch_size: int | None = None,
    skip_unreadable: bool = False,
    spares: Sequence[Path] = (),
) -> tuple[np.ndarray, list[Path], list[UserError]]:
    """Features of image files, float32 [N, D], the files that they are of, and why the others were skipped.

    spares: files taken in turn for those that are skipped, until there are as many as `paths`; their rows come last.
    Raises UserError naming the first file that cannot be read, unless `skip_unreadable` and another one can.
    """
    features: list[np.ndarray] = []
    kept: list[Path] = []
    skipped: list[UserError] = []
    waiting = list(paths)

    def read(row: int) -> np.ndarray:
        return read_image(waiting[row])

    while waiting:
        batches, failures = _encode(
            read,
            len(waiting),
            encoder,
            f"{encoder.name} on {len(waiting)} files",
            device=device,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
        )
        features += batches
        kept += [path for row, path in enumerate(waiting) if row not in failures]
        skipped += failures.values()
        waiting, spares = list(spares[: len(failures)]), spares[len(failures) :]
    if not kept:
        first = skipped[0]
        raise UserError(first.thing, first.value, f"{first.remedy}; none of {len(skipped)} files could be read")
    return np.concatenate(features), kept, skipped


def resize_and_crop(images: Tensor, how: Preprocessing) -> Tensor:
    """uint8 [N, 3, h, w] → uint8 [N, 3, crop, crop]: the shorter side resized to how.resize, the middle cut out.

    Small images are enlarged. With antialiasing, and rounded to whole grey values, as torchvision's own transforms do.
    """
    short = min(images.shape[2:])
    # The middle of an endless strip alone: resized whole, an image of 10 × 8 million pixels would fill the memory.
    images = _middle(images, MOST_ELONGATED * short, MOST_ELONGATED * short)
    height, width = images.shape[2:]
    size = [how.resize * height // short, how.resize * width // short]
    x = images
    if size != [height, width]:
        x = torch.nn.functional.interpolate(x.float(), size, mode=how.interpolation, antialias=True)
    return _middle(x, how.crop, how.crop).round().clamp(0, 255).to(torch.uint8)


def _middle(images: Tensor, height: int, width: int) -> Tensor:
    """At most this much of [N, C, h, w], cut from the middle where torchvision's centre crop cuts."""
    top, left = (max(0, round((have - want) / 2)) for have, want in zip(images.shape[2:], (height, width), strict=True))
    return images[:, :, top : top + height, left : left + width]


@torch.inference_mode()
def _encode(
    read: Callable[[int], np.ndarray],
    count: int,
    encoder: Encoder,
    title: str,
    *,
    device: str,
    batch_size: int | None,
    skip_unreadable: bool = False,
) -> tuple[list[np.ndarray], dict[int, UserError]]:
    """Features of the images that `read` gives for 0 … count − 1, uint8 [h, w, C], by batch; the rows it could not."""
    where = torch.device(device)
    network = encoder.network.to(where)
    size = batch_size or BATCH_SIZE[where.type]
    batches: list[np.ndarray] = []
    failures: dict[int, UserError] = {}
    start = 0
    for crops in track(_read_ahead(read, count, size, encoder.preprocessing), count, title):
        failed = {start + at: crop for at, crop in enumerate(crops) if isinstance(crop, UserError)}
        if failed and not skip_unreadable:
            first = next(iter(failed.values()))
            raise UserError(first.thing, first.value, f"{first.remedy}, or pass skip_unreadable=1")
        failures |= failed
        readable = [crop for crop in crops if not isinstance(crop, UserError)]
        if readable:
            inputs = normalise(torch.cat(readable).to(where), encoder.preprocessing.mean, encoder.preprocessing.std)
            outputs = network(inputs.contiguous(memory_format=torch.channels_last))
            batches.append(outputs.flatten(1).float().cpu().numpy())
        start += len(crops)
    return batches, failures


def _read_ahead(
    read: Callable[[int], np.ndarray], count: int, size: int, how: Preprocessing
) -> Iterator[list[Tensor | UserError]]:
    """Crops, uint8 [1, 3, crop, crop], in batches; while one is encoded the next is read, by several threads.

    A photograph is cut to the network's size by the thread that decodes it, so that only crops wait in memory.
    """

    def attempt(row: int) -> Tensor | UserError:
        try:
            image = torch.from_numpy(np.array(read(row)))  # a copy: the store's memory is read-only
        except UserError as error:
            return error
        return resize_and_crop(image.permute(2, 0, 1).expand(3, -1, -1)[None], how)

    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as readers:
        ahead = readers.map(attempt, range(min(size, count)))
        for start in range(size, count + size, size):
            crops = list(ahead)
            ahead = readers.map(attempt, range(start, min(start + size, count)))
            yield crops


def track(batches: Iterable[list[T]], total: int, title: str) -> Iterator[list[T]]:
    """The same batches, with progress on standard error: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            for batch in batches:
                yield batch
                bar.advance(task, len(batch))
        return
    began = last = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last, rate = now, done / max(now - began, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done < total else ""
            print(f"{title}: {done:,} of {total:,} images, {rate:.0f} a second{left}", file=sys.stderr, flush=True)


def _digest(store: ImageStore, indices: np.ndarray, encoder: Encoder) -> str:
    rows = np.ascontiguousarray(indices, dtype="<i8").tobytes()
    identity = {
        "version": FEATURES_VERSION,
        "data": store.digest,
        "indices": hashlib.sha256(rows).hexdigest(),
        "encoder": encoder.name,
        "layer": encoder.layer,
        "weights": encoder.weights,
        "preprocessing": asdict(encoder.preprocessing),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def _read_kept(path: Path, count: int) -> np.ndarray | None:
    try:
        features: np.ndarray = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is damaged (%s); computing the features again", path, error)
        return None
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != count:
        log.warning("%s is damaged; computing the features again", path)
        return None
    log.info("features from %s", path)
    return features


def _keep(path: Path, features: np.ndarray) -> None:
    """Write whole or not at all; a full or read-only disk costs the reuse alone."""
    temporary = path.with_name(f".tmp-{path.stem}-{os.getpid()}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, features)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("the features could not be kept for the next time (%s)", error)
        with contextlib.suppress(OSError):
            temporary.unlink()
