"""Sums on the device while an epoch runs, means when it is closed."""

from __future__ import annotations

from torch import Tensor

from hypimg.training.loggers import Row


def added(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: sums[name] + value for name, value in more.items()} if sums else more


def averages(split: str, sums: dict[str, Tensor]) -> Row:
    """Sums over images → means per image, named `<split>/<metric>`; only here the loop waits for the device."""
    values = {name: float(value) for name, value in sums.items()}
    count = values.pop("count")
    return {f"{split}/{name}": value / count for name, value in values.items()}
