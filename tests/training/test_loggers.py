from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypimg.errors import UserError
from hypimg.training import loggers
from hypimg.training.loggers import MetricsFile, WandbLog, has_login, read_metrics, wandb_wanted

ROW = {"epoch": 1, "train/loss": 0.25, "seconds": 1.5}


def test_metrics_come_back_as_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.resume(0)
    file.epoch(ROW)
    file.epoch({**ROW, "epoch": 2, "train/loss": 0.1})
    assert read_metrics(file.path) == [ROW, {**ROW, "epoch": 2, "train/loss": 0.1}]
    assert file.path.read_text().splitlines()[0] == "epoch,train/loss,seconds"


def test_resuming_drops_later_and_torn_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train/loss\n1,0.5\n2,0.4\n3,0.3\n4,0.")
    assert [row["epoch"] for row in read_metrics(path)] == [1, 2, 3]
    file = MetricsFile(path)
    file.resume(2)
    file.epoch({"epoch": 3, "train/loss": 0.35})
    assert path.read_text() == "epoch,train/loss\n1,0.5\n2,0.4\n3,0.35\n"
    MetricsFile(path).resume(0)
    assert not path.exists()


VALIDATED = {"val/loss": 0.75, "val/accuracy": 0.5}


def test_epochs_with_and_without_validation_share_a_file(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.resume(0)
    rows = [{**ROW, "epoch": n, **(VALIDATED if n % 2 == 0 else {})} for n in (1, 2, 3, 4)]
    for row in rows:
        file.epoch(row)
    assert read_metrics(file.path) == rows, "an empty cell is no value"
    header, *lines = file.path.read_text().splitlines()
    assert header == "epoch,train/loss,seconds,val/loss,val/accuracy"
    assert lines == ["1,0.25,1.5,,", "2,0.25,1.5,0.75,0.5", "3,0.25,1.5,,", "4,0.25,1.5,0.75,0.5"]


def test_a_line_torn_within_empty_cells_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,seconds,val/accuracy\n1,1.5,\n2,1.5,0.5\n3,1.5,")
    assert [row["epoch"] for row in read_metrics(path)] == [1, 2]


_rows = st.lists(
    st.dictionaries(st.sampled_from(["train/loss", "val/loss", "val/accuracy", "lr"]), st.floats(0, 1), max_size=4),
    max_size=6,
)


@given(values=_rows, stops=st.lists(st.tuples(st.integers(0, 6), st.text(",.0123456789", max_size=12)), max_size=3))
def test_a_file_interrupted_anywhere_ends_in_the_same_bytes(
    values: list[dict[str, float]], stops: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each stop leaves a torn line; what goes on stands at an epoch that the checkpoint knows."""
    rows = [{"epoch": float(n), **row} for n, row in enumerate(values, start=1)]
    folder = tmp_path_factory.mktemp("metrics")
    whole, broken = (MetricsFile(folder / name) for name in ("whole.csv", "broken.csv"))
    whole.resume(0)
    broken.resume(0)
    for row in rows:
        whole.epoch(row)
    done = 0
    for closed, torn in stops:
        upto = min(len(rows), max(done, closed) + 1)  # written; the checkpoint is one epoch behind
        for row in rows[done:upto]:
            broken.epoch(row)
        if broken.path.exists():
            with broken.path.open("a") as file:
                file.write(torn)
        done = max(0, upto - 1)
        broken = MetricsFile(broken.path)
        broken.resume(done)
    for row in rows[done:]:
        broken.epoch(row)
    assert read_metrics(broken.path) == rows
    if rows:
        assert broken.path.read_bytes() == whole.path.read_bytes()


def test_a_file_that_lacks_an_epoch_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train/loss\n1,0.5\n3,0.4\n")
    for closed in (2, 3):
        with pytest.raises(UserError, match=rf"does not have the {closed} epochs of the checkpoint"):
            MetricsFile(path).resume(closed)


@pytest.mark.parametrize("name", ["", "_step", "a b", "x;y", "ä"])
def test_a_metric_name_that_a_tracker_would_choke_on_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="metric names"):
        MetricsFile(tmp_path / "metrics.csv").epoch({name: 1.0})


def test_a_login_is_found_in_the_environment_and_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_login() and not wandb_wanted("auto") and not wandb_wanted("never") and wandb_wanted("always")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine tracker.example login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert not has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://tracker.example")
    assert has_login()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not wandb_wanted("always")
    with pytest.raises(UserError, match="auto, always or never"):
        wandb_wanted("sometimes")


def _fake_wandb(folder: Path, body: str) -> None:
    (folder / "wandb.py").write_text(
        "class Settings:\n    def __init__(self, **kw): pass\n"
        "class Table:\n    def __init__(self, **kw): pass\n"
        "class Image:\n    def __init__(self, *a): pass\n" + textwrap.dedent(body)
    )


FAKES = {
    "raises in init": "def init(**kw): raise RuntimeError('no tracker today')\n",
    "exits in init": "def init(**kw): raise SystemExit(1)\n",
    "hangs in init": "import time\ndef init(**kw): time.sleep(1000)\n",
    "raises in log": """
        class Run:
            summary = {}
            def log(self, *a, **kw): raise ConnectionError('gone')
            def finish(self, **kw): pass
        def init(**kw): return Run()
        """,
    "hangs in finish": """
        import time
        class Run:
            summary = {}
            def log(self, *a, **kw): pass
            def finish(self, **kw): time.sleep(1000)
        def init(**kw): return Run()
        """,
}


@pytest.mark.parametrize("fault", FAKES)
def test_a_tracker_that_fails_or_hangs_never_stops_a_run(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fake_wandb(tmp_path, FAKES[fault])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    started = time.monotonic()
    tracker = WandbLog("p", "n", "k", {}, tmp_path, patience=0.5)
    tracker.epoch(ROW)
    tracker.summary({"a": 1.0}, [])
    tracker.close()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert time.monotonic() - started < 2
    assert "Weights & Biases" in caplog.text


def test_a_tracker_gets_curves_table_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        calls = []
        class Run:
            summary = {}
            def log(self, *a, **kw): calls.append((a, kw))
            def finish(self, **kw): calls.append('finish')
        def init(**kw):
            calls.append(kw)
            return Run()
        """
    _fake_wandb(tmp_path, body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    tracker = WandbLog("project", "name", "0123456789", {"c": 1}, tmp_path)
    tracker.epoch(ROW)
    tracker.summary({"test/accuracy": 0.9}, [Path("disk.png")])
    tracker.close()
    import wandb  # the fake

    calls = wandb.calls
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert calls[0]["id"] == "0123456789" and calls[0]["resume"] == "allow" and calls[0]["config"] == {"c": 1}
    assert calls[1] == (({"epoch": 1, "train/loss": 0.25, "seconds": 1.5},), {"step": 1})
    assert set(calls[2][0][0]) == {"final", "figures/disk"} and calls[3] == "finish"


def test_real_wandb_writes_offline_without_login_and_network(tmp_path: Path) -> None:
    code = """
import socket, sys
from pathlib import Path
from hypimg.training.loggers import WandbLog
tracker = WandbLog("hypimg", "digits", "0123456789", {"c": 1.0}, Path(sys.argv[1]))
tracker.epoch({"epoch": 1, "train/loss": 0.5, "seconds": 1.0})
tracker.summary({"test/accuracy": 0.9}, [])
tracker.close()
"""
    env = {"WANDB_MODE": "offline", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "NETRC": "/dev/null"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=env,
        cwd=loggers.__file__.rsplit("/", 3)[0],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (written,) = (tmp_path / "wandb").glob("offline-run-*-0123456789/run-0123456789.wandb")
    assert written.stat().st_size > 0 and "stopped" not in done.stderr
