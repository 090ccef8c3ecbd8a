"""Embeddings of dimension 2 with their decision hyperplanes, in the Poincaré disk or the Euclidean plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hypimg.errors import UserError
from hypimg.figures import CLASS_COLOURS, COLUMN_WIDTH, every, read_scores, save, style
from hypimg.geometry import hyperplanes, poincare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2500  # of the test images: more of them only thicken the clusters
MOST_OUTLIERS = 600
INK = "#222222"


def draw(scores: Path, out: Path) -> list[Path]:
    """Picture of a run in dimension 2: test images by class, hyperplanes, decision regions, outliers, distances to 0.

    scores: an out-of-distribution evaluation's .npz.  out: where to write, without suffix.
    Returns the paths of .png, .pdf and .txt (the caption).  Raises UserError unless the embedding has dimension 2.
    """
    from matplotlib.figure import Figure

    stored = read_scores(scores)
    require_plane(stored, scores)
    with style():
        figure = Figure(figsize=(COLUMN_WIDTH, 1.38 * COLUMN_WIDTH), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=[1.0, 0.24])
        drawn = draw_embedding(upper, stored)
        draw_distances(lower, stored)
        return save(figure, out, caption(stored, *drawn))


def require_plane(stored: dict[str, np.ndarray], scores: Path) -> None:
    dim = stored["points"].shape[1]
    if dim != 2:
        raise UserError("dim", dim, f"only embeddings of dimension 2 can be drawn; {scores} holds others, run with dim=2")


def draw_embedding(ax: Axes, stored: dict[str, np.ndarray]) -> tuple[int, int]:
    """Everything that lies in the disk (c > 0) or the plane (c = 0). Returns how many points and outliers were drawn."""
    c = float(stored["c"])
    points, labels, outliers = stored["points"], stored["labels"], stored["outliers"]
    if c > 0:
        draw_disk(ax, c)
    else:
        draw_plane(ax, points)
    if "offsets" in stored:
        shade_decisions(ax, stored["offsets"], stored["normals"], c)
        draw_hyperplanes(ax, stored["offsets"], stored["normals"], c)
    shown, crossed = every(points, MOST_POINTS), every(outliers, MOST_OUTLIERS)
    colours = [CLASS_COLOURS[label % len(CLASS_COLOURS)] for label in labels[shown]]
    ax.scatter(*points[shown].T, s=3, c=colours, linewidths=0, alpha=0.8, zorder=3, rasterized=True, clip_on=False)
    ax.scatter(*outliers[crossed].T, s=7, c="black", marker="x", linewidths=0.45, zorder=4, clip_on=False)
    for label in np.unique(labels):
        name_class(ax, int(label), points[labels == label], c)
    return len(shown), len(crossed)


def draw_disk(ax: Axes, c: float) -> None:
    """The boundary circle of radius 1/√c on equal axes, with c beside it and nothing else."""
    from matplotlib.patches import Circle

    radius = c**-0.5
    ax.add_patch(Circle((0, 0), radius, facecolor="white", edgecolor=INK, linewidth=0.9, zorder=2, fill=False))
    ax.plot(0, 0, marker="+", markersize=4, markeredgewidth=0.6, color=INK, zorder=5)
    ax.set(xlim=(-1.13 * radius, 1.13 * radius), ylim=(-1.13 * radius, 1.13 * radius), aspect="equal")
    ax.text(-1.1 * radius, -1.1 * radius, f"$c = {c:g}$", ha="left", va="bottom", color=INK)
    ax.set_axis_off()


def draw_plane(ax: Axes, points: np.ndarray) -> None:
    """Equal axes that hold the points and the origin."""
    reach = 1.08 * np.abs(points).max()
    ax.plot(0, 0, marker="+", markersize=4, markeredgewidth=0.6, color=INK, zorder=5)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def hyperplane(offset: np.ndarray, normal: np.ndarray, c: float, count: int = 200) -> np.ndarray:
    """The hyperplane H = {x : ⟨(−p) ⊕ x, a⟩ = 0} of the disk, from end to end: points [count, 2], float64.

    H is the geodesic through the offset p at a right angle to the normal a. Its ideal ends are p ⊕ (±a⊥/(√c ‖a‖)); in
    Klein coordinates it is the chord between them, here at the cosines of equal steps, which give equal steps on the
    arc.  offset, normal: [2];  c > 0.   Source: Ganea et al., NeurIPS 2018; HIE, hyperbolic MLR.
    """
    p, a = (torch.from_numpy(np.asarray(vector, dtype=np.float64)) for vector in (offset, normal))
    across = torch.stack([-a[1], a[0]]) / (c**0.5 * a.norm())
    first, last = poincare.mobius_add(p, across, c), poincare.mobius_add(p, -across, c)
    angle = torch.linspace(0, torch.pi, count, dtype=torch.float64)[:, None]
    chord = (first + last) / 2 + torch.cos(angle) * (first - last) / 2
    # from_klein's root √(1 − c‖k‖²) is half the chord times sin(angle), exactly, and at the ends too.
    return (chord / (1 + c**0.5 * (first - last).norm() / 2 * torch.sin(angle))).numpy()


def draw_hyperplanes(ax: Axes, offsets: np.ndarray, normals: np.ndarray, c: float) -> None:
    """Each class's hyperplane in its colour: a circular arc of the disk, or a straight line for c = 0."""
    for label, (offset, normal) in enumerate(zip(offsets, normals, strict=True)):
        look = {"color": CLASS_COLOURS[label % len(CLASS_COLOURS)], "linewidth": 0.8, "zorder": 2.5}
        if c > 0:
            ax.plot(*hyperplane(offset, normal, c).T, solid_capstyle="butt", **look)
        else:
            ax.axline(offset, offset + np.array([-normal[1], normal[0]]), **look)


