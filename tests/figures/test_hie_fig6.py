"""Figure 6 lays a few-shot evaluation's embeddings out by their distances; UMAP itself is tried in the slow tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hypimg.errors import UserError
from hypimg.figures import CLASS_COLOURS, hie_fig6, read_scores
from hypimg.geometry import poincare


def _stored(path: Path, c: float, classes: int = 12, each: int = 60, dim: int = 8) -> Path:
    """Clusters of `classes` classes, their labels mixed; with the curvature −c."""
    random = np.random.default_rng(3)
    labels = np.arange(classes * each) % classes
    features = 0.5 * random.normal(size=(classes, dim))[labels] + 0.1 * random.normal(size=(len(labels), dim))
    points = poincare.expmap0(torch.from_numpy(features), c).float().numpy()
    np.savez(path, points=points, labels=labels, names=np.array([f"kind_{i}" for i in range(classes)]), c=np.float32(c))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("scores")
    cells = {(f"arm {c}", "1-shot"): _stored(folder / f"{c}.npz", c) for c in (0.5, 0.0)}
    other = folder / "other.npz"
    np.savez(other, accuracies=np.ones(3))
    return {("no points", "val"): other, **cells, ("arm 0.5", "5-shot"): cells["arm 0.5", "1-shot"]}


def _first_two(distances: np.ndarray) -> np.ndarray:
    """A stand-in for UMAP: a function of the distances, spread over the hyperboloid."""
    return 3 * (distances[:, :2] - distances[:, :2].mean(axis=0)) / distances.std()


def test_it_draws_twice_the_same(table, tmp_path):
    first, second = (hie_fig6.draw(table, tmp_path / name, _first_two) for name in ("first", "second"))
    assert [path.name for path in first] == ["hie_fig6.png", "hie_fig6.pdf", "hie_fig6.txt"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    said = first[2].read_text()
    assert "arm 0.5 (of the Poincaré ball, c = 0.5); arm 0.0 (‖x − y‖); column 1-shot" in said
    assert "500 of the 720 embeddings stored: 10 of 12 classes, up to 50 images" in said


def test_the_distances_are_those_of_the_models_space(table):
    seen: list[np.ndarray] = []
    for c in (0.5, 0.0):
        path = table[f"arm {c}", "1-shot"]
        hie_fig6.panel("", path, lambda distances: (seen.append(distances), _first_two(distances))[1])
        stored = read_scores(path)
        shown = [
            i
            for i in range(720)
            if stored["labels"][i] < 10 and (stored["labels"][:i] == stored["labels"][i]).sum() < 50
        ]
        points = torch.from_numpy(stored["points"][shown]).double()
        expected = poincare.dist(points[:, None], points[None], c) if c else torch.cdist(points, points)
        ratio = seen[-1] / np.where(expected == 0, 1, expected)
        off = ~np.eye(500, dtype=bool)
        np.testing.assert_allclose(ratio[off], 1.0 if c else 2.0, rtol=1e-6)
        assert not seen[-1].diagonal().any()


def test_a_dot_has_the_colour_that_the_legend_gives_its_class(table, tmp_path, monkeypatch):
    caught: list[Figure] = []
    monkeypatch.setattr(hie_fig6, "save", lambda figure, stem, caption: caught.append(figure))
    hie_fig6.draw({("only", "x"): table["arm 0.5", "1-shot"]}, tmp_path, _first_two)
    (legend,) = caught[0].legends
    shown = hie_fig6.panel("", table["arm 0.5", "1-shot"], _first_two)
    dots, *samples = caught[0].axes[0].collections
    assert [text.get_text() for text in legend.get_texts()] == [f"kind {i}" for i in range(10)]
    assert [to_hex(sample.get_facecolor()[0]) for sample in samples] == list(CLASS_COLOURS)
    for place, colour in zip(dots.get_offsets(), dots.get_facecolor(), strict=True):
        nearest = np.square(shown.places - place).sum(axis=1).argmin()
        assert to_hex(colour) == CLASS_COLOURS[shown.labels[nearest]]


def test_the_disk_is_the_hyperboloid_seen_from_below_and_centring_moves_no_distance():
    flat = np.random.default_rng(0).normal([5, -2], 3, size=(40, 2))
    height = np.sqrt(1 + np.square(flat).sum(axis=1))
    places = hie_fig6.to_disk(flat)
    moved = torch.from_numpy(hie_fig6.centred(places))
    expected = np.arccosh(np.maximum(np.outer(height, height) - flat @ flat.T, 1))
    for points in (torch.from_numpy(places), moved):
        np.testing.assert_allclose(poincare.cdist(points, points, 1.0, mode="exact"), expected, atol=1e-5)
    lam = 2 / (1 - moved.square().sum(1, keepdim=True))
    assert (lam * moved).sum(0).abs().max() < 1e-8 * lam.sum()


def test_no_embeddings_or_other_classes_end_in_one_line(table, tmp_path):
    with pytest.raises(UserError, match="hie_fig6: no cell has embeddings"):
        hie_fig6.draw({("no points", "val"): table["no points", "val"]}, tmp_path, _first_two)
    fewer = _stored(tmp_path / "fewer.npz", 0.5, classes=4)
    with pytest.raises(UserError, match=r"cells=arm 0\.5, fewer: their stored classes differ"):
        hie_fig6.draw({("arm 0.5", "x"): table["arm 0.5", "1-shot"], ("fewer", "x"): fewer}, tmp_path, _first_two)
    broken = tmp_path / "broken.npz"
    np.savez(broken, points=np.full((20, 2), np.nan), labels=np.arange(20), names=np.arange(20).astype(str), c=1.0)
    with pytest.raises(UserError, match=r"broken\.npz: hold embeddings that have no distance"):
        hie_fig6.draw({("a", "x"): broken}, tmp_path, _first_two)


def test_without_umap_the_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"pip install 'hypimg\[umap\]'"):
        hie_fig6.hyperboloid_umap(np.zeros((3, 3)))


@pytest.mark.slow
def test_umap_keeps_clusters_together_and_repeats_itself(tmp_path):
    pytest.importorskip("umap")
    path = _stored(tmp_path / "few.npz", 0.5, classes=4, each=25)
    first, second = (hie_fig6.panel("", path, hie_fig6.hyperboloid_umap) for _ in range(2))
    assert np.array_equal(first.places, second.places)
    assert (np.square(first.places).sum(axis=1) < 1).all()
    points = torch.from_numpy(first.places)
    distances = poincare.cdist(points, points, 1.0, mode="exact").fill_diagonal_(torch.inf)
    assert (first.labels[distances.argmin(1)] == first.labels).mean() > 0.95
