"""PR, Figure 2a: norms of points through ten Poincaré linear layers, as they are initialised."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hypimg.errors import UserError
from hypimg.figures import CLASS_COLOURS, PAGE_WIDTH, read_scores, save, style

# Rows of experiments/pr_fig2a.yaml: label, colour, line.
ARMS = {
    "identity": ("identity", CLASS_COLOURS[0], "-"),
    "identity_inverted": ("identity, official code's λ", CLASS_COLOURS[0], "--"),
    "hnnpp": ("HNN++", CLASS_COLOURS[2], "-"),
    "hnnpp_inverted": ("HNN++, official code's λ", CLASS_COLOURS[2], "--"),
}


def draw(scores: dict[tuple[str, str], Path], out_dir: Path) -> list[Path]:
    """Write pr_fig2a.png, .pdf and .txt (the caption) under out_dir and return their paths.

    One panel per column of the table that has scores: the median over the draws, and a band from 5 to 95 % of them.
    scores: (row, column) of the table → its evaluation's .npz, with `norms` [draws, layers + 1] and `c`.
    Raises UserError where no arm has scores.
    """
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(column for row, column in scores if row in ARMS))
    if not columns:
        raise UserError("figure", "pr_fig2a", "no arm has scores; run make reproduce-pr-fig2 first")
    with style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.4 * PAGE_WIDTH), layout="constrained")
        axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        draws = 0
        for ax, column in zip(axes, columns, strict=True):
            for row, (label, colour, line) in ARMS.items():
                if (row, column) not in scores:
                    continue
                stored = read_scores(scores[row, column])
                low, middle, high = np.percentile(stored["norms"], [5, 50, 95], axis=0)
                layers, draws = np.arange(len(middle)), len(stored["norms"])
                ax.plot(layers, middle, color=colour, linestyle=line, linewidth=1.3, label=label)
                ax.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
                ax.set_title(f"c = {float(stored['c']):g}", pad=3)
            ax.set(xlabel="layer", yscale="log")
            ax.set_xticks(layers[::2])
            ax.minorticks_off()
        axes[0].set_ylabel("mean norm in the ball")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, columnspacing=1.2)
        return save(figure, out_dir / "pr_fig2a", caption(draws))


def caption(draws: int) -> str:
    return (
        f"Mean norm of a batch of points before and after each layer, the median over {draws} draws of points and "
        "weights, with a band from 5 to 95 % of them. Solid: the layers as the paper has them; dashed: with the "
        "official code's λ, which is upside down. The points are exp₀ of normal vectors with deviation 1, in float64 "
        "and not projected; their norms are bounded by 1/√c."
    )
