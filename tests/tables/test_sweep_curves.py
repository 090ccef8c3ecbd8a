"""A sweep's curves pool seeds and nothing else."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hypimg import config, run
from hypimg.errors import UserError
from hypimg.figures import sweep as figure
from hypimg.figures.sweep import Point
from hypimg.tables import results, sweep

ROOT = Path(__file__).resolve().parents[2]
EUCLIDEAN = {"_target_": "hypimg.nn.spaces.Euclidean"}
ANGULAR = {"_target_": "hypimg.nn.spaces.AngularBall"}


@pytest.fixture(scope="module")
def base() -> DictConfig:
    return run.run_config(config.compose(["experiment=mnist_hyperbolic", "dim=8"]))


class Folder:
    """Finished runs as `run.execute` leaves them, without training."""

    def __init__(self, runs_dir: Path, base: DictConfig):
        self.runs_dir, self.base = runs_dir, base

    def add(self, accuracy: float, *, seed: int = 0, space: dict[str, Any] | None = None, **settings: Any) -> None:
        cfg = self.base.copy()
        cfg.seed = seed
        if space is not None:
            cfg.space = space
        for name, value in settings.items():
            OmegaConf.update(cfg, sweep.AXES.get(name, name.replace("__", ".")), value, force_add=True)
        digest = settings.pop("digest", "d1")
        key = config.digest({"cfg": config.canonical(cfg), "digest": digest})
        folder = self.runs_dir / "e" / key
        folder.mkdir(parents=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        summary = {"key": key, "epochs": 1, "seconds": 1.0, "data": {"digest": digest}, "result_version": 1}
        metrics = {"test/accuracy": accuracy, "test/ci95": 0.004, "val/accuracy": accuracy}
        (folder / "summary.json").write_text(json.dumps(summary | {"metrics": metrics}))

    def runs(self) -> list[sweep.Run]:
        return sweep.finished_runs("e", self.runs_dir)


@pytest.fixture
def folder(tmp_path: Path, base: DictConfig) -> Folder:
    return Folder(tmp_path / "runs", base)


def test_seeds_of_an_arm_are_pooled_into_a_mean_with_its_t_interval(folder: Folder) -> None:
    for seed, value in enumerate((0.50, 0.52, 0.57)):
        folder.add(value, seed=seed, c=0.1)
    folder.add(0.6, c=0.5)
    found = sweep.gather(folder.runs(), "c", "test/accuracy")
    (curve,) = found.curves
    first, second = curve.points
    spread = math.sqrt(((0.03**2) + 0.01**2 + 0.04**2) / 2)
    assert (first.x, first.n, first.over) == (0.1, 3, "seeds")
    assert first.mean == pytest.approx(0.53) and first.half_width == pytest.approx(4.302653 * spread / math.sqrt(3))
    assert second == Point(0.5, 0.6, 0.004, 1, "episodes")
    assert found.notes == [] and curve.label == "hyperbolic"


def test_one_training_has_no_interval_where_the_evaluator_gave_none(folder: Folder) -> None:
    folder.add(0.5, c=0.1), folder.add(0.6, c=0.5)
    (curve,) = sweep.gather(folder.runs(), "c", "val/accuracy").curves
    assert curve.points == [Point(0.1, 0.5, None, 1, None), Point(0.5, 0.6, None, 1, None)]


def test_arms_are_told_apart_and_one_without_c_comes_last(folder: Folder) -> None:
    for c in (0.1, 0.5):
        folder.add(0.5 + c, c=c)
        folder.add(0.4 + c, space=ANGULAR | {"c": c})
        folder.add(0.3 + c, c=c, space__margin=0.01)
    folder.add(0.7, space=EUCLIDEAN, seed=0), folder.add(0.8, space=EUCLIDEAN, seed=1)
    found = sweep.gather(folder.runs(), "c", "test/accuracy")
    means = {curve.label: [round(point.mean, 6) for point in curve.points] for curve in found.curves}
    assert means == {
        "angular": [0.5, 0.9],
        "hyperbolic, margin 0.001": [0.6, 1.0],
        "hyperbolic, margin 0.01": [0.4, 0.8],
        "Euclidean": [0.75],
    }
    assert found.curves[-1].points[0].x is None and found.curves[-1].points[0].n == 2


def test_against_dim_each_c_that_was_swept_over_it_is_an_arm(folder: Folder) -> None:
    for dim in (2, 8):
        folder.add(0.5, dim=dim, c=0.1), folder.add(0.6, dim=dim, c=0.5), folder.add(0.4, dim=dim, space=EUCLIDEAN)
    assert sweep.swept(folder.runs()) == ["c", "dim"]
    curves = sweep.gather(folder.runs(), "dim", "test/accuracy").curves
    assert [curve.label for curve in curves] == ["Euclidean", "hyperbolic, c 0.1", "hyperbolic, c 0.5"]
    assert all([point.x for point in curve.points] == [2, 8] for curve in curves)


def test_against_dim_a_sweep_of_c_is_no_curve(folder: Folder) -> None:
    """Two sweeps through one point, as in cifar_fs_sweep: against dim, each other c would be a curve of one point."""
    for c in (0.1, 0.5, 1.0):
        folder.add(0.5 + c, c=c), folder.add(0.4 + c, space=ANGULAR | {"c": c})
    folder.add(0.7, space=EUCLIDEAN)
    for dim in (2, 16):
        folder.add(0.6, dim=dim, c=0.5), folder.add(0.5, dim=dim, space=ANGULAR | {"c": 0.5})
        folder.add(0.8, dim=dim, space=EUCLIDEAN)
    against_dim = sweep.gather(folder.runs(), "dim", "test/accuracy")
    assert [curve.label for curve in against_dim.curves] == ["Euclidean", "angular", "hyperbolic"]
    assert all([point.x for point in curve.points] == [2, 8, 16] for curve in against_dim.curves)
    assert against_dim.notes == [
        "Left out, with one value of dim alone: angular, c 0.1; angular, c 1; hyperbolic, c 0.1; hyperbolic, c 1."
    ]
    against_c = sweep.gather(folder.runs(), "c", "test/accuracy")
    assert [curve.label for curve in against_c.curves] == ["angular", "hyperbolic", "Euclidean"]
    assert [len(curve.points) for curve in against_c.curves] == [3, 3, 1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trainer__epochs": 7}, "trainer.epochs = 7 (kept: 10)"),
        ({"digest": "d2"}, "data = d2 (kept: d1)"),
        ({"dim": 2}, "backbone.dim = 2 (kept: 8)"),
        ({"evaluator__test__way": 20}, "evaluator.test.way = 20 (kept: null)"),
    ],
)
def test_runs_that_differ_in_anything_else_are_left_out_with_a_line(folder: Folder, changed: dict, said: str) -> None:
    for c in (0.1, 0.5, 1.0):
        folder.add(0.5, c=c)
    for seed in range(4):
        folder.add(0.9, c=0.1, seed=seed, **changed)
    found = sweep.gather(folder.runs(), "c", "test/accuracy")
    assert [point.mean for point in found.curves[0].points] == [0.5, 0.5, 0.5]
    assert found.notes == [f"Left out 4 of 7 runs, which differ in {said}."]


def test_an_evaluator_of_another_metric_does_not_part_the_runs(folder: Folder) -> None:
    folder.add(0.5, c=0.1), folder.add(0.6, c=0.5, evaluator__ood_omniglot__split="val")
    found = sweep.gather(folder.runs(), "c", "test/accuracy")
    assert len(found.curves[0].points) == 2 and not found.notes


def test_settings_choose_runs(folder: Folder) -> None:
    for c in (0.1, 0.5):
        folder.add(0.5, c=c), folder.add(0.9, c=c, trainer__epochs=40)
    chosen = sweep.where(folder.runs(), {"trainer.epochs": "40", "dim": "8"})
    assert {run.metrics["test/accuracy"] for run in chosen} == {0.9}
    with pytest.raises(UserError, match=r"trainer\.epochs=7: no run has this value; there are 10, 40"):
        sweep.where(folder.runs(), {"trainer.epochs": "7"})
    with pytest.raises(UserError, match=r"trainer\.epoch=40: no run has this setting; did you mean trainer\.epochs"):
        sweep.where(folder.runs(), {"trainer.epoch": "40"})


def test_what_was_not_swept_or_measured_is_said_with_the_remedy(folder: Folder) -> None:
    folder.add(0.5, c=0.1), folder.add(0.5, c=0.1, seed=1)
    with pytest.raises(UserError, match=r"x=c: was not swept: these runs have only 0\.1; .*sweep=curvature"):
        sweep.gather(folder.runs(), "c", "test/accuracy")
    with pytest.raises(UserError, match=r"y=test/acc: no run has it; did you mean test/accuracy"):
        sweep.metric_of(folder.runs(), "test/acc")
    assert sweep.metric_of(folder.runs()) == "test/accuracy"
    with pytest.raises(UserError, match=r"experiment=f: no finished run under .*known: e"):
        sweep.finished_runs("f", folder.runs_dir)


def test_a_setting_of_words_is_no_axis(folder: Folder) -> None:
    folder.add(0.5, c=0.1), folder.add(0.5, space=EUCLIDEAN)
    with pytest.raises(UserError, match=r"must be a setting with numbers, it has hypimg\.nn\.spaces\.Euclidean"):
        sweep.gather(folder.runs(), "space._target_", "test/accuracy", by=["space"])


TABLE = """
title: t
source: ours
metric: {name: val/accuracy, description: d, unit: "%", scale: 100, digits: 1}
common: [experiment=mnist_hyperbolic]
seeds: 2
columns: {n=2: [dim=2]}
rows:
  c=0.1: {ours: true, overrides: [c=0.1]}
  c=0.5: {ours: true, overrides: [c=0.5]}
  ood: {ours: true, overrides: [c=0.5], evaluator: ood_omniglot, metric: ks/dist0}
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lines of a table: two rows at two seeds, one line with a key of old, one of an evaluator."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "t.yaml").write_text(TABLE)
    load = sweep.manifests.load
    monkeypatch.setattr(sweep.manifests, "load", lambda name: load(name, tmp_path / "experiments"))
    manifest = sweep.manifests.load("t")
    identity = results.identify(manifest, "paper")
    data = [{"name": "mnist", "digest": "d"}]
    for cell in manifest.cells:
        for seed in (0, 1):
            known = identity(cell, seed)
            value = float(cell.row.name[2:] if cell.evaluator is None else 9) + seed
            metrics = {"ks/dist0": value} if cell.evaluator else {"val/accuracy": value}
            line = {"row": cell.row.name, "seed": seed, "runs": list(known.run_keys), "metrics": metrics, "data": data}
            results.append_line(tmp_path / "results", "t", line | {"key": known.key})
    stale = {"seed": 0, "runs": ["f00"], "metrics": {"val/accuracy": 99.0}, "data": data, "key": "0ld"}
    results.append_line(tmp_path / "results", "t", stale)
    return tmp_path / "results"


