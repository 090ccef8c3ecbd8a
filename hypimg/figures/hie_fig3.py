"""HIE, Figure 3: geodesics, Möbius sum, HypAve and hyperplanes in the disk, each drawn by the library's functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hypimg.figures import CLASS_COLOURS, INK, PAGE_WIDTH, disk, save, style
from hypimg.geometry import hyperplanes, means, poincare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

C = 1.0
BLUE, RUST, PURPLE = CLASS_COLOURS[0], CLASS_COLOURS[2], CLASS_COLOURS[3]
FAINT = "#b8c0c8"
REACH = 1.04  # of the axes, in radii

# (a) ends of each geodesic
ENDS = [((-0.86, 0.13), (-0.17, 0.83)), ((-0.55, -0.62), (0.62, 0.35)), ((0.10, -0.90), (0.86, -0.12))]
STEPS = 8  # between the ends, equal in hyperbolic length

# (b) the summands
X, Y = (0.68, -0.22), (-0.22, 0.62)

# (c) the points whose mean is taken
CLOUD = [(0.80, 0.46), (0.72, -0.58), (-0.42, 0.48), (-0.62, -0.20), (-0.22, -0.62)]

# (d) offset p and normal a of each hyperplane
PLANES = [((-0.18, 0.16), (-0.55, 0.45)), ((0.56, 0.28), (0.35, 0.30)), ((0.08, -0.56), (0.14, -0.56))]
COLOURS = (BLUE, RUST, PURPLE)


def draw(scores: dict[tuple[str, str], Path], out_dir: Path) -> list[Path]:
    """Write hie_fig3.png, .pdf and .txt (the caption) under out_dir and return their paths. It needs no scores."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.285 * PAGE_WIDTH), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02)  # type: ignore[union-attr,call-arg]
        panels = (draw_geodesics, draw_sum, draw_mean, draw_hyperplanes)
        titles = ("geodesics", "Möbius sum", "HypAve", "hyperplanes")
        for letter, ax, panel, title in zip("abcd", figure.subplots(1, 4), panels, titles, strict=True):
            disk.draw_boundary(ax, C, REACH)
            panel(ax)
            ax.set_title(f"({letter}) {title}", pad=3)
        return save(figure, out_dir / "hie_fig3", caption())


def point(place: Sequence[float]) -> Tensor:
    return torch.tensor(place, dtype=torch.float64)


def draw_geodesics(ax: Axes) -> None:
    """Segments between two points, with their whole geodesics, and dots at equal steps of hyperbolic length."""
    for first, last in ENDS:
        x, y = point(first), point(last)
        draw_curve(ax, geodesic(x, y, -4, 5), color=FAINT, linewidth=0.8, zorder=1)
        draw_curve(ax, geodesic(x, y), color=BLUE, linewidth=1.3, zorder=3)
        steps = geodesic(x, y, count=STEPS + 1)
        inner_x, inner_y = steps[1:-1].T
        ax.scatter(inner_x, inner_y, s=9, color=BLUE, edgecolor="white", linewidths=0.5, zorder=4)
        draw_points(ax, [x, y])


def draw_sum(ax: Axes) -> None:
    """x ⊕ y and y ⊕ x: the way 0 → y moved to x, and the way 0 → x moved to y, end in different points."""
    origin, x, y = point((0, 0)), point(X), point(Y)
    xy, yx = poincare.mobius_add(x, y, C), poincare.mobius_add(y, x, C)
    for start, corner, end, colour in ((origin, x, xy, BLUE), (origin, y, yx, RUST)):
        for leg in (geodesic(start, corner), geodesic(corner, end)):
            draw_arrow(ax, leg, colour, head_at=0.6)
    draw_points(ax, [origin, x, y])
    draw_points(ax, [xy], BLUE)
    draw_points(ax, [yx], RUST)
    name(ax, origin, "$0$", (-6, -6))
    name(ax, x, "$x$", (4, -7))
    name(ax, y, "$y$", (-7, 2))
    name(ax, xy, r"$x \oplus y$", (-16, -3), BLUE)
    name(ax, yx, r"$y \oplus x$", (5, -9), RUST)


