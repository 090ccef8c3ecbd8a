"""A table as LaTeX with booktabs, to be read in by a paper."""

from __future__ import annotations

from collections.abc import Iterable

from hypimg.tables.collect import Table
from hypimg.tables.wording import (
    caption,
    column_labels,
    marked_ours,
    never_run,
    ours,
    papers,
    row_label,
    unofficial,
    usual_n,
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "‖": r"\ensuremath{\Vert}",
    "±": r"\ensuremath{\pm}",
    "−": r"\ensuremath{-}",
    "–": "--",
    "†": r"\dag{}",
    "↑": r"\ensuremath{\uparrow}",
    "↓": r"\ensuremath{\downarrow}",
    "≥": r"\ensuremath{\ge}",
    "≤": r"\ensuremath{\le}",
    "×": r"\ensuremath{\times}",
    "δ": r"\ensuremath{\delta}",
    "Δ": r"\ensuremath{\Delta}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
} | {sign: f"\\{sign}" for sign in "_%&#${}"}


def escape_latex(text: str) -> str:
    r"""
    >>> escape_latex("p_max ± 95 %")
    'p\\_max \\ensuremath{\\pm} 95 \\%'
    """
    return "".join(_LATEX.get(sign, sign) for sign in text)


def latex(table: Table) -> str:
    """A booktabs table: ours, the paper's number in a line below it."""
    manifest, usual = table.manifest, usual_n(table)
    width = len(manifest.columns) + 1
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    lines += [rf"\begin{{tabular}}{{l{'c' * (width - 1)}}}", r"\toprule"]

    def add(texts: Iterable[str], indent: str = "") -> None:
        lines.append(indent + " & ".join(map(escape_latex, texts)) + r" \\")

    add([manifest.heading, *column_labels(table)])
    lines.append(r"\midrule")
    group = ""
    for row in manifest.rows:
        if row.group != group:
            group = row.group
            title = rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape_latex(group)}}}}} \\"
            lines.append(rf"\addlinespace {title}" if group else r"\midrule")
        label = row_label(table, row) + (
            " (ours)" if marked_ours(table, row) else f" ({row.source})" if row.quoted else ""
        )
        shown = [table.shown(row.name, column.name) for column in manifest.columns]
        add([label, *((papers(table, s.cell) or "–") if never_run(s.cell) else ours(s, usual) for s in shown)])
        if any(s.cell.paper and not never_run(s.cell) for s in shown):
            add(["paper", *("" if never_run(s.cell) else papers(table, s.cell) for s in shown)], indent=r"\quad ")
    words = [f"{manifest.title} ({manifest.source}).", *caption(table)]
    words.append(unofficial(table))
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape_latex(' '.join(filter(None, words)))}}}"]
    lines += [rf"\label{{tab:{manifest.name}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"
