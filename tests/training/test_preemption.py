"""Signals become a flag, the handlers found before come back, and submitit's gets the job after the save."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hypimg.errors import Stopped
from hypimg.training.preemption import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the handlers of the test's process as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ask(number: int) -> None:
    os.kill(os.getpid(), number)


def submitits(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__module__ = "submitit.core.job_environment"
    return function


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_former_handlers_come_back(number: int) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with StopRequest() as stop:
        assert stop.signal is None
        ask(number)
        assert stop.signal == number
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_the_second_interrupt_stops_at_once_and_other_signals_never_do() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            ask(number)
        assert stop.signal == signal.SIGINT
        ask(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_every_signal_is_handed_on_as_it_comes() -> None:
    came: list[int] = []
    with StopRequest(came.append):
        ask(signal.SIGTERM)
        ask(signal.SIGUSR2)
    assert came == [signal.SIGTERM, signal.SIGUSR2]


def test_after_the_save_the_handler_found_before_requeues_and_ends_the_process() -> None:
    done: list[str] = []

    def requeue(number: int, frame: object) -> None:
        assert signal.getsignal(signal.SIGUSR2) is requeue, "called when all is as it was before"
        done.append(f"requeued by {number}")
        raise SystemExit(144)

    signal.signal(signal.SIGUSR2, requeue)
    with pytest.raises(SystemExit) as left, StopRequest() as stop:
        ask(signal.SIGUSR2)
        assert done == [] and stop.signal == signal.SIGUSR2
        done.append("saved")
        raise Stopped(signal.SIGUSR2, "last.pt")
    assert done == ["saved", f"requeued by {int(signal.SIGUSR2)}"] and left.value.code == 144


@pytest.mark.parametrize("refuses", [False, True])
def test_a_former_handler_that_does_not_end_the_process_leaves_the_run_stopped(refuses: bool) -> None:
    called: list[int] = []

    def former(number: int, frame: object) -> None:
        called.append(number)
        if refuses:
            raise RuntimeError("Job not requeued because: timed-out too many times.")

    signal.signal(signal.SIGUSR2, former)
    with pytest.raises(Stopped), StopRequest():
        ask(signal.SIGUSR2)
        raise Stopped(signal.SIGUSR2, "last.pt")
    assert called == [signal.SIGUSR2]


def test_a_former_handler_is_not_called_unless_the_run_was_saved_for_it() -> None:
    called: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    with StopRequest():
        ask(signal.SIGUSR2)  # the run ended before it looked
    with pytest.raises(ValueError), StopRequest():
        ask(signal.SIGUSR2)
        raise ValueError
    assert called == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_without_another_handler_is_only_that(number: int) -> None:
    with pytest.raises(Stopped), StopRequest():
        ask(number)
        raise Stopped(number, "last.pt")


def test_submitit_keeps_sigterm_which_slurm_sends_ahead_of_the_signal_that_requeues() -> None:
    passed: list[int] = []
    handler = submitits(lambda number, frame: passed.append(number))
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGUSR2, handler)
    with StopRequest() as stop:
        ask(signal.SIGTERM)
        assert stop.signal is None and passed == [signal.SIGTERM]
        ask(signal.SIGUSR2)
        assert stop.signal == signal.SIGUSR2 and passed == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, lambda number, frame: passed.append(number))
    with StopRequest() as stop:
        ask(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM, "anyone else's gives way"


def test_submitits_own_handlers_are_known_as_such() -> None:
    environment = pytest.importorskip("submitit.core.job_environment")
    passes = environment.SignalHandler(None, None, None).bypass
    signal.signal(signal.SIGTERM, passes)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) == passes


def test_outside_the_main_thread_nothing_is_touched() -> None:
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.signal])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]
