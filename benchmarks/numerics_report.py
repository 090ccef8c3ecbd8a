"""Draws the numerics report from numerics.jsonl, which numerics.py writes: numerics.md and numerics.{png,pdf,txt}.

python benchmarks/numerics_report.py

The README quotes the table.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypimg.figures import CLASS_COLOURS, INK, PAGE_WIDTH, save, style
from hypimg.tables.render import readme_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECORDS = Path(__file__).resolve().parent / "numerics.jsonl"

# Norms in units of 1/√c. Goals hold in the first three bands; the last lies beyond every library's clip sphere.
BANDS = {
    "1e-4 … 0.9": (1e-4, 1e-2, 0.1, 0.5, 0.9),
    "0.99, 1 − 1e-3": (0.99, 1 - 1e-3),
    "1 − 1e-4, 1 − 1e-5": (1 - 1e-4, 1 - 1e-5),
    "1 − 1e-6": (1 - 1e-6,),
}
BEYOND = "1 − 1e-6"

# Per operation: what its error is relative to, and hypimg's goal in the first three bands.
ERRORS: dict[str, tuple[str, float | None]] = {
    "dist": ("the distance", 1e-6),
    "cdist": ("the distance", None),
    "cdist auto": ("the distance", 1.5e-6),
    "cdist exact": ("the distance", 1e-6),
    "cdist matmul": ("the distance", None),
    "logmap∘expmap": ("one rounding of the point between and of v", 20.0),
    "MLR (p, a)": ("the largest logit of the row", 5e-6),
    "MLR (z, r)": ("the largest logit of the row", 5e-6),
    "MLR near p": ("one rounding of x, of p and of the logit", None),
}
PACKAGES = ("torch", "geoopt", "hypll", "mpmath")
NAMES = {"hypimg": "hypimg", "geoopt": "geoopt", "hypll": "HypLL"}
COLOURS = {"hypimg": INK, "geoopt": CLASS_COLOURS[2], "hypll": CLASS_COLOURS[0]}

Record = dict[str, Any]


def read() -> tuple[dict[str, Any], list[Record]]:
    """What the measurement ran on, and its records."""
    about, *records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    return about, records


def worst(records: list[Record], key: str) -> float | None:
    values = [record[key] for record in records if record.get(key) is not None]
    return max(values) if values else None


def number(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.2g}"


def missed(records: list[Record]) -> list[str]:
    """The goals that hypimg misses, a line each; none is what the tests ask for."""
    lines = []
    for record in records:
        if record["library"] != "hypimg" or record["norm"] in BANDS[BEYOND]:
            continue
        where = f"{record['operation']} at c = {record['c']:g}, norm {record['norm']:g}"
        goal, error = ERRORS[record["operation"]][1], record["error"]
        if goal is not None and not (error is not None and error <= goal):
            lines.append(f"{where}: {error} > {goal}")
        if record["not_finite"] or record["gradients_not_finite"]:
            lines.append(f"{where}: not finite")
    return lines


def errors(records: list[Record]) -> str:
    """The table of largest errors: a line per operation and library."""
    heads = ["operation", "library", *BANDS, "goal", "d(x, x)", "non-finite values", "non-finite gradients"]
    rows = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for operation, (_, goal) in ERRORS.items():
        for library in NAMES:
            chosen = [r for r in records if r["operation"] == operation and r["library"] == library]
            if not chosen:
                continue
            cells = [number(worst([r for r in chosen if r["norm"] in norms], "error")) for norms in BANDS.values()]
            lost = [
                f"{sum(r[bad] for r in chosen):,} of {sum(r[all_] for r in chosen):,}"
                for bad, all_ in (("not_finite", "values"), ("gradients_not_finite", "gradients"))
            ]
            ours = f"≤ {goal:g}" if goal is not None and library == "hypimg" else ""
            rows.append([operation, NAMES[library], *cells, ours, number(worst(chosen, "of_equal")), *lost])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def table(about: dict[str, Any], records: list[Record]) -> str:
    """The report as Markdown."""
    matmul = worst(records, "square_error")
    curvatures = ", ".join(f"{c:g}" for c in sorted({r["c"] for r in records}))
    dimension = about["dimension"]
    return f"""# Float32 accuracy, from the origin to the sphere

Written by `python benchmarks/numerics.py` with {", ".join(f"{name} {about[name]}" for name in PACKAGES)}.

Largest error over c ∈ {{{curvatures}}} and over the norms (times √c) at the head of the column, D = {dimension},
against {about["digits"]}-digit arithmetic on the same float32 numbers and the c that the library used. What an error
is relative to:

- Distances: the distance. Pairs have one norm and are 0, 1e-7, 1e-6 … 0.1, 0.3, 0.66 of it apart, opposite each other,
  or at random; and x to the origin. d(x, x) is √c times the largest distance that two equal points get.
