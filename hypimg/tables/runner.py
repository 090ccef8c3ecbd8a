"""From a manifest to its table: plan, show, run what lacks a finished result, append, render, draw.

Runs are launched seed by seed, so that every cell has one number early; cells that need the same run share it. What a
run gave is written down as soon as it is finished, so a stopped reproduction goes on where it was.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hypimg import config
from hypimg.errors import UserError, nearest
from hypimg.tables import render
from hypimg.tables.manifest import Manifest
from hypimg.tables.plan import Planned, describe, duration, missing_runs, plan
from hypimg.tables.results import (
    RESULTS,
    Composer,
    Line,
    append_line,
    command,
    compose_evaluator,
    composer,
    later_wins,
    run_overrides,
)

# Lines are written after each batch of parallel runs: enough runs that workers seldom wait for the slowest of a batch,
# few enough that little is lost when the machine goes down.
RUNS_PER_WORKER = 4


def reproduce(
    manifest: Manifest,
    budget: str = "paper",
    seeds: Sequence[int] | None = None,
    only: str = "",
    *,
    jobs: int = 1,
    launcher: Sequence[str] = (),
    fresh: bool = False,
    settings: Sequence[str] = (),
    results: Path = RESULTS,
    readme: Path | None = None,
) -> int:
    """Print the plan, run what is missing, append lines, render, draw; the worst exit code of the runs (0: all good).

    settings: overrides that change no result (device, data_dir, …).  jobs: runs at a time on this machine, which
    share its threads.  launcher: words for another of Hydra's launchers, which then gets all runs at once.
    fresh: what was done is set aside and done again.  readme: a file whose section of this table is renewed.
    """
    launcher = _launcher(jobs, launcher)
    planned = plan(manifest, budget, seeds, only, settings=settings, fresh=fresh, results=results)
    print(describe(manifest, planned, budget, jobs), flush=True)
    worst = run_missing(
        manifest, planned, budget, settings=settings, jobs=jobs, launcher=launcher, fresh=fresh, results=results
    )
    for path in render.write(manifest, results, budget, readme):
        print(f"written: {path}")
    if worst < 128:
        everywhere = plan(manifest, budget, seeds, settings=settings, results=results) if only else planned
        draw_figures(manifest, everywhere, budget, settings=settings, results=results)
    return worst


def run_missing(
    manifest: Manifest,
    planned: Sequence[Planned],
    budget: str,
    *,
    settings: Sequence[str] = (),
    jobs: int = 1,
    launcher: Sequence[str] = (),
    fresh: bool = False,
    results: Path = RESULTS,
) -> int:
    """Train what is missing, evaluate what is finished, append a line per (cell, seed); the worst exit code.

    A run that fails leaves its cells open and does not stop the others; a signal (exit code 128 + n) stops all.
    """
    from hypimg.launch import launch

    waiting = [item for item in planned if item.state == "run-finished"]
    worst = record(manifest, waiting, budget, settings=settings, fresh=fresh, results=results)
    todo = [item for item in planned if item.state in ("unfinished", "absent")]
    missing = list(missing_runs(todo).items())
    together = RUNS_PER_WORKER * jobs if jobs > 1 else max(1, len(missing)) if launcher else 1
    for start in range(0, len(missing), together):
        chunk = missing[start : start + together]
        if fresh:
            for key, item in chunk:
                _set_aside(item.directories[item.run_keys.index(key)])
        runs = [item.overrides[item.run_keys.index(key)] for key, item in chunk]
        try:
            codes = launch([list(later_wins((*overrides, *settings))) for overrides in runs], launcher)
        except SystemExit as stopped:  # a signal: the run saved itself, and no other is to begin
            return max(worst, stopped.code if isinstance(stopped.code, int) else 1)
        launched = {key for key, _ in chunk}
        now = [item for item in todo if launched & set(item.run_keys)]
        worst = max(worst, *codes, record(manifest, now, budget, settings=settings, results=results))
        if max(codes) >= 128:
            break
    return worst


def _launcher(jobs: int, launcher: Sequence[str]) -> list[str]:
    """The words that choose a launcher: none for one run after another here, joblib's for several at a time."""
    if jobs > 1 and launcher:
        raise UserError("jobs", jobs, "is for this machine alone; another launcher brings its own number of workers")
    if jobs > 1:
        try:
            importlib.import_module("hydra_plugins.hydra_joblib_launcher")
        except ImportError:
            remedy = "several runs at a time need hydra-joblib-launcher: pip install 'hypimg[launch]', or jobs=1"
            raise UserError("jobs", jobs, remedy) from None
        return ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]
    return list(launcher)


