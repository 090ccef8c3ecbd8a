"""Two processes on gloo are one process with the same global batch, and stop, resume and fail as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hypimg import config, launch, run
from hypimg.training.loggers import read_metrics

Train = Callable[..., subprocess.Popen[str]]
Rows = list[dict[str, float]]

# Two epochs of 1,168 images; the last of 4 batches has one of them, so that the second rank has none.
DIGITS = ["experiment=digits_disk", "trainer.epochs=2", "objective.batch_size=389", "evaluator=[accuracy]"]
EVERYWHERE = ["trainer.precision=64-true", "logger=csv", "threads=1", "device=cpu"]


@pytest.fixture
def words(tmp_path: Path, store_dir: Path) -> Callable[..., list[str]]:
    """Overrides of a run in the folder of this name."""
    return lambda name, *more: [*more, *EVERYWHERE, f"runs_dir={tmp_path / name}", f"store_dir={store_dir}"]


def _folder(words: list[str]) -> Path:
    return run.run_directory(config.compose(words))


def _alone(words: list[str]) -> Path:
    """The run in this process."""
    cfg = config.compose(words)
    assert launch.run_task(cfg) == 0
    return run.run_directory(cfg)


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, err


def _left_over(folder: Path) -> list[str]:
    """Processes whose command names this folder, after a moment for them to end."""
    for _ in range(100):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command and int(process.name) != os.getpid():
                found.append(command)
        if not found:
            break
        time.sleep(0.1)
    return found


def _state(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state"]["model"]
    return state


SEEN = ("running_mean", "running_var", "num_batches_tracked")  # each rank's batch norm has seen its own episodes


def _difference(one: Path, two: Path) -> float:
    """The largest of two runs' last weights."""
    first, second = _state(one), _state(two)
    assert first.keys() == second.keys()
    kept = [name for name in first if not name.endswith(SEEN)]
    assert all(first[name].dtype == torch.float64 for name in kept)
    return max(float((first[name] - second[name]).abs().max()) for name in kept)


def _training(folder: Path) -> Rows:
    """What was summed over the ranks: the training part of each epoch's row."""
    rows = read_metrics(folder / "metrics.csv")
    return [{name: row[name] for name in row if name in {"epoch", "step", "lr"} or "train/" in name} for row in rows]


def _same(ours: Rows, theirs: Rows) -> bool:
    return len(ours) == len(theirs) and all(
        a == pytest.approx(b, rel=1e-6, abs=1e-9) for a, b in zip(ours, theirs, strict=True)
    )


def test_two_ranks_share_each_batch_and_end_in_the_weights_of_one_process(words: Callable, train: Train) -> None:
    both = words("two", *DIGITS)
    process = train(*both, "devices=2")
    alone = _alone(words("one", *DIGITS))
    code, err = _finish(process)
    assert code == 0, err
    together = _folder(both)
    assert together.name == alone.name, "the number of devices is no part of the key"
    assert _difference(alone, together) < 1e-6
    assert _same(_training(together), _training(alone))
    summaries = [json.loads((folder / "summary.json").read_text())["metrics"] for folder in (alone, together)]
    assert summaries[0] == pytest.approx(summaries[1])
    assert not _left_over(together.parent)


def test_two_ranks_end_in_the_weights_of_one_process_that_accumulates_their_episodes(
    words: Callable, train: Train, shared_data: Path
) -> None:
    """Photographs of many sizes, cut and jittered, through batch norm, which sees whole episodes either way."""
    few = ["experiment=birds2010_1shot", "variant=official", "dim=6", "backbone.width=4", f"data_dir={shared_data}"]
    few += ["dataset.image_size=16", "augment.size=16", "trainer.epochs=2", "trainer.val_every=2"]
    few += ["objective.episodes_per_epoch=6", "objective.episodes_per_step=2", "objective.way=3", "objective.query=2"]
    few += ["objective.val_way=2", "objective.val_query=2", "objective.val_episodes=5", "evaluator.fewshot.episodes=5"]
    alone = _alone(words("one", *few))
    both = words("two", *few)
    code, err = _finish(train(*both, "devices=2"))
    assert code == 0, err
    together = _folder(both)
    assert _difference(alone, together) < 1e-6
    assert _same(_training(together), _training(alone))
    assert "val/accuracy" in read_metrics(together / "metrics.csv")[-1]
    single = _alone(words("single", *few, "objective.episodes_per_step=1"))
    assert _difference(alone, single) > 1e-6, "so the second episode counts"


def test_a_preempted_leader_leaves_a_checkpoint_that_one_process_resumes(words: Callable, train: Train) -> None:
    # Few steps: Fabric hands logits on in float32, and what that rounds differently grows with the steps.
    long = [*DIGITS, "trainer.epochs=8"]
    both = words("two", *long)
    process, folder = train(*both, "devices=2"), _folder(both)
    while len(read_metrics(folder / "metrics.csv")) < 1 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, err = _finish(process)
    assert code == 128 + signal.SIGTERM, err
    assert err.count("the same command resumes") >= 1 and "Traceback" not in err
    assert not _left_over(folder.parent)
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state"]
    assert 4 <= state["step"] < 8 * 4, "it was stopped on its way"
    resumed, alone = _alone(both), _alone(words("one", *long))
    assert resumed == folder
    assert _difference(resumed, alone) < 1e-6
    assert _same(_training(resumed), _training(alone))


def test_episodes_that_devices_cannot_share_are_refused_in_one_line_before_any_rank_starts(
    words: Callable, train: Train, tmp_path: Path
) -> None:
    split = {"train": ["0", "1", "2", "3"], "val": ["4", "5"], "test": ["6", "7", "8", "9"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    few = ["experiment=digits_disk", "head=protonet", "objective=fewshot", "evaluator=[fewshot]"]
    few += [f"dataset.class_split={tmp_path / 'split.json'}", "trainer.val_fraction=null", "objective.way=2"]
    refused = words(
        "odd",
        *few,
        "objective.val_way=2",
        "objective.episodes_per_step=3",
        "evaluator.fewshot.way=2",
        "objective.episodes_per_epoch=99",
    )
    started = time.monotonic()
    code, err = _finish(train(*refused, "devices=2"))
    line = "error: devices=2: whole episodes are shared: set objective.episodes_per_step to a multiple of 2"
    assert code == 2 and [text for text in err.splitlines() if "decoding" not in text] == [line]
    assert time.monotonic() - started < 60 and not _left_over(_folder(refused).parent)


def test_compiling_on_several_devices_is_refused(words: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.run_task(config.compose(words("compiled", *DIGITS, "compile=true", "devices=2"))) == 2
    assert capsys.readouterr().err == "error: compile=True: is for one device; use devices=1, or compile=false\n"


def test_a_loss_that_is_not_finite_stops_all_ranks_with_the_exit_code_of_one_process(
    words: Callable, train: Train
) -> None:
    blown = words("blown", *DIGITS, "optimizer=sgd", "optimizer.lr=1e300")
    code, err = _finish(train(*blown, "devices=2"))
    assert code == 3 and "is not finite; the last good checkpoint is kept" in err and "Traceback" not in err
    assert not _left_over(_folder(blown).parent)
