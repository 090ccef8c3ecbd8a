"""PR, Figure 3: Poincaré ResNet-20 with and without ReLU, and at three curvatures."""

from __future__ import annotations

from pathlib import Path

from hypimg.errors import UserError
from hypimg.figures import PAGE_WIDTH, save, style
from hypimg.figures.training import QUANTITIES, Training, draw_curves, read, write_csv

# Rows of experiments/pr_fig3.yaml, by panel: label, and number of the colour; one run stands in both panels.
PANELS = {
    "ReLU": {"ReLU": ("with ReLU", 0), "no ReLU": ("without ReLU", 1)},
    "curvature": {"c=0.01": ("c = 0.01", 2), "c=0.1": ("c = 0.1", 0), "c=1": ("c = 1", 5)},
}
COLUMNS = {"paper": "the paper's formulas", "official": "the official code's"}


def draw(scores: dict[tuple[str, str], Path], out_dir: Path) -> list[Path]:
    """Write pr_fig3.png, .pdf, .txt (the caption) and .csv (the numbers) under out_dir and return their paths.

    A row of panels for each column of the table that has scores; arms that were not run are left out.
    scores: (row, column) of the table → its accuracy evaluation's .npz, kept by the run beside its metrics.csv.
    Raises UserError where no cell has scores.
    """
    from matplotlib.figure import Figure

    columns = [column for column in COLUMNS if any(column == of for _, of in scores)]
    if not columns:
        raise UserError("figure", "pr_fig3", "no cell has scores; run make reproduce-pr-fig3 first")
    with style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.36 * PAGE_WIDTH * len(columns)), layout="constrained")
        axes = figure.subplots(len(columns), len(PANELS), squeeze=False, sharey=True)
        drawn: dict[str, list[Training]] = {}
        for line, column in zip(axes, columns, strict=True):
            for ax, (panel, rows) in zip(line, PANELS.items(), strict=True):
                arms = {
                    number: read(label, scores[row, column])
                    for row, (label, number) in rows.items()
                    if (row, column) in scores
                }
                draw_curves(ax, arms, "accuracy")
                ax.set_title(panel if len(columns) == 1 else f"{panel}, {COLUMNS[column]}", pad=3)
                if arms:
                    ax.legend(loc="lower right")
                drawn[f"{panel}, {COLUMNS[column]}"] = list(arms.values())
            line[0].set_ylabel(QUANTITIES["accuracy"])
        paths = save(figure, out_dir / "pr_fig3", caption(columns, drawn))
        return [*paths, write_csv(out_dir / "pr_fig3.csv", drawn)]


def caption(columns: list[str], drawn: dict[str, list[Training]]) -> str:
    epochs = sorted({len(training.loss) for trainings in drawn.values() for training in trainings})
    return (
        f"Poincaré ResNet-20 (4, 8, 16) on CIFAR-10, {' and '.join(COLUMNS[column] for column in columns)}; one "
        f"training of {' or '.join(map(str, epochs))} epochs per curve (the lowest seed). Left: with and without ReLU, "
        "c = 0.1. Right: three curvatures −c, with ReLU. Curves: accuracy over each epoch's training batches, "
        "augmented; all 50,000 images train. Open marks: accuracy on the test images after the last epoch, in batches "
        "of 128 by their own statistics."
    )
