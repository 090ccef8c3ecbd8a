"""One run end to end, with real processes where a process matters."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import hypimg
from hypimg import config, launch, run
from hypimg.data import opened
from hypimg.data.datasets.digits import Digits
from hypimg.errors import UserError

Train = Callable[..., subprocess.Popen[str]]


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def _record(folder: Path) -> tuple[dict[str, torch.Tensor], list[list[str]], dict[str, float]]:
    """Weights, metrics without times, and the summary's metrics of a finished run."""
    weights = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state"]["model"]
    rows = list(csv.reader((folder / "metrics.csv").open()))
    seconds = rows[0].index("seconds")
    return (
        weights,
        [row[:seconds] + row[seconds + 1 :] for row in rows],
        json.loads((folder / "summary.json").read_text())["metrics"],
    )


def test_a_run_leaves_its_config_metrics_checkpoints_environment_and_summary(quick: list[str], capsys) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    assert folder.name == config.run_key(cfg)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "environment.json",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
    } <= names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] == 2 and 0 <= summary["metrics"]["test/accuracy"] <= 1
    assert config.run_key(OmegaConf.load(folder / "config.yaml")) == folder.name
    assert "data_dir" not in (folder / "config.yaml").read_text(), "a machine's folders are no part of a run"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["threads"] == 1 and environment["data"]["digest"] == summary["data"]["digest"]

    capsys.readouterr()
    before = (folder / "checkpoints" / "last.pt").stat().st_mtime_ns
    assert launch.run_task(cfg) == 0
    assert "finished earlier, nothing was trained" in capsys.readouterr().out
    assert (folder / "checkpoints" / "last.pt").stat().st_mtime_ns == before


def test_both_spaces_see_the_same_batches_and_start_from_the_same_backbone(quick: list[str]) -> None:
    models = []
    for space in ("poincare", "euclidean"):
        cfg = config.compose([*quick, f"space={space}"])
        dataset, _ = run.open_data(cfg)
        models.append(run.build_model(cfg, dataset))
    first, second = (dict(model.backbone.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("moments", [(1, 2), (3,)])
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(
    quick: list[str], tmp_path: Path, train: Train, moments: tuple[int, ...]
) -> None:
    words = [*quick, "trainer.epochs=12", "checkpoint_seconds=0.02"]
    whole = config.compose([*words, f"runs_dir={tmp_path / 'whole'}"])
    assert launch.run_task(whole) == 0
    broken = config.compose([*words, f"runs_dir={tmp_path / 'broken'}"])
    folder = run.run_directory(broken)
    rng = np.random.default_rng(moments)
    for moment in moments:
        process = train(*words, f"runs_dir={tmp_path / 'broken'}")
        while len(_lines(folder / "metrics.csv")) <= 2 * moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.05)))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "summary.json").exists()
    assert launch.run_task(broken) == 0
    for ours, theirs in zip(_record(run.run_directory(whole)), _record(folder), strict=True):
        if isinstance(ours, dict) and ours and isinstance(next(iter(ours.values())), torch.Tensor):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        else:
            assert ours == theirs
    assert not list(folder.rglob(".tmp-*"))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_preemption_saves_first_and_says_how_to_go_on(
    quick: list[str], tmp_path: Path, train: Train, number: int
) -> None:
    words = [*quick, "trainer.epochs=500"]
    folder = run.run_directory(config.compose(words))
    process = train(*words)
    while len(_lines(folder / "metrics.csv")) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    code, _, err = _finish(process)
    assert code == 128 + number, err
    assert f"stopped by signal {int(number)} after saving" in err
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state"]
    assert state["step"] > 0 and state["closed"] >= 2


def test_a_second_process_says_who_holds_the_run(quick: list[str], train: Train) -> None:
    words = [*quick, "trainer.epochs=500"]
    folder = run.run_directory(config.compose(words))
    first = train(*words)
    try:
        while not _lines(folder / "metrics.csv") and first.poll() is None:
            time.sleep(0.005)
        code, _, err = _finish(train(*words))
        assert code == 2 and f"held by process {first.pid} on " in err and "Traceback" not in err
        with (folder / ".lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        first.kill()
        first.wait()


def test_a_finished_run_that_saw_other_data_is_trained_anew_and_kept(quick: list[str], caplog) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    for name in ("summary.json", "environment.json"):
        text = (folder / name).read_text()
        digest = json.loads(text)["data"]["digest"]
        (folder / name).write_text(text.replace(digest, "0" * 64))
    assert launch.run_task(cfg) == 0
    assert "saw other data" in caplog.text
    assert json.loads((folder / "superseded-0000000000" / "summary.json").read_text())["data"]["digest"] == "0" * 64
    assert json.loads((folder / "summary.json").read_text())["data"]["digest"] == digest


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("environment.json", "{", 0),
        ("metrics.csv", None, 2),
        ("metrics.csv", "loss\n1\n", 2),
        ("checkpoints/best.pt", "", 2),
    ],
)
def test_a_damaged_file_of_an_unfinished_run_is_named_or_made_again(
    quick: list[str], file: str, content: str | None, code: int, capsys
) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    (folder / "summary.json").unlink()
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    capsys.readouterr()
    assert launch.run_task(cfg) == code
    if code:
        assert f"{file}: " in capsys.readouterr().err


