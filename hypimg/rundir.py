"""A run's folder: who holds it, what it was made on, whether it is finished, and the evaluations it keeps."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import io
import json
import logging
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypimg import config
from hypimg.errors import UserError
from hypimg.training.checkpoint import remove_stale_temporaries, write_atomically

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

PACKAGES = (
    "hypimg",
    "torch",
    "torchvision",
    "hydra-core",
    "omegaconf",
    "lightning-fabric",
    "geoopt",
    "numpy",
    "pillow",
)


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Hold a run's folder for this process; the lock goes with the process, however it ends.

    Raises UserError that names the holder where another living process has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "a+")  # noqa: SIM115  held open for as long as the run lasts
    except OSError as error:
        raise UserError(
            "runs_dir", directory, f"cannot be written ({error.strerror}); pass another runs_dir="
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError("run", directory, f"held by {holder}; wait for it, or stop it") from error
        since = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):  # on a full disk the lock holds without the note of who holds it
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
        remove_stale_temporaries(directory)
        yield


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_summary(directory: Path) -> dict[str, Any] | None:
    """What a finished run wrote last; None where the run is not finished."""
    path = directory / "summary.json"
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text())
        if {"metrics", "data", "epochs", "seconds"} <= summary.keys():
            return summary
    except (ValueError, AttributeError):
        pass
    raise UserError("summary", path, "damaged; delete it and run the same command again")


def set_aside(directory: Path, mark: str) -> Path:
    """Move what a run left into a folder of its own, so that nothing is lost and the run can start anew."""
    target = directory / f"superseded-{mark}"
    number = 1
    while target.exists():
        number += 1
        target = directory / f"superseded-{mark}-{number}"
    target.mkdir()
    for item in sorted(directory.iterdir()):
        if item.name != ".lock" and not item.name.startswith("superseded-"):
            item.rename(target / item.name)
    return target


def environment(device: str, threads: int, data: dict[str, Any]) -> dict[str, Any]:
    """What a result was made on: versions, commit, machine, threads, data."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    on_gpu = device.startswith("cuda")
    return {
        "versions": versions,
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "threads": threads,
        "data": data,
    }


def commit() -> str | None:
    """The commit of the code, with `+` where tracked files were changed since; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


@dataclass(frozen=True)
class Evaluation:
    """metrics: flat names → numbers.  scores: the .npz that figures draw from.  data: what it saw, per data set.

    record: all that stands beside them in <key>.json.
    """

    key: str
    metrics: dict[str, float]
    scores: Path
    data: dict[str, dict[str, Any]]
    record: dict[str, Any] = field(default_factory=dict)


def evaluation(
    folder: Path,
    fields: dict[str, Any],
    seen: dict[str, dict[str, Any]],
    make: Callable[[], tuple[dict[str, float], dict[str, np.ndarray]]],
    made: dict[str, Any] | None = None,
    fresh: bool = False,
) -> Evaluation:
    """The evaluation that `folder` keeps under the key of (fields, digests of `seen`), else a new one that it keeps.

    seen: data set → identity; `make` may add to it, but then nothing can tell whether that is still the same: an
    evaluation that opened more than its key says is made again each time.  made: what the record says beside.
    """
    import numpy as np

    digests = {name: entry["digest"] for name, entry in seen.items()}
    key = config.digest({**fields, "data": digests})
    path, scores = folder / f"{key}.json", folder / f"{key}.npz"
    if path.is_file() and scores.is_file() and not fresh:
        try:
            with np.load(scores) as arrays:
                assert all(arrays[name] is not None for name in arrays.files)
            record = json.loads(path.read_text())
            if record["data"].keys() == digests.keys():
                return Evaluation(key, record["metrics"], scores, seen, record)
        except Exception:  # a damaged evaluation is made again
            log.warning("%s is damaged; evaluating again", path)
    started = time.monotonic()
    metrics, arrays = make()
    seconds = round(time.monotonic() - started, 2)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically(scores, content.getvalue())
    record = {**fields, "key": key, "data": seen, "metrics": metrics, "seconds": seconds, **(made or {})}
    write_json(path, record)
    return Evaluation(key, metrics, scores, seen, record)
