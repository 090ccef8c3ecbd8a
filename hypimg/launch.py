"""From command-line words to runs: one, many after another, or many at once through Hydra's launchers."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, open_dict

from hypimg import config
from hypimg.errors import Stopped, UserError, nearest


def run_task(cfg: DictConfig) -> int:
    """Execute one run, print its outcome, and return its exit code (0, 2 user error, 3 not finite, 1 our bug)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("lightning_fabric", "lightning.fabric", "matplotlib", "fontTools", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from hypimg import run

    try:
        run.report(cfg, run.execute(cfg))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        raise SystemExit(stopped.exit_code) from None  # also leaves the jobs of a sweep that were to come
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def expand(overrides: list[str]) -> list[list[str]]:
    """`c=0.1,1 dim=2,8` → the override list of each job, with the axes that `sweep=` adds."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for word in overrides:
        if word.startswith("sweep=") and (name := word.removeprefix("sweep=")) not in config.members("sweep"):
            raise UserError("sweep", name, f"not in configs/sweep; {nearest(name, config.members('sweep'))}")
    with config.hydra_session():
        fixed = [word for word in overrides if not _sweeps(word)]
        params = _compose_with_hydra(fixed).hydra.sweeper.params or {}
        words = [*(f"{key}={value}" for key, value in params.items()), *overrides]
        parsed = OverridesParser.create().parse_overrides(words)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [[word for word in job if not word.startswith(("hydra.", "hydra/", "sweep="))] for job in jobs]


def launch(jobs: Sequence[Sequence[str]], launcher: Sequence[str] = ()) -> list[int]:
    """Run each override list through a Hydra launcher and return the exit codes, in order.

    launcher: the words that choose it: [] runs here, one after another; ["hydra/launcher=joblib",
    "hydra.launcher.n_jobs=2"] two at a time.  Jobs that share the machine get a thread each unless they say otherwise.
    A signal stops the remaining jobs too.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    if not jobs:
        return []
    shared = any(word.startswith("hydra/launcher=") for word in launcher)
    words = [
        [*job, *(["threads=1"] if shared and not any(word.startswith("threads=") for word in job) else [])]
        for job in jobs
    ]
    with config.hydra_session():
        cfg = _compose_with_hydra(list(launcher))
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        with open_dict(cfg):
            cfg.hydra.overrides.task = []  # each job brings its own words
        started = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_task, config=cfg)
        returns = started.launch(words, initial_job_idx=0)
    return [_code(job) for job in returns]


def _compose_with_hydra(overrides: list[str]) -> DictConfig:
    from hydra import compose

    return compose("train", overrides, return_hydra_config=True)


def _sweeps(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(word).is_sweep_override()


def _code(job: Any) -> int:
    try:
        return int(job.return_value)
    except Exception as error:  # what the task function did not catch: a launcher's or Hydra's own failure
        explained = error if isinstance(error, UserError) else config.explain(error)
        print(f"error: {explained}", file=sys.stderr, flush=True)
        return UserError.exit_code