def test_a_damaged_summary_or_config_of_a_finished_run_is_named(quick: list[str], capsys) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    for file, content in (("config.yaml", "a: ["), ("config.yaml", ""), ("summary.json", "{}"), ("summary.json", "{")):
        before = (folder / file).read_text()
        (folder / file).write_text(content)
        with pytest.raises(UserError, match=rf"{file}: damaged; delete"):
            hypimg.load(folder)
        (folder / file).write_text(before)


def test_a_damaged_evaluation_is_made_again(quick: list[str], store_dir: Path) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    node = config.compose_group("evaluator", "ood_blurred")
    first = run.evaluate([run.run_directory(cfg)], node, "data", store_dir)
    first.scores.write_bytes(first.scores.read_bytes()[:500])
    assert run.evaluate([run.run_directory(cfg)], node, "data", store_dir).metrics == first.metrics
    with np.load(first.scores) as arrays:
        assert len(arrays["points"])


def test_a_checkpoint_from_another_config_is_refused(quick: list[str], capsys) -> None:
    first, second = config.compose(quick), config.compose([*quick, "seed=1"])
    assert launch.run_task(first) == 0
    run.run_directory(second).mkdir(parents=True)
    shutil.copytree(run.run_directory(first) / "checkpoints", run.run_directory(second) / "checkpoints")
    assert launch.run_task(second) == 2
    assert "comes from another config" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["backbone.hidden.weight", "head.hyperplanes.offset"])
def test_a_value_that_is_not_finite_stops_the_run_by_name(quick: list[str], where: str, monkeypatch, capsys) -> None:
    cfg = config.compose([*quick, "trainer.epochs=4", "trainer.select=last"])
    build = run.build_model

    def poisoned(*args):
        model = build(*args)
        with torch.no_grad():
            model.get_parameter(where).view(-1)[0] = float("nan")
        return model

    monkeypatch.setattr(run, "build_model", poisoned)
    assert launch.run_task(cfg) == 3
    err = capsys.readouterr().err
    assert f"error: parameter {where}: is not finite; the last good checkpoint is kept" in err
    monkeypatch.setattr(run, "build_model", build)
    assert launch.run_task(cfg) == 0


def test_a_diverging_run_keeps_its_last_good_checkpoint(quick: list[str], capsys) -> None:
    cfg = config.compose([*quick, "space=euclidean", "optimizer=sgd", "optimizer.lr=1e18", "optimizer.momentum=0"])
    assert launch.run_task(cfg) == 3
    assert "is not finite" in capsys.readouterr().err
    last = run.run_directory(cfg) / "checkpoints" / "last.pt"
    assert not last.exists() or all(
        bool(torch.isfinite(t).all()) for t in torch.load(last, weights_only=True)["state"]["model"].values()
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trainer.epochs=0"], "trainer.epochs=0: must be"),
        (["trainer.epochs=abc"], "trainer.epochs=abc: must be"),
        (["trainer.select=first"], "trainer.select=first: must be best or last"),
        (["trainer.val_fraction=1"], "trainer.val_fraction=1: must lie in"),
        (["trainer.precision=8-bit"], "trainer.precision=8-bit:"),
        (["trainer.gradient_clip=-1"], "trainer.gradient_clip=-1: must be"),
        (["objective.batch_size=0"], "objective.batch_size=0: must be"),
        (["space.margin=2"], "margin=2"),
        (["backbone.kernel_size=9", "backbone.padding=0"], "backbone.kernel_size=9: leaves nothing"),
        (["device=tpu"], "device=tpu"),
        (["optimizer.lr=abc"], "Adam={"),
        (["optimizer.lr=-1"], "Adam={"),
        (["trainer.precision=transformer-engine"], "trainer.precision=transformer-engine:"),
        (["trainer.val_fraction=0.0001"], "trainer.val_fraction=0.0001: holds out no image"),
        (["backbone.widths=[1]"], "LeNet={"),
        (["evaluator=[]", "optimizer.lr=abc"], "Adam={"),
        (["logger.wandb=maybe"], "logger.wandb=maybe: must be"),
        (["dataset=mnist", "data_dir=/nonexistent"], "dataset=mnist: not found under /nonexistent"),
    ],
)
def test_bad_values_end_in_one_line(quick: list[str], words: list[str], line: str, capsys) -> None:
    assert launch.run_task(config.compose([*quick, *words])) == 2
    err = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    assert len(err) == 1 and err[0].startswith(f"error: {line}")


