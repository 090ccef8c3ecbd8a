"""A metric against a swept setting (c, dim, or any other), one curve per arm, from finished runs or a table's lines."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hypimg import config
from hypimg.errors import UserError, nearest
from hypimg.figures.sweep import Curve, Point
from hypimg.tables import manifest as manifests
from hypimg.tables import statistics
from hypimg.tables.results import (
    RESULTS,
    by_key,
    compose_evaluator,
    composer,
    identify,
    plain,
    read_lines,
    run_overrides,
)

AXES = {"c": "space.c", "dim": "backbone.dim"}  # where a run's config has what the top level sweeps
NAMES = {"PoincareBall": "hyperbolic", "HIEBall": "hyperbolic, official", "AngularBall": "angular"}  # as tables say it
METRICS = ("test/accuracy", "fewshot/accuracy", "accuracy", "val/accuracy")  # the first that there is, unless named

Leaves = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: what it is a function of, and what it gave.

    leaves: its settings but the seed, flat (`optimizer.lr` → 0.001), those left at null absent; also `data`, the digest
    of what it saw, `result_version`, and how it was tested: `evaluator.<name>.…` or, of a table's cell, `evaluated.…`.
    """

    key: str
    leaves: Leaves
    seed: int
    metrics: Mapping[str, float | None]


def finished_runs(experiment: str, runs_dir: Path) -> list[Run]:
    """The finished runs of an experiment under runs_dir.  Raises UserError where there are none."""
    from hypimg.run import read_run

    runs = []
    for summary in sorted((runs_dir / experiment).glob("*/summary.json")):
        cfg, said = read_run(summary.parent)
        fields = config.key_fields(cfg) | {"result_version": said.get("result_version"), "data": said["data"]["digest"]}
        fields["evaluator"] = plain(cfg.get("evaluator") or OmegaConf.create())
        runs.append(_run(said.get("key", summary.parent.name), fields, said["metrics"]))
    if not runs:
        known = sorted({path.parent.parent.name for path in runs_dir.glob("*/*/summary.json")})
        remedy = f"no finished run under {runs_dir}; {nearest(experiment, known)}"
        raise UserError("experiment", experiment, remedy)
    return runs


def table_runs(table: str, budget: str = "paper", only: str = "", results: Path = RESULTS) -> list[Run]:
    """The runs behind a table's committed lines, without those whose key is no longer current.

    only: cells by row/column, as for the table itself.  Cells of several runs, or of none, are passed over.
    Raises UserError for an unknown table, budget or cell, and where no line is left.
    """
    manifest = manifests.load(table)
    lines = by_key(read_lines(results, table))
    if budget not in manifest.budgets:
        raise UserError("budget", budget, f"not in the manifest {table}; {nearest(budget, manifest.budgets)}")
    identity, compose = identify(manifest, budget), composer()
    seeds = sorted({line["seed"] for line in lines.values()})
    runs = []
    for cell in manifest.select(only):
        if len(cell.runs) != 1:
            continue
        (overrides,) = run_overrides(manifest, cell, budget)
        for seed in seeds:
            line = lines.get(identity(cell, seed).key)
            if line is not None:
                cfg = compose(overrides, seed)
                fields = config.key_fields(cfg) | {"data": sorted(seen["digest"] for seen in line["data"])}
                if cell.evaluator is None:
                    fields["evaluator"] = plain(cfg.evaluator)
                else:
                    fields["evaluated"] = plain(compose_evaluator(cell, seed))
                runs.append(_run(line["runs"][0], fields, line["metrics"]))
    if not runs:
        raise UserError("table", table, f"no current line of budget={budget} in {results / table / 'runs.jsonl'}")
    return runs


def _run(key: str, fields: Mapping[str, Any], metrics: Mapping[str, float | None]) -> Run:
    leaves = flat(json.loads(config.canonical(dict(fields))))
    seed = leaves.pop("seed")
    return Run(key, leaves, seed, metrics)


def flat(value: Any, path: str = "") -> Leaves:
    """
    >>> flat({"space": {"c": 0.1}, "data": [1, 2]})
    {'space.c': 0.1, 'data': [1, 2]}
    """
    if not isinstance(value, dict):
        return {path: value}
    leaves: Leaves = {}
    for key, item in value.items():
        leaves |= flat(item, f"{path}.{key}" if path else key)
    return leaves


def metric_of(runs: Sequence[Run], wanted: str = "") -> str:
    """The metric named, or the first of METRICS that a run has.  Raises UserError where no run has it."""
    known = {name for run in runs for name in run.metrics}
    for name in [wanted] if wanted else METRICS:
        if name in known:
            return name
    raise UserError("y", wanted or METRICS[0], f"no run has it; {nearest(wanted or METRICS[0], known)}")


