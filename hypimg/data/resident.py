"""Images that live whole on the training device: a batch is an index, not a worker process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hypimg.data.dataset import ImageDataset
from hypimg.data.store import ImageStore

if TYPE_CHECKING:
    from hypimg.data.augment import Augment


SHARE_OF_FREE = 0.6  # of a GPU's memory; the rest is the training step's


class Part(NamedTuple):
    """Images of one split as a model takes them: uint8 [N, H, W, C], labels int64 [N], the labels' names."""

    images: np.ndarray
    labels: np.ndarray
    names: list[str]


def read_part(dataset: ImageDataset, store: ImageStore, indices: np.ndarray) -> Part:
    """The images at `indices` as they are evaluated: cut to size, with their rotations as further classes."""
    return Part(rotated(dataset.view(store, indices), dataset.rotations), *read_labels(dataset, store, indices))


def read_labels(dataset: ImageDataset, store: ImageStore, indices: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The labels of `read_part` and their names, without the images."""
    labels = store.column("label")[indices].astype(np.int64)
    labels = np.concatenate([labels * dataset.rotations + turn for turn in range(dataset.rotations)])
    return labels, rotated_names(store.classes, dataset.rotations)


def rotated(images: np.ndarray, rotations: int) -> np.ndarray:
    """All images, then all of them turned by 90°, and so on; class label · rotations + turn is that of a turned one."""
    if rotations == 1:
        return np.ascontiguousarray(images)
    return np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in range(rotations)])


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


def fits(size: int, device: str | torch.device) -> bool:
    """Whether so many bytes are to lie on the device: a GPU of whose free memory they take at most SHARE_OF_FREE."""
    device = torch.device(device)
    return device.type == "cuda" and size <= SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]


def pack(
    pixels: np.ndarray, offsets: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]
) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
    """The images at `indices` of a flat buffer (see `ImageStore.flat`) one after another, and where each begins."""
    ends = np.diff(offsets)[indices].cumsum()
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    packed = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    for start, end, index in zip(starts, ends, indices, strict=True):
        packed[start:end] = pixels[offsets[index] : offsets[index + 1]]
    return packed, starts


def shared(pixels: np.ndarray) -> Tensor:
    """A tensor on the memory of an array that may be read-only; it must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(pixels)


class ResidentOriginals(ResidentImages):
    """Originals of varying size in one flat buffer; a batch is cut out of them by the augmentation, on the device.

    The buffer is the part's own on a GPU that has room for it (`fits`), else the store's map, of which a batch reads
    the boxes that it needs.
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
        if fits(int(np.diff(offsets)[indices].sum()), device):
            packed, starts = pack(pixels, offsets, indices)
            self.flat, self._offsets = torch.from_numpy(packed).to(device), torch.from_numpy(starts)
        else:
            self.flat, self._offsets = shared(pixels), torch.from_numpy(offsets[indices])
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


def resident(
    dataset: ImageDataset,
    store: ImageStore,
    indices: np.ndarray,
    device: str | torch.device = "cpu",
    augment: Augment | None = None,
) -> ResidentImages:
    """The images at `indices` on a device: as they are evaluated, or to be augmented.

    Where a test sees a cut of what is stored, augmentation crops all of it.
    """
    if augment is not None and type(dataset).view is not ImageDataset.view:
        return ResidentOriginals(dataset, store, indices, augment, device)
    return ResidentImages(read_part(dataset, store, indices), dataset.mean, dataset.std, device, augment)
