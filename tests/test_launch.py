"""Several runs at once: who gets which share of the machine, how they end, and what a preempted job goes on with."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from hypimg import config, launch, run
from hypimg.errors import UserError
from hypimg.tables import runner
from hypimg.tables.manifest import parse
from hypimg.tables.results import read_lines

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher")

Train = Callable[..., subprocess.Popen[str]]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def composed(words: list[str]):
    with config.hydra_session():
        return launch._compose_with_hydra(words).hydra.launcher


def shares(launcher: list[str], jobs: list[list[str]]) -> list[list[str]]:
    name = launch.launcher_name(launcher)
    return launch.shares(name, composed(launcher), jobs)


@pytest.mark.parametrize(
    ("launcher", "jobs", "threads"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], 5, 8),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], 2, 5),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=40"], 50, 1),
        (["hydra/launcher=joblib"], 50, 1),
        (["hydra/launcher=joblib"], 4, 4),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=-2"], 50, 1),
        (["hydra/launcher=submitit_local"], 4, 4),
        (["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=3"], 4, 3),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=6"], 4, 6),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=null"], 4, 1),
    ],
)
def test_jobs_share_the_cores_of_the_machine(launcher, jobs, threads, monkeypatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 16)
    assert shares(launcher, [[]] * jobs) == [[f"threads={threads}"]] * jobs


def test_threads_that_a_job_names_are_its_own_and_one_run_after_another_gets_them_all() -> None:
    assert shares(JOBLIB, [["threads=7"]]) == [[]]
    assert shares([], [[], []]) == [[], []]


def test_jobs_on_a_machine_with_several_gpus_take_turns(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    jobs = [["threads=1", f"device={name}"] for name in ("auto", "cuda", "cpu", "cuda:1", "auto")]
    assert shares(JOBLIB, jobs) == [["device=cuda:0"], ["device=cuda:1"], [], [], ["device=cuda:0"]]
    assert shares(["hydra/launcher=submitit_slurm"], jobs) == [[]] * 5, "SLURM shows each job its own GPU"


@pytest.mark.parametrize("launcher", [[], JOBLIB])
def test_several_devices_for_one_of_several_runs_are_refused_with_the_remedy(quick, launcher, tmp_path) -> None:
    with pytest.raises(UserError, match=r"devices=2: .*without -m.* hydra/launcher=joblib or submitit_slurm"):
        launch.launch([[*quick, "seed=0"], [*quick, "seed=1", "++devices=2"]], launcher)
    assert not (tmp_path / "runs").exists(), "nothing was begun"
    launch.refuse_several_devices(OmegaConf.create({"devices": 1}))
    launch.refuse_several_devices(OmegaConf.create({}))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra/launcher=submitit"], r"hydra/launcher=submitit: no such launcher; did you mean submitit_"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], r"hydra.launcher.n_jobs=0: must be"),
        (["hydra/launcher=joblib", "hydra.launcher.n_job=2"], r"n_job"),
        (["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=abc"], r"abc"),
    ],
)
def test_a_launcher_that_is_not_there_or_not_so_ends_in_one_line(quick, words, line, tmp_path) -> None:
    with pytest.raises(UserError, match=line):
        launch.launch([quick], words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "module"), [("joblib", "joblib"), ("submitit_slurm", "submitit")])
def test_a_launcher_that_is_not_installed_says_how(name: str, module: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, f"hydra_plugins.hydra_{module}_launcher", None)
    with pytest.raises(UserError, match=r"pip install 'hypimg\[launch\]'"):
        launch.expand([f"hydra/launcher={name}", "seed=0,1"])


@pytest.mark.parametrize("name", ["joblib", "submitit_local", "submitit_slurm"])
def test_our_settings_of_a_launcher_are_ones_that_it_knows(name: str) -> None:
    from hydra.core.config_store import ConfigStore

    ours = OmegaConf.load(config.CONFIG_DIR / "hydra" / "launcher" / f"{name}.yaml")
    schema = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
    assert set(ours) <= set(schema) and ours._target_ == schema._target_


def test_slurm_without_slurm_is_one_line(quick, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"hydra/launcher=submitit_slurm: this machine has no srun"):
        launch.launch([quick], ["hydra/launcher=submitit_slurm"])


def test_a_run_that_was_stopped_is_an_exit_code_in_a_process_of_its_own_and_ends_a_sweep_here(monkeypatch) -> None:
    from hypimg.errors import Stopped

    def stopped(cfg):
        raise Stopped(signal.SIGTERM, "last.pt")

    monkeypatch.setattr(run, "execute", stopped)
    assert launch.run_job(OmegaConf.create()) == 143
    with pytest.raises(SystemExit) as left:
        launch.run_task(OmegaConf.create())
    assert left.value.code == 143


def test_a_worker_that_was_asked_to_stop_begins_no_other_run(monkeypatch) -> None:
    from hypimg.training.preemption import StopRequest

    asked = StopRequest()
    monkeypatch.setattr(launch, "_asked", asked)
    monkeypatch.setattr(launch, "_run", lambda cfg: 0)
    assert launch.run_in_worker(OmegaConf.create()) == 0
    asked.signal = signal.SIGTERM
    assert launch.run_in_worker(OmegaConf.create()) == 143


def test_jobs_end_with_their_own_codes_in_order(quick, monkeypatch) -> None:
    monkeypatch.setattr(launch, "_run", lambda cfg: {0: 0, 1: 3, 2: 1}[cfg.seed])
    assert launch.launch([[*quick, f"seed={seed}"] for seed in (1, 0, 2)]) == [3, 0, 1]


# What follows starts processes that import torch: seconds each.


@pytest.mark.slow
def test_a_command_of_joblibs_ends_with_the_worst_code_of_its_jobs(quick, train: Train) -> None:
    process = train("-m", *quick, "objective.batch_size=64,0", "seed=0", *JOBLIB)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "1 of 2 jobs did not finish" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_joblibs_workers_save_and_begins_no_other_job(quick, tmp_path, train: Train, number) -> None:
    words = [*quick, "trainer.epochs=2000", "checkpoint_seconds=1000", "seed=0,1,2,3"]
    process = train("-m", *words, *JOBLIB)
    folder = tmp_path / "runs" / "digits_disk"
    wait_for(lambda: len(begun(folder)) == 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert err.count("after saving") == 2 and len(list(folder.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "what"), [(JOBLIB, "A worker "), (["hydra/launcher=submitit_local"], "Job ")])
def test_a_process_that_is_killed_is_one_line_and_a_run_that_did_not_finish(
    quick, tmp_path, train: Train, launcher, what
) -> None:
    words = [word for word in quick if not word.startswith("trainer.epochs")]
    process = train("-m", *words, "trainer.epochs=1,2000", *launcher)
    folder = tmp_path / "runs" / "digits_disk"
    wait_for(lambda: len(list(folder.glob("*/summary.json"))) == 1 and len(begun(folder)) == 1, process)
    os.kill(holder(begun(folder)[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and f"error: {launcher[0]}: {what}" in err and "Traceback" not in err
    assert "1 of 2 jobs did not finish" in err and "trainer.epochs=2000" in err.splitlines()[-1]


@pytest.mark.slow
def test_a_table_goes_through_joblib(quick, tmp_path, capsys) -> None:
    manifest = parse(
        "t",
        {
            "title": "digits",
            "source": "a test",
            "heading": "space",
            "metric": {"name": "test/accuracy", "description": "accuracy", "higher_is_better": True},
            "common": ["experiment=digits_disk", "trainer.epochs=1"],
            "columns": {"n=2": ["dim=2"], "n=8": ["dim=8"]},
            "rows": {"hyp": {"ours": True}, "bad": {"ours": True, "overrides": ["objective.batch_size=0"]}},
            "seeds": 2,
        },
    )
    settings = [word for word in quick if word.split("=")[0] in ("runs_dir", "store_dir", "logger", "evaluator")]
    results = tmp_path / "results"
    assert runner.reproduce(manifest, jobs=2, settings=settings, results=results) == 2
    lines = read_lines(results, "t")
    assert {(line["row"], line["column"], line["seed"]) for line in lines} == {
        ("hyp", column, seed) for column in ("n=2", "n=8") for seed in (0, 1)
    }
    assert all(0 < line["metrics"]["test/accuracy"] <= 1 for line in lines)
    from joblib import cpu_count

    assert {line["threads"] for line in lines} == {max(1, cpu_count() // 2)}

    before = (results / "t" / "runs.jsonl").read_bytes()
    assert runner.reproduce(manifest, only="hyp/*", jobs=2, settings=settings, results=results) == 0
    assert (results / "t" / "runs.jsonl").read_bytes() == before


@pytest.mark.slow
def test_submitits_local_jobs_end_with_the_worst_code_and_write_beside_the_runs(quick, tmp_path, train: Train) -> None:
    process = train("-m", *quick, "objective.batch_size=64,0", "hydra/launcher=submitit_local")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "1 of 2 jobs did not finish" in err
    logs = [path.read_text() for path in (tmp_path / "runs" / ".sweeps" / ".submitit").glob("*/*_log.out")]
    assert len(logs) == 2 and sum("test/accuracy" in log for log in logs) == 1


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_ends_with_the_bits_of_one_that_was_not(quick, tmp_path, train: Train) -> None:
    words = [*quick, "trainer.epochs=60", "checkpoint_seconds=1000"]
    whole = config.compose([*words, f"runs_dir={tmp_path / 'whole'}"])
    assert launch.run_task(whole) == 0
    folder = run.run_directory(config.compose(words))
    process = train("-m", *words, "hydra/launcher=submitit_local")
    wait_for(lambda: len(begun(folder.parent)) == 1, process)
    first = holder(folder)
    os.kill(first, signal.SIGTERM)  # as SLURM does, and submitit lets pass
    os.kill(first, signal.SIGUSR2)
    process.communicate(timeout=300)
    assert process.returncode == 0 and holder(folder) != first
    (log,) = (tmp_path / "runs" / ".sweeps" / ".submitit").glob("*/*_log.out")
    assert "Bypassing signal SIGTERM" in log.read_text() and log.read_text().count("Starting with") == 2
    assert_same_bits(run.run_directory(whole), folder)


# A cluster of one node. sbatch starts each job of an array as a process; scontrol puts one back when it has ended.
SBATCH = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
script = Path(sys.argv[1])
size = re.search(r"--array=0-(\\d+)", script.read_text())
copy = Path(r"{folder}") / "script.sh"
copy.write_text(script.read_text())
for i in range(int(size[1]) + 1 if size else 1):
    array = {{"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(i)}} if size else {{}}
    env = {{**os.environ, "SLURM_JOB_ID": str(7 + i), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", **array}}
    loop = f"cd {folder}; bash script.sh; while rm requeue-7_{{i}} || rm requeue-7; do bash script.sh; done"
    out = open(f"{folder}/slurm-{{i}}.txt", "w")
    subprocess.Popen(["bash", "-c", loop], cwd=os.getcwd(), env=env, stdout=out, stderr=out, start_new_session=True)
print("Submitted batch job 7")
"""
SRUN = '#!/bin/bash\ncd "{root}"; while [[ "$1" == --* ]]; do [[ "$1" == --unbuffered ]] || shift; shift; done; "$@"\n'
SCONTROL = "#!/bin/bash\ntouch {folder}/requeue-$2\n"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir()
    root = Path(__file__).parent.parent
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "sacct": "#!/bin/bash\n"}.items():
        path = folder / name
        path.write_text(text if name == "sacct" else text.format(python=sys.executable, folder=folder, root=root))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_a_sweep_on_slurm_is_an_array_of_jobs_that_ask_save_and_come_back(quick, tmp_path, train, cluster) -> None:
    words = [*(word for word in quick if not word.startswith("threads=")), "trainer.epochs=60"]
    process = train("-m", *words, "seed=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    folder = tmp_path / "runs" / "digits_disk"
    wait_for(lambda: len(begun(folder)) == 2, process)
    first = holder(begun(folder)[0])
    os.kill(first, signal.SIGUSR2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(list(folder.glob("*/summary.json"))) == 2 and first not in map(holder, folder.iterdir())
    asked = set(re.findall(r"^#SBATCH --(\S+)$", (cluster / "script.sh").read_text(), re.M))
    assert {"array=0-1%2", "time=240", "signal=USR2@120", "requeue", "gpus-per-node=1", "cpus-per-task=1"} <= asked
    assert {"mem=32GB", "job-name=digits_disk", "nodes=1", "ntasks-per-node=1"} <= asked
    assert {json.loads(path.read_text())["threads"] for path in folder.glob("*/environment.json")} == {1}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def begun(folder: Path) -> list[Path]:
    """The runs that have closed two epochs."""
    return [path.parent for path in sorted(folder.glob("*/metrics.csv")) if len(path.read_text().splitlines()) > 2]


def holder(folder: Path) -> int:
    """The process that has, or last had, a run's folder."""
    return int((folder / ".lock").read_text().split()[1])


def assert_same_bits(ours: Path, theirs: Path) -> None:
    models = [torch.load(f / "checkpoints" / "last.pt", weights_only=True)["state"]["model"] for f in (ours, theirs)]
    assert models[0].keys() == models[1].keys() and len(models[0]) > 0
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    tables = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (ours, theirs)]
    for rows in tables:
        for row in rows:
            del row["seconds"]
    assert tables[0] == tables[1]