def shade_decisions(ax: Axes, offsets: np.ndarray, normals: np.ndarray, c: float, pixels: int = 500) -> None:
    """Tint each place of the disk or plane with the class whose logit is largest there."""
    from matplotlib.colors import to_rgb

    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = np.meshgrid(np.linspace(left, right, pixels), np.linspace(bottom, top, pixels))
    places = torch.from_numpy(np.stack([x, y], axis=-1))
    inside = (c * places.square().sum(-1) < 1).numpy()
    p, a = (torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in (offsets, normals))
    logits = hyperplanes.mlr_logits(torch.where(torch.from_numpy(inside)[..., None], places, 0.0), p, a, c)
    tints = np.array([to_rgb(colour) for colour in CLASS_COLOURS])[logits.argmax(-1).numpy() % len(CLASS_COLOURS)]
    image = np.concatenate([tints, np.where(inside, 0.13, 0.0)[..., None]], axis=-1)
    ax.imshow(image, extent=(left, right, bottom, top), origin="lower", interpolation="bilinear", zorder=0)


def name_class(ax: Axes, label: int, points: np.ndarray, c: float) -> None:
    """The class's number: outside the circle at its direction where its points lie near the boundary, else amid them."""
    from matplotlib.patheffects import withStroke

    centre = np.median(points, axis=0)
    norm = np.linalg.norm(centre)
    if c > 0 and norm > 0.6 / c**0.5:
        centre = centre / norm * 1.07 / c**0.5
    ax.text(
        *centre,
        str(label),
        ha="center",
        va="center",
        fontsize=9,
        fontweight="bold",
        color=CLASS_COLOURS[label % len(CLASS_COLOURS)],
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=6,
    )


def draw_distances(ax: Axes, stored: dict[str, np.ndarray]) -> None:
    """Distributions of the distance to the origin: test images filled, outliers as a line."""
    inside, outside = stored["dist0_in"], stored["dist0_out"]
    bins = np.linspace(0, max(inside.max(), outside.max()), 61)
    for values, look in (
        (inside, {"histtype": "stepfilled", "color": "#b9c4cf", "label": "test images"}),
        (outside, {"histtype": "step", "color": "black", "linewidth": 0.8, "label": "outliers"}),
    ):
        ax.hist(values, bins=bins, weights=np.full(len(values), 1 / len(values)), **look)
    ax.set(xlabel="distance to the origin $d(x, 0)$", ylabel="share", xlim=(0, bins[-1]))
    ax.legend(loc="upper left")


def caption(stored: dict[str, np.ndarray], points: int, outliers: int) -> str:
    """What the picture shows, and how many of the points there are."""
    c = float(stored["c"])
    place = f"the Poincaré disk (c = {c:g})" if c > 0 else "the Euclidean plane"
    return (
        f"Test images embedded in {place}, coloured by class: {points:,} of {len(stored['points']):,}, evenly spaced in "
        f"stored order. Black crosses: {outliers:,} of {len(stored['outliers']):,} outliers, likewise. Lines: the "
        f"hyperplane where each class's logit is 0; tint: the class with the largest logit. "
        f"On the clip sphere lie {100 * stored['clipped_in'].mean():.1f} % of the test images and "
        f"{100 * stored['clipped_out'].mean():.1f} % of the outliers."
    )
