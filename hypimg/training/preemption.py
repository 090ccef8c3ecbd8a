"""Being asked to stop: a signal sets a flag, and the training loop saves before it leaves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from hypimg.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """While active, SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 only note themselves in `.signal`.

    notify: called with the number of each signal as it comes; it may hand it on to other processes.
    The handlers found before come back on leaving, and get a SIGINT that comes a second time (so two Ctrl-C stop at
    once). Where Stopped is what leaves, the run is saved, and the handler found for that signal is called: submitit's
    puts the job back into SLURM's queue and ends the process. If it returns, Stopped goes on its way.
    submitit keeps SIGTERM, which it lets pass: SLURM sends it ahead of the SIGUSR2 that requeues.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, notify: Callable[[int], None] | None = None) -> None:
        self.signal: int | None = None
        self.notify = notify
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != signal.SIGTERM or not _is_submitits(signal.getsignal(number)):
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        former = self._former
        self._former = {}
        for number, handler in former.items():
            signal.signal(number, handler)
        after = former.get(self.signal) if self.signal is not None and isinstance(value, Stopped) else None
        if callable(after) and after is not signal.default_int_handler:
            with contextlib.suppress(Exception):  # "not requeued because …", which submitit has logged
                after(self.signal, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            signal.signal(number, self._former[number])
            signal.raise_signal(number)
        self.signal = number
        if self.notify is not None:
            self.notify(number)


def _is_submitits(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")).startswith("submitit.")
