"""Objectives: which images a step sees, what it minimises, and what an epoch is judged by.

An objective is asked `check(model)` and told `prepare(train, val)` once. A step is made of `pieces`: batches whose
weighted losses are added. `loss` is that of one piece; `validate` yields sums over the validation images, and the loop
may stop between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hypimg.data.episodes import EpisodeSampler, check_count, check_task
from hypimg.data.resident import ResidentImages
from hypimg.errors import UserError
from hypimg.models.episodic import episode_accuracies
from hypimg.models.heads import ProtoNet
from hypimg.training.seeding import generator

Metrics = dict[str, Tensor]  # sums over `count` images or episodes, 0-dim tensors on the images' device

VALIDATION_BATCH = 1000


class Piece(NamedTuple):
    """A batch [B] of image positions, of which this process takes `rows`; its loss counts `weight` times.

    number: of all pieces of a training; what is random in a piece is drawn by it.
    """

    indices: Tensor
    rows: slice
    weight: float
    number: int


class Classification:
    """Cross-entropy of the logits over batches of a permutation drawn anew each epoch."""

    def __init__(self, batch_size: int, drop_last: bool = False):
        if batch_size < 1:
            raise UserError("objective.batch_size", batch_size, "must be ≥ 1")
        self.batch_size, self.drop_last = batch_size, drop_last
        self._order: tuple[tuple[int, int], Tensor] | None = None

    def check(self, model: Any) -> None:
        """Raises UserError for a head that cannot classify by itself."""
        if isinstance(model.head, ProtoNet):
            raise UserError("head", "ProtoNet", "knows no classes of its own; it needs objective=fewshot")

    def prepare(self, train: ResidentImages, val: ResidentImages | None, ranks: int = 1) -> None:
        self._count, self._device = len(train), train.device
        if self.batch_size < ranks:
            raise UserError("devices", ranks, f"share batches of {self.batch_size} images; take fewer")

    @property
    def steps_per_epoch(self) -> int:
        steps = self._count / self.batch_size
        return max(1, math.floor(steps) if self.drop_last else math.ceil(steps))

    def pieces(self, seed: int, step: int, rank: int = 0, ranks: int = 1) -> Iterator[Piece]:
        """The one batch of this step, shared among the ranks: a function of (number of images, seed, step) alone."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != (seed, epoch):
            order = torch.randperm(self._count, generator=generator(seed, "batch order", epoch)).to(self._device)
            self._order = ((seed, epoch), order)
        indices = self._order[1][position * self.batch_size :][: self.batch_size]
        rows = slice(rank, None, ranks)
        # Gradients are averaged over ranks, whose shares of a last batch may differ by an image.
        weight = len(indices[rows]) * ranks / len(indices)
        yield Piece(indices, rows, weight, step)

    def loss(self, model: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """Mean cross-entropy [], and the sums that the epoch's metrics are made of."""
        logits, points = model(images, with_points=True)
        # A last batch of fewer images than ranks leaves some with none: their loss is 0, where the mean would be NaN.
        loss = nn.functional.cross_entropy(logits.float(), labels) if len(labels) else logits.float().sum()
        return loss, _sums(loss, logits, labels, model.space.clipped(points).sum())

    def validate(self, model: Any, val: ResidentImages, seed: int) -> Iterator[Metrics]:
        for indices in torch.arange(len(val), device=val.device).split(VALIDATION_BATCH):
            yield self.loss(model, *val.take(indices))[1]


class FewShot:
    """Cross-entropy of the queries of an episode against prototypes of its support (Snell et al. 2017).

    way, shot, query: of training episodes.  episodes_per_epoch: a multiple of
    episodes_per_step: whose mean loss a step descends (null: 1); several devices share them, whole episodes each.
    val_way, val_shot (null: as in training), val_query, val_episodes: of validation, whose images are embedded once.
    The same validation episodes are used after each epoch.
    """

    def __init__(
        self,
        way: int,
        shot: int,
        query: int = 15,
        episodes_per_epoch: int = 100,
        episodes_per_step: int | None = None,
        val_way: int = 5,
        val_shot: int | None = None,
        val_query: int = 15,
        val_episodes: int = 500,
    ):
        episodes_per_step = 1 if episodes_per_step is None else episodes_per_step
        val_shot = shot if val_shot is None else val_shot
        counts = {
            "episodes_per_epoch": episodes_per_epoch,
            "episodes_per_step": episodes_per_step,
            "val_episodes": val_episodes,
        }
        for name, value in counts.items():
            check_count(f"objective.{name}", value)
        for prefix, task in (("", (way, shot, query)), ("val_", (val_way, val_shot, val_query))):
            check_task(*task, f"objective.{prefix}")
        if episodes_per_epoch % episodes_per_step:
            remedy = f"an epoch of {episodes_per_epoch} episodes is made of whole steps; take a divisor of it"
            raise UserError("objective.episodes_per_step", episodes_per_step, remedy)
        self.way, self.shot, self.query = way, shot, query
        self.steps_per_epoch = episodes_per_epoch // episodes_per_step
        self.episodes_per_step = episodes_per_step
        self.val = (val_way, val_shot, val_query)
        self.val_episodes = val_episodes
        self.batch_size = way * (shot + query)

    def check(self, model: Any) -> None:
        """Raises UserError for a head that classifies without a support."""
        if not isinstance(model.head, ProtoNet):
            remedy = "takes no support images; episodes need head=protonet or head=cosine_protonet"
            raise UserError("head", type(model.head).__name__, remedy)

    def prepare(self, train: ResidentImages, val: ResidentImages | None, ranks: int = 1) -> None:
        if self.episodes_per_step % ranks:
            remedy = f"whole episodes are shared: set objective.episodes_per_step to a multiple of {ranks}"
            raise UserError("devices", ranks, remedy)
        self._sampler = EpisodeSampler(train.labels, self.way, self.shot, self.query, train.names, "objective.")
        self._labels = torch.arange(self.way, device=train.device).repeat(self.query)
        if val is not None:
            self._val_sampler = EpisodeSampler(val.labels, *self.val, val.names, "objective.val_")

    def pieces(self, seed: int, step: int, rank: int = 0, ranks: int = 1) -> Iterator[Piece]:
        """This rank's episodes of the step: functions of (seed, the episode's number) alone."""
        for number in range(step * self.episodes_per_step + rank, (step + 1) * self.episodes_per_step, ranks):
            (indices,) = self._sampler.sample(1, generator(seed, "episodes", number))
            yield Piece(indices, slice(None), ranks / self.episodes_per_step, number)

    def loss(self, model: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """Mean cross-entropy of an episode's queries, and the sums that the epoch's metrics are made of."""
        logits, points = model(images, with_points=True, way=self.way, shot=self.shot)
        loss = nn.functional.cross_entropy(logits.float(), self._labels)
        clipped = model.space.clipped(points).float().mean() * len(self._labels)
        return loss, _sums(loss, logits, self._labels, clipped)

    def validate(self, model: Any, val: ResidentImages, seed: int) -> Iterator[Metrics]:
        # Beneath what wraps it for precision and ranks: a test embeds in full precision too, however training rounds.
        model = getattr(model, "module", model)
        dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
        points = []
        for indices in torch.arange(len(val), device=val.device).split(VALIDATION_BATCH):
            points.append(model.embed(val.take(indices)[0].to(dtype)))
            yield {}
        embedded = torch.cat(points)
        drawn = generator(seed, "validation episodes")
        accuracies = episode_accuracies(model.head, embedded, self._val_sampler, self.val_episodes, drawn)
        count = accuracies.new_tensor(len(accuracies), dtype=torch.float64)
        clipped = model.space.clipped(embedded).double().mean() * count
        yield {"accuracy": accuracies.double().sum(), "clipped": clipped, "count": count}


@torch.no_grad()
def _sums(loss: Tensor, logits: Tensor, labels: Tensor, clipped: Tensor) -> Metrics:
    return {
        "loss": loss.double() * len(labels),
        "accuracy": (logits.argmax(-1) == labels).sum().double(),
        # Share of embeddings on the clip sphere: where it is large, the distance to 0 says "clipped or not".
        "clipped": clipped.double(),
        "count": torch.full((), len(labels), dtype=torch.float64, device=labels.device),
    }
