"""What is known of a table: the key of each cell, and the lines of `results/<table>/runs.jsonl`.

A line says what one (cell, seed) gave. A cell is done at a seed if a line carries its *current* key, which needs
neither the runs nor the data: a fresh clone knows what the committed results hold. Lines with another key are the
history of a table; they stay, and nothing renders them.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hypimg import config
from hypimg.errors import UserError, nearest
from hypimg.tables.manifest import Cell, Manifest, Overrides

RESULTS = Path(__file__).resolve().parents[2] / "results"

Line = dict[str, Any]
Composer = Callable[[Overrides, int], DictConfig]


@dataclass(frozen=True)
class Identity:
    """What a cell is at one seed: the keys of its runs, and a key over those and the evaluator (with its seed)."""

    key: str
    run_keys: tuple[str, ...]


def composer(settings: Iterable[str] = ()) -> Composer:
    """A function (overrides, seed) → config that composes each override list once.

    The config it returns is the same object for every seed: read what you need before you ask again.
    """
    composed: dict[Overrides, DictConfig] = {}
    settings = tuple(settings)

    def compose(overrides: Overrides, seed: int) -> DictConfig:
        if overrides not in composed:
            composed[overrides] = config.compose(list(later_wins((*overrides, *settings))))
        composed[overrides].seed = seed
        return composed[overrides]

    return compose


def identify(manifest: Manifest, budget: str) -> Callable[[Cell, int], Identity]:
    """A function (cell, seed) → Identity under a budget."""
    compose = composer()
    evaluators: dict[str, dict[str, Any]] = {}

    def identity(cell: Cell, seed: int) -> Identity:
        run_keys = tuple(
            config.run_key(compose(overrides, seed)) for overrides in run_overrides(manifest, cell, budget)
        )
        if cell.evaluator is None:
            return Identity(config.digest({"runs": run_keys, "evaluator": None}), run_keys)
        name = f"{cell.evaluator!r} {bool(cell.runs)}"
        if name not in evaluators:
            evaluators[name] = plain(compose_evaluator(cell, seed))
        evaluator = evaluators[name]
        fields: dict[str, Any] = {"runs": run_keys, "evaluator": config.canonical(evaluator)}
        if not cell.runs:
            alone = {**evaluator, "seed": seed}
            fields |= {"evaluator": config.canonical(alone), "result_version": config.RESULT_VERSION}
        return Identity(config.digest(fields), run_keys)

    return identity


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain values."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def run_overrides(manifest: Manifest, cell: Cell, budget: str) -> tuple[Overrides, ...]:
    """The override list of each run of a cell under a budget, without seed."""
    if budget not in manifest.budgets:
        raise UserError("budget", budget, f"not in the manifest {manifest.name}; {nearest(budget, manifest.budgets)}")
    return tuple(later_wins((*run, *manifest.budgets[budget])) for run in cell.runs)


def later_wins(overrides: Iterable[str]) -> Overrides:
    """Of two words for one key, the later one.

    >>> later_wins(["c=1", "dim=2", "c=0.1"])
    ('dim=2', 'c=0.1')
    """
    last: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        last.pop(key, None)
        last[key] = override
    return tuple(last.values())


def compose_evaluator(cell: Cell, seed: int) -> DictConfig:
    """The evaluator's config with the options that the manifest changes, and the cell's seed where it has no runs.

    An option that is a part of its own (dataset: cifar10) is given by its name in that config group.  Raises UserError
    for an unknown option, or part.
    """
    assert cell.evaluator is not None
    name = cell.evaluator.name
    cfg = config.compose_group("evaluator", name)
    OmegaConf.set_struct(cfg, True)
    for option, value in (*cell.evaluator.options, *([] if cell.runs else [("seed", seed)])):
        try:
            part = OmegaConf.select(cfg, option)
            named = isinstance(part, DictConfig) and "_target_" in part and isinstance(value, str)
            OmegaConf.update(cfg, option, config.compose_group(option, value) if named else value, merge=not named)
        except (OmegaConfBaseException, AttributeError) as error:
            known = [str(key) for key in cfg if not str(key).startswith("_")]
            raise UserError(f"evaluator {name}", option, f"unknown option; {nearest(option, known)}") from error
    return cfg


def read_lines(results: Path, table: str) -> list[Line]:
    """The lines of a table, oldest first. A torn last line (a killed process) is passed over, any other raises."""
    path = results / table / "runs.jsonl"
    if not path.exists():
        return []
    raw = path.read_bytes()
    rows = raw.split(b"\n")
    lines: list[Line] = []
    for number, row in enumerate(rows, start=1):
        try:
            line = json.loads(row) if row.strip() else None
            if line is not None:
                line["key"], line["seed"], line["metrics"]
                lines.append(line)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(rows):  # no newline after it: it was being written
                break
            remedy = "not a result line; restore the file (git checkout) or delete that line"
            raise UserError(str(path), f"line {number}", remedy) from error
    return lines


def append_line(results: Path, table: str, line: Line) -> None:
    """Append one line, on the disk when this returns; what a killed process left half written is cut off first."""
    path = results / table / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = {name: value if math.isfinite(value) else None for name, value in line["metrics"].items()}
    text = json.dumps({**line, "metrics": metrics}, ensure_ascii=False, allow_nan=False)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two runners may fill one table
        _mend_tail(file)
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _mend_tail(file: Any) -> None:
    """Bring the end of the file to a newline: complete a whole line, cut off a torn one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if tail:
        try:
            json.loads(tail)
            file.write(b"\n")
        except ValueError:
            file.truncate(size - len(tail))
    file.seek(0, os.SEEK_END)


def by_key(lines: Iterable[Line]) -> dict[str, Line]:
    """The newest line of each key. Cells that ask the same of the same runs share it."""
    return {line["key"]: line for line in lines}


def command(manifest: Manifest, budget: str = "paper", only: str = "") -> str:
    """The command that fills cells of a table.

    >>> from types import SimpleNamespace
    >>> command(SimpleNamespace(name="hie_table3"), "cpu", "hyperbolic/*")
    "python scripts/reproduce.py hie_table3 budget=cpu 'only=hyperbolic/*'"
    """
    words = ["python scripts/reproduce.py", manifest.name]
    words += [] if budget == "paper" else [f"budget={budget}"]
    words += [f"'only={only}'"] if only else []
    return " ".join(words)