- logmap∘expmap: what one rounding of the point between and one of v make of v, so 1 is one rounding.
- MLR: the largest logit of the row. Near p (at a distance of 0.6/√c), where rounding x alone moves small logits:
  what one rounding of x, one of p and one of the logit make of it.

{errors(records)}
Non-finite values are left out of the errors and counted over all norms; of gradients, rows are counted. Gradients are
only checked for being finite here; their digits are held by the tests of the geometry. In the figure, a cross above the
lines is a norm at which a library has values or gradients that are not finite; "MLR near p" is not drawn. HypLL's
exponential map projects to norm (1 − 4e-3)/√c, which is its error near the sphere; nothing else is projected.
`cdist` in mode matmul is as right as its ‖x − y‖², whose error is at most {number(matmul)} · 1e-7 (‖x‖² + ‖y‖²) here.
"""


def draw(records: list[Record]) -> list[Path]:
    """Error against norm, both axes logarithmic at their ends; one panel per operation."""
    from matplotlib.figure import Figure

    panels = {
        "distance of pairs": {"hypimg": ["dist"], "geoopt": ["dist"], "hypll": ["dist"]},
        "distance matrix": {"hypimg": ["cdist auto"], "geoopt": ["cdist"], "hypll": ["cdist"]},
        "log of exp, in roundings": {library: ["logmap∘expmap"] for library in NAMES},
        "logits of hyperplanes": {
            "hypimg": ["MLR (p, a)", "MLR (z, r)"],
            "geoopt": ["MLR (p, a)"],
            "hypll": ["MLR (z, r)"],
        },
    }
    with style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.68 * PAGE_WIDTH), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True).flat
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            draw_panel(ax, title, lines, records)
        figure.supxlabel("√c ‖x‖", fontsize=8)
        figure.supylabel("largest error", fontsize=8)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
        return save(figure, RECORDS.with_suffix(""), caption(records))


def draw_panel(ax: Axes, title: str, lines: dict[str, list[str]], records: list[Record]) -> None:
    drawn = {operation for operations in lines.values() for operation in operations}
    top = max(r["error"] or 0 for r in records if r["operation"] in drawn)
    for library, operations in lines.items():
        chosen = [r for r in records if r["library"] == library and r["operation"] in operations]
        norms = sorted({r["norm"] for r in chosen})
        errors = {norm: worst([r for r in chosen if r["norm"] == norm], "error") for norm in norms}
        shown = [norm for norm in norms if errors[norm] is not None]
        ax.plot(
            places(shown), [errors[norm] for norm in shown], "o-", ms=2.5, color=COLOURS[library], label=NAMES[library]
        )
        broken = [r["norm"] for r in chosen if r["not_finite"] or r["gradients_not_finite"]]
        if broken:  # an empty line that is not clipped upsets the layout
            ax.plot(places(broken), [4 * top] * len(broken), "x", ms=4, color=COLOURS[library], clip_on=False)
    goal = ERRORS[next(iter(lines.values()))[0]][1]
    last = max(BANDS["1 − 1e-4, 1 − 1e-5"])
    ax.plot(places([1e-4, last]), [goal, goal], "--", color="#999999", linewidth=0.8, label="goal of hypimg", zorder=1)
    ax.set_yscale("log")
    ax.set_title(title)
    norms = [norm for band in BANDS.values() for norm in band]
    labels = [f"{norm:g}" if norm <= 0.99 else f"1 − {1 - norm:.0e}".replace("e-0", "e-") for norm in norms]
    ax.set_xticks(places(norms), labels, rotation=45, ha="right", rotation_mode="anchor")


def places(norms: list[float]) -> list[float]:
    """Where a norm is drawn: log10 of norm/(1 − norm), logarithmic towards the origin and towards the sphere."""
    return [math.log10(norm / (1 - norm)) for norm in norms]


def caption(records: list[Record]) -> str:
    points = sum(r["values"] for r in records if r["library"] == "hypimg")
    return (
        f"Largest error in float32 against 50-digit arithmetic, over c = 0.001, 0.1, 1, 10 and over the separations of "
        f"numerics.md, for each norm ({points:,} values of hypimg). Distances: relative. Log of exp: in units of one "
        "rounding of the point between and of the vector. Logits: relative to the largest of their row; geoopt has the "
        "parametrisation by points and normals, HypLL the one by directions and distances, hypimg both. Crosses: norms "
        "at which values or gradients are not finite. Dashed: the goal, and the norms for which it is set. Not drawn: "
        "the logits near p of numerics.md."
    )


def main() -> None:
    """Write the table, the README's copy of it, and the figure; say which goals are missed."""
    about, records = read()
    RECORDS.with_suffix(".md").write_text(table(about, records), encoding="utf-8")
    readme = RECORDS.parents[1] / "README.md"
    if readme.is_file():
        readme_section(readme, "numerics", errors(records))
    draw(records)
    for line in missed(records):
        print(f"missed: {line}")


if __name__ == "__main__":
    main()
