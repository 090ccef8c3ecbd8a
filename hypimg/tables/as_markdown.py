"""A table as Markdown: for results/, the README and a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypimg.tables.collect import Comparison, Shown, Table
from hypimg.tables.manifest import Cell
from hypimg.tables.statistics import Paired
from hypimg.tables.wording import (
    caption,
    column_labels,
    marked_ours,
    never_run,
    not_run,
    number,
    ours,
    papers,
    row_label,
    unofficial,
    usual_n,
)


def markdown(table: Table) -> str:
    """The table, then verdicts, comparisons by seed, open cells, notes: what a reader wants, in that order."""
    manifest = table.manifest
    head = [f"**{escape_markdown(manifest.title)}** ({escape_markdown(manifest.source)})"]
    blocks = [*head, _main(table), " ".join(map(escape_markdown, caption(table)))]
    if mark := unofficial(table):
        blocks.append(escape_markdown(mark))
    blocks += _verdicts(table) + _comparisons(table)
    if open_cells := not_run(table):
        blocks.append("Not run yet; to run:\n\n" + "\n".join(f"    {line}" for line in open_cells))
    if manifest.notes:
        blocks.append("\n".join(f"- {escape_markdown(note)}" for note in manifest.notes))
    return "\n\n".join(blocks) + "\n"


def _main(table: Table) -> str:
    manifest, usual = table.manifest, usual_n(table)
    grid = [[manifest.heading, *column_labels(table)]]
    group = ""
    for row in manifest.rows:
        if row.group != group:
            group = row.group
            grid.append([f"**{escape_markdown(group)}**" if group else "", *[""] * len(manifest.columns)])
        label = escape_markdown(row_label(table, row))
        if marked_ours(table, row):
            label = f"*ours:* {label}"
        elif row.quoted:
            label += f" (quoted, {escape_markdown(row.source)})"
        cells = [_cell(table, table.shown(row.name, column.name), usual) for column in manifest.columns]
        grid.append([label, *map(escape_markdown, cells)])
    return pipe_table(grid)


def _cell(table: Table, shown: Shown, usual: int) -> str:
    if never_run(shown.cell):
        return papers(table, shown.cell) or "–"
    text = ours(shown, usual)
    if shown.cell.paper is None:
        return text
    beside = f"paper {papers(table, shown.cell)}"
    if shown.verdict is not None:
        beside += f", {number(shown.verdict.difference, shown.cell.measure.digits, sign=True)}"
    return f"{text} ({beside})"


def _verdicts(table: Table) -> list[str]:
    """Where the paper's numbers lie, rows that have none left out."""
    rows = [[table.manifest.heading, *(column.label for column in table.manifest.columns)]]
    for row in table.manifest.rows:
        shown = [table.shown(row.name, column.name) for column in table.manifest.columns]
        if any(s.verdict for s in shown):
            rows.append([row.label, *map(_verdict, shown)])
    if len(rows) == 1:
        return []
    cells = [cell for cell in table.manifest.cells if cell.paper and cell.computed]
    more = "training" if any(cell.runs for cell in cells) else "seed"
    means = sorted({cell.measure.paper_n for cell in cells})
    expected = f"one more {more}" if means == [1] else f"the mean of {' or '.join(map(str, means))} more {more}s"
    intro = (
        f"**Against the paper.** Does its number lie where {expected} of ours would be expected? 95 % prediction "
        "interval, ± its half width; then ours − paper in units of our standard deviation s over seeds. Below 3 seeds "
        "nothing is decided."
    )
    return [intro, pipe_table([[escape_markdown(text) for text in row] for row in rows])]


def _verdict(shown: Shown) -> str:
    judged, digits = shown.verdict, shown.cell.measure.digits
    if judged is None:
        return "–"
    width = f" ± {number(judged.half_width, digits)}" if judged.half_width is not None else ""
    spreads = f" ({number(judged.spreads, 1, sign=True)} s)" if judged.spreads is not None else ""
    return f"{judged.word}{width}{spreads}"


def _comparisons(table: Table) -> list[str]:
    """Arms by seed: a table for pairs of rows, by column; another for pairs of columns, by row."""
    blocks = []
    labels = {column.name: column.label for column in table.manifest.columns}
    labels |= {row.name: row.label for row in table.manifest.rows}

    def pair(comparison: Comparison) -> str:
        return f"{labels[comparison.first]} − {labels[comparison.second]}"

    for of_rows in (True, False):
        chosen = [c for c in table.comparisons if c.of_rows == of_rows and any(result for _, result, _ in c.results)]
        found = [{name: paired_text(result, cell) for name, result, cell in c.results} for c in chosen]
        names = list(dict.fromkeys(name for cells in found for name in cells))
        body = [[pair(c), *(cells.get(name, "–") for name in names)] for c, cells in zip(chosen, found, strict=True)]
        grid = [["a − b", *(labels[name] for name in names)], *body]
        if not of_rows:
            grid = [list(line) for line in zip(*grid, strict=True)]
        if body:
            blocks.append(pipe_table([[escape_markdown(text) for text in line] for line in grid]))
    intro = (
        "**Compared by seed.** Mean of a − b over the seeds of both ± 95 % t-interval; in how many seeds a > b; "
        "p of the paired t-test, not corrected for the number of comparisons."
    )
    return [intro, *blocks] if blocks else []


def paired_text(result: Paired | None, cell: Cell) -> str:
    """A difference by seed: its mean and interval, how often it is positive, p."""
    if result is None:
        return "–"
    text = number(result.mean, cell.measure.digits, sign=True)
    if result.half_width is None:
        return f"{text} (1 seed)"
    p = "< 0.001" if result.p is not None and result.p < 0.001 else f"= {result.p:.3f}"
    return f"{text} ± {number(result.half_width, cell.measure.digits)} ({result.positive}/{result.n}, p {p})"


def pipe_table(grid: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns aligned so that it also reads as text; the first line is the head."""
    widths = [max(3, *(len(line[i]) for line in grid)) for i in range(len(grid[0]))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in grid]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def escape_markdown(text: str) -> str:
    """
    >>> escape_markdown("Baseline* | <x>")
    'Baseline\\\\* \\\\| \\\\<x>'
    """
    return re.sub(r"([\\|*`\[\]]|<(?! ))", r"\\\1", text)
