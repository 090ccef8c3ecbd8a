"""Figures 2 and 3 of Poincaré ResNet show the numbers of the runs and evaluations that they are given."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure

from hypimg.errors import UserError
from hypimg.evaluation.layer_norms import LayerNorms
from hypimg.figures import pr_fig2, pr_fig2a, pr_fig3, training
from hypimg.tables import manifest

Write = Callable[[str, list[float], float], Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Write:
    """Leave a run with these training accuracies by epoch, and its evaluation with this test accuracy."""

    def write(name: str, accuracies: list[float], test: float) -> Path:
        folder = tmp_path_factory.mktemp(name.replace("/", "_").replace("=", "_")) / "key"
        (folder / "evaluations").mkdir(parents=True)
        rows = [f"{epoch},{2.5 - value},{value},1.0" for epoch, value in enumerate(accuracies, start=1)]
        (folder / "metrics.csv").write_text("\n".join(["epoch,train/loss,train/accuracy,seconds", *rows, ""]))
        logits = np.zeros((1000, 2), np.float32)
        logits[round(1000 * test) :, 1] = 1
        path = folder / "evaluations" / "abc.npz"
        np.savez(path, labels=np.zeros(1000, np.int64), logits=logits)
        return path

    return write


@pytest.fixture(scope="module")
def fig3(run: Write) -> dict[tuple[str, str], Path]:
    rows = [row for panel in pr_fig3.PANELS.values() for row in panel]
    return {(row, "paper"): run(row, [0.2 + 0.05 * i, 0.3, 0.4], 0.40 + 0.01 * i) for i, row in enumerate(rows)}


@pytest.fixture(scope="module")
def fig2(run: Write) -> dict[tuple[str, str], Path]:
    cells = [(row, column) for column in ("ConvNet-5", "ResNet-20") for row in pr_fig2.ARMS]
    return {(row, column): run(row, [0.1 * i, 0.2], 0.3 + 0.01 * i) for i, (row, column) in enumerate(cells)}


@pytest.fixture(scope="module")
def fig2a(tmp_path_factory) -> dict[tuple[str, str], Path]:
    scores = {}
    for row in pr_fig2a.ARMS:
        for c in (1.0, 0.1):
            init, _, inverted = row.partition("_")
            _, arrays = LayerNorms(init, bool(inverted), c, 1.0, 4, 6, 3, 5)([], None)
            scores[row, f"c={c:g}"] = tmp_path_factory.mktemp("norms") / f"{row}.npz"
            np.savez(scores[row, f"c={c:g}"], **arrays)
    return scores


FIGURES = {"fig2": pr_fig2, "fig2a": pr_fig2a, "fig3": pr_fig3}


def caught(module: ModuleType, scores: dict[tuple[str, str], Path], folder: Path) -> Figure:
    """The figure on its way to the pictures' files, which are not written."""
    figures: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save", lambda figure, stem, caption: figures.append(figure) or [])
        module.draw(scores, folder)
    return figures[0]


@pytest.mark.parametrize("name", FIGURES)
def test_it_draws_twice_the_same(name, request, tmp_path):
    module, scores = FIGURES[name], request.getfixturevalue(name)
    first, second = (module.draw(scores, tmp_path / folder) for folder in ("first", "second"))
    suffixes = ["png", "pdf", "txt"] + ["csv"] * (name != "fig2a")
    assert [path.name for path in first] == [f"pr_{name}.{suffix}" for suffix in suffixes]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("name", FIGURES)
def test_no_scores_end_in_one_line(name, tmp_path):
    with pytest.raises(UserError, match=r"run make reproduce-pr-fig"):
        FIGURES[name].draw({}, tmp_path)


def test_rows_and_columns_of_the_figures_are_those_of_their_tables():
    for module, columns, rows in (
        (pr_fig2, pr_fig2.PANELS, pr_fig2.ARMS),
        (pr_fig3, pr_fig3.COLUMNS, [row for panel in pr_fig3.PANELS.values() for row in panel]),
    ):
        table = manifest.load(module.__name__.rpartition(".")[2])
        assert [column.name for column in table.columns] == list(columns)
        assert [row.name for row in table.rows] == list(rows)
    assert set(pr_fig2a.ARMS) < {row.name for row in manifest.load("pr_fig2a").rows}