def test_a_tables_current_lines_make_the_same_curves(table: Path) -> None:
    (curve,) = sweep.gather(sweep.table_runs("t", results=table), "c", "val/accuracy").curves
    assert [(point.x, round(point.mean, 9), point.n) for point in curve.points] == [(0.1, 0.6, 2), (0.5, 1.0, 2)]
    assert len(sweep.table_runs("t", only="ood/*", results=table)) == 2
    with pytest.raises(UserError, match="only=x: no such cell"):
        sweep.table_runs("t", only="x", results=table)
    with pytest.raises(UserError, match="budget=cpu: not in the manifest"):
        sweep.table_runs("t", budget="cpu", results=table)
    with pytest.raises(UserError, match="table=t: no current line"):
        sweep.table_runs("t", results=table / "elsewhere")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("plot_sweep", ROOT / "scripts" / "plot_sweep.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_plots_what_was_swept(folder: Folder, script: Any, capsys: pytest.CaptureFixture) -> None:
    for c in (0.1, 0.5):
        folder.add(0.5, c=c)
    folder.add(0.5, c=0.1, trainer__epochs=40)
    words = ["experiment=e", f"runs_dir={folder.runs_dir}"]
    assert script.main(words) == 0
    printed = capsys.readouterr().out
    assert "Left out 1 of 3 runs, which differ in trainer.epochs = 40" in printed
    assert {path.name for path in (folder.runs_dir / "e").glob("sweep*")} == {
        f"sweep_c.{s}" for s in ("png", "pdf", "txt")
    }
    assert "Left out 1 of 3 runs" in (folder.runs_dir / "e" / "sweep_c.txt").read_text()
    assert script.main([*words, "trainer.epochs=10", f"out={folder.runs_dir / 'o'}", "y=val/accuracy"]) == 0
    assert "Left out" not in capsys.readouterr().out
    assert (folder.runs_dir / "o" / "sweep_c.pdf").is_file()


def test_make_draws_both_sweeps_of_cifar_fs(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's own words, on made-up lines of some of its cells: a curve or a line for each space."""
    (words,) = re.findall(r"scripts/plot_sweep\.py (table=cifar_fs_sweep) \$", (ROOT / "Makefile").read_text())
    whole = sweep.manifests.load("cifar_fs_sweep")
    some = "c=0.01/hyperbolic,c=0.1/hyperbolic,dim=64/hyperbolic,dim=512/hyperbolic,dim=64/euclidean,dim=512/euclidean"
    manifest = replace(whole, cells=whole.select(some))
    monkeypatch.setattr(sweep.manifests, "load", lambda name: manifest)
    identity = results.identify(manifest, "paper")
    for cell in manifest.cells:
        known = identity(cell, 0)
        line = {"seed": 0, "runs": list(known.run_keys), "metrics": {"accuracy": 0.5, "ci95": 0.002}, "data": []}
        results.append_line(tmp_path, "cifar_fs_sweep", line | {"key": known.key})
    monkeypatch.setattr(sweep, "table_runs", functools.partial(sweep.table_runs, results=tmp_path))
    gathered = []
    monkeypatch.setattr(figure, "draw", lambda curves, stem, x, *_: gathered.append((stem.name, x, curves)) or [])
    assert script.main(words.split()) == 0
    points = {
        (stem, x): {curve.label: [point.x for point in curve.points] for curve in curves}
        for stem, x, curves in gathered
    }
    assert points == {
        ("sweep_c", "c"): {"hyperbolic": [0.01, 0.05, 0.1], "Euclidean": [None]},
        ("sweep_dim", "dim"): {"hyperbolic": [64, 512], "Euclidean": [64, 512]},
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["experiment=e", "table=t"], "give experiment=<name> or table=<name>"),
        (["x=c"], "give experiment=<name> or table=<name>"),
        (["experimnt"], "argument=experimnt: give key=value; did you mean experiment?"),
        (["table=no_table"], "table=no_table"),
    ],
)
def test_the_script_ends_in_one_line(words: list[str], line: str, script: Any, capsys: pytest.CaptureFixture) -> None:
    assert script.main(words) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_the_script_explains_itself(script: Any, capsys: pytest.CaptureFixture) -> None:
    assert script.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{option}=" in printed for option in script.OPTIONS)
