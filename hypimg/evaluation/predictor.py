"""A trained run ready for use: its model, its preprocessing, and batched application."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hypimg.data.preprocess import normalise, read_images
from hypimg.data.store import ImageStore
from hypimg.errors import UserError
from hypimg.models.classifier import Classifier
from hypimg.nn.poincare import norms_with


@dataclass
class Predictor:
    """What `hypimg.load(run_dir)` returns.

    model: the classifier in evaluation mode.  image_shape: (channels, height, width) that it takes.
    mean, std: per channel, in units of the [0, 1] pixel range.  classes: the names of the K classes.
    """

    name: str
    model: Classifier
    image_shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    classes: list[str]
    batch_size: int = 1000

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → normalised float32 on the model's device."""
        return normalise(images.to(self.device), self.mean, self.std)

    @contextlib.contextmanager
    def normed_by(self, statistics: str | None, batch_size: int | None = None) -> Iterator[None]:
        """Let Poincaré batch norms take the statistics of each `batch`, or those `frozen` at the training's end."""
        before = self.batch_size
        self.batch_size = batch_size or before
        try:
            with norms_with(self.model, statistics) if statistics else contextlib.nullcontext():
                yield
        finally:
            self.batch_size = before

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images [N, C, H, W] → (points [N, d], logits [N, K]), float32 on the CPU."""
        points, logits = [], []
        for batch in images.split(self.batch_size):
            out, embedded = self.model(self.preprocess(batch), with_points=True)
            points.append(embedded.float().cpu())
            logits.append(out.float().cpu())
        return torch.cat(points), torch.cat(logits)

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> Tensor:
        """uint8 images [N, H, W, C] as the model takes them → points float32 [N, d] on the model's device."""
        batches = torch.from_numpy(images).split(self.batch_size)
        return torch.cat([self.model.embed(self.preprocess(batch.permute(0, 3, 1, 2))).float() for batch in batches])

    def embed_all(self, store: ImageStore, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [N, d] and logits [N, K], float32, of the images of a store at `indices`, in that order."""
        if store.ragged:
            raise UserError(
                "data set", store.name, "has images of varying size; this evaluator takes those of one size"
            )
        if store.images.shape[1:] != (self.image_shape[1], self.image_shape[2], self.image_shape[0]):
            height, width, channels = store.images.shape[1:]
            takes = "×".join(map(str, self.image_shape))
            raise UserError(
                "data set", store.name, f"has images of {channels}×{height}×{width}, the model takes {takes}"
            )
        images = torch.from_numpy(np.ascontiguousarray(store.images[indices].transpose(0, 3, 1, 2)))
        points, logits = self(images)
        return points.numpy(), logits.numpy()

    def predict_files(self, paths: Sequence[Path]) -> tuple[list[dict[str, object]], list[tuple[Path, str]]]:
        """Image files → one row each (file, class, probability, distance to the origin), and the files that failed."""
        images, kept, failed = read_images(paths, self.image_shape)
        if not kept:
            return [], failed
        points, logits = self(images)
        probability, index = logits.double().softmax(-1).max(-1)
        with torch.no_grad():
            distance = self.model.space.dist0(points.to(self.device)).cpu()
        rows: list[dict[str, object]] = [
            {"file": str(path), "class": self.classes[i], "probability": p, "distance": d}
            for path, i, p, d in zip(kept, index.tolist(), probability.tolist(), distance.tolist(), strict=True)
        ]
        return rows, failed