def where(runs: Sequence[Run], settings: Mapping[str, str]) -> list[Run]:
    """The runs with these settings (`c`, `dim`, or a path as in config.yaml), as text that YAML reads."""
    for name, text in settings.items():
        path = AXES.get(name, name)
        known = {leaf for run in runs for leaf in run.leaves}
        if path not in known:
            raise UserError(name, text, f"no run has this setting; {nearest(name, {*AXES, *known})}")
        value = config.canonical(OmegaConf.create({"x": OmegaConf.create(f"x: {text}").x}))
        held = {config.canonical({"x": run.leaves.get(path)}) for run in runs}
        if value not in held:
            shown = ", ".join(sorted(str(json.loads(one).get("x", "null")) for one in held))
            raise UserError(name, text, f"no run has this value; there are {shown}")
        runs = [run for run in runs if config.canonical({"x": run.leaves.get(path)}) == value]
    return list(runs)


@dataclass(frozen=True)
class Sweep:
    """curves: one per arm.  notes: one line on each thing that a reader must know of what is and is not there."""

    x: str
    y: str
    curves: list[Curve]
    notes: list[str]


def gather(runs: Sequence[Run], x: str, y: str, by: Sequence[str] = ("space", "head")) -> Sweep:
    """Curves of y against x: mean and 95 % interval over the seeds of each arm at each value.

    x: `c`, `dim` or the path of a setting.  by: the groups (or settings) that make the arms, each a curve; the axis is
    no part of them. An arm without the setting x (c in Euclidean space) is one value for all x.
    Where an arm has several values of x, those with one alone are left out, with a note: against dim, a sweep of c.
    Runs that differ in anything else are never pooled: the largest group that agrees is kept (most values of x, then
    most runs), and a note says what the others differ in.  At one seed the interval is the metric's `ci95` over test
    episodes, where the evaluator gave one.
    Raises UserError where x has fewer than two values, or values that are no numbers.
    """
    axis = AXES.get(x, x)
    kept, notes = _largest(_relevant(runs, y), axis, by)
    values = sorted({run.leaves[axis] for run in kept if axis in run.leaves}, key=_sortable)
    if len(values) < 2:
        raise UserError("x", x, f"was not swept: these runs have {_listed(values)}; {_remedy(x)}")
    if not all(isinstance(value, int | float) for value in values):
        raise UserError("x", x, f"must be a setting with numbers, it has {_listed(values)}")
    arms: dict[str, list[Run]] = defaultdict(list)
    for run in kept:
        arms[_part(run, by, axis, inside=True)].append(run)
    notes += _drop_lone(arms, x, axis, by)
    curves = []
    for name, runs_of in zip(_names(arms, by, axis), arms.values(), strict=True):
        at: dict[float | None, list[Run]] = defaultdict(list)
        for run in runs_of:
            at[run.leaves.get(axis)].append(run)
        curves.append(Curve(name, [_point(value, at[value], y) for value in sorted(at, key=_sortable)]))
    curves.sort(key=lambda curve: (curve.points[0].x is None, curve.label))
    return Sweep(x, y, curves, notes)


def _names(arms: Mapping[str, Sequence[Run]], by: Sequence[str], axis: str) -> list[str]:
    return name_arms([runs_of[0].leaves for runs_of in arms.values()], by, axis)


def _drop_lone(arms: dict[str, list[Run]], x: str, axis: str, by: Sequence[str]) -> list[str]:
    """Remove the arms with one value of the axis where others have several; a note that names them."""
    counts = {arm: len({run.leaves[axis] for run in runs_of if axis in run.leaves}) for arm, runs_of in arms.items()}
    lone = [name for name, arm in zip(_names(arms, by, axis), arms, strict=True) if counts[arm] == 1]
    if not lone or max(counts.values()) == 1:
        return []
    for arm in [arm for arm, count in counts.items() if count == 1]:
        del arms[arm]
    return [f"Left out, with one value of {x} alone: {'; '.join(sorted(lone))}."]


def swept(runs: Sequence[Run]) -> list[str]:
    """Which of AXES take two values or more."""
    return [x for x, axis in AXES.items() if len({run.leaves[axis] for run in runs if axis in run.leaves}) > 1]


