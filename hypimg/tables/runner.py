"""From a manifest to its table: plan, show, run what lacks a finished result, append, render, draw.

Runs are launched seed by seed, so that every cell has one number early; cells that need the same run share it. What a
run gave is written down as soon as it is finished, so a stopped reproduction goes on where it was.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypimg.errors import UserError, nearest
from hypimg.tables.manifest import Manifest, Overrides
from hypimg.tables.plan import Planned, missing_runs
from hypimg.tables.results import RESULTS, Line, append_line, compose_evaluator, later_wins, read_lines, run_overrides

# Lines are written after each batch of runs: enough runs that workers seldom wait for the slowest, few enough that
# little is unrecorded.
RUNS_PER_WORKER = 4


def run_missing(
    manifest: Manifest,
    planned: Sequence[Planned],
    budget: str,
    *,
    settings: Sequence[str] = (),
    jobs: int = 1,
    results: Path = RESULTS,
) -> int:
    """Train what is missing, evaluate what is finished, append a line per (cell, seed); the worst exit code.

    A run that fails leaves its cells open and does not stop the others; a signal (exit code 128 + n) stops all.
    """
    from hypimg.launch import launch

    worst = record_finished(manifest, [i for i in planned if i.state == "run-finished"], budget, results)
    todo = [item for item in planned if item.state in ("unfinished", "absent")]
    missing = list(missing_runs(todo).items())
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"] if jobs > 1 else []
    together = RUNS_PER_WORKER * jobs if jobs > 1 else 1
    for start in range(0, len(missing), together):
        chunk = missing[start : start + together]
        runs = [item.overrides[item.run_keys.index(key)] for key, item in chunk]
        codes = launch([list(later_wins((*overrides, *settings))) for overrides in runs], launcher)
        worst = max(worst, *codes)
        good = {key for (key, _), code in zip(chunk, codes, strict=True) if code == 0}
        open_items = [item for item in todo if good & set(item.run_keys)]
        worst = max(worst, record_finished(manifest, open_items, budget, results))
        if max(codes) >= 128:
            break
    return worst


def record_finished(manifest: Manifest, items: Sequence[Planned], budget: str, results: Path) -> int:
    """Evaluate the items whose runs are all finished and append their lines; the worst exit code."""
    from hypimg.run import read_summary

    worst = 0
    evaluated: dict[str, Line] = {}
    for item in items:
        summaries = [read_summary(directory) for directory in item.directories]
        finished = [summary for summary in summaries if summary is not None]
        if len(finished) < len(summaries):
            continue
        try:
            if item.key not in evaluated:
                evaluated[item.key] = _evaluate(item, finished)
            measured = evaluated[item.key]
            metric = item.cell.measure.name
            if metric not in measured["metrics"]:
                print(
                    f"{item.cell.name} seed {item.seed}: no metric {metric}; {nearest(str(metric), measured['metrics'])}"
                )
            line = {
                "table": manifest.name,
                "budget": budget,
                "row": item.cell.row.name,
                "column": item.cell.column.name,
                "overrides": [list(run) for run in run_overrides(manifest, item.cell, budget)],
                "seed": item.seed,
                **measured,
            }
            append_line(results, manifest.name, line)
        except UserError as error:
            print(f"{item.cell.name} seed {item.seed}: {error}")
            worst = max(worst, error.exit_code)
        except Exception:  # our bug: shown whole, and the other cells still get their numbers
            traceback.print_exc()
            worst = max(worst, 1)
    return worst


def _evaluate(item: Planned, summaries: list[dict[str, Any]]) -> Line:
    """What a line says beside its place in the table."""
    from hypimg.run import evaluate

    data = [summary["data"] for summary in summaries]
    if item.cell.evaluator is None:
        (summary,) = summaries
        metrics = {**summary["metrics"], "seconds": summary["seconds"], "epochs": summary["epochs"]}
    else:
        evaluation = evaluate(list(item.directories), compose_evaluator(item.cell.evaluator))
        metrics = dict(evaluation.metrics)
    return {
        "metrics": metrics,
        "runs": list(item.run_keys),
        "key": item.key,
        "data": data,
        "official": all(entry["official"] for entry in data),
        "result_version": summaries[0]["result_version"],
        "commit": summaries[0]["commit"],
        "device": summaries[0]["device"],
        "threads": summaries[0]["threads"],
        "seconds": round(sum(summary["seconds"] for summary in summaries), 1),
    }
