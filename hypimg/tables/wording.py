"""What the forms of a table share: how numbers, labels, reasons and the caption read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median

from hypimg.tables.collect import Shown, Table
from hypimg.tables.manifest import Cell, Measure, Row
from hypimg.tables.plan import duration
from hypimg.tables.results import Line, command


def number(value: float, digits: int, sign: bool = False) -> str:
    """A rounded number with a real minus sign; never −0.

    >>> number(-0.0124, 3, sign=True), number(-0.0001, 2), number(0.5, 1, sign=True)
    ('−0.012', '0.00', '+0.5')
    """
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "+" if sign else "")
    return text.replace("-", "−")


def interval(mean: float, half_width: float | None, digits: int) -> str:
    """
    >>> interval(0.9126, 0.0118, 3), interval(0.9126, None, 2)
    ('0.913 ± 0.012', '0.91')
    """
    return number(mean, digits) + (f" ± {number(half_width, digits)}" if half_width is not None else "")


def usual_n(table: Table) -> int:
    """The number of seeds that most cells have: said once, and again only by cells that differ."""
    counts = Counter(shown.estimate.n for shown in table.cells.values() if shown.estimate)
    return max(counts, key=lambda n: (counts[n], n)) if counts else 0


def seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def ours(shown: Shown, usual: int) -> str:
    """Our number, or why there is none."""
    if shown.estimate is None:
        if shown.lines:
            return "undefined"
        return f"not run: {shown.cell.not_run}" if shown.cell.not_run else "not run"
    spread = shown.estimate.std if shown.cell.measure.spread == "std" else shown.estimate.half_width
    text = interval(shown.estimate.mean, spread, shown.cell.measure.digits)
    if shown.within is not None:
        text += f" [± {number(shown.within, shown.cell.measure.digits)}]"
    if shown.estimate.n != usual:
        text += f" ({seeds(shown.estimate.n)})"
    return text + ("" if shown.official else " †")


def papers(table: Table, cell: Cell) -> str:
    """The paper's number with as many digits as its row, or quoted column, shows: YAML cannot tell 0.84 from 0.840."""
    if cell.paper is None:
        return ""
    line = [
        other.paper
        for other in table.manifest.cells
        if other.paper and (other.column == cell.column if cell.column.quoted else other.row == cell.row)
    ]
    printed = [repr(value) for paper in line for value in (paper.value, paper.half_width) if value is not None]
    digits = max(0 if text.endswith(".0") else len(text.partition(".")[2]) for text in printed)
    return interval(cell.paper.value, cell.paper.half_width, digits)


def never_run(cell: Cell) -> bool:
    """Whether the cell only quotes: a literature row, or a column of theory."""
    return cell.row.quoted or cell.column.quoted


def all_lines(table: Table) -> list[Line]:
    """One line per distinct set of runs, or evaluation without runs: what the table cost and where it was made."""
    unique: dict[tuple[str, ...], Line] = {}
    for shown in table.cells.values():
        for line in shown.lines:
            unique.setdefault(tuple(line["runs"]) or (line["key"],), line)
    return list(unique.values())


def arrow(cells: Iterable[Cell], usual: Measure) -> str:
    """↑ or ↓ for a row or column whose better direction is not the table's."""
    directions = {cell.measure.higher_is_better for cell in cells}
    if len(directions) != 1 or (direction := directions.pop()) == usual.higher_is_better or direction is None:
        return ""
    return " ↑" if direction else " ↓"


def marked_ours(table: Table, row: Row) -> bool:
    """A control of ours beside rows of the paper; a table of our own marks nothing."""
    return row.ours and not all(other.ours for other in table.manifest.rows)


def row_label(table: Table, row: Row) -> str:
    cells = [cell for cell in table.manifest.cells if cell.row == row]
    units = {cell.measure.unit for cell in cells}
    unit = units.pop() if len(units) == 1 else ""
    shown = f" ({unit})" if unit and unit != table.manifest.measure.unit else ""
    return row.label + shown + arrow(cells, table.manifest.measure)


def column_labels(table: Table) -> list[str]:
    cells = table.manifest.cells
    return [
        column.label + arrow([cell for cell in cells if cell.column == column], table.manifest.measure)
        for column in table.manifest.columns
    ]


