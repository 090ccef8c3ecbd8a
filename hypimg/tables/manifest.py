"""What one table is made of: `experiments/<name>.yaml` read into frozen dataclasses, every mistake named.

A table is rows × columns of cells. A cell is {runs: one or more override lists, evaluator, metric} and the paper's
number beside it. What a cell needs may be said once for the table, or by its column, its row, or itself; later words
win, in that order. CONTRIBUTING and the manifests under `experiments/` show the form; `load` lists every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hypimg.errors import UserError, nearest
from hypimg.tables.fields import flag, keys, named, number, read, strings, text

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """What the numbers of a cell are: the metric's flat name, and how it is shown."""

    name: str | None = None
    description: str = ""
    unit: str = ""
    scale: float = 1.0  # ours × scale is in the paper's unit: 100 where metrics are shares and the paper prints percent
    digits: int = 3
    higher_is_better: bool | None = None
    interval: str = ""  # what the paper's ± means; empty: the paper prints none
    comparable: bool = True  # false: the paper's number stands beside ours undiscussed (times of another machine)


@dataclass(frozen=True)
class Paper:
    """The number that a paper prints, and what stands after its ±."""

    value: float
    half_width: float | None = None


@dataclass(frozen=True)
class Evaluator:
    """A member of the config group `evaluator`, with the options that this table changes."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Column:
    name: str
    label: str
    quoted: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    label: str
    group: str = ""
    ours: bool = False  # a control of ours, not in the paper
    quoted: bool = False  # from the literature through the paper, never run
    source: str = ""
    change: tuple[str, str] | None = None  # 100 (a / b − 1) of two other rows, by seed


@dataclass(frozen=True)
class Cell:
    row: Row
    column: Column
    measure: Measure
    paper: Paper | None
    runs: tuple[Overrides, ...]  # one override list per run, without budget and seed; empty: nothing to run
    evaluator: Evaluator | None  # None: the metrics of the run's own summary
    not_run: str = ""  # why nobody ran it, or will

    @property
    def name(self) -> str:
        return f"{self.row.name}/{self.column.name}"

    @property
    def runnable(self) -> bool:
        return bool(self.runs) and not self.not_run


@dataclass(frozen=True)
class Manifest:
    name: str
    title: str
    source: str
    heading: str  # over the names of the rows
    measure: Measure
    budgets: Mapping[str, Overrides]
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]  # row by row
    compare: tuple[tuple[str, str], ...]  # pairs of rows, or of columns, compared by seed
    notes: tuple[str, ...]
    figures: tuple[str, ...]

    def cell(self, row: str, column: str) -> Cell:
        return next(cell for cell in self.cells if (cell.row.name, cell.column.name) == (row, column))

    def as_paper(self, budget: str) -> bool:
        """Whether a budget trains as the paper did, so that its numbers bear a verdict on the paper's."""
        return self.budgets[budget] == self.budgets["paper"]

    def select(self, only: str) -> tuple[Cell, ...]:
        """The cells that `row/column` names, `*` and `?` standing for anything; several patterns by commas; "": all."""
        chosen: set[str] = set()
        for pattern in filter(None, only.split(",")):
            full = pattern if "/" in pattern else f"{pattern}/*"
            hits = {cell.name for cell in self.cells if fnmatchcase(cell.name, full)}
            if not hits:
                raise UserError("only", pattern, f"no such cell; {nearest(full, (cell.name for cell in self.cells))}")
            chosen |= hits
        return tuple(cell for cell in self.cells if not chosen or cell.name in chosen)


_MEASURE = {field.name for field in fields(Measure)}
_SHARED = {"overrides", "metric", "evaluator"}
_TABLE = {"title", "source", "heading", "metric", "common", "evaluator", "budgets", "seeds", "columns", "rows"}
_TABLE |= {"compare", "notes", "figures"}
_COLUMN = _SHARED | {"label", "quoted"}
_ROW = _SHARED | {"label", "group", "runs", "paper", "ours", "quoted", "source", "change", "not_run", "cells"}
_CELL = _SHARED | {"runs", "paper", "not_run"}


