"""From command-line words to runs: one, many after another, or many at once through Hydra's launchers."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, open_dict

from hypimg import config
from hypimg.errors import Stopped, UserError, nearest
from hypimg.training.preemption import StopRequest

# Our launchers' settings bear the names of the plugins' own, which Hydra then takes as their schema, as we want.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


def run_task(cfg: DictConfig) -> int:
    """Execute one run, print its outcome, and return its exit code (0, 2 user error, 3 not finite, 1 our bug)."""
    try:
        return _run(cfg)
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None  # also leaves the jobs of a sweep that were to come


def run_job(cfg: DictConfig) -> int:
    """`run_task` in a process of its own, which hands back that it was stopped (128 + signal) like any exit code."""
    try:
        return _run(cfg)
    except Stopped as stopped:
        return stopped.exit_code


_asked: StopRequest | None = None  # in a worker of joblib's: what it was asked since its first run


def run_in_worker(cfg: DictConfig) -> int:
    """`run_job` in a process that takes one run after another; once asked to stop, it begins no other."""
    global _asked
    if _asked is None:
        _asked = StopRequest().__enter__()
    return 128 + _asked.signal if _asked.signal is not None else run_job(cfg)


def _run(cfg: DictConfig) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("lightning_fabric", "lightning.fabric", "matplotlib", "fontTools", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from hypimg import run
    from hypimg.training.devices import is_leader

    try:
        run.report(cfg, run.execute(cfg))
    except UserError as error:
        if is_leader(cfg.get("devices", 1)):  # the other ranks of a run end alike, and would say the same
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Stopped as stopped:
        if is_leader(cfg.get("devices", 1)):
            print(stopped, file=sys.stderr, flush=True)
        raise
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
    launcher_name(overrides)
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
    "hydra.launcher.n_jobs=2"] two at a time; ["hydra/launcher=submitit_slurm"] each as a SLURM job.  Jobs that share
    a machine share its cores and GPUs, unless they name threads= and device=.
    A signal stops the remaining jobs too (SystemExit, 128 + signal), except those that SLURM has.
    Where a process was killed, the jobs that have no result by then have exit code 2.
    Raises UserError for a launcher that is not there, and for a job that wants several devices.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    if not jobs:
        return []
    name = launcher_name(launcher)
    if name == "submitit_slurm" and shutil.which("srun") is None:
        remedy = "this machine has no srun; start it where SLURM's jobs are started, or try it with submitit_local"
        raise UserError("hydra/launcher", name, remedy)
    with config.hydra_session():
        for job in [jobs[0], *(job for job in jobs if _said(job, "devices"))]:
            refuse_several_devices(config.compose(list(job)))
        cfg = _compose_with_hydra([*launcher, *jobs[0]])  # its runs_dir and name are the jobs'
        words = [[*job, *more] for job, more in zip(jobs, shares(name, cfg.hydra.launcher, jobs), strict=True)]
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        with open_dict(cfg):
            cfg.hydra.overrides.task = []  # each job brings its own words
        if folder := cfg.hydra.launcher.get("submitit_folder"):
            print(f"{len(jobs)} jobs; each writes what it prints into {folder}".replace("%j", "<job>"), file=sys.stderr)
        task = run_task if name == "basic" else run_in_worker if name == "joblib" else run_job
        started = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)
        with StopRequest(_pass_to_workers) if name == "joblib" else contextlib.nullcontext(StopRequest()) as stop:
            try:
                returns = started.launch(words, initial_job_idx=0)
            except RuntimeError as error:  # joblib's for a worker that was killed, submitit's for a job that was
                if name == "basic":
                    raise
                if stop.signal is None:
                    what = f"{str(error).splitlines()[0]}; the same command goes on where it was"
                    print(f"error: {UserError('hydra/launcher', name, what)}", file=sys.stderr, flush=True)
                    return [0 if _is_finished(job) else UserError.exit_code for job in jobs]
        if stop.signal is not None:
            raise SystemExit(128 + stop.signal)
    return [_code(job) for job in returns]


def launcher_name(words: Sequence[str]) -> str:
    """Which of Hydra's launchers the words choose.  Raises UserError for one that is unknown or not installed."""
    name = ["basic", *(word.partition("=")[2] for word in words if word.startswith("hydra/launcher="))][-1]
    known = ["basic", *config.members("hydra/launcher")]
    if name not in known:
        raise UserError("hydra/launcher", name, f"no such launcher; {nearest(name, known)}")
    if name != "basic":
        try:
            importlib.import_module(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher")
        except ImportError:
            raise UserError("hydra/launcher", name, "needs pip install 'hypimg[launch]'") from None
    return name


def refuse_several_devices(cfg: DictConfig) -> None:
    """Raise UserError if one of several runs is itself to be spread over devices: that starts the command anew."""
    if int(cfg.get("devices", 1)) > 1:
        remedy = "one of several runs has one device: run each by itself with devices={} and without -m, or leave out "
        remedy += "devices= and run several at a time with hydra/launcher=joblib or submitit_slurm"
        raise UserError("devices", cfg.devices, remedy.format(cfg.devices))


def shares(name: str, launcher: DictConfig, jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """What each job is told of the machine beside its own words: the threads and the GPU that it is to use.

    Threads: those that SLURM reserves for it, or else its share of this machine's cores.
    GPUs: joblib's workers see all of them and take turns; SLURM shows each job its own.
    """
    if name == "basic":
        return [[] for _ in jobs]
    from joblib import cpu_count  # type: ignore[import-untyped]

    at_once = launcher.get("n_jobs", len(jobs))
    if at_once == 0:
        raise UserError("hydra.launcher.n_jobs", 0, "must be a number of runs ≥ 1, or -1 for one per core")
    if at_once < 0:
        at_once = max(1, min(cpu_count() + 1 + at_once, len(jobs)))
    threads = launcher.get("cpus_per_task") or (1 if name == "submitit_slurm" else max(1, cpu_count() // at_once))
    words = [[] if _said(job, "threads") else [f"threads={threads}"] for job in jobs]
    if name == "joblib":
        import torch

        gpus = torch.cuda.device_count()
        for i, job in enumerate(jobs):
            if gpus > 1 and _said(job, "device") in (None, "auto", "cuda"):
                words[i].append(f"device=cuda:{i % gpus}")
    return words


def _said(job: Sequence[str], key: str) -> str | None:
    """What a job's words give a key of the top level; None if they leave it alone."""
    values = [value for word, _, value in (word.partition("=") for word in job) if word.lstrip("+") == key]
    return values[-1] if values else None


def _pass_to_workers(number: int) -> None:
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)


def _compose_with_hydra(overrides: list[str]) -> DictConfig:
    from hydra import compose

    with config.hydra_session(overrides):  # inside the caller's: its errors are explained by these words
        return compose("train", overrides, return_hydra_config=True)


def _sweeps(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(word).is_sweep_override()


def _is_finished(job: Sequence[str]) -> bool:
    from hypimg import run, rundir

    return rundir.read_summary(run.run_directory(config.compose(list(job)))) is not None


def _code(job: Any) -> int:
    try:
        return int(job.return_value)
    except Exception as error:  # what the task function did not catch: a launcher's or Hydra's own failure
        explained = error if isinstance(error, UserError) else config.explain(error)
        print(f"error: {explained}", file=sys.stderr, flush=True)
        return UserError.exit_code
