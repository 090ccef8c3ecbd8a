"""Reproduce a table of the papers: plan, run what is missing, write results/<table>/, draw its figures.

    python scripts/reproduce.py hie_table3                    the whole table, as the paper trained
    python scripts/reproduce.py hie_table3 plan=1             only show what is done, what is left, what it takes
    python scripts/reproduce.py hie_table3 only='hyperbolic/*' seeds=2

  budget=paper     a budget of the manifest: `paper` (its schedule; verdicts) or e.g. `cpu` (affordable; no verdicts)
  seeds=5          a count, or seeds by commas: seeds=0,3 or seeds=4,   (default: the manifest's)
  only=            cells by row/column, * and ? standing for anything; several by commas
  jobs=1           runs at a time on this machine, which share its threads
  device=auto      auto, cpu, cuda, cuda:1
  fresh=0          1: set aside what was done and do it again
  plan=0           1: show the plan and stop
  render=0         1: write the tables from the lines that are there, run nothing
  figures_only=0   1: draw the figures from stored scores, run nothing; or name some: figures_only=hie_fig1,hie_fig5
  hydra/launcher=  another of Hydra's launchers (submitit_slurm), with its hydra.launcher.*= settings
  …                any setting that changes no result: data_dir=, store_dir=, runs_dir=, threads=, logger=csv, …

Finished cells are lines of results/<table>/runs.jsonl; stop at any time, the same command goes on.
Exit codes: 0 done, 2 something that you can mend, 3 a run became non-finite, 128 + n stopped by signal n.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout works without having been installed

from hypimg.errors import UserError, nearest  # noqa: E402
from hypimg.tables import manifest as manifests  # noqa: E402

OPTIONS = {
    "budget": "paper",
    "seeds": "",
    "only": "",
    "jobs": "1",
    "device": "",
    "fresh": "0",
    "plan": "0",
    "render": "0",
    "figures_only": "0",
}


def main(words: list[str]) -> int:
    if not words or {"--help", "-h", "help"} & set(words):
        print(__doc__)
        print("Tables:")
        for name in manifests.names():
            print(f"  {name:<22} {manifests.load(name).title}")
        return 0
    try:
        return reproduce(*parse(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def parse(words: list[str]) -> tuple[str, dict[str, str], list[str], list[str]]:
    """The table's name, the options, the runs' settings, the launcher's words. Empty values mean the default."""
    table, options = "", dict(OPTIONS)
    settings: list[str] = []
    launcher: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if table:
                raise UserError(
                    "argument", word, f"only one table at a time, got {table} before; options are key=value"
                )
            table = word
        elif key in options:
            options[key] = value or options[key]
        elif value:
            (launcher if key.startswith(("hydra/", "hydra.")) else settings).append(word)
    if not table:
        raise UserError("table", None, f"name one: {', '.join(manifests.names())}")
    if options["device"]:
        settings.append(f"device={options['device']}")
    return table, options, settings, launcher


def reproduce(table: str, options: dict[str, str], settings: list[str], launcher: list[str]) -> int:
    manifest = manifests.load(table)
    seeds = _seeds(options["seeds"])
    jobs = _whole("jobs", options["jobs"])
    fresh, only_plan, only_render = (_switch(name, options[name]) for name in ("fresh", "plan", "render"))
    budget, only = options["budget"], options["only"]
    if budget not in manifest.budgets:
        raise UserError("budget", budget, f"not in the manifest {table}; {nearest(budget, manifest.budgets)}")

    check_settings(settings)
    from hypimg.tables import render, runner

    readme = ROOT / "README.md" if (ROOT / "README.md").is_file() else None
    if only_render:
        for path in render.write(manifest, budget=budget, readme=readme):
            print(f"written: {path}")
        return 0
    figures = "" if options["figures_only"] in ("0", "1") else options["figures_only"]
    chosen = runner.choose_figures(manifest, filter(None, figures.split(",")))
    if only_plan or options["figures_only"] != "0":
        planned = runner.plan(manifest, budget, seeds, only, settings=settings, fresh=fresh)
        if only_plan:
            print(runner.describe(manifest, planned, budget, jobs))
            return 0
        return runner.draw_figures(manifest, planned, budget, chosen, settings=settings)
    return runner.reproduce(
        manifest,
        budget,
        seeds,
        only,
        jobs=jobs,
        launcher=launcher,
        fresh=fresh,
        settings=settings,
        readme=readme,
    )


def check_settings(settings: list[str]) -> None:
    """Raise UserError for a word that is neither an option of this script nor a key of the configs."""
    from hypimg import config

    known = {*config.compose([]), *config.groups()} if settings else set()
    for word in settings:
        key, _, value = word.partition("=")
        if key.partition(".")[0].lstrip("+~") not in known:
            own = f"no option ({', '.join(OPTIONS)}) and no setting of the runs"
            raise UserError(key, value, f"{own}; {nearest(key, {*OPTIONS, *known})}")


def _seeds(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    numbers = [_whole("seeds", part, lowest=0) for part in text.removesuffix(",").split(",")]
    if numbers == [0] and "," not in text:
        raise UserError("seeds", text, "a count must be ≥ 1; the seed 0 alone is seeds=0, with a comma")
    return manifests.parse_seeds(numbers if "," in text else numbers[0])


def _whole(name: str, text: str, lowest: int = 1) -> int:
    if text.isdecimal() and int(text) >= lowest:
        return int(text)
    raise UserError(name, text, f"must be a whole number ≥ {lowest}")


def _switch(name: str, text: str) -> bool:
    if text in ("0", "1"):
        return text == "1"
    raise UserError(name, text, "must be 0 or 1")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
