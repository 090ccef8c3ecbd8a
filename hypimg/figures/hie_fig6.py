"""HIE, Figure 6: embeddings of a few-shot model's test images, brought into the Poincaré disk by hyperbolic UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hypimg.errors import UserError
from hypimg.figures import CLASS_COLOURS, COLUMN_WIDTH, PAGE_WIDTH, disk, read_scores, save, style
from hypimg.geometry import means, poincare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 3
MOST_CLASSES = len(CLASS_COLOURS)
MOST_IMAGES = 50  # of a class
NEIGHBOURS = 15  # UMAP's own default, as are its other settings
SEED = 0

Reducer = Callable[[np.ndarray], np.ndarray]  # distances [n, n] → points [n, 2] of the hyperboloid, without its height


@dataclass(frozen=True)
class Panel:
    """One model's images in the disk (curvature −1): places [n, 2], labels [n] into names; of `images` in all."""

    title: str
    places: np.ndarray
    labels: np.ndarray
    names: list[str]
    classes: int
    images: int
    c: float


def draw(scores: dict[tuple[str, str], Path], out_dir: Path, reduce: Reducer | None = None) -> list[Path]:
    """Write hie_fig6.png, .pdf and .txt (the caption) under out_dir and return their paths.

    One panel for each row of the table that has few-shot scores in its first such column, at most three: the first
    10 classes and the first 50 images of each that the evaluation stored. The distances are those of the model's own
    space: of the Poincaré ball for c > 0, else Euclidean.

    scores: (row, column) of the table → its few-shot evaluation's .npz, with `points` [n, d], `labels` [n], `names`
    [K], `c`.  reduce: what lays them out, UMAP by default.
    Raises UserError where no cell has embeddings, panels would show different classes, or umap-learn is missing.
    """
    from matplotlib.figure import Figure

    places = _cells(scores)[:MOST_PANELS]
    if not places:
        raise UserError("figure", "hie_fig6", "no cell has embeddings of a few-shot evaluation; run its table first")
    panels = [panel(row, scores[row, column], reduce or hyperboloid_umap) for row, column in places]
    for other in panels[1:]:
        if other.names != panels[0].names:
            named = f"{panels[0].title}, {other.title}"
            raise UserError("cells", named, "their stored classes differ, so one legend cannot name both")
    with style():
        width = PAGE_WIDTH if len(panels) > 1 else COLUMN_WIDTH
        entry = 0.3 + 0.058 * max(map(len, panels[0].names))  # inches of the legend: a dot and its name
        columns = max(1, min(5, int(width / entry)))
        rows = -(-len(panels[0].names) // columns)
        side = width / len(panels)
        figure = Figure(figsize=(width, side + 0.16 * rows + 0.2), layout="constrained")
        for ax, shown in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw_panel(ax, shown)
            if len(panels) > 1:
                ax.set_title(shown.title, pad=3)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            [label.replace("_", " ") for label in labels],
            loc="outside lower center",
            ncols=columns,
            handletextpad=0.1,
            columnspacing=1.0,
            markerscale=2.2,
        )
        return save(figure, out_dir / "hie_fig6", caption(panels, places[0][1]))


def _cells(scores: dict[tuple[str, str], Path]) -> list[tuple[str, str]]:
    """The cells of the first column that has embeddings, in the table's order."""
    stored = [cell for cell, path in scores.items() if {"points", "labels", "names", "c"} <= read_scores(path).keys()]
    return [cell for cell in stored if cell[1] == stored[0][1]]


