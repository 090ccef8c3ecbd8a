"""A suite without training: configs of five words, runs that finish at once, evaluations that are sums."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import hypimg.launch
import hypimg.run
from hypimg import config
from hypimg.errors import UserError, nearest
from hypimg.tables.manifest import Manifest, parse

KEYS = ("experiment", "space", "c", "dim", "epochs", "seed")
MACHINE = {"device": "auto", "data_dir": "data", "store_dir": "store", "threads": None, "download": False}


@dataclass
class Lab:
    """What the fake suite did, and where it fails."""

    root: Path
    trained: list[str] = field(default_factory=list)  # run keys, in order
    words: list[list[str]] = field(default_factory=list)  # override lists, as launched
    launchers: list[list[str]] = field(default_factory=list)
    evaluated: list[tuple[str, ...]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)  # evaluators without runs, in order
    lacks: set[str] = field(default_factory=set)  # data sets that are missing
    composed: int = 0
    fails: dict[str, int] = field(default_factory=dict)  # word of a run → its exit code
    raises: dict[str, BaseException] = field(default_factory=dict)
    undefined: set[str] = field(default_factory=set)
    official: bool = True

    @property
    def results(self) -> Path:
        return self.root / "results"

    def compose(self, overrides: list[str]) -> Any:
        self.composed += 1
        cfg = {"name": "fake", "experiment": "e", "space": "poincare", "c": 1.0, "dim": 2, "epochs": 10, "seed": 0}
        cfg |= MACHINE | {"runs_dir": str(self.root / "runs")}
        for word in overrides:
            key, _, value = word.partition("=")
            if key not in cfg:
                raise UserError(key, None, f"unknown config key; {nearest(key, cfg)}")
            cfg[key] = value
        for number in ("c", "dim", "epochs", "seed"):
            cfg[number] = float(cfg[number]) if number == "c" else int(cfg[number])
        return OmegaConf.create(cfg)

    def compose_group(self, group: str, name: str) -> Any:
        known: dict[str, dict[str, Any]] = {
            "ood": {"_target_": "hypimg.Ood", "outliers": "omniglot"},
            "fusion": {"_target_": "hypimg.Fusion"},
            "delta": {"_target_": "hypimg.Delta", "encoder": "vgg", "dataset": "cifar", "samples": 1000, "seed": 0},
        }
        if name not in known:
            raise UserError(group, name, nearest(name, known))
        return OmegaConf.create(known[name])

    def run_key(self, cfg: Any) -> str:
        return config.digest({key: cfg[key] for key in KEYS})

    def table(self, **changes: Any) -> Manifest:
        return make_table(**changes)

    def finish(self, directory: Path, cfg: Any) -> None:
        finish(directory, cfg, self.official)

    def launch(self, jobs: list[list[str]], launcher: list[str]) -> list[int]:
        self.launchers.append(list(launcher))
        return [self._train(words) for words in jobs]

    def _train(self, words: list[str]) -> int:
        self.words.append(words)
        for word, error in self.raises.items():
            if word in words:
                raise error
        cfg = self.compose(words)
        directory = hypimg.run.run_directory(cfg)
        directory.mkdir(parents=True, exist_ok=True)
        self.trained.append(directory.name)
        for word, code in self.fails.items():
            if word in words:
                return code
        self.finish(directory, cfg)
        return 0

    def evaluate(self, run_dirs: list[Path], evaluator: Any, **machine: Any) -> Any:
        self.evaluated.append(tuple(directory.name for directory in run_dirs))
        summaries = [json.loads((directory / "summary.json").read_text()) for directory in run_dirs]
        value = sum(summary["metrics"]["val/accuracy"] for summary in summaries) / len(summaries)
        metrics = {"ks/dist0": value, "ks/p_max": value / 2, "accuracy": value}
        scores = run_dirs[0] / "scores.npz"
        scores.write_bytes(b"")
        seen = {"own": summaries[0]["data"], "omniglot": {**data("omniglot"), "official": self.official}}
        return hypimg.run.Evaluation("key", {k: v for k, v in metrics.items() if k not in self.undefined}, scores, seen)

    def evaluate_alone(self, evaluator: Any, machine: Any, folder: Path, fresh: bool = False) -> Any:
        said = OmegaConf.to_container(evaluator)
        self.asked.append({**said, "fresh": fresh, "folder": folder, "data_dir": machine.data_dir})
        if evaluator.dataset in self.lacks:
            raise UserError("dataset", evaluator.dataset, "not found under data; download it")
        metrics = {"delta_rel": 0.01 * len(evaluator.encoder) + 0.001 * evaluator.seed, "diameter": 3.0}
        record = {"result_version": 1, "commit": "abc1234", "device": "CPU (test)", "threads": 1, "seconds": 2.5}
        scores = folder / "alone.npz"
        return hypimg.run.Evaluation("key", metrics, scores, {evaluator.dataset: data(evaluator.dataset)}, record)


def data(name: str) -> dict[str, Any]:
    return {"name": name, "form": "npz", "digest": f"{name}-digest", "official": True}


def finish(directory: Path, cfg: Any, official: bool = True) -> None:
    """Leave what a finished run leaves. Its accuracy is a function of its config, its time of its size."""
    summary = {
        "name": cfg.name,
        "key": directory.name,
        "seed": cfg.seed,
        "result_version": 1,
        "metrics": {"val/accuracy": 0.5 + 0.01 * cfg.dim + 0.001 * cfg.seed - 0.1 * (cfg.space == "euclidean")},
        "epochs": cfg.epochs,
        "seconds": 10.0 * cfg.dim,
        "data": {**data("mnist"), "official": official},
        "device": "CPU (test)",
        "threads": 1,
        "commit": "abc1234",
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(summary))


def make_table(**changes: Any) -> Manifest:
    """Two sizes × (hyperbolic, Euclidean, a control from the hyperbolic runs), two seeds: 8 runs, 12 (cell, seed)."""
    raw: dict[str, Any] = {
        "title": "KS distance",
        "source": "a paper, Table 3",
        "heading": "score",
        "metric": {"description": "KS statistic", "higher_is_better": True},
        "evaluator": "ood",
        "seeds": 2,
        "budgets": {"paper": [], "cpu": ["epochs=1"]},
        "columns": {"n=2": ["dim=2"], "n=8": ["dim=8"]},
        "rows": {
            "hyp": {"metric": "ks/dist0", "paper": [0.52, 0.9]},
            "euc": {"metric": "ks/p_max", "overrides": ["space=euclidean"], "paper": [0.2, 0.25]},
            "control": {"metric": "ks/p_max", "ours": True},
        },
        "compare": [["hyp", "euc"]],
    }
    return parse("t", raw | changes)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(tmp_path)
    monkeypatch.setattr(config, "compose", lab.compose)
    monkeypatch.setattr(config, "compose_group", lab.compose_group)
    monkeypatch.setattr(config, "run_key", lab.run_key)
    monkeypatch.setattr(hypimg.launch, "launch", lab.launch)
    monkeypatch.setattr(hypimg.run, "evaluate", lab.evaluate)
    monkeypatch.setattr(hypimg.run, "evaluate_alone", lab.evaluate_alone)
    return lab
