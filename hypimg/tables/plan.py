"""The plan of a table: of each (cell, seed) how far it is, what is left to train or evaluate, what that will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from hypimg import config
from hypimg.errors import UserError
from hypimg.tables.manifest import Cell, Manifest, Overrides
from hypimg.tables.results import (
    RESULTS,
    Line,
    by_key,
    composer,
    identify,
    later_wins,
    read_lines,
    run_overrides,
)

State = Literal["done", "run-finished", "unfinished", "absent"]


@dataclass(frozen=True)
class Planned:
    """One (cell, seed): done (a line has its key), run-finished (not evaluated), unfinished (a run began), absent.

    A cell without runs, an evaluator alone, is done or run-finished.
    """

    cell: Cell
    seed: int
    key: str
    run_keys: tuple[str, ...]
    overrides: tuple[Overrides, ...]  # of each run, with its seed
    directories: tuple[Path, ...]
    evaluations: Path  # the folder that keeps its evaluation
    finished: tuple[bool, ...]  # of each run
    state: State
    seconds: float | None  # what one of its runs, or its evaluator alone, is expected to take; None: nothing to go by

    @property
    def to_evaluate(self) -> bool:
        """Whether all that it lacks is its evaluator, which needs no run."""
        return not self.cell.runs and self.state != "done"


def plan(
    manifest: Manifest,
    budget: str = "paper",
    seeds: Sequence[int] | None = None,
    only: str = "",
    *,
    settings: Sequence[str] = (),
    fresh: bool = False,
    results: Path = RESULTS,
) -> list[Planned]:
    """How far each (cell, seed) of a table is, seed by seed. Reads; never trains.

    settings: overrides that change no result (data_dir, device, threads, …).  fresh: nothing counts as done.
    Raises UserError for an unknown budget or cell, and for a setting that would change a result.
    """
    from hypimg.run import run_directory
    from hypimg.rundir import read_summary

    if seed_words := [setting for setting in settings if setting.startswith("seed=")]:
        raise UserError("setting", seed_words[0], "the seeds of a table are chosen by seeds=")
    identity, compose = identify(manifest, budget), composer(settings)
    lines = read_lines(results, manifest.name)
    known, seconds = by_key(lines), expected_seconds([line for line in lines if line.get("budget") == budget])
    cells = manifest.select(only)
    if any(cell.runnable and not cell.runs for cell in cells):
        machine = compose((), 0)
        _refuse_change(config.run_key(machine) != config.run_key(composer()((), 0)), settings)
        alone = Path(machine.runs_dir)
    planned = []
    for seed in seeds or manifest.seeds:
        for cell in cells:
            if not cell.runnable:
                continue
            cell_id = identity(cell, seed)
            runs = run_overrides(manifest, cell, budget)
            directories = []
            for overrides, run_key in zip(runs, cell_id.run_keys, strict=True):
                cfg = compose(overrides, seed)
                _refuse_change(config.run_key(cfg) != run_key, settings)
                directories.append(run_directory(cfg))
            finished = tuple(not fresh and read_summary(directory) is not None for directory in directories)
            planned.append(
                Planned(
                    cell=cell,
                    seed=seed,
                    key=cell_id.key,
                    run_keys=cell_id.run_keys,
                    overrides=tuple(later_wins((*run, f"seed={seed}")) for run in runs),
                    directories=tuple(directories),
                    evaluations=(directories[0] if directories else alone) / "evaluations",
                    finished=finished,
                    state=_state(not fresh and cell_id.key in known, finished, directories),
                    seconds=seconds(cell),
                )
            )
    return planned


def _state(done: bool, finished: Sequence[bool], directories: Sequence[Path]) -> State:
    if done:
        return "done"
    if all(finished):
        return "run-finished"
    return "unfinished" if any(directory.exists() for directory in directories) else "absent"


def _refuse_change(changes: bool, settings: Sequence[str]) -> None:
    if changes:
        remedy = "would change results; put it into the manifest (a budget is a list of such overrides)"
        raise UserError("setting", " ".join(settings), remedy)


def expected_seconds(lines: Sequence[Line]) -> Callable[[Cell], float | None]:
    """What one run of a cell takes: the median of earlier lines of the cell, else its row, its column, the table.

    Of a cell without runs: what its evaluator takes, by earlier lines without runs.
    """

    def seconds(cell: Cell) -> float | None:
        place = {"row": cell.row.name, "column": cell.column.name}
        of_kind = [line for line in lines if bool(line["runs"]) == bool(cell.runs)]
        for names in (("row", "column"), ("row",), ("column",), ()):
            alike = [line for line in of_kind if all(line.get(name) == place[name] for name in names)]
            took = [line["seconds"] / max(1, len(line["runs"])) for line in alike if line.get("seconds")]
            if took:
                return median(took)
        return None

    return seconds


def missing_runs(planned: Sequence[Planned]) -> dict[str, Planned]:
    """The runs to train, by key, each with the first (cell, seed) that asks for it."""
    missing: dict[str, Planned] = {}
    for item in planned:
        if item.state in ("unfinished", "absent"):
            for key, finished in zip(item.run_keys, item.finished, strict=True):
                if not finished:
                    missing.setdefault(key, item)
    return missing


def describe(manifest: Manifest, planned: Sequence[Planned], budget: str, jobs: int = 1) -> str:
    """The plan as text: per cell how many seeds are done, what is left, what it is expected to take."""
    seeds = list(dict.fromkeys(item.seed for item in planned))
    done = [item for item in planned if item.state == "done"]
    counts = {cell.name: [i.state == "done" for i in planned if i.cell == cell] for cell in manifest.cells}
    grid = [["", *(column.name for column in manifest.columns)]]
    for row in manifest.rows:
        states = [counts[f"{row.name}/{column.name}"] for column in manifest.columns]
        if any(states):
            grid.append([row.name, *(f"{sum(s)}/{len(s)}" if s else "-" for s in states)])
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in grid]
    left = [text for text in (_left_to_train(planned, jobs), _left_to_evaluate(planned)) if text]
    if not manifest.cells:
        return f"{manifest.name}: {manifest.title} ({manifest.source}); figures alone, nothing to run"
    return "\n".join(
        [
            f"{manifest.name}: {manifest.title} ({manifest.source})",
            f"budget {budget}, seeds {' '.join(map(str, seeds))}; done of each cell:",
            *shown,
            f"{len(done)} of {len(planned)} done; {'; '.join(left)}",
        ]
    )


def _left_to_train(planned: Sequence[Planned], jobs: int) -> str:
    """The runs that are missing, and the finished ones that wait for their evaluator."""
    if not any(item.cell.runs for item in planned):
        return ""
    missing = missing_runs(planned)
    todo = f"{len(missing) or 'nothing'} {'run ' * (len(missing) == 1)}{'runs ' * (len(missing) > 1)}to train"
    begun = len({key for item in planned if item.state == "unfinished" for key in item.run_keys} & missing.keys())
    if begun:
        todo += f" ({begun} begun)"
    took = [item.seconds for item in missing.values()]
    if missing and None not in took:
        todo += f", about {duration(sum(s for s in took if s) / jobs)} by what earlier runs took"
    elif missing:
        todo += ", time unknown: none of this table has run yet"
    evaluate = sum(item.state == "run-finished" and bool(item.cell.runs) for item in planned)
    if evaluate:
        todo += f"; {evaluate} finished, to be evaluated"
    return todo


def _left_to_evaluate(planned: Sequence[Planned]) -> str:
    """The cells without runs that are open; cells that share an evaluation count it once."""
    if all(item.cell.runs for item in planned):
        return ""
    missing = {item.key: item for item in planned if item.to_evaluate}
    if not missing:
        return "nothing to evaluate"
    cells = len({item.cell.name for item in planned if item.to_evaluate})
    todo = f"{cells} cell{'s' * (cells > 1)} to evaluate"
    if len(missing) != cells:
        todo += f" ({len(missing)} evaluation{'s' * (len(missing) > 1)})"
    took = [item.seconds for item in missing.values() if item.seconds is not None]
    if len(took) < len(missing):
        return f"{todo}, time unknown: none of this table has been evaluated yet"
    return f"{todo}, about {duration(sum(took))} by what earlier ones took"


def duration(seconds: float) -> str:
    """A time as one reads it.

    >>> duration(0.2), duration(48), duration(204), duration(9000)
    ('under 1 s', '48 s', '3.4 min', '2.5 h')
    """
    if seconds < 0.95:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
