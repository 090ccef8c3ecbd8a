"""Images that live whole on the training device: a batch is an index, not a worker process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hypimg.data.dataset import ImageDataset
from hypimg.data.store import ImageStore

if TYPE_CHECKING:
    from hypimg.data.augment import Augment


class Part(NamedTuple):
    """Images of one split as a model takes them: uint8 [N, H, W, C], labels int64 [N], the labels' names."""

    images: np.ndarray
    labels: np.ndarray
    names: list[str]


def read_part(dataset: ImageDataset, store: ImageStore, indices: np.ndarray) -> Part:
    """The images at `indices` as they are evaluated: cut to size, with their rotations as further classes."""
    images, labels = dataset.view(store, indices), store.column("label")[indices].astype(np.int64)
    return Part(*rotated(images, labels, dataset.rotations), rotated_names(store.classes, dataset.rotations))


def rotated(images: np.ndarray, labels: np.ndarray, rotations: int) -> tuple[np.ndarray, np.ndarray]:
    """Each image `rotations` times, turned by 0, 90, … degrees; label · rotations + turn is its class then."""
    if rotations == 1:
        return np.ascontiguousarray(images), labels
    turned = [np.rot90(images, turn, axes=(1, 2)) for turn in range(rotations)]
    return np.concatenate(turned), np.concatenate([labels * rotations + turn for turn in range(rotations)])


def rotated_names(names: Sequence[str], rotations: int) -> list[str]:
    if rotations == 1:
        return list(names)
    return [f"{name}, turned by {90 * turn}°" for name in names for turn in range(rotations)]


class ResidentImages:
    """Images uint8 [N, H, W, C] and labels int64 [N] on a device; normalised, and augmented, when a batch is taken.

    mean, std: per channel, in units of the [0, 1] pixel range.
    """

    def __init__(
        self,
        part: Part,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device = "cpu",
        augment: Augment | None = None,
    ):
        self.images = torch.from_numpy(part.images).to(device)
        self._keep(part.labels, part.names, mean, std, device)
        self.augment = augment
        self._sizes = torch.tensor([part.images.shape[1:3]])  # [1, 2]

    def _keep(
        self,
        labels: np.ndarray,
        names: list[str],
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device,
    ) -> None:
        self.labels, self.names = torch.from_numpy(labels).to(device), names
        self._scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).float().to(device)
        self._shift = -(torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64))
        self._shift = self._shift.float().to(device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def take(
        self, indices: Tensor, generator: torch.Generator | None = None, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """indices [B] → normalised images float32 [B, C, H, W] (channels last in memory) and labels [B].

        generator: draws the augmentation of all B images, whatever part `rows` of them is wanted.
        """
        rows_taken = indices[rows].to(self.device, non_blocking=True)
        labels = self.labels.index_select(0, rows_taken)
        if self.augment is None:
            pixels = self.images.index_select(0, rows_taken).float()
            return torch.addcmul(self._shift, pixels, self._scale).permute(0, 3, 1, 2), labels
        pixels = self._augmented(indices, rows, rows_taken, generator)
        return torch.addcmul(self._shift.view(-1, 1, 1), pixels, self._scale.view(-1, 1, 1)), labels

    def _augmented(self, indices: Tensor, rows: slice, rows_taken: Tensor, generator: torch.Generator | None) -> Tensor:
        """Pixels in 0…255, float32 [B, C, H, W]."""
        assert self.augment is not None and generator is not None
        draws = self.augment.draw(self._sizes.expand(len(indices), 2), generator)
        return self.augment.apply(self.images.index_select(0, rows_taken), draws.rows(rows).to(self.device))


class ResidentOriginals(ResidentImages):
    """Originals of varying size in one flat buffer on a device; a batch is cut out of them by the augmentation.

    flat: uint8 [total], image i at offsets[i] with shapes[i] = (H, W, C).  regions: int64 [N, 4] (top, left, height,
    width), what of each image may be cropped; None: all of it.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        store: ImageStore,
        indices: np.ndarray,
        augment: Augment,
        device: str | torch.device = "cpu",
    ):
        pixels, offsets, shapes = store.flat
        lengths = np.diff(offsets)[indices]
        # Copied once, image by image, so that only this split takes the device's memory.
        packed = np.empty(int(lengths.sum()), np.uint8)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        for row, index in enumerate(indices):
            packed[starts[row] : starts[row + 1]] = pixels[offsets[index] : offsets[index + 1]]
        self.flat, self._offsets = torch.from_numpy(packed).to(device), torch.from_numpy(starts[:-1])
        self._shapes = torch.from_numpy(np.ascontiguousarray(shapes[indices]))
        regions = dataset.regions(store, indices)
        whole = torch.cat([torch.zeros_like(self._shapes[:, :2]), self._shapes[:, :2]], dim=1)
        self._regions = whole if regions is None else torch.from_numpy(regions)
        labels = store.column("label")[indices].astype(np.int64)
        self._keep(labels, store.classes, dataset.mean, dataset.std, device)
        self.augment = augment

    def _augmented(self, indices: Tensor, rows: slice, rows_taken: Tensor, generator: torch.Generator | None) -> Tensor:
        assert self.augment is not None and generator is not None
        regions = self._regions[indices]
        draws = self.augment.draw(regions[:, 2:], generator).shifted(regions[:, :2]).rows(rows)
        chosen = indices[rows]
        shapes = self._shapes[chosen]
        return self.augment.apply_ragged(
            self.flat, self._offsets[chosen], shapes[:, :2], int(self._shapes[0, 2]), draws, self.device
        )