def panel(title: str, path: Path, reduce: Reducer) -> Panel:
    """The chosen images of one evaluation, laid out in the disk with their midpoint at the origin."""
    stored = read_scores(path)
    shown = choose(stored["labels"])
    points = torch.from_numpy(stored["points"][shown]).double()
    c = float(stored["c"])
    # At c = 0 this is 2‖x − y‖; a common factor moves nothing in UMAP's graph.
    distances = poincare.cdist(points, points, c, mode="exact").numpy()
    if not np.isfinite(distances).all():
        raise UserError("scores", path, "hold embeddings that have no distance; train that run anew")
    classes = np.unique(stored["labels"][shown])
    return Panel(
        title,
        centred(to_disk(reduce(distances))),
        np.searchsorted(classes, stored["labels"][shown]),
        [str(stored["names"][label]) for label in classes],
        len(np.unique(stored["labels"])),
        len(stored["labels"]),
        c,
    )


def choose(labels: np.ndarray) -> np.ndarray:
    """Positions of the first MOST_IMAGES images of each of the first MOST_CLASSES classes, in their order."""
    classes = np.unique(labels)[:MOST_CLASSES]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:MOST_IMAGES] for label in classes]))


def hyperboloid_umap(distances: np.ndarray) -> np.ndarray:
    """UMAP of a matrix of distances [n, n] in the hyperbolic plane: the first two coordinates on the hyperboloid.

    The third is z = √(1 + x² + y²), and UMAP's gradients are those of arcosh(z z' − x x' − y y').  Always the same for
    the same distances.  Raises UserError where umap-learn is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tensorflow is missing
            from umap import UMAP
    except ImportError as error:
        raise UserError("umap", None, "Figure 6 needs umap-learn; pip install 'hypimg[umap]'") from error
    reducer = UMAP(
        n_neighbors=min(NEIGHBOURS, len(distances) - 1),
        metric="precomputed",
        output_metric="hyperboloid",
        random_state=SEED,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that given distances cannot be inverted
        return reducer.fit_transform(distances)


def to_disk(flat: np.ndarray) -> np.ndarray:
    """(x, y) of the hyperboloid x² + y² + 1 = z² → (x, y)/(1 + z) of the Poincaré disk of curvature −1, float64."""
    flat = np.asarray(flat, dtype=np.float64)
    return flat / (1 + np.sqrt(1 + np.square(flat).sum(axis=1, keepdims=True)))


def centred(places: np.ndarray) -> np.ndarray:
    """The disk moved, by an isometry, so that the midpoint of these points [n, 2] is the origin."""
    points = torch.from_numpy(places)
    return poincare.mobius_add(-means.midpoint(points, 1.0), points, 1.0).numpy()


def draw_panel(ax: Axes, shown: Panel) -> None:
    disk.draw_boundary(ax, 1.0, reach=1.02)
    colours = np.array(CLASS_COLOURS)[shown.labels]
    # Mixed order, so that no class lies on top of all others.
    order = np.random.default_rng(SEED).permutation(len(shown.places))
    x, y = shown.places[order].T
    ax.scatter(x, y, s=4, c=list(colours[order]), linewidths=0, alpha=0.85, zorder=4, rasterized=True, clip_on=False)
    for colour, name in zip(CLASS_COLOURS, shown.names, strict=False):
        ax.scatter([], [], s=4, color=colour, linewidths=0, label=name)


def caption(panels: list[Panel], column: str) -> str:
    first = panels[0]
    models = "; ".join(
        f"{shown.title} ({f'of the Poincaré ball, c = {shown.c:g}' if shown.c > 0 else '‖x − y‖'})" for shown in panels
    )
    return (
        f"Test images of classes never trained on, laid out in the Poincaré disk by UMAP from the distances of their "
        f"embeddings. Models, with their distance: {models}; column {column}, one training each (the lowest seed). "
        f"UMAP: output on the hyperboloid, {NEIGHBOURS} neighbours, seed {SEED}, else its defaults. Shown are "
        f"{len(first.places):,} of the {first.images:,} embeddings stored: {len(first.names)} of {first.classes} "
        f"classes, up to {MOST_IMAGES} images of each, the first in stored order. Colour: the class. An isometry moved "
        "the midpoint of the points to the centre; directions mean nothing."
    )