def caption(table: Table) -> list[str]:
    """What the numbers are, in sentences."""
    manifest, measure, n = table.manifest, table.manifest.measure, usual_n(table)
    about = ", ".join(filter(None, [measure.description, measure.unit and f"in {measure.unit}"]))
    if measure.higher_is_better is not None:
        about += f"{'; ' * bool(about)}{'higher' if measure.higher_is_better else 'lower'} is better"
    # A capital letter only in words: Δ_rel would be another symbol than δ_rel.
    sentences = [f"{about[0].upper() if about[0].isascii() else about[0]}{about[1:]}."] if about else []
    if n:
        kind = "standard deviation" if measure.spread == "std" else "95 % t-interval"
        spread = f"mean ± {kind} over " if n > 1 else ""
        brackets = f", in brackets the {measure.within_interval}" if measure.within else ""
        sentences.append(f"Ours: {spread}{seeds(n)}{_numbers(table)}{brackets}.")
    if any(cell.paper for cell in manifest.cells):
        with_ = [cell.measure.interval for cell in manifest.cells if cell.paper and cell.paper.half_width is not None]
        meant = "; ".join(dict.fromkeys(filter(None, with_))) or measure.interval
        sentences.append(f"The paper's ±: {meant}." if meant else "The paper prints no interval." if not with_ else "")
    if any(cell.runs for cell in manifest.cells):
        sentences.append(_budget(table))
    lines = all_lines(table)
    if data := sorted({f"{entry['name']} ({entry['form']})" for line in lines for entry in line.get("data", [])}):
        sentences.append(f"Data: {', '.join(data)}.")
    sentences.append(_cost("training", trainings(lines)))
    sentences.append(_cost("evaluation", [line for line in lines if not line["runs"]]))
    if commits := sorted({str(line.get("commit") or "unknown") for line in lines}):
        sentences.append(f"Commit {', '.join(commits)}.")
    return [sentence for sentence in sentences if sentence]


def _budget(table: Table) -> str:
    """Which budget's runs these are, and whether the paper trained so."""
    overrides = table.manifest.budgets[table.budget]
    words = f"Budget {table.budget}" + (f" ({' '.join(overrides)})" if overrides else "")
    if any(cell.paper for cell in table.manifest.cells):
        known = "the paper's schedule as far as it is known"
        unlike = "not the paper's schedule, so no verdict on its numbers"
        words += f": {known if table.manifest.as_paper(table.budget) else unlike}"
    return f"{words}."


def trainings(lines: list[Line]) -> list[Line]:
    """Lines of runs, without those that evaluate together runs which have lines of their own."""
    alone = {line["runs"][0] for line in lines if len(line["runs"]) == 1}
    return [line for line in lines if line["runs"] and (len(line["runs"]) == 1 or not alone.issuperset(line["runs"]))]


def _cost(what: str, lines: list[Line]) -> str:
    """What was made on which machines in which time."""
    if not lines:
        return ""
    machines = sorted({f"{line['device']}, {line['threads']} thread{'s' * (line['threads'] != 1)}" for line in lines})
    seconds = [line["seconds"] for line in lines]
    cost = f"{duration(median(seconds))} each, {duration(sum(seconds))} in all"
    if len(lines) == 1:
        return f"1 {what} on {machines[0]}: {duration(seconds[0])}."
    return f"{len(lines)} {what}s on {' and '.join(machines)}: {cost}."


def _numbers(table: Table) -> str:
    """Which seeds these are."""
    numbers = sorted({line["seed"] for line in all_lines(table)})
    if numbers and numbers == list(range(len(numbers))):
        return f" (0 to {numbers[-1]})" if len(numbers) > 1 else " (0)"
    return f" ({', '.join(map(str, numbers))})"


def unofficial(table: Table) -> str:
    """What † stands for: which data were not the official bytes."""
    seen = {
        entry["digest"]: f"{entry['name']} ({entry['form']}, digest {entry['digest'][:10]})"
        for line in all_lines(table)
        for entry in line.get("data", [])
        if not entry.get("official")
    }
    return f"† saw other bytes than the authors publish: {', '.join(sorted(seen.values()))}." if seen else ""


def not_run(table: Table) -> list[str]:
    """What fills the cells that nobody ran: a command for each row, but none for what an earlier row evaluates."""
    manifest = table.manifest
    lacking = [s.cell for s in table.cells.values() if s.cell.runnable and not s.lines]
    runnable = [cell for cell in manifest.cells if cell.runnable]
    if not lacking:
        return []
    if len(lacking) == len(runnable):
        return [command(manifest, table.budget)]
    first: dict[str, Cell] = {}  # of the cells that ask the same of the same runs, which share their results
    for cell in lacking:
        first.setdefault(repr((cell.runs, cell.evaluator)), cell)
    patterns = []
    for row in manifest.rows:
        of_row = [cell for cell in runnable if cell.row == row]
        open_cells = [cell for cell in of_row if cell in first.values()]
        if open_cells:
            patterns.append(f"{row.name}/*" if open_cells == of_row else ",".join(cell.name for cell in open_cells))
    return [command(manifest, table.budget, pattern) for pattern in patterns]
