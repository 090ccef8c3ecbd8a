"""HIE, Figure 5: how the two scores of Table 3 are distributed over MNIST test images and over Omniglot, for each n."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hypimg.errors import UserError
from hypimg.evaluation.ood import ks_distance
from hypimg.figures import INK, PAGE_WIDTH, SLATE, read_scores, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HYPERBOLIC, EUCLIDEAN = "hyperbolic", "euclidean"  # the paper's rows of experiments/hie_table3.yaml
BINS = 40
MOST_NINES = 16  # a p_max nearer to 1 than 10^-16 is drawn in the last bin

PANEL_TEXT: dict[str, Any] = {"color": INK, "fontsize": 7, "ha": "right"}

Sides = tuple[np.ndarray, np.ndarray]  # one value per MNIST test image, one per Omniglot drawing


def draw(scores: dict[tuple[str, str], Path], out_dir: Path) -> list[Path]:
    """Write hie_fig5.png, .pdf and .txt (the caption) under out_dir and return their paths.

    One column per n for which both rows have scores. First row: d(x, 0) of the hyperbolic net; second: p_max of the
    Euclidean net; third: the same on a logarithmic axis of 1 − p_max, since most of MNIST falls into the second row's
    last bin.

    scores: (row, column) of the table → its evaluation's .npz.  Raises UserError where no column has both rows.
    """
    from matplotlib.figure import Figure

    columns = [column for row, column in scores if row == HYPERBOLIC and (EUCLIDEAN, column) in scores]
    if not columns:
        raise UserError("figure", "hie_fig5", "no n has scores of both nets; run make reproduce-table3 first")
    hyperbolic = [read_scores(scores[HYPERBOLIC, column]) for column in columns]
    euclidean = [read_scores(scores[EUCLIDEAN, column]) for column in columns]
    with style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.64 * PAGE_WIDTH), layout="constrained")
        axes = figure.subplots(3, len(columns), squeeze=False, sharex="row", sharey="row")
        draw_distances(axes[0], hyperbolic)
        draw_probabilities(axes[1], euclidean)
        draw_nines(axes[2], euclidean)
        for ax, column in zip(axes[0], columns, strict=True):
            ax.set_title(column.replace("=", " = "))
        for ax, net in zip(axes[:, 0], ("hyperbolic", "Euclidean", "Euclidean"), strict=True):
            ax.set_ylabel(f"{net} net\nshare of images")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        figure.align_ylabels(axes[:, 0])
        return save(figure, out_dir / "hie_fig5", caption(hyperbolic))


def draw_distances(axes: np.ndarray, runs: list[dict[str, np.ndarray]]) -> None:
    """d(x, 0), with the share of clipped MNIST points where their bin reaches out of the panel."""
    sides = [(run["dist0_in"], run["dist0_out"]) for run in runs]
    bins = np.linspace(0, max(values.max() for pair in sides for values in pair), BINS + 1)
    highest = 0.0
    for ax, run, pair in zip(axes, runs, sides, strict=True):
        draw_histograms(ax, pair, bins)
        write_ks(ax, pair, place=(0.92, 0.88))
        for values, clipped in zip(pair, (run["clipped_in"], run["clipped_out"]), strict=True):
            highest = max(highest, np.histogram(values[~clipped], bins)[0].max(initial=0) / len(values))
    axes[0].set_ylim(0, 1.3 * highest or 1)
    for ax, run in zip(axes, runs, strict=True):
        if run["clipped_in"].mean() > 1.3 * highest:
            ax.text(0.92, 0.72, f"MNIST clipped {run['clipped_in'].mean():.0%} ↑", **PANEL_TEXT, transform=ax.transAxes)
        ax.set(xlabel="$d(x, 0)$", xlim=(0, 1.02 * bins[-1]))


def draw_probabilities(axes: np.ndarray, runs: list[dict[str, np.ndarray]]) -> None:
    """p_max itself."""
    for ax, run in zip(axes, runs, strict=True):
        draw_histograms(ax, (np.exp(run["pmax_in"]), np.exp(run["pmax_out"])), np.linspace(0, 1, BINS // 2 + 1))
        write_ks(ax, (run["pmax_in"], run["pmax_out"]), place=(0.86, 0.88))
        ax.set(xlabel=r"$p_{\mathrm{max}}$", xlim=(0, 1), ylim=(0, 1))
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def draw_nines(axes: np.ndarray, runs: list[dict[str, np.ndarray]]) -> None:
    """The same on a logarithmic axis: −log10(1 − p_max), 2 for p_max = 0.99."""
    sides = [(nines(run["pmax_in"]), nines(run["pmax_out"])) for run in runs]
    bins = np.linspace(0, max(values.max() for pair in sides for values in pair), BINS + 1)
    for ax, pair in zip(axes, sides, strict=True):
        draw_histograms(ax, pair, bins)
        write_ks(ax, pair, place=(0.92, 0.88))
        ticks = range(0, int(bins[-1]) + 1, 2 if bins[-1] < 9 else 5)
        ax.set(xlabel=r"$1 - p_{\mathrm{max}}$", xlim=(0, bins[-1]))
        ax.set_xticks(ticks, [f"$10^{{{-tick}}}$" if tick else "1" for tick in ticks])


def nines(log_p_max: np.ndarray) -> np.ndarray:
    """−log10(1 − p_max) from log p_max, at most MOST_NINES; −expm1 keeps the digits that 1 − p_max would lose."""
    return -np.log10(np.maximum(-np.expm1(log_p_max), 10.0**-MOST_NINES))


def draw_histograms(ax: Axes, pair: Sides, bins: np.ndarray) -> None:
    """Shares of images per bin: MNIST filled, Omniglot as a line."""
    edges = bins.tolist()
    shares = [np.full(len(values), 1 / len(values)) for values in pair]
    ax.hist(pair[0], edges, weights=shares[0], histtype="stepfilled", color=SLATE, alpha=0.55, label="MNIST")
    ax.hist(pair[1], edges, weights=shares[1], histtype="step", color="black", linewidth=0.9, label="Omniglot")


def write_ks(ax: Axes, pair: Sides, place: tuple[float, float]) -> None:
    ax.text(*place, f"KS {ks_distance(*pair):.3f}", **PANEL_TEXT, transform=ax.transAxes)


def caption(hyperbolic: list[dict[str, np.ndarray]]) -> str:
    inside, outside = (len(hyperbolic[0][name]) for name in ("dist0_in", "dist0_out"))
    return (
        f"Scores of {inside:,} MNIST test images (filled) and {outside:,} Omniglot drawings (line), all of them; one "
        "training per panel (the lowest seed). KS: the two-sample Kolmogorov-Smirnov distance of its scores. Top: "
        "distance to the origin of the hyperbolic net; a bin of clipped points that leaves its panel is labelled. "
        "Middle: largest softmax probability of the Euclidean net. Bottom: the same on a logarithmic axis; a p_max "
        f"nearer to 1 than 1e-{MOST_NINES} is in the last bin. Each histogram sums to 1."
    )