def test_the_command_ends_bad_words_in_one_line_with_code_2(train: Train) -> None:
    code, out, err = _finish(train("experiment=mnits"))
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("error: experiment=mnits: ")


def test_a_sweep_runs_every_combination_and_ends_with_the_worst_code(
    quick: list[str], tmp_path: Path, train: Train
) -> None:
    words = [word for word in quick if not word.startswith("trainer.epochs")]
    code, _out, err = _finish(train("-m", *words, "trainer.epochs=1,2", "objective.batch_size=0,64"))
    assert code == 2 and "2 of 4 jobs did not finish" in err
    assert len(list((tmp_path / "runs" / "digits_disk").glob("*/summary.json"))) == 2
    code, _, err = _finish(train("-m", *words, "trainer.epochs=1", "c=0.1,-1"))
    assert code == 2 and "c=-1" in err, "every job is checked before the first one runs"


def test_the_joblib_launcher_runs_jobs_beside_each_other(quick: list[str], tmp_path: Path) -> None:
    jobs = [[*quick[:-3], f"seed={seed}", *quick[-2:], "logger=csv"] for seed in (0, 1)]
    assert launch.launch(jobs, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]) == [0, 0]
    environments = list((tmp_path / "runs" / "digits_disk").glob("*/environment.json"))
    assert [json.loads(path.read_text())["threads"] for path in environments] == [1, 1]


def test_sweep_groups_and_lists_expand_alike() -> None:
    jobs = launch.expand(["experiment=mnist_hyperbolic", "sweep=curvature", "seed=0,1"])
    assert len(jobs) == 8 and ["c=0.05" in job for job in jobs].count(True) == 2
    assert launch.expand(["dim=2,8"]) == [["dim=2"], ["dim=8"]]


def test_load_gives_the_trained_model_with_its_preprocessing(quick: list[str], tmp_path: Path) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    predictor = hypimg.load(run.run_directory(cfg))
    _, data = run.open_data(cfg)
    points, logits = predictor.embed_all(data.store, data.indices)
    accuracy = float((logits.argmax(1) == data.labels).mean())
    assert accuracy == pytest.approx(run.read_run(run.run_directory(cfg))[1]["metrics"]["test/accuracy"])
    assert points.shape == (len(data.indices), 2) and predictor.classes == data.store.classes

    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(data.store.images[data.indices[i], ..., 0]).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    code = [sys.executable, "scripts/evaluate.py", f"run={run.run_directory(cfg)}", f"images={folder}"]
    done = subprocess.run(code, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["class"] for row in rows] == [predictor.classes[i] for i in logits[:3].argmax(1)]
    assert all(0 < float(row["probability"]) <= 1 and float(row["distance"]) > 0 for row in rows)
    assert "broken.png" in done.stderr


def test_images_of_another_size_are_refused_by_name(quick: list[str], shared_data: Path, store_dir: Path) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    node = config.compose_group("evaluator", "ood_omniglot")
    with pytest.raises(UserError, match="omniglot: has images of 1×28×28, the model takes 1×8×8"):
        run.evaluate([run.run_directory(cfg)], node, shared_data, store_dir)


def test_load_refuses_what_is_no_finished_run(tmp_path: Path, quick: list[str]) -> None:
    with pytest.raises(UserError, match="no finished run here"):
        hypimg.load(tmp_path)
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    changed = OmegaConf.load(folder / "config.yaml")
    changed.backbone.hidden = 65
    OmegaConf.save(changed, folder / "config.yaml")
    with pytest.raises(UserError, match="comes from another config"):
        hypimg.load(folder)
    changed.backbone._target_ = "torch.nn.modules.module.torch.load"
    OmegaConf.save(changed, folder / "config.yaml")
    with pytest.raises(UserError, match="configs may only name"):
        hypimg.load(folder)


