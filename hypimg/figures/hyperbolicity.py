"""How hyperbolic a data set is: δ_rel of its subsamples beside that of Gaussian clouds, and what it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hypimg.figures import INK, PAGE_WIDTH, SLATE, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hypimg.evaluation.hyperbolicity import Analysis

ROWS = (("data", "this data", SLATE), ("null", "Gaussian cloud", "black"))
PANELS = (
    ("delta_rel", r"$\delta_{\mathrm{rel}}$ = 2δ / diameter"),
    ("delta_over_mean", "2δ / mean distance"),
    ("diameter_over_mean", "diameter / mean distance"),
)


def draw(analysis: Analysis, name: str, stem: Path) -> list[Path]:
    """Write stem.png, .pdf and .txt (the caption) and return their paths.

    One point per subsample, and per Gaussian cloud; a bar at their mean. First panel: δ_rel, the answer. The other two
    split it: δ in units of the mean distance, over the diameter in these units.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.21 * PAGE_WIDTH), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1.3, 1.3))
        for ax, (measure, label) in zip(axes, PANELS, strict=True):
            draw_points(ax, analysis, measure)
            ax.set_xlabel(label)
        axes[0].set_yticks([0, 1], [label for _, label, _ in ROWS])
        axes[0].set_ylim(1.6, -0.75)
        return save(figure, stem, caption(analysis, name))


def draw_points(ax: Axes, analysis: Analysis, measure: str) -> None:
    """Two lines of points, the mean of each written above it."""
    largest = 0.0
    for at, (side, _, colour) in enumerate(ROWS):
        values = np.array([getattr(measured, measure) for measured in getattr(analysis, side)])
        # Spread up and down by a fixed pattern, so that equal values stay apart.
        offsets = 0.12 * np.sin(2.4 * np.arange(len(values)))
        ax.scatter(values, at + offsets, s=9, color=colour, alpha=0.6, linewidths=0, zorder=2)
        mean, deviation = analysis.mean_and_std(side, measure)
        ax.plot([mean, mean], [at - 0.3, at + 0.3], color=colour, linewidth=1.2, zorder=3)
        ax.text(mean, at - 0.36, f"{mean:.3f} ± {deviation:.3f}", color=INK, fontsize=6.5, ha="center", va="bottom")
        largest = max(largest, values.max())
    ax.set_xlim(0, 1.15 * largest)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def caption(analysis: Analysis, name: str) -> str:
    from hypimg.evaluation.hyperbolicity import verdict

    kind = "disjoint" if analysis.disjoint else "overlapping"
    if analysis.samples == analysis.count:
        kind = "equal (so the spread is that of base points)"
    repeats = len(analysis.data)
    return (
        f"{name}: {analysis.count:,} images with {analysis.dim} features of effective dimension "
        f"{analysis.effective_dimension:.1f}. A point is one of {repeats} {kind} subsamples of {analysis.samples} "
        f"images, or one of {repeats} clouds of as many points from a Gaussian with the features' covariance; a bar is "
        "their mean, written with the standard deviation. δ has one base point. " + verdict(analysis)[1]
    )
