"""Embeddings of dimension 2 with their decision hyperplanes, in the Poincaré disk or the Euclidean plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hypimg.errors import UserError
from hypimg.figures import CLASS_COLOURS, COLUMN_WIDTH, INK, LIGHT, SLATE, every, read_scores, save, style
from hypimg.geometry import hyperplanes, poincare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2500  # of the test images: more of them only thicken the clusters
MOST_OUTLIERS = 600


def draw(scores: Path, out_dir: Path) -> list[Path]:
    """Picture of a run in dimension 2: test images by class, hyperplanes, decision regions, outliers, distances to 0.

    scores: an out-of-distribution evaluation's .npz.  Writes disk.png, .pdf and .txt (the caption) under out_dir and
    returns their paths, in this order.  Raises UserError unless the embedding has dimension 2.
    """
    from matplotlib.figure import Figure

    stored = read_scores(scores)
    require_plane(stored, scores)
    with style():
        figure = Figure(figsize=(COLUMN_WIDTH, 1.32 * COLUMN_WIDTH), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.0, 0.32], squeeze=False)[:, 0]
        drawn = draw_embedding(upper.subplots(), stored)
        draw_distances(lower.subplots(), stored)
        return save(figure, out_dir / "disk", caption(stored, *drawn))


def require_plane(stored: dict[str, np.ndarray], scores: Path) -> None:
    dim = stored["points"].shape[1]
    if dim != 2:
        raise UserError("dim", dim, f"only embeddings of dimension 2 can be drawn, run with dim=2 ({scores})")


def draw_embedding(
    ax: Axes, stored: dict[str, np.ndarray], outliers_name: str = "outliers", lines: bool = True
) -> tuple[int, int]:
    """Everything that lies in the disk (c > 0) or the plane (c = 0); the hyperplanes if `lines`.

    Returns how many points and how many outliers were drawn.
    """
    c = float(stored["c"])
    points, labels, outliers = stored["points"], stored["labels"], stored["outliers"]
    if c > 0:
        draw_disk(ax, c)
    else:
        draw_plane(ax, points)
    if "offsets" in stored:
        shade_decisions(ax, stored["offsets"], stored["normals"], c)
        if lines:
            draw_hyperplanes(ax, stored["offsets"], stored["normals"], c)
    shown, crossed = every(points, MOST_POINTS), every(outliers, MOST_OUTLIERS)
    colours = [CLASS_COLOURS[label % len(CLASS_COLOURS)] for label in labels[shown]]
    x, y = points[shown].T
    ax.scatter(x, y, s=3, c=colours, linewidths=0, alpha=0.8, zorder=4, rasterized=True, clip_on=False)
    x, y = outliers[crossed].T
    ax.scatter(x, y, s=5, c="black", marker="x", linewidths=0.35, zorder=3, clip_on=False, label=outliers_name)
    ax.legend(loc="lower right", handletextpad=0.1, borderaxespad=0.2, frameon=True, edgecolor="none")
    ax.plot(0, 0, marker="o", markersize=3.5, markerfacecolor="white", markeredgecolor=INK, zorder=5)
    name_classes(ax, points, labels, c)
    return len(shown), len(crossed)


def draw_disk(ax: Axes, c: float) -> None:
    """The boundary circle of radius 1/√c on equal axes, with c beside it and nothing else."""
    draw_boundary(ax, c, reach=1.13)
    ax.text(-1.1 * c**-0.5, -1.1 * c**-0.5, f"$c = {c:g}$", ha="left", va="bottom", color=INK)


def draw_boundary(ax: Axes, c: float, reach: float) -> None:
    """The circle of radius 1/√c alone, on equal axes that reach this many radii from its centre."""
    from matplotlib.patches import Circle

    limits = (-reach * c**-0.5, reach * c**-0.5)
    ax.add_patch(Circle((0, 0), c**-0.5, edgecolor=INK, linewidth=0.9, zorder=2, fill=False))
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.set_axis_off()


def draw_plane(ax: Axes, points: np.ndarray) -> None:
    """Equal axes that hold the points and the origin."""
    reach = 1.08 * np.abs(points).max()
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
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        if c > 0:
            x, y = hyperplane(offset, normal, c).T
            ax.plot(x, y, color=colour, linewidth=0.8, zorder=2.5, solid_capstyle="butt")
        else:
            further = offset + np.array([-normal[1], normal[0]])
            ax.axline(tuple(offset), tuple(further), color=colour, linewidth=0.8, zorder=2.5)


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


def name_classes(ax: Axes, points: np.ndarray, labels: np.ndarray, c: float) -> None:
    """A badge per class: on the rim in its direction where most of its points lie near the boundary, else amid them."""
    classes = np.unique(labels)
    centres = np.array([np.median(points[labels == label], axis=0) for label in classes])
    outer = c**0.5 * np.linalg.norm(centres, axis=1) > 0.7
    if outer.any():
        angles = spread(np.arctan2(centres[outer, 1], centres[outer, 0]), gap=np.radians(11))
        centres[outer] = 1.085 / c**0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for label, (x, y) in zip(classes, centres, strict=True):
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        badge = {"boxstyle": "circle,pad=0.18", "facecolor": colour, "edgecolor": "white", "linewidth": 0.7}
        text = "black" if label % len(CLASS_COLOURS) in LIGHT else "white"
        ax.text(x, y, str(label), ha="center", va="center", fontweight="bold", color=text, bbox=badge, zorder=6)


def spread(angles: np.ndarray, gap: float) -> np.ndarray:
    """Angles moved apart, each as little as needed, until neighbours on the circle are `gap` apart if all fit."""
    order = np.argsort(angles, kind="stable")
    moved = angles[order]
    for _ in range(100 * (len(angles) > 1)):
        short = np.clip(gap - np.diff(moved, append=moved[:1] + 2 * np.pi), 0, None) / 2
        moved = moved + np.roll(short, 1) - short
    result = np.empty_like(angles)
    result[order] = moved
    return result


def draw_distances(ax: Axes, stored: dict[str, np.ndarray]) -> None:
    """Distribution functions of the distance to the origin, and the KS distance where their gap is largest."""
    inside, outside = np.sort(stored["dist0_in"]), np.sort(stored["dist0_out"])
    reach = 1.02 * max(inside[-1], outside[-1])
    for values, colour, name in ((inside, SLATE, "test images"), (outside, "black", "outliers")):
        shares = [0, *np.arange(1, len(values) + 1) / len(values), 1]
        ax.step([0, *values, reach], shares, where="post", color=colour, label=name)
    places = np.concatenate([inside, outside])
    below = [np.searchsorted(values, places, side="right") / len(values) for values in (inside, outside)]
    widest = np.abs(below[0] - below[1]).argmax()
    low, high = sorted(share[widest] for share in below)
    ax.plot([places[widest]] * 2, [low, high], color=INK, linewidth=0.6, linestyle=":")
    side = "right" if places[widest] > 0.75 * reach else "left"
    ax.text(places[widest], (low + high) / 2, f" KS {high - low:.2f} ", ha=side, va="center", color=INK)
    ax.set(xlabel="distance to the origin $d(x, 0)$", ylabel="share below", xlim=(0, reach), ylim=(0, 1.02))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, borderaxespad=0)


def caption(stored: dict[str, np.ndarray], points: int, outliers: int, lines: bool = True) -> str:
    """What the picture shows, and how many of the points there are."""
    c = float(stored["c"])
    place = f"the Poincaré disk (c = {c:g})" if c > 0 else "the Euclidean plane"
    text = (
        f"Test images embedded in {place}, coloured by class: {points:,} of {len(stored['points']):,}, evenly spaced "
        f"in stored order. Black crosses: {outliers:,} of {len(stored['outliers']):,} outliers, likewise. "
        "Ring: the origin."
    )
    if "offsets" in stored:
        text += " Tint: the class with the largest logit." + " Lines: where the logit of a class is 0." * lines
    if c > 0:
        shares = (f"{100 * stored[name].mean():.1f} %" for name in ("clipped_in", "clipped_out"))
        text += " On the clip sphere lie {} of the test images and {} of the outliers.".format(*shares)
    return text
