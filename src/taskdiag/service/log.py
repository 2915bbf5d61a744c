"""The service's log, on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from ..terminal import clean

__all__ = ("Complaints", "log")


def log(message: str) -> None:
    """Write one line, without control characters, since clients may have caused its text."""
    line = clean(os.fsencode(f"taskdiag serve: {message}")) + b"\n"
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line)


class Complaints:
    """Logs events that clients can cause, at most one line a second.

    Safe to be used from several threads; they may then log one line each.
    """

    def __init__(self) -> None:
        self._silent_until = 0.0

    def log(self, message: str) -> None:
        """Log it, unless something was logged less than a second ago."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + 1
            log(message)
