"""Episodes of few-shot learning: which images form a small classification task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hypimg.errors import UserError


def check_count(thing: str, value: object, lowest: int = 1) -> None:
    """Raises UserError for what is no whole number ≥ lowest."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise UserError(thing, value, f"must be a whole number ≥ {lowest}")


def check_task(way: object, shot: object, query: object, prefix: str = "") -> None:
    """Raises UserError for counts that make no episode; prefix: of their names in the message."""
    for name, value, lowest in (("way", way, 2), ("shot", shot, 1), ("query", query, 1)):
        check_count(f"{prefix}{name}", value, lowest)


class EpisodeSampler:
    """Draws episodes of `way` classes with `shot` support and `query` query images each, none twice in an episode.

    labels: class of each image, int64 [N] on any device.  names: of the classes, and prefix of the settings' names
        (`objective.val_`), for messages.
    An episode is a row of positions into `labels`, [way · (shot + query)]: first the support, all first shots, then all
    second shots, …; then the queries likewise. The class of position p of the row is p % way, its label in the episode.
    Raises UserError where a class has fewer than shot + query images (names it) or there are fewer than `way` classes.
    Source: HIE's official code (order of the batch).
    """

    def __init__(
        self, labels: Tensor, way: int, shot: int, query: int, names: Sequence[str] | None = None, prefix: str = ""
    ):
        check_task(way, shot, query, prefix)
        labels = labels.cpu()
        classes, counts = labels.unique(return_counts=True)
        if len(classes) < way:
            raise UserError(f"{prefix}way", way, f"there are only {len(classes)} classes to draw from; take fewer")
        self.way, self.shot, self.query = way, shot, query
        smallest = int(counts.argmin())
        if counts[smallest] < shot + query:
            label = int(classes[smallest])
            name = names[label] if names is not None else f"number {label}"
            wanted = f"an episode takes {shot} + {query} of each class; take fewer, or leave that class out"
            raise UserError("class", name, f"has {int(counts[smallest])} images, and {wanted}")
        # Positions by class, [K, most]; a class with fewer images ends in -1, which is never drawn.
        order = labels.argsort(stable=True).split(counts.tolist())
        self._members = torch.nn.utils.rnn.pad_sequence(list(order), batch_first=True, padding_value=-1)
        self._missing = self._members < 0 if bool((counts != counts[0]).any()) else None

    @property
    def images(self) -> int:
        """Images of an episode."""
        return self.way * (self.shot + self.query)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` episodes, int64 [count, way · (shot + query)] on the CPU: a function of the generator's state."""
        classes, most = self._members.shape
        # The positions of the largest of random numbers are a uniform draw without replacement.
        chosen = torch.rand(count, classes, generator=generator).topk(self.way).indices
        chance = torch.rand(count, self.way, most, generator=generator)
        if self._missing is not None:
            chance.masked_fill_(self._missing[chosen], -1.0)
        images = chance.topk(self.shot + self.query).indices
        drawn = self._members[chosen.unsqueeze(-1), images]  # [count, way, shot + query]
        return drawn.transpose(1, 2).flatten(1)
