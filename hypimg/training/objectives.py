"""Objectives: which images a step sees, and what it minimises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hypimg.errors import UserError
from hypimg.training.seeding import generator

Metrics = dict[str, Tensor]  # sums over `count` images, 0-dim tensors on the images' device


class Classification:
    """Cross-entropy of the logits over batches of a permutation drawn anew each epoch."""

    def __init__(self, batch_size: int, drop_last: bool = False):
        if batch_size < 1:
            raise UserError("objective.batch_size", batch_size, "must be ≥ 1")
        self.batch_size, self.drop_last = batch_size, drop_last
        self._order: tuple[tuple[int, int, int], Tensor] | None = None

    def steps_per_epoch(self, labels: Tensor) -> int:
        steps = len(labels) / self.batch_size
        return max(1, math.floor(steps) if self.drop_last else math.ceil(steps))

    def draw(self, labels: Tensor, seed: int, step: int) -> Tensor:
        """Indices [B] of the images of this step: a function of (labels' length, seed, step) alone."""
        epoch, position = divmod(step, self.steps_per_epoch(labels))
        key = (seed, epoch, len(labels))
        if self._order is None or self._order[0] != key:
            order = torch.randperm(len(labels), generator=generator(seed, "batch order", epoch)).to(labels.device)
            self._order = (key, order)
        start = position * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def validation_batches(self, labels: Tensor, seed: int) -> Iterator[Tensor]:
        """Indices of every image once, in batches of at most 1,000."""
        yield from torch.arange(len(labels), device=labels.device).split(1000)

    def loss(self, model: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """Mean cross-entropy [], and the sums that the epoch's metrics are made of."""
        logits, points = model(images, with_points=True)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        with torch.no_grad():
            sums = {
                "loss": loss.double() * len(labels),
                "accuracy": (logits.argmax(-1) == labels).sum().double(),
                # Share of embeddings on the clip sphere: where it is large, the distance to 0 says "clipped or not".
                "clipped": model.space.clipped(points).sum().double(),
                "count": torch.full((), len(labels), dtype=torch.float64, device=labels.device),
            }
        return loss, sums
