"""How the benchmarks measure: rivals interleaved in one process, medians, one JSON line per case."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]


QUICK = 0.2  # seconds: what takes less is called twice in a turn and the second call counts


def interleaved(works: dict[str, Work], rounds: int = 7, warmup: int = 2, quick: float = QUICK) -> dict[str, float]:
    """Median seconds of each piece of work, taken in turns so that all meet the same state of the machine.

    One that takes less than `quick` seconds is called once before it is timed: else it would pay for the memory that a
    slow rival gave back.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(warmup + rounds):
        for name, work in works.items():
            seconds = _seconds(work)
            if seconds < quick:
                seconds = _seconds(work)
            if round_ >= warmup:
                times[name].append(seconds)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def saved_bytes(work: Work) -> int:
    """Bytes that autograd keeps for the backward pass of what `work` returns; shared storage counts once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = work()  # alive while counting, so that no address is used twice
    del kept
    return sum(storages.values())


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(case: str, **numbers: Any) -> dict[str, Any]:
    """Print one JSON line: the case, its numbers (floats to four digits), and what it ran on; and return it."""
    short = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in numbers.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    line = {"case": case, **short, "threads": torch.get_num_threads(), "torch": torch.__version__, "device": device}
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return line
