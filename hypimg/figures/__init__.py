"""Figures: one file each, drawn from what evaluations wrote, without a model and without a display.

A figure is written three times: .pdf for a paper, .png to look at, .txt with its caption (what was drawn, how many
points of how many). The same input gives the same bytes. None has a title inside; the caption is the title.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypimg.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

# Ten colours that stay apart for colour-blind readers: found by a search for the largest smallest difference under
# simulated protanopia, deuteranopia and tritanopia (12 units of 100 in OKLab; matplotlib's default cycle has 1).
CLASS_COLOURS = (
    "#0280f6",
    "#f5cc58",
    "#b95334",
    "#7334bc",
    "#57efc7",
    "#e68e80",
    "#304773",
    "#afacfa",
    "#762f06",
    "#a26baa",
)

LIGHT = {1, 4, 5, 7}  # of these colours: black text on them, white on the others

INK = "#222222"  # lines and text
SLATE = "#5b7c99"  # the in-distribution side where classes do not matter; outliers are black

COLUMN_WIDTH = 3.35  # inches: one column of a two-column page
PAGE_WIDTH = 6.9

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: text stays text in an editor
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults and STYLE, whatever the reader's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save(figure: Figure, stem: Path, caption: str) -> list[Path]:
    """Write `stem`.png, .pdf and .txt (the caption) and return their paths in this order; call it inside `style()`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf, txt = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf", "txt"))
    figure.savefig(png)
    figure.savefig(pdf, metadata={"CreationDate": None})  # a date would change the bytes
    txt.write_text(f"{caption}\n", encoding="utf-8")
    return [png, pdf, txt]


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """The arrays that an out-of-distribution evaluation stored (`hypimg.evaluation.ood`)."""
    from zipfile import BadZipFile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise UserError("scores", path, f"cannot be read ({error}); evaluate the run again") from error


def cell(scores: dict[tuple[str, str], Path], row: str, column: str, table: str) -> Path:
    """The stored scores of one cell; UserError with the command that makes them where they are missing."""
    if (row, column) not in scores:
        remedy = f"has no finished run with scores; make reproduce-{table} ONLY={row}/{column}"
        raise UserError("cell", f"{row}/{column}", remedy)
    return scores[row, column]


def every(points: np.ndarray, at_most: int) -> np.ndarray:
    """Indices of at most this many points, evenly spaced over the stored order: the same ones each time."""
    import numpy as np

    count = min(len(points), at_most)
    return np.arange(count) * len(points) // max(count, 1)