def names(folder: Path = EXPERIMENTS) -> list[str]:
    """The tables that have a manifest."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, folder: Path = EXPERIMENTS) -> Manifest:
    """The manifest `folder/<name>.yaml`, checked whole.

    The table: title, source (paper and table), metric, columns, rows; and where needed heading (over the rows' names),
    common (overrides of every run), evaluator, budgets {paper: [], cpu: [...]}, seeds (a count or a list), compare
    [[a, b], …] (rows or columns), notes (differences to the paper), figures.
    A column: a list of overrides, or {label, overrides, metric, evaluator, quoted}.
    A row: {label, group, overrides, runs, metric, evaluator, paper, ours, quoted, source, change, not_run, cells}.
    A cell, under its row's `cells`: {overrides, runs, metric, evaluator, paper, not_run}.

    metric: a flat name, or {name, description, unit, scale, digits, higher_is_better, interval, comparable};
    `{}` in a name is
    filled with the name said before it (table, column, row, cell).  evaluator: a name, {name: …, option: value}, or
    null for the metrics of the run's own summary.  paper: a list in the order of the columns, or by column name; each
    a number, [number, ±], or null.  runs: a list of override lists, one per run that the cell needs.
    Raises UserError naming the place, the value and the nearest right names.
    """
    if name not in names(folder):
        raise UserError("table", name, f"no manifest {folder.name}/{name}.yaml; {nearest(name, names(folder))}")
    where = f"{folder.name}/{name}.yaml"
    return parse(name, read(folder / f"{name}.yaml", where), where)


def parse(name: str, raw: object, where: str = "manifest") -> Manifest:
    """A manifest from the plain values of its YAML; see `load`."""
    table = keys(raw, _TABLE, where, required=("title", "source", "columns", "rows"))
    measure = _measure(Measure(), table.get("metric"), f"{where} metric")
    columns = named(table["columns"], f"{where} columns")
    rows = named(table["rows"], f"{where} rows")
    parsed_columns, parsed_rows, cells = [], [], []
    for key, node in columns.items():
        node = {"overrides": node} if isinstance(node, list | str) or node is None else node
        columns[key] = node = keys(node, _COLUMN, f"{where} columns.{key}")
        parsed_columns.append(Column(key, str(node.get("label", key)), flag(node, "quoted", f"{where} columns.{key}")))
    for key, node in rows.items():
        node = keys(node, _ROW, f"{where} rows.{key}")
        row = _row(key, node, rows, f"{where} rows.{key}")
        parsed_rows.append(row)
        cells += _cells(table, columns, parsed_columns, row, node, measure, f"{where} rows.{key}")
    return Manifest(
        name=name,
        title=text(table["title"], f"{where} title"),
        source=text(table["source"], f"{where} source"),
        heading=text(table.get("heading", ""), f"{where} heading"),
        measure=measure,
        budgets=_budgets(table.get("budgets"), f"{where} budgets"),
        seeds=parse_seeds(table.get("seeds", 5), f"{where} seeds"),
        columns=tuple(parsed_columns),
        rows=tuple(parsed_rows),
        cells=tuple(cells),
        compare=_pairs(table.get("compare"), list(rows), list(columns), f"{where} compare"),
        notes=strings(table.get("notes"), f"{where} notes"),
        figures=strings(table.get("figures"), f"{where} figures"),
    )


def parse_seeds(value: object, where: str = "seeds") -> tuple[int, ...]:
    """Seeds 0 … n − 1 from a count n, or the seeds of a list."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    if isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value):
        return tuple(dict.fromkeys(value))
    raise UserError(where, value, "must be a count ≥ 1 or a list of seeds ≥ 0")


def _row(key: str, node: dict[str, Any], rows: Mapping[str, Any], where: str) -> Row:
    change = None
    if "change" in node:
        ((a, b),) = _pairs([node["change"]], list(rows), [], f"{where}.change")
        change = (a, b)
    row = Row(
        name=key,
        label=text(node.get("label", key), f"{where}.label"),
        group=text(node.get("group", ""), f"{where}.group"),
        ours=flag(node, "ours", where),
        quoted=flag(node, "quoted", where),
        source=text(node.get("source", ""), f"{where}.source"),
        change=change,
    )
    if row.quoted and not row.source:
        raise UserError(f"{where}.source", None, "a quoted row names where its numbers come from")
    if row.quoted or row.change:
        for idle in ("overrides", "runs", "evaluator"):
            if idle in node:
                raise UserError(f"{where}.{idle}", node[idle], "has no meaning in a row that is never run")
    return row


def _cells(
    table: dict[str, Any],
    columns: Mapping[str, dict[str, Any]],
    parsed: list[Column],
    row: Row,
    node: dict[str, Any],
    measure: Measure,
    where: str,
) -> list[Cell]:
    """The cells of one row: the table's words, then the column's, the row's, the cell's."""
    papers = _papers(node.get("paper"), list(columns), f"{where}.paper")
    own = named(node.get("cells") or {}, f"{where}.cells", columns)
    cells = []
    for column in parsed:
        place = f"{where}.cells.{column.name}"
        words = keys(own.get(column.name) or {}, _CELL, place)
        layers = [(columns[column.name], f"column {column.name}"), (node, where), (words, place)]
        overrides = strings(table.get("common"), "common")
        evaluator = table.get("evaluator")
        runs: list[Overrides] = [()]
        of_cell, not_run = measure, ""
        for layer, at in layers:
            overrides += strings(layer.get("overrides"), f"{at}.overrides")
            of_cell = _measure(of_cell, layer.get("metric"), f"{at}.metric")
            evaluator = layer.get("evaluator", evaluator)
            runs = _runs(layer["runs"], f"{at}.runs") if "runs" in layer else runs
            not_run = text(layer.get("not_run", not_run), f"{at}.not_run")
        never_run = row.quoted or column.quoted or row.change is not None
        if of_cell.name is None and not never_run:
            raise UserError(
                f"{place}.metric", None, "no metric; name one for the table, the column, the row or the cell"
            )
        if evaluator is None and len(runs) > 1 and not never_run:
            raise UserError(f"{place}.evaluator", None, "a cell of several runs needs an evaluator")
        cells.append(
            Cell(
                row=row,
                column=column,
                measure=of_cell,
                paper=_paper(words["paper"], f"{place}.paper") if "paper" in words else papers.get(column.name),
                runs=() if never_run else tuple(overrides + run for run in runs),
                evaluator=None if never_run else _evaluator(evaluator, f"{place}.evaluator"),
                not_run=not_run,
            )
        )
    return cells


def _measure(base: Measure, node: object, where: str) -> Measure:
    """`base` with what `node` says; `{}` in a name stands for the name so far."""
    if node is None:
        return base
    words = keys({"name": node} if isinstance(node, str) else node, _MEASURE, where)
    if "name" in words:
        name = text(words["name"], f"{where}.name")
        if "{}" in name and base.name is None:
            raise UserError(f"{where}.name", name, "nothing to fill {} with; name a metric in the table or the column")
        words["name"] = name.replace("{}", base.name or "")
    for key in ("description", "unit", "interval"):
        if key in words:
            words[key] = text(words[key], f"{where}.{key}")
    if "scale" in words:
        words["scale"] = number(words["scale"], f"{where}.scale")
    if "digits" in words and (type(words["digits"]) is not int or not 0 <= words["digits"] <= 10):
        raise UserError(f"{where}.digits", words["digits"], "must be a whole number from 0 to 10")
    for key in ("higher_is_better", "comparable"):
        if words.get(key) is not None:
            flag(words, key, where)
    return replace(base, **words)


def _papers(node: object, columns: list[str], where: str) -> dict[str, Paper | None]:
    """The paper's numbers of one row, by column."""
    if node is None:
        return {}
    if isinstance(node, list):
        if len(node) != len(columns):
            raise UserError(where, node, f"needs one value per column ({len(columns)}): {', '.join(columns)}")
        node = dict(zip(columns, node, strict=True))
    values = named(node, where, columns)
    return {column: _paper(value, f"{where}.{column}") for column, value in values.items()}


def _paper(node: object, where: str) -> Paper | None:
    if node is None:
        return None
    value, half_width = node if isinstance(node, list) and len(node) == 2 else (node, None)
    if isinstance(node, list) and half_width is None:
        raise UserError(where, node, "must be a number, [number, ±] or null")
    return Paper(number(value, where), None if half_width is None else number(half_width, where))


def _evaluator(node: object, where: str) -> Evaluator | None:
    if node is None or isinstance(node, str):
        return Evaluator(node) if node else None
    words = keys(node, None, where, required=("name",))
    return Evaluator(text(words.pop("name"), f"{where}.name"), tuple(sorted(words.items())))


def _runs(node: object, where: str) -> list[Overrides]:
    if not isinstance(node, list) or not node or not all(isinstance(run, list) for run in node):
        raise UserError(where, node, "must be a list of override lists, one per run")
    return [strings(run, where) for run in node]


def _budgets(node: object, where: str) -> dict[str, Overrides]:
    words = named({"paper": []} if node is None else node, where)
    if "paper" not in words:
        raise UserError(where, ", ".join(words), "needs a budget `paper`: the paper's schedule")
    return {name: strings(overrides, f"{where}.{name}") for name, overrides in words.items()}


def _pairs(node: object, rows: list[str], columns: list[str], where: str) -> tuple[tuple[str, str], ...]:
    """Pairs of names that are both rows or both columns."""
    pairs = []
    for pair in [] if node is None else node if isinstance(node, list) else [node]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(where, pair, "must be a pair of names: [a, b]")
        a, b = (str(item) for item in pair)
        for name in (a, b):
            if name not in rows and name not in columns:
                raise UserError(where, name, f"no such row or column; {nearest(name, [*rows, *columns])}")
        if a == b or ((a in rows) != (b in rows) and (a in columns) != (b in columns)):
            raise UserError(where, pair, "must be two different rows or two different columns")
        pairs.append((a, b))
    return tuple(pairs)
