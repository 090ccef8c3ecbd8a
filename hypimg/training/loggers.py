"""Where a run's curves go: metrics.csv always, a progress line always, Weights & Biases where wanted."""

from __future__ import annotations

import csv
import io
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hypimg.errors import UserError
from hypimg.training.checkpoint import FULL, write_atomically

log = logging.getLogger(__name__)

Row = dict[str, float]

NAME = re.compile(r"[A-Za-z0-9./-][A-Za-z0-9_./-]*")


class MetricsFile:
    """`metrics.csv`: one row per epoch, flushed to disk; the run's record."""

    def __init__(self, path: Path):
        self.path = path
        self._header: list[str] = []

    def resume(self, closed: int) -> None:
        """Keep the rows of the first `closed` epochs; drop later and torn ones, which will be written again."""
        rows = [row for row in read_metrics(self.path) if row["epoch"] <= closed]
        if [row["epoch"] for row in rows] != list(range(1, closed + 1)):
            remedy = f"does not have the {closed} epochs of the checkpoint; delete {self.path.parent} to train again"
            raise UserError("metrics", self.path, remedy)
        if rows:
            self._rewrite(rows)
        else:
            self.path.unlink(missing_ok=True)
            self._header = []

    def _rewrite(self, rows: list[Row]) -> None:
        """All rows under the names that any of them has: an epoch without validation has fewer."""
        self._header = list(dict.fromkeys(name for row in rows for name in row))
        lines = [self._header, *([row.get(name, "") for name in self._header] for row in rows)]
        write_atomically(self.path, "".join(map(_csv_line, lines)).encode())

    def epoch(self, row: Row) -> None:
        if wrong := [name for name in row if not NAME.fullmatch(name)]:
            raise ValueError(f"metric names must match {NAME.pattern}: {wrong}")
        try:
            if not row.keys() <= set(self._header):
                return self._rewrite([*read_metrics(self.path), row])
            with open(self.path, "a", newline="") as file:
                file.write(_csv_line([row.get(name, "") for name in self._header]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(
                "file", self.path, f"cannot be written ({error.strerror}); make room and run again"
            ) from error


def _csv_line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_short(value) for value in values])
    return text.getvalue()


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def read_metrics(path: Path) -> list[Row]:
    """The whole rows of a metrics.csv; a line torn by a kill is left out."""
    if not path.is_file():
        return []
    text = path.read_text(errors="replace")
    header, *lines = csv.reader(text[: text.rfind("\n") + 1].splitlines()) or [[]]
    rows = []
    for line in lines:
        try:
            row = {name: float(value) for name, value in zip(header, line, strict=True) if value != ""}
        except ValueError:
            break
        if "epoch" not in row:
            break
        rows.append(row)
    return rows


MOST_LINES = 20  # of epochs that are shown; metrics.csv has them all


class Progress:
    """Lines for at most 20 epochs, evenly spaced; on a terminal a bar with the time left too."""

    def __init__(self, title: str, epochs: int, steps: int, done: int = 0):
        self.epochs = epochs
        self.every = -(-epochs // MOST_LINES)
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            text = TextColumn("{task.description}")
            self._bar = Progress(
                text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
            )
            self._task = self._bar.add_task(title, total=epochs * steps, completed=done)
            self._bar.start()

    def step(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def epoch(self, row: Row) -> None:
        if row["epoch"] % self.every and row["epoch"] != self.epochs:
            return
        shown = [f"{name} {value:.4f}" for name, value in row.items() if "/" in name]
        left = row["seconds"] * (self.epochs - row["epoch"])
        line = (
            f"epoch {row['epoch']:.0f}/{self.epochs}  {'  '.join(shown)}  {row['seconds']:.1f} s  ({left:.0f} s left)"
        )
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class WandbLog:
    """Weights & Biases as a mirror of the run, behind a queue in a thread of its own: it can fail or hang, the run not.

    key: the run's key, which is its id there.  config: what the run is a function of (no paths, no environment).
    patience: seconds that starting, and later finishing, may take.
    """

    def __init__(
        self, project: str, name: str, key: str, config: dict[str, Any], directory: Path, patience: float = 20
    ):
        self.patience = patience
        self._calls: queue.Queue[Callable[[Any], object] | None] = queue.Queue()
        self._settings: dict[str, Any] = {
            "project": project,
            "name": f"{name}-{key}",
            "id": key,
            "config": config,
            "dir": str(directory),
        }
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            run = self._start()
            while (call := self._calls.get()) is not None:
                call(run)
            run.finish()
        except BaseException as error:  # whatever a tracker raises, SystemExit too, ends the tracker alone
            log.warning(
                "Weights & Biases stopped (%s: %s); the run goes on", type(error).__name__, str(error).split("\n")[0]
            )

    def _start(self) -> Any:
        import wandb

        settings = wandb.Settings(init_timeout=self.patience, silent=True, console="off")
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if has_login() else "offline")
        try:
            return wandb.init(**self._settings, resume="allow", mode=mode, settings=settings)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("Weights & Biases cannot be reached (%s); logging offline", type(error).__name__)
            return wandb.init(**self._settings, mode="offline", settings=settings)

    def resume(self, closed: int) -> None:
        """W&B keeps what it has: rows sent again for an epoch it knows are dropped there."""

    def epoch(self, row: Row) -> None:
        self._calls.put(lambda run: run.log(dict(row), step=int(row["epoch"])))

    def summary(self, metrics: Row, images: list[Path]) -> None:
        """The final table and the pictures."""

        def send(run: Any) -> None:
            import wandb

            run.summary.update(metrics)
            table = wandb.Table(columns=["metric", "value"], data=[[name, value] for name, value in metrics.items()])
            run.log({"final": table, **{f"figures/{path.stem}": wandb.Image(str(path)) for path in images}})

        self._calls.put(send)

    def close(self) -> None:
        """Wait for the tracker, but not for longer than its patience."""
        self._calls.put(None)
        self._thread.join(self.patience)
        if self._thread.is_alive():
            log.warning("Weights & Biases did not finish within %.0f s; the run ends without it", self.patience)


def has_login() -> bool:
    """Whether a W&B key is in the environment or in the netrc file (read without importing wandb)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc
    return any("wandb" in host or host == server for host in hosts)


def wandb_wanted(wish: str) -> bool:
    """wish: `always`, `never`, or `auto` (where a login is found, or WANDB_MODE asks for it)."""
    if wish not in {"always", "never", "auto"}:
        raise UserError("logger.wandb", wish, "must be auto, always or never (logger=auto, logger=wandb, logger=csv)")
    if wish == "never" or os.environ.get("WANDB_MODE") == "disabled":
        return False
    if wish == "always" or os.environ.get("WANDB_MODE") or has_login():
        return True
    log.info("no Weights & Biases login found, so curves go to metrics.csv alone; `wandb login` adds them there")
    return False