def _set_aside(directory: Path) -> None:
    from hypimg import rundir

    if directory.exists():
        with rundir.hold(directory):
            rundir.set_aside(directory, "fresh")


def record(
    manifest: Manifest,
    items: Sequence[Planned],
    budget: str,
    *,
    settings: Sequence[str] = (),
    fresh: bool = False,
    results: Path = RESULTS,
) -> int:
    """Evaluate the items whose runs are all finished and append their lines; the worst exit code.

    What a cell without runs lacks (weights, a data set) it lacks at every seed, so it is told once.
    """
    worst = 0
    compose = composer(settings)
    measured: dict[str, Line] = {}
    lacking: set[str] = set()
    for item in items:
        name = f"{item.cell.name} seed {item.seed}"
        if item.cell.name in lacking:
            continue
        try:
            if item.key not in measured:
                line = measure(item, compose, fresh)
                if line is None:
                    continue
                measured[item.key] = line
                if not item.cell.runs and line["seconds"] >= 1:
                    print(f"{name}: evaluated in {duration(line['seconds'])}", flush=True)
            metric = str(item.cell.measure.name)
            if metric not in measured[item.key]["metrics"]:
                print(f"{name}: no metric {metric}; {nearest(metric, measured[item.key]['metrics'])}")
            place = {
                "table": manifest.name,
                "budget": budget,
                "row": item.cell.row.name,
                "column": item.cell.column.name,
                "overrides": [list(run) for run in run_overrides(manifest, item.cell, budget)],
                "seed": item.seed,
            }
            append_line(results, manifest.name, place | measured[item.key])
        except UserError as error:
            if not item.cell.runs:
                lacking.add(item.cell.name)
                name = item.cell.name
            print(f"{name}: {error}", flush=True)
            worst = max(worst, error.exit_code)
        except Exception:  # our bug: shown whole, and the other cells still get their numbers
            traceback.print_exc()
            worst = max(worst, 1)
    return worst


def measure(item: Planned, compose: Composer, fresh: bool = False) -> Line | None:
    """What a line says beside its place in the table; None while a run of it is not finished.

    compose: gives the settings of this machine.  fresh: an evaluator alone is asked again (one of runs is in any case,
    since its runs are new).
    """
    from hypimg import rundir

    if not item.cell.runs:
        evaluation = _evaluate(item, compose, fresh)
        about, data, metrics = evaluation.record, list(evaluation.data.values()), dict(evaluation.metrics)
        seconds = about["seconds"]
    else:
        summaries = [rundir.read_summary(directory) for directory in item.directories]
        finished = [summary for summary in summaries if summary is not None]
        if len(finished) < len(summaries):
            return None
        about, data = finished[0], [summary["data"] for summary in finished]
        seconds = round(sum(summary["seconds"] for summary in finished), 1)
        if item.cell.evaluator is None:
            metrics = {**about["metrics"], "seconds": about["seconds"], "epochs": about["epochs"]}
        else:
            evaluation = _evaluate(item, compose)
            metrics = dict(evaluation.metrics)
            data += list(evaluation.data.values())
    data = list({entry["digest"]: entry for entry in data}.values())
    return {
        "metrics": metrics,
        "runs": list(item.run_keys),
        "key": item.key,
        "data": data,
        "official": all(entry["official"] for entry in data),
        "result_version": about["result_version"],
        "commit": about["commit"],
        "device": about["device"],
        "threads": about["threads"],
        "seconds": seconds,
    }