def test_figure_3_has_the_accuracies_in_percent(fig3, tmp_path):
    figure = caught(pr_fig3, fig3, tmp_path)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("ReLU", "curvature")
    with_relu, test = left.lines[:2]
    np.testing.assert_allclose(with_relu.get_xydata(), [[1, 20], [2, 30], [3, 40]])
    assert test.get_ydata() == pytest.approx([40]) and test.get_xdata() > 3 and test.get_markerfacecolor() == "none"
    labels = [line.get_label() for ax in (left, right) for line in ax.lines[::2]]
    assert labels == ["with ReLU", "without ReLU", "c = 0.01", "c = 0.1", "c = 1"]
    colours = [line.get_color() for ax in (left, right) for line in ax.lines[::2]]
    assert colours[3] == colours[0] and len(set(colours)) == 4, "c = 0.1 with ReLU is one run in both panels"
    assert [line.get_ydata()[0] for line in right.lines[1::2]] == pytest.approx([42, 43, 44])


def test_figure_3_shows_both_variants_and_leaves_out_what_was_not_run(fig3, run, tmp_path):
    scores = fig3 | {("c=1", "official"): run("official", [0.5], 0.6)}
    figure = caught(pr_fig3, scores, tmp_path)
    assert [len(ax.lines) for ax in figure.axes] == [4, 6, 0, 2]
    assert figure.axes[3].get_title() == "curvature, the official code's" and not figure.axes[2].axison
    low, high = figure.axes[3].get_xlim()
    assert low < 1 < high < figure.axes[0].get_xlim()[1]


def test_the_csv_has_every_number(fig2, tmp_path):
    caught(pr_fig2, fig2, tmp_path)
    rows = list(csv.DictReader((tmp_path / "pr_fig2.csv").open()))
    assert len(rows) == 2 * 4 * 2
    assert rows[3] == {
        "panel": "(b) 5 layers",
        "arm": "identity, channel-major",
        "epoch": "2",
        "train_loss": "2.3",
        "train_accuracy": "0.2",
        "test_accuracy": "0.31",
    }
    assert rows[2]["test_accuracy"] == ""


def test_figure_2_has_losses_above_and_accuracies_below(fig2, tmp_path):
    figure = caught(pr_fig2, fig2, tmp_path)
    losses, accuracies = figure.axes[:2], figure.axes[2:]
    assert [ax.get_title() for ax in losses] == ["(b) 5 layers", "ours: ResNet-20"]
    assert [len(ax.lines) for ax in losses] == [4, 4] and [len(ax.lines) for ax in accuracies] == [8, 8]
    np.testing.assert_allclose(losses[1].lines[0].get_ydata(), [2.5 - 0.4, 2.3])
    np.testing.assert_allclose(accuracies[1].lines[0].get_ydata(), [40, 20])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(pr_fig2.ARMS.values())


def test_figure_2a_has_the_medians_and_the_bands(fig2a, tmp_path):
    figure = caught(pr_fig2a, fig2a, tmp_path)
    assert [ax.get_title() for ax in figure.axes] == ["c = 1", "c = 0.1"]
    for ax, column in zip(figure.axes, ("c=1", "c=0.1"), strict=True):
        for line, band, row in zip(ax.lines, ax.collections, pr_fig2a.ARMS, strict=True):
            norms = np.load(fig2a[row, column])["norms"]
            np.testing.assert_allclose(line.get_ydata(), np.median(norms, axis=0))
            corners = band.get_paths()[0].vertices[:, 1]
            low, high = np.percentile(norms[:, -1], [5, 95])
            assert np.isclose(corners, low).any() and np.isclose(corners, high).any()


def test_long_trainings_are_lines_without_marks(run):
    from hypimg.figures import style

    with style():
        ax = Figure().subplots()
        training.draw_curves(ax, {0: training.read("long", run("long", [0.5] * 30, 0.5))}, "loss")
    assert ax.lines[0].get_marker() == ""


def test_an_evaluation_of_another_kind_is_named(fig2a):
    with pytest.raises(UserError, match=r"are no accuracy evaluation of a run with a metrics\.csv"):
        training.read("a", next(iter(fig2a.values())))
