"""The numbers of a table, before they take a form: of each cell the lines that count, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hypimg.tables.manifest import Cell, Manifest
from hypimg.tables.results import RESULTS, Line, by_key, identify, read_lines
from hypimg.tables.statistics import Estimate, Paired, Verdict, over_seeds, paired, verdict


@dataclass(frozen=True)
class Shown:
    """A cell with what its lines say, in the paper's unit."""

    cell: Cell
    values: dict[int, float]  # by seed; without the seeds at which the metric is undefined
    lines: tuple[Line, ...]
    estimate: Estimate | None  # None: not run, or undefined at every seed
    verdict: Verdict | None  # None: nothing of the paper's to compare with, or not its schedule
    within: float | None = None  # half the interval of one seed's value, mean over the seeds

    @property
    def official(self) -> bool:
        """Whether every run of it saw the data as its authors publish it."""
        return all(line.get("official", False) for line in self.lines)


@dataclass(frozen=True)
class Comparison:
    """Two rows (or columns) compared by seed, in each column (or row)."""

    first: str
    second: str
    of_rows: bool
    results: tuple[tuple[str, Paired | None, Cell], ...]  # (column or row, differences, a cell for its digits)


@dataclass(frozen=True)
class Table:
    """Everything that a rendered table says, before it takes a form."""

    manifest: Manifest
    budget: str
    cells: dict[str, Shown]
    comparisons: tuple[Comparison, ...]

    def shown(self, row: str, column: str) -> Shown:
        return self.cells[f"{row}/{column}"]


def collect(manifest: Manifest, results: Path = RESULTS, budget: str = "paper") -> Table:
    """The table's numbers: of each cell the lines that carry its current key, at any seed that the file knows."""
    lines = read_lines(results, manifest.name)
    known, identity = by_key(lines), identify(manifest, budget)
    judged = manifest.as_paper(budget)
    seeds = sorted({*manifest.seeds, *(line["seed"] for line in lines)})
    cells: dict[str, Shown] = {}
    for cell in manifest.cells:
        found = {}
        if cell.runnable and known:
            keys = {seed: identity(cell, seed).key for seed in seeds}
            found = {seed: known[key] for seed, key in keys.items() if key in known}
        values = {seed: _value(cell, line) for seed, line in found.items()}
        cells[cell.name] = _shown(cell, {s: v for s, v in values.items() if v is not None}, found.values(), judged)
    for cell in manifest.cells:
        if cell.row.change:
            a, b = (cells[f"{name}/{cell.column.name}"] for name in cell.row.change)
            changes = {
                s: 100 * (a.values[s] / b.values[s] - 1) for s in a.values.keys() & b.values.keys() if b.values[s]
            }
            cells[cell.name] = _shown(cell, dict(sorted(changes.items())), (*a.lines, *b.lines), judged)
    return Table(manifest, budget, cells, tuple(_compare(manifest, cells, *pair) for pair in manifest.compare))


def _value(cell: Cell, line: Line) -> float | None:
    value = line["metrics"].get(cell.measure.name)
    return None if value is None else value * cell.measure.scale


def _shown(cell: Cell, values: dict[int, float], lines: Iterable[Line], judged: bool) -> Shown:
    numbers = list(values.values())
    against = None
    if judged and numbers and cell.paper is not None and cell.measure.comparable:
        against = verdict(numbers, cell.paper.value, of=cell.measure.paper_n)
    found = tuple(lines)
    widths = [line["metrics"][cell.measure.within] for line in found if cell.measure.within in line["metrics"]]
    within = cell.measure.scale * sum(widths) / len(widths) if widths else None
    return Shown(cell, values, found, over_seeds(numbers) if numbers else None, against, within)


def _compare(manifest: Manifest, cells: dict[str, Shown], first: str, second: str) -> Comparison:
    of_rows = first in {row.name for row in manifest.rows}
    results = []
    for other in manifest.columns if of_rows else manifest.rows:
        a, b = (cells[f"{name}/{other.name}" if of_rows else f"{other.name}/{name}"] for name in (first, second))
        if a.cell.computed and b.cell.computed:
            results.append((other.name, paired(a.values, b.values), a.cell))
    return Comparison(first, second, of_rows, tuple(results))
