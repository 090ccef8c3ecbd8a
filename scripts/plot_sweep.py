"""Plot a metric against what was swept, c or dim, with 95 % intervals: one curve per arm.

    python train.py -m experiment=cub_5shot sweep=curvature          first train the sweep
    python scripts/plot_sweep.py experiment=cub_5shot                from the finished runs under runs/
    python scripts/plot_sweep.py experiment=cub_5shot x=dim trainer.epochs=200
    python scripts/plot_sweep.py table=cifar_fs_sweep budget=cpu     from the lines of results/<table>/runs.jsonl

  x=               c, dim, or the path of a setting as in config.yaml: x=head.temperature  (default: those of c and dim
                   that have several values, a plot each)
  y=               the metric, as in summary.json  (default: test/accuracy, fewshot/accuracy, accuracy or val/accuracy)
  by=space,head    config groups whose members are the arms
  runs_dir=runs    where experiment= looks
  budget=paper     of the table
  only=            cells of the table by row/column, * and ? standing for anything; several by commas
  out=             folder  (default: runs/<experiment> or results/<table>)
  …                settings that the runs must have: c=0.05, trainer.epochs=200, space.margin=0.001

Filled marks are means over seeds with their t-interval; open ones are one training, with the interval over its test
episodes. Runs that differ in any other setting are left out, with a line that says in which.
Writes sweep_<x>.png, .pdf and .txt (the caption). Exit codes: 0 done, 2 something that you can mend.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout works without having been installed

from hypimg.errors import UserError, nearest  # noqa: E402

OPTIONS = {
    "experiment": "",
    "table": "",
    "x": "",
    "y": "",
    "by": "space,head",
    "runs_dir": "runs",
    "budget": "paper",
    "only": "",
    "out": "",
}


def main(words: list[str]) -> int:
    if not words or {"--help", "-h", "help"} & set(words):
        print(__doc__)
        return 0
    try:
        plot(*parse(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(words: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """`key=value` words → our options, and the rest as settings that the runs must have."""
    options, settings = dict(OPTIONS), {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError("argument", word, f"give key=value; {nearest(key, OPTIONS)}; --help shows the keys")
        if key in options:
            options[key] = value or options[key]
        else:
            settings[key] = value
    if bool(options["experiment"]) == bool(options["table"]):
        raise UserError(
            "experiment", options["experiment"] or None, "give experiment=<name> or table=<name>, one of them"
        )
    return options, settings


def plot(options: dict[str, str], settings: dict[str, str]) -> None:
    from hypimg.figures import sweep as figure
    from hypimg.tables import sweep
    from hypimg.tables.results import RESULTS

    if options["table"]:
        runs = sweep.table_runs(options["table"], options["budget"], options["only"])
        folder = RESULTS / options["table"] / ("" if options["budget"] == "paper" else options["budget"])
    else:
        runs = sweep.finished_runs(options["experiment"], Path(options["runs_dir"]))
        folder = Path(options["runs_dir"]) / options["experiment"]
    runs = sweep.where(runs, settings)
    metric = sweep.metric_of(runs, options["y"])
    by = [part for part in options["by"].split(",") if part]
    for x in [options["x"]] if options["x"] else sweep.swept(runs) or ["c"]:
        found = sweep.gather(runs, x, metric, by)
        stem = Path(options["out"] or folder) / f"sweep_{x.replace('.', '_')}"
        for note in found.notes:
            print(note)
        for path in figure.draw(found.curves, stem, x, metric, found.notes):
            print(f"drawn: {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