def _evaluate(item: Planned, compose: Composer, fresh: bool = False) -> Any:
    from hypimg import run

    machine = compose((), item.seed)
    evaluator = compose_evaluator(item.cell, item.seed)
    if not item.cell.runs:
        return run.evaluate_alone(evaluator, machine, item.evaluations, fresh)
    return run.evaluate(
        list(item.directories),
        evaluator,
        data_dir=machine.data_dir,
        store_dir=machine.store_dir,
        device=machine.device,
    )


def draw_figures(
    manifest: Manifest,
    planned: Sequence[Planned],
    budget: str = "paper",
    figures: Iterable[str] = (),
    *,
    settings: Sequence[str] = (),
    results: Path = RESULTS,
) -> int:
    """Draw the manifest's figures (or those named) from stored scores; 2 where one lacks its scores.

    `hypimg.figures.<name>.draw(scores, out_dir)` gets {(row, column): path of the .npz of the lowest evaluated seed},
    which is empty for the figures of a manifest without cells: they need none.
    They are written beside the table, those of a budget not the paper's in a folder of its own.
    """
    chosen = choose_figures(manifest, figures)
    scores = _scores(planned, settings) if chosen else {}
    if chosen and not scores and manifest.cells:
        makes = command(manifest, budget)
        print(f"not drawn ({', '.join(chosen)}): no finished run here has scores; to make them: {makes}")
        return UserError.exit_code
    out_dir = results / manifest.name / ("" if budget == "paper" else budget)
    worst = 0
    for name in chosen:
        try:
            for path in importlib.import_module(f"hypimg.figures.{name}").draw(scores, out_dir):
                print(f"drawn: {path}")
        except UserError as error:
            print(f"not drawn: {error}")
            worst = error.exit_code
    return worst


def choose_figures(manifest: Manifest, figures: Iterable[str] = ()) -> list[str]:
    """The manifest's figures, or those named of them."""
    for name in (chosen := list(figures) or list(manifest.figures)):
        if name not in manifest.figures:
            raise UserError("figure", name, f"not of {manifest.name}; {nearest(name, manifest.figures)}")
    return chosen


def _scores(planned: Sequence[Planned], settings: Sequence[str]) -> dict[tuple[str, str], Path]:
    """The scores of each evaluated cell at its lowest finished seed: those stored, else of an evaluation made now.

    An evaluator alone is never asked for a figure's sake.
    """
    from hypimg import rundir

    compose = composer(settings)
    scores: dict[tuple[str, str], Path] = {}
    by_key: dict[str, Path] = {}
    for item in sorted(planned, key=lambda item: item.seed):
        place = (item.cell.row.name, item.cell.column.name)
        if place in scores or item.cell.evaluator is None:
            continue
        if not item.cell.runs:
            stored = _stored_scores(item)
            scores |= {place: stored} if stored else {}
        elif all(rundir.read_summary(directory) is not None for directory in item.directories):
            if item.key not in by_key:
                by_key[item.key] = _stored_scores(item) or _evaluate(item, compose).scores
            scores[place] = by_key[item.key]
    return scores


def _stored_scores(item: Planned) -> Path | None:
    """What an earlier evaluation left under the runs, so that drawing needs neither data nor model; the newest."""
    wanted: dict[str, Any] = {"evaluator": compose_evaluator(item.cell, item.seed)}
    if item.cell.runs:
        wanted["runs"] = list(item.run_keys)
    else:
        wanted["result_version"] = config.RESULT_VERSION
    records = sorted(item.evaluations.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for record in reversed(records):
        said = json.loads(record.read_text())
        scores = record.with_suffix(".npz")
        if scores.is_file() and all(config.canonical(said.get(n)) == config.canonical(wanted[n]) for n in wanted):
            return scores
    return None
