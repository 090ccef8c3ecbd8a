"""What a reader sees of a table: Markdown, LaTeX and CSV from a manifest and its lines. Nothing is run or trained here.

The same lines and manifest give the same bytes, so a test can tell that a committed table is stale.
"""

from __future__ import annotations

import re
from pathlib import Path

from hypimg.errors import UserError
from hypimg.tables.as_csv import csv
from hypimg.tables.as_latex import latex
from hypimg.tables.as_markdown import markdown
from hypimg.tables.collect import collect
from hypimg.tables.manifest import Manifest
from hypimg.tables.results import RESULTS


def render(manifest: Manifest, results: Path = RESULTS, budget: str = "paper") -> dict[str, str]:
    """The files of a table, by name: `table.md`, `.tex`, `.csv`, or `table_<budget>.*` for a budget not the paper's."""
    table = collect(manifest, results, budget)
    stem = "table" if budget == "paper" else f"table_{budget}"
    return {
        f"{stem}.md": markdown(table),
        f"{stem}.tex": latex(table),
        f"{stem}.csv": csv(table),
    }


def write(
    manifest: Manifest,
    results: Path = RESULTS,
    budget: str = "paper",
    readme: Path | None = None,
    *,
    check: bool = False,
) -> list[Path]:
    """Bring a table's files, and its section of a README, up to date; which ones were not.

    check: change nothing, only say which are stale.  A manifest of figures alone has no such files.
    """
    stale: list[Path] = []
    if not manifest.cells:
        return stale
    files = render(manifest, results, budget)
    for name, content in files.items():
        path = results / manifest.name / name
        if path.exists() and path.read_bytes() == content.encode():
            continue
        stale.append(path)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode())
    section = manifest.name if budget == "paper" else f"{manifest.name} budget={budget}"
    shown = next(content for name, content in files.items() if name.endswith(".md"))
    if readme is not None and not readme_section(readme, section, shown, check):
        stale.append(readme)
    return stale


def readme_section(path: Path, name: str, markdown: str, check: bool = False) -> bool:
    """Put a table between `<!-- results:<name> -->` and `<!-- /results -->`; whether it already stood there.

    name: of the table, with ` budget=<budget>` after it for a budget not the paper's.

    A file without the first marker has no such section and counts as up to date.  check: change nothing.
    """
    text = path.read_text()
    start = f"<!-- results:{name} -->"
    if start not in text:
        return True
    section = re.compile(rf"{re.escape(start)}\n.*?<!-- /results -->", re.DOTALL)
    if not section.search(text):
        raise UserError(str(path), start, "has no closing <!-- /results --> after it")
    renewed = section.sub(lambda _: f"{start}\n{markdown}<!-- /results -->", text, count=1)
    if renewed != text and not check:
        path.write_text(renewed)
    return renewed == text
