"""Errors that a user can mend. They end in one line, without a traceback, with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, its value, and what to do about it.

    >>> str(UserError("c", -1.0, "must be > 0; for c = 0 use space=euclidean"))
    'c=-1.0: must be > 0; for c = 0 use space=euclidean'
    """

    exit_code = 2

    def __init__(self, thing: str, value: object, remedy: str):
        self.thing, self.value, self.remedy = thing, value, remedy
        super().__init__(thing, value, remedy)

    def __str__(self) -> str:
        shown = "" if self.value is None else f"={self.value}"
        return " ".join(f"{self.thing}{shown}: {self.remedy}".split())


class NonFiniteError(UserError):
    """Training met a value that is not finite; the last good checkpoint is kept (exit code 3)."""

    exit_code = 3


class Stopped(Exception):
    """A signal asked the run to stop; it saved a checkpoint first (exit code 128 + signal)."""

    def __init__(self, signal_number: int, where: str):
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by signal {signal_number} after saving {where}; the same command resumes")


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> str:
    """The right names closest to a wrong one, for the end of an error's line.

    >>> nearest("mnits", ["mnist", "digits"])
    'did you mean mnist?'
    """
    known = sorted(candidates)
    if not known:
        return "there are none"
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known[:20])}{', …' if len(known) > 20 else ''}"