def draw_mean(ax: Axes) -> None:
    """The Einstein midpoint of five points with the geodesics to them, and the mean of their coordinates."""
    points = torch.stack([point(place) for place in CLOUD])
    centre = means.midpoint(points, C)
    for x in points:
        draw_curve(ax, geodesic(centre, x), color=FAINT, linewidth=0.9, zorder=2)
    draw_points(ax, points)
    draw_points(ax, [centre], BLUE, size=20)
    flat = points.mean(0)
    ax.scatter(flat[0], flat[1], s=16, facecolor="white", edgecolor=INK, linewidths=0.8, zorder=4)
    name(ax, centre, "HypAve", (20, 0), BLUE)
    name(ax, flat, "Euclidean mean", (-3, 41), leader=True)


def draw_hyperplanes(ax: Axes) -> None:
    """Three hyperplanes with offset p and normal a; of one also the curves of equal logit on its positive side."""
    for (p, a), colour in zip(PLANES, COLOURS, strict=True):
        draw_curve(ax, torch.from_numpy(disk.hyperplane(np.array(p), np.array(a), C)), color=colour, linewidth=1.3)
        tip = point(p) + 0.3 * point(a) / point(a).norm()
        draw_arrow(ax, torch.stack([point(p), tip]), colour)
        draw_points(ax, [point(p)], colour)
    draw_levels(ax, *PLANES[0], BLUE)
    name(ax, point(PLANES[0][0]), "$p$", (6, -4), BLUE)
    name(ax, point(PLANES[0][0]), "$a$", (-7, 14), BLUE)


def draw_levels(ax: Axes, p: Sequence[float], a: Sequence[float], colour: str, pixels: int = 400) -> None:
    """Curves at signed distances 1, 2, 3 from a hyperplane, where the logit with ‖a‖ λ_p = 1 has these values."""
    grid = torch.linspace(-1, 1, pixels, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
    inside = places.square().sum(-1) < 0.9995
    offset = point(p)
    normal = point(a) / point(a).norm() / poincare.conformal_factor(offset, C)
    logits = hyperplanes.mlr_logits(torch.where(inside[..., None], places, 0.0), offset[None], normal[None], C)
    shown = np.ma.masked_where(~inside.numpy(), logits[..., 0].numpy())
    ax.contour(grid, grid, shown, levels=[1, 2, 3], colors=[colour], linewidths=0.5, alpha=0.6, zorder=2)


def geodesic(x: Tensor, y: Tensor, start: float = 0.0, end: float = 1.0, count: int = 201) -> Tensor:
    """Points [count, 2] of the geodesic through x (t = 0) and y (t = 1), at equal hyperbolic steps."""
    return poincare.geodesic(torch.linspace(start, end, count, dtype=torch.float64), x, y, C)


def draw_curve(ax: Axes, points: Tensor, **look: Any) -> None:
    ax.plot(*points.T.numpy(), **{"solid_capstyle": "round", "zorder": 2.5, **look})


def draw_arrow(ax: Axes, points: Tensor, colour: str, head_at: float = 1.0) -> None:
    """A curve with a head at this share of its way."""
    draw_curve(ax, points, color=colour, linewidth=1.1, zorder=3)
    tip = round(head_at * (len(points) - 1))
    head = {"arrowstyle": "-|>", "color": colour, "linewidth": 0, "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=tuple(points[tip]), xytext=tuple(points[tip - 1]), arrowprops=head, zorder=3)


def draw_points(ax: Axes, points: Sequence[Tensor] | Tensor, colour: str = INK, size: float = 12) -> None:
    x, y = torch.stack(list(points)).T
    ax.scatter(x, y, s=size, color=colour, linewidths=0, zorder=5)


def name(
    ax: Axes, place: Tensor, text: str, shift: tuple[float, float], colour: str = INK, leader: bool = False
) -> None:
    """Text beside a point, its centre shifted by so many typographic points; with a line to the point if `leader`."""
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2.5} if leader else None
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    ax.annotate(
        text, tuple(place), shift, textcoords="offset points", color=colour, arrowprops=line, zorder=6, **middle
    )


def caption() -> str:
    """What each panel shows."""
    return (
        "Operations in the Poincaré disk (c = 1), drawn with the library's functions in float64. (a) Geodesics: "
        f"segments between two points, in {STEPS} steps of equal hyperbolic length, and their continuation to the "
        "boundary, which they meet at right angles. (b) Möbius sum: the geodesic from x to x ⊕ y is as long as that "
        "from 0 to y, and the sum does not commute. (c) HypAve, the Einstein midpoint, of five points, with the "
        "geodesics to them: the points near the boundary draw it further out than the mean of the coordinates. (d) "
        "Hyperplanes, each through its offset p at a right angle to its normal a; of one also the points at the signed "
        "distances 1, 2 and 3, on which the logit of multinomial logistic regression is constant."
    )
