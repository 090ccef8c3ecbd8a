"""A metric against a swept setting: one curve per arm, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hypimg.figures import CLASS_COLOURS, COLUMN_WIDTH, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = tuple(CLASS_COLOURS[i] for i in (0, 2, 3, 9, 6, 8, 5, 7, 1, 4))  # the darker ones first: they draw lines
SHAPES = "osD^vP*X<>"
PERCENT = ("accuracy", "clipped")
AXIS_NAMES = {"c": "$c$ (curvature $-c$)", "dim": "dimension of the embedding"}


@dataclass(frozen=True)
class Point:
    """The mean at one value of the setting.  x None: the arm does not have the setting.

    half_width: of the 95 % interval, over `over`: n training seeds, or the test episodes of one training.
    """

    x: float | None
    mean: float
    half_width: float | None
    n: int
    over: Literal["seeds", "episodes"] | None


@dataclass(frozen=True)
class Curve:
    label: str
    points: list[Point]  # by rising x


def draw(curves: Sequence[Curve], stem: Path, x: str, y: str, notes: Sequence[str] = ()) -> list[Path]:
    """Write `stem`.png, .pdf and .txt (the caption, which ends in the notes) and return their paths.

    Filled marks: means over seeds; open ones: one training. An arm without the setting is a line across, its interval a
    band. The axis is logarithmic where all values are positive, with ticks at the values themselves.
    """
    from matplotlib.figure import Figure

    scale = 100 if y.rpartition("/")[2] in PERCENT else 1
    values = sorted({point.x for curve in curves for point in curve.points if point.x is not None})
    with style():
        columns = 2 if max(len(curve.label) for curve in curves) < 24 else 1  # what fits under the plot
        rows = -(-len(curves) // columns)
        figure = Figure(figsize=(COLUMN_WIDTH, 0.72 * COLUMN_WIDTH + 0.15 * rows), layout="constrained")
        ax = figure.subplots()
        log = values[0] > 0
        if log:
            ax.set_xscale("log")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
        for number, curve in enumerate(curves):
            shift = 0.006 * (number - (len(curves) - 1) / 2)  # of the axis, so that bars stand beside each other
            draw_curve(ax, curve, number, scale, [_moved(v, shift, values[0], values[-1], log) for v in values], values)
        ax.set(xlabel=AXIS_NAMES.get(x, x), ylabel=y.replace("/", " ") + (" (%)" if scale == 100 else ""))
        figure.legend(loc="outside lower center", ncols=columns, handletextpad=0.5, columnspacing=1.2)
        return save(figure, stem, caption(curves, x, y, notes))


def _moved(value: float, shift: float, low: float, high: float, log: bool) -> float:
    return value * (high / low) ** shift if log else value + shift * (high - low)


def draw_curve(
    ax: Axes, curve: Curve, number: int, scale: float, places: Sequence[float], values: Sequence[float]
) -> None:
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
    for point in (point for point in curve.points if point.x is None):
        ax.axhline(scale * point.mean, color=colour, linestyle="--", label=curve.label, zorder=2)
        if point.half_width:
            low, high = (scale * (point.mean + sign * point.half_width) for sign in (-1, 1))
            ax.axhspan(low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)
    points = [point for point in curve.points if point.x is not None]
    if not points:
        return
    x = [places[values.index(point.x)] for point in points if point.x is not None]
    ax.plot(x, [scale * point.mean for point in points], color=colour, marker=shape, markersize=3.8, label=curve.label)
    for place, point in zip(x, points, strict=True):
        bar = scale * point.half_width if point.half_width is not None else None
        face = colour if point.n > 1 else "white"
        ax.errorbar(
            place,
            scale * point.mean,
            bar,
            color=colour,
            marker=shape,
            markersize=3.8,
            markerfacecolor=face,
            markeredgewidth=0.9,
            capsize=1.8,
            elinewidth=0.8,
            zorder=3,
        )


def caption(curves: Sequence[Curve], x: str, y: str, notes: Sequence[str]) -> str:
    marks = [point for curve in curves for point in curve.points if point.x is not None]
    text = f"{y} against {x}, {len(curves)} {'arms' if len(curves) > 1 else 'arm'}."
    counts = sorted({point.n for point in marks if point.n > 1})
    if counts:
        seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        text += f" Filled marks: means over {seeds} training seeds, with the 95 % t-interval over these."
    alone = {point.over for point in marks if point.n == 1}
    if "episodes" in alone:
        text += (
            " Open marks: one training; the 95 % interval is over its test episodes and says nothing of other seeds."
        )
    if None in alone:
        text += " Open marks without a bar: one training, no interval known."
    across = [f"{curve.label} ({_source(point)})" for curve in curves for point in curve.points if point.x is None]
    if across:
        text += f" Dashed, without a {x} of their own, the 95 % interval as a band: {'; '.join(across)}."
    return " ".join([text, *notes])


def _source(point: Point) -> str:
    if point.n > 1:
        return f"mean and t-interval over {point.n} seeds"
    return "one training, interval over its test episodes" if point.over == "episodes" else "one training"