def _relevant(runs: Sequence[Run], y: str) -> list[Run]:
    """Each run that has y once, without the settings of evaluators that y is not of."""
    own = f"evaluator.{y.partition('/')[0]}."
    found: dict[str, Run] = {}
    for run in runs:
        if run.metrics.get(y) is not None:
            leaves = {k: v for k, v in run.leaves.items() if not k.startswith("evaluator.") or k.startswith(own)}
            found[run.key + config.canonical(leaves)] = replace(run, leaves=leaves)
    return list(found.values())


def _within(leaf: str, by: Sequence[str]) -> bool:
    return any(leaf == AXES.get(part, part) or leaf.startswith(f"{part}.") for part in by)


def _part(run: Run, by: Sequence[str], axis: str, inside: bool) -> str:
    """What tells the arm of a run (inside) or all else of it, without axis, as canonical JSON."""
    return config.canonical(
        {leaf: value for leaf, value in run.leaves.items() if leaf != axis and _within(leaf, by) == inside}
    )


def _largest(runs: Sequence[Run], axis: str, by: Sequence[str]) -> tuple[list[Run], list[str]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_part(run, by, axis, inside=False)].append(run)

    def size(rest: str) -> tuple[int, int, str]:
        return len({run.leaves.get(axis) for run in groups[rest]}), len(groups[rest]), rest

    best = max(groups, key=size)
    ours = json.loads(best)
    differ: dict[str, set[str]] = defaultdict(set)
    for rest in groups.keys() - {best}:
        theirs = json.loads(rest)
        for leaf in sorted(theirs.keys() | ours.keys()):
            if theirs.get(leaf) != ours.get(leaf):
                differ[leaf].add(_short(theirs.get(leaf)))
    if not differ:
        return groups[best], []
    said = "; ".join(
        f"{leaf} = {', '.join(sorted(values))} (kept: {_short(ours.get(leaf))})"
        for leaf, values in sorted(differ.items())
    )
    return groups[best], [f"Left out {len(runs) - len(groups[best])} of {len(runs)} runs, which differ in {said}."]


def _short(value: Any) -> str:
    text = "null" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:10]}…"


def name_arms(arms: Sequence[Leaves], by: Sequence[str], axis: str) -> list[str]:
    """A short name for each arm: the classes that tell them apart, then the settings in which arms of one class differ.

    >>> ball = {"space._target_": "hypimg.nn.spaces.PoincareBall", "space.margin": 0.001, "head.temperature": 1}
    >>> plain = {"space._target_": "hypimg.nn.spaces.Euclidean", "head.temperature": 1}
    >>> name_arms([ball, plain, plain | {"head.temperature": 8}], ["space", "head"], "space.c")
    ['hyperbolic', 'Euclidean, temperature 1', 'Euclidean, temperature 8']
    """
    classes = []
    for arm in arms:
        targets = [str(arm.get(f"{part}._target_", "")).rpartition(".")[2] for part in by]
        classes.append(tuple(NAMES.get(target, target) for target in targets))
    told = [i for i in range(len(by)) if len({names[i] for names in classes}) > 1] or [0][: len(by)]
    leaves = [leaf for leaf in sorted({leaf for arm in arms for leaf in arm}) if leaf != axis and _within(leaf, by)]
    names = []
    for arm, own in zip(arms, classes, strict=True):
        like = [other for other, theirs in zip(arms, classes, strict=True) if theirs == own]
        words = [own[i] for i in told if own[i]]
        for leaf in leaves:
            if len({config.canonical({"x": other.get(leaf)}) for other in like}) > 1:
                words.append(f"{leaf.rpartition('.')[2].replace('_', ' ')} {_short(arm.get(leaf))}")
        names.append(", ".join(words) or "all")
    return names


def _point(value: float | None, runs: Sequence[Run], y: str) -> Point:
    numbers = [float(run.metrics[y]) for run in sorted(runs, key=lambda run: run.seed)]  # type: ignore[arg-type]
    if len(numbers) > 1:
        estimate = statistics.over_seeds(numbers)
        return Point(value, estimate.mean, estimate.half_width, len(numbers), "seeds")
    stem, slash, _ = y.rpartition("/")
    episodes = runs[0].metrics.get(f"{stem}{slash}ci95") if y.endswith("accuracy") else None
    return Point(value, numbers[0], episodes, 1, "episodes" if episodes is not None else None)


def _sortable(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float)
    return (value is None) + 2 * (not number), float(value) if number else 0.0, str(value)


def _listed(values: Sequence[Any]) -> str:
    return f"only {values[0]}" if len(values) == 1 else ", ".join(map(str, values)) if values else "none"


def _remedy(x: str) -> str:
    name = {"c": "curvature", "dim": "dimension"}.get(x)
    return f"python train.py -m experiment=… sweep={name}" if name else f"python train.py -m experiment=… {x}=…,…"
