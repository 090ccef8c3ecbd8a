"""HIE, Figure 1: MNIST test images in the Poincaré disk of a 2-D hyperbolic classifier, Omniglot as black crosses."""

from __future__ import annotations

from pathlib import Path

from hypimg.figures import COLUMN_WIDTH, cell, disk, read_scores, save, style

ROW, COLUMN = "hyperbolic", "n=2"  # of experiments/hie_table3.yaml


def draw(scores: dict[tuple[str, str], Path], out_dir: Path) -> list[Path]:
    """Write hie_fig1.png, .pdf and .txt (the caption) under out_dir and return their paths.

    scores: (row, column) of the table → its evaluation's .npz.  Raises UserError where the cell needed is missing.
    """
    from matplotlib.figure import Figure

    path = cell(scores, ROW, COLUMN, "table3")
    stored = read_scores(path)
    disk.require_plane(stored, path)
    with style():
        figure = Figure(figsize=(COLUMN_WIDTH, COLUMN_WIDTH), layout="constrained")
        drawn = disk.draw_embedding(figure.subplots(), stored, outliers_name="Omniglot", lines=False)
        return save(figure, out_dir / "hie_fig1", disk.caption(stored, *drawn, lines=False))
