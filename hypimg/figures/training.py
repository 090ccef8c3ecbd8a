"""Training curves, from the metrics.csv of the runs whose evaluations are drawn; written beside the picture as CSV too.

The runs are not part of a checkout. With the CSV the numbers of a committed picture are.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hypimg.errors import UserError
from hypimg.evaluation.accuracy import accuracy
from hypimg.figures import read_scores
from hypimg.figures.sweep import COLOURS, SHAPES
from hypimg.training.loggers import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MARKS = 10  # epochs; a longer curve is a line without them
QUANTITIES = {"loss": "training loss", "accuracy": "accuracy (%)"}


@dataclass(frozen=True)
class Training:
    """loss, accuracy [epochs]: means over an epoch's training batches.  test: accuracy after the last epoch."""

    label: str
    loss: np.ndarray
    accuracy: np.ndarray
    test: float


def read(label: str, scores: Path) -> Training:
    """The training of the run that keeps this accuracy evaluation, runs/<name>/<key>/evaluations/<key>.npz."""
    stored, path = read_scores(scores), scores.parents[1] / "metrics.csv"
    rows = read_metrics(path)
    if not rows or not {"labels", "logits"} <= stored.keys():
        raise UserError("scores", scores, f"are no accuracy evaluation of a run with a {path.name}")
    loss, share = (np.array([row[f"train/{name}"] for row in rows]) for name in ("loss", "accuracy"))
    return Training(label, loss, share, accuracy(stored["logits"], stored["labels"]))


def draw_curves(ax: Axes, trainings: Mapping[int, Training], quantity: str) -> None:
    """A curve per training, in the colour and shape of its number; of the accuracy also the test's, an open mark.

    An axis without trainings is taken away.
    """
    if not trainings:
        ax.set_axis_off()
        return
    longest = max(len(training.loss) for training in trainings.values())
    for number, training in trainings.items():
        colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
        values = training.loss if quantity == "loss" else 100 * training.accuracy
        epochs = np.arange(1, len(values) + 1)
        mark = shape if longest <= MOST_MARKS else ""
        ax.plot(epochs, values, color=colour, marker=mark, markersize=3.5, label=training.label)
        if quantity == "accuracy":
            place = epochs[-1] + 0.12 * max(longest - 1, 1)
            ax.plot([place], [100 * training.test], color=colour, marker=shape, markersize=4.5, markerfacecolor="none")
    ax.set_xlabel("epoch")
    ax.locator_params(axis="x", integer=True, nbins=6)
    ax.set_xlim(1 - 0.06 * max(longest - 1, 1), longest + 0.2 * max(longest - 1, 1))


def write_csv(path: Path, panels: Mapping[str, Sequence[Training]]) -> Path:
    """The numbers of all panels, one line an epoch; the test's accuracy is on the last."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["panel", "arm", "epoch", "train_loss", "train_accuracy", "test_accuracy"])
        for panel, trainings in panels.items():
            for training in trainings:
                last = len(training.loss)
                for epoch, numbers in enumerate(zip(training.loss, training.accuracy, strict=True), start=1):
                    shown = [f"{number:.6g}" for number in numbers]
                    test = f"{training.test:.6g}" if epoch == last else ""
                    table.writerow([panel, training.label, epoch, *shown, test])
    return path
