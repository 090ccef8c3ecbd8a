"""PR, Figures 2b and 2c: how plain Poincaré networks train from each initialisation; and ResNet-20, ours."""

from __future__ import annotations

from pathlib import Path

from hypimg.errors import UserError
from hypimg.figures import PAGE_WIDTH, save, style
from hypimg.figures.training import QUANTITIES, Training, draw_curves, read, write_csv

# Columns and rows of experiments/pr_fig2.yaml.
PANELS = {
    "ConvNet-5": "(b) 5 layers",
    "ConvNet-5 official": "5 layers, official",
    "ConvNet-7": "(c) 7 layers",
    "ConvNet-7 official": "7 layers, official",
    "ResNet-20": "ours: ResNet-20",
    "ResNet-20 official": "ours: ResNet-20, official",
}
ARMS = {
    "hnnpp": "HNN++",
    "channel_major": "identity, channel-major",
    "first_pixel": "identity, first pixel",
    "centre": "identity, centre pixel",
}


def draw(scores: dict[tuple[str, str], Path], out_dir: Path) -> list[Path]:
    """Write pr_fig2.png, .pdf, .txt (the caption) and .csv (the numbers) under out_dir and return their paths.

    Above the training loss, below the accuracy, a column of panels for each of the table's that has scores.
    scores: (row, column) of the table → its accuracy evaluation's .npz, kept by the run beside its metrics.csv.
    Raises UserError where no cell has scores.
    """
    from matplotlib.figure import Figure

    columns = [column for column in PANELS if any(column == of for _, of in scores)]
    if not columns:
        raise UserError("figure", "pr_fig2", "no cell has scores; run make reproduce-pr-fig2 first")
    drawn: dict[str, list[Training]] = {}
    with style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.6 * PAGE_WIDTH), layout="constrained")
        axes = figure.subplots(2, len(columns), squeeze=False, sharex="col", sharey="row")
        for line, column in zip(axes.T, columns, strict=True):
            arms = {n: read(ARMS[row], scores[row, column]) for n, row in enumerate(ARMS) if (row, column) in scores}
            for ax, quantity in zip(line, QUANTITIES, strict=True):
                draw_curves(ax, arms, quantity)
            line[0].set_title(PANELS[column], pad=3)
            line[0].set_xlabel("")
            drawn[PANELS[column]] = list(arms.values())
        for ax, name in zip(axes[:, 0], QUANTITIES.values(), strict=True):
            ax.set_ylabel(name)
        figure.align_ylabels(axes[:, 0])
        legend = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4, columnspacing=1.2)
        paths = save(figure, out_dir / "pr_fig2", caption(drawn))
        return [*paths, write_csv(out_dir / "pr_fig2.csv", drawn)]


def caption(drawn: dict[str, list[Training]]) -> str:
    epochs = sorted({len(training.loss) for trainings in drawn.values() for training in trainings})
    return (
        "Poincaré networks on CIFAR-10 from four initialisations of their convolutions: "
        f"{'; '.join(drawn)}. One training of {' or '.join(map(str, epochs))} epochs per curve (the lowest seed). "
        "Curves: means over each epoch's training batches, augmented; all 50,000 images train. Open marks: accuracy on "
        "the test images after the last epoch, in batches of 128 by their own statistics."
    )
