"""What one table is made of: `experiments/<name>.yaml` read into frozen dataclasses, every mistake named.

A table is rows × columns of cells. A cell is {runs: override lists, evaluator, metric} and the paper's number beside
it; without runs, its evaluator alone makes it, from its options and a seed. What a cell needs may be said once for the
table, or by its column, its row, or itself; later words win, in that order. CONTRIBUTING and the manifests under
`experiments/` show the form; `load` lists every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hypimg.errors import UserError, nearest
from hypimg.tables import entries
from hypimg.tables.entries import Evaluator, Measure, Overrides, Paper, parse_seeds
from hypimg.tables.fields import flag, keys, named, read, strings, text

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


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
    runs: tuple[Overrides, ...]  # one override list per run, without budget and seed; empty: an evaluator alone
    evaluator: Evaluator | None  # None: the metrics of the run's own summary
    not_run: str = ""  # why nobody ran it, or will

    @property
    def name(self) -> str:
        return f"{self.row.name}/{self.column.name}"

    @property
    def computed(self) -> bool:
        """Whether it has a value of its own: not quoted, and not a change between two rows."""
        return bool(self.runs) or self.evaluator is not None

    @property
    def runnable(self) -> bool:
        return self.computed and not self.not_run


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


_SHARED = {"overrides", "runs", "metric", "evaluator"}
_TABLE = {"title", "source", "heading", "metric", "common", "runs", "evaluator", "budgets", "seeds", "columns", "rows"}
_TABLE |= {"compare", "notes", "figures"}
_COLUMN = _SHARED | {"label", "quoted"}
_ROW = _SHARED | {"label", "group", "paper", "ours", "quoted", "source", "change", "not_run", "cells"}
_CELL = _SHARED | {"paper", "not_run"}


def names(folder: Path = EXPERIMENTS) -> list[str]:
    """The tables that have a manifest."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, folder: Path = EXPERIMENTS) -> Manifest:
    """The manifest `folder/<name>.yaml`, checked whole.

    The table: title, source (paper and table), metric, columns, rows; and where needed heading (over the rows' names),
    common (overrides of every run), runs, evaluator, budgets {paper: [], cpu: [...]}, seeds (a count or a list),
    compare [[a, b], …] (rows or columns), notes (differences to the paper), figures. Without columns and rows it is a
    manifest of figures alone, which need no scores.
    A column: a list of overrides, or {label, overrides, runs, metric, evaluator, quoted}.
    A row: {label, group, overrides, runs, metric, evaluator, paper, ours, quoted, source, change, not_run, cells}.
    A cell, under its row's `cells`: {overrides, runs, metric, evaluator, paper, not_run}.

    metric: a flat name, or {name, description, unit, scale, digits, higher_is_better, interval, comparable, spread,
    within, within_interval, paper_n} (see `Measure`); `{}` in a name is filled with the name said before it (table,
    column, row, cell).
    evaluator: a name, {name: …, option: value}, {option: value} for the evaluator said before, which keeps its other
    options, or null for the metrics of the run's own summary.  paper: a list in the order of the columns, or by column
    name; each a number, [number, ±], or null.  runs: a list of override lists, one per run that the cell needs; [] for
    cells that are an evaluator alone, whose option `seed` is the cell's seed.
    Raises UserError naming the place, the value and the nearest right names.
    """
    if name not in names(folder):
        raise UserError("table", name, f"no manifest {folder.name}/{name}.yaml; {nearest(name, names(folder))}")
    where = f"{folder.name}/{name}.yaml"
    return parse(name, read(folder / f"{name}.yaml", where), where)


def parse(name: str, raw: object, where: str = "manifest") -> Manifest:
    """A manifest from the plain values of its YAML; see `load`."""
    table = keys(raw, _TABLE, where, required=("title", "source"))
    figures = strings(table.get("figures"), f"{where} figures")
    drawn_alone = bool(figures) and not {"columns", "rows"} & table.keys()
    if not drawn_alone:
        keys(raw, _TABLE, where, required=("columns", "rows"))
    measure = entries.measure(Measure(), table.get("metric"), f"{where} metric")
    columns = {} if drawn_alone else named(table["columns"], f"{where} columns")
    rows = {} if drawn_alone else named(table["rows"], f"{where} rows")
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
    for spread in {cell.measure.spread for cell in cells} - {measure.spread}:
        raise UserError(f"{where} metric.spread", spread, "one table shows one kind of ±: say it for the whole table")
    return Manifest(
        name=name,
        title=text(table["title"], f"{where} title"),
        source=text(table["source"], f"{where} source"),
        heading=text(table.get("heading", ""), f"{where} heading"),
        measure=measure,
        budgets=entries.budgets(table.get("budgets"), f"{where} budgets"),
        seeds=parse_seeds(table.get("seeds", 5), f"{where} seeds"),
        columns=tuple(parsed_columns),
        rows=tuple(parsed_rows),
        cells=tuple(cells),
        compare=entries.pairs(table.get("compare"), list(rows), list(columns), f"{where} compare"),
        notes=strings(table.get("notes"), f"{where} notes"),
        figures=figures,
    )


def _row(key: str, node: dict[str, Any], rows: Mapping[str, Any], where: str) -> Row:
    change = None
    if "change" in node:
        ((a, b),) = entries.pairs([node["change"]], list(rows), [], f"{where}.change")
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
    papers = entries.papers(node.get("paper"), list(columns), f"{where}.paper")
    own = named(node.get("cells") or {}, f"{where}.cells", columns)
    cells = []
    for column in parsed:
        place = f"{where}.cells.{column.name}"
        words = keys(own.get(column.name) or {}, _CELL, place)
        layers = [(columns[column.name], f"column {column.name}"), (node, where), (words, place)]
        runs = entries.runs(table.get("runs", [[]]), "runs")
        overrides = strings(table.get("common"), "common")
        if overrides and not runs:
            raise UserError("common", " ".join(overrides), "has no meaning in a table without runs")
        evaluator = entries.evaluator(None, table.get("evaluator"), "evaluator")
        of_cell, not_run = measure, ""
        for layer, at in layers:
            said = strings(layer.get("overrides"), f"{at}.overrides")
            runs = entries.runs(layer["runs"], f"{at}.runs") if "runs" in layer else runs
            if said and not runs:
                raise UserError(f"{at}.overrides", " ".join(said), "have no meaning in cells without runs")
            overrides += said
            of_cell = entries.measure(of_cell, layer.get("metric"), f"{at}.metric")
            if "evaluator" in layer:
                evaluator = entries.evaluator(evaluator, layer["evaluator"], f"{at}.evaluator")
            not_run = text(layer.get("not_run", not_run), f"{at}.not_run")
        never_run = row.quoted or column.quoted or row.change is not None
        if of_cell.name is None and not never_run:
            raise UserError(
                f"{place}.metric", None, "no metric; name one for the table, the column, the row or the cell"
            )
        if evaluator is None and len(runs) != 1 and not never_run:
            many = "several runs" if runs else "no runs"
            raise UserError(f"{place}.evaluator", None, f"a cell of {many} needs an evaluator")
        if evaluator is not None and not runs and "seed" in dict(evaluator.options):
            raise UserError(f"{place}.evaluator.seed", None, "is the cell's seed; choose it by the table's `seeds`")
        cells.append(
            Cell(
                row=row,
                column=column,
                measure=of_cell,
                paper=entries.paper(words["paper"], f"{place}.paper") if "paper" in words else papers.get(column.name),
                runs=() if never_run else tuple(overrides + run for run in runs),
                evaluator=None if never_run else evaluator,
                not_run=not_run,
            )
        )
    return cells