def test_an_evaluation_is_stored_once_and_read_again(quick: list[str], store_dir: Path, monkeypatch) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    node = config.compose_group("evaluator", "ood_blurred")
    first = run.evaluate([folder], node, "data", store_dir)
    assert 0 <= first.metrics["ks/dist0"] <= 1 and first.scores.is_file() and "digits" in str(first.data)

    monkeypatch.setattr("hypimg.evaluation.ood.OutOfDistribution.__call__", None)
    again = run.evaluate([folder], node, "data", store_dir)
    assert (again.key, again.metrics) == (first.key, first.metrics)


class Unnamed(Digits):
    """A data set that no config names."""

    name = "unnamed"


class CountDigits:
    """An evaluator without runs: the number of images, and its seed; how often one was asked."""

    asked = 0

    def __init__(self, dataset, seed: int, opens_another: bool = False):
        self.dataset = Unnamed(mean=[0.3], std=[0.4]) if opens_another else dataset
        self.seed = seed

    def __call__(self, predictors, data):
        CountDigits.asked += 1
        assert predictors == [] and data.device == "cpu"
        store = data.open(self.dataset)
        return {"count": float(len(store.images) + self.seed)}, {"labels": store.column("label")}


@pytest.fixture
def alone(quick: list[str], tmp_path: Path, monkeypatch):
    """Ask `CountDigits` as a table does; the words change its options or the machine."""
    module = ModuleType("hypimg.evaluation.count_digits")
    module.CountDigits = CountDigits  # type: ignore[attr-defined]
    monkeypatch.setattr(CountDigits, "__module__", module.__name__)
    monkeypatch.setattr(CountDigits, "asked", 0)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    machine = config.compose([*quick, "device=cpu"])

    def ask(seed: int = 0, fresh: bool = False, **options):
        node = {"_target_": f"{module.__name__}.CountDigits", "dataset": config.compose_group("dataset", "digits")}
        return run.evaluate_alone(OmegaConf.create({**node, "seed": seed, **options}), machine, fresh=fresh)

    return ask


def test_an_evaluator_without_runs_is_asked_once_per_seed_and_says_what_it_saw(alone, tmp_path: Path) -> None:
    first, again, other = alone(), alone(), alone(seed=1)
    assert (first.metrics, other.metrics) == ({"count": 1797.0}, {"count": 1798.0})
    assert (again.key, again.metrics, again.record) == (first.key, first.metrics, first.record)
    assert CountDigits.asked == 2 and first.key != other.key
    assert first.scores == tmp_path / "runs" / "evaluations" / f"{first.key}.npz" and first.scores.is_file()
    assert first.data["digits"]["official"] and first.record["data"] == first.data
    assert {"commit", "device", "threads", "seconds", "result_version"} < first.record.keys()
    assert alone(fresh=True).key == first.key and CountDigits.asked == 3


def test_the_key_of_an_evaluator_without_runs_moves_with_its_data_and_the_version(alone, monkeypatch) -> None:
    keys = {alone().key}
    blurred = config.compose_group("dataset", "digits")
    blurred.blur = 1.0
    keys.add(alone(dataset=blurred).key)
    monkeypatch.setattr(config, "RESULT_VERSION", config.RESULT_VERSION + 1)
    keys.add(alone().key)
    monkeypatch.setattr(opened, "identity", lambda store: {"name": store.name, "digest": "other bytes"})
    keys.add(alone().key)
    assert len(keys) == 4


def test_data_that_the_config_of_an_evaluator_does_not_name_are_looked_at_again(alone) -> None:
    first, second = alone(opens_another=True), alone(opens_another=True)
    assert CountDigits.asked == 2
    assert first.data.keys() == second.data.keys() == {"digits", "unnamed"}


def test_a_full_disk_while_the_summary_is_written_leaves_the_run_unfinished(
    quick: list[str], monkeypatch, capsys
) -> None:
    import errno
    import os

    cfg = config.compose(quick)
    replace = os.replace

    def full(source, target):
        if Path(target).name == "summary.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert launch.run_task(cfg) == 2
    assert "summary.json: cannot be written (No space left on device)" in capsys.readouterr().err
    assert not (run.run_directory(cfg) / "summary.json").exists()
    monkeypatch.setattr(os, "replace", replace)
    assert launch.run_task(cfg) == 0


def test_help_names_groups_experiments_and_axes(train: Train) -> None:
    code, out, _ = _finish(train("--help"))
    assert code == 0
    for word in ("experiment", "mnist_hyperbolic", "space", "euclidean", "c=0.05,0.1", "seed", "make help"):
        assert word in out
