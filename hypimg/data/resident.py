"""Images that live whole on the training device: a batch is an index, not a worker process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hypimg.data.store import ImageStore
from hypimg.errors import UserError


class ResidentImages:
    """A part of a store as uint8 [N, H, W, C] on a device, with labels [N]; normalised when a batch is taken.

    mean, std: per channel, in units of the [0, 1] pixel range.
    """

    def __init__(
        self,
        store: ImageStore,
        indices: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device = "cpu",
    ):
        if store.ragged:
            raise UserError("dataset", store.name, "its images differ in size, and training takes images of one size")
        self.images = torch.from_numpy(np.ascontiguousarray(store.images[indices])).to(device)
        self.labels = torch.from_numpy(store.column("label")[indices].astype(np.int64)).to(device)
        self._scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).float().to(device)
        self._shift = -(torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64))
        self._shift = self._shift.float().to(device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """indices [B] → normalised images float32 [B, C, H, W] (channels last in memory) and labels [B]."""
        pixels = self.images.index_select(0, indices).float()
        images = torch.addcmul(self._shift, pixels, self._scale).permute(0, 3, 1, 2)
        return images, self.labels.index_select(0, indices)
