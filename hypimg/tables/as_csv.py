"""A table as CSV, one record per cell, for whoever computes with it."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Callable

from hypimg.tables.collect import Shown, Table
from hypimg.tables.wording import never_run


def csv(table: Table) -> str:
    """One record per cell, every number in full; text that a spreadsheet would run as a formula is quoted by '."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    fields: dict[str, Callable[[Shown], object]] = {
        "table": lambda s: table.manifest.name,
        "budget": lambda s: table.budget,
        "row": lambda s: s.cell.row.name,
        "column": lambda s: s.cell.column.name,
        "kind": lambda s: "quoted" if never_run(s.cell) else "ours" if s.cell.row.ours else "reproduced",
        "metric": lambda s: s.cell.measure.name,
        "unit": lambda s: s.cell.measure.unit,
        "ours_mean": lambda s: s.estimate and s.estimate.mean,
        "ours_half_width": lambda s: s.estimate and s.estimate.half_width,
        "ours_std": lambda s: s.estimate and s.estimate.std,
        "ours_within": lambda s: s.within,
        "seeds": lambda s: s.estimate.n if s.estimate else 0,
        "paper": lambda s: s.cell.paper and s.cell.paper.value,
        "paper_half_width": lambda s: s.cell.paper and s.cell.paper.half_width,
        "difference": lambda s: s.verdict and s.verdict.difference,
        "prediction_half_width": lambda s: s.verdict and s.verdict.half_width,
        "verdict": lambda s: s.verdict and s.verdict.word,
        "official_data": lambda s: s.official if s.lines else None,
        "overrides": lambda s: " | ".join(" ".join(run) for run in s.cell.runs),
        "state": lambda s: "quoted" if never_run(s.cell) else "run" if s.lines else s.cell.not_run or "not run",
    }
    writer.writerow(fields)
    for shown in table.cells.values():
        writer.writerow([escape_csv(value(shown)) for value in fields.values()])
    return out.getvalue()


def escape_csv(value: object) -> str:
    """
    >>> escape_csv("=SUM(A1)"), escape_csv(-0.5), escape_csv("-0.5"), escape_csv(None), escape_csv("c=1")
    ("'=SUM(A1)", '-0.5', '-0.5', '', 'c=1')
    """
    if isinstance(value, float):
        return f"{value:.10g}"
    text = "" if value is None else str(value)
    if text[:1] in ("=", "+", "-", "@", "\t", "\r"):
        try:
            float(text)
        except ValueError:
            return f"'{text}"
    return text
