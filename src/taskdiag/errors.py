"""The exceptions of this package.  Each is also a built-in exception that callers know."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = (
    "AccessDenied",
    "Busy",
    "DecodeError",
    "EngineUnavailable",
    "NoSuchProcess",
    "RequestError",
    "TaskdiagError",
    "UnsupportedRequest",
    "nearest",
    "one_line",
)


class TaskdiagError(Exception):
    """The base class of the others."""


class RequestError(TaskdiagError, ValueError):
    """The request is malformed (EINVAL)."""


class UnsupportedRequest(RequestError):
    """This version does not answer this kind of request (EOPNOTSUPP)."""


class NoSuchProcess(TaskdiagError, ProcessLookupError):
    """No process has that pid, or the requester may not see it (ESRCH).

    >>> str(NoSuchProcess(7)).startswith("no process has pid 7")
    True
    """

    def __init__(self, pid: int) -> None:
        # Root sees every process.  For others the two cases look the same, as they must.
        unseen = "" if os.geteuid() == 0 else ", or it is not yours to see"
        super().__init__(errno.ESRCH, f"no process has pid {pid}{unseen}")
        self.pid = pid

    def __str__(self) -> str:
        return str(self.strerror)


class AccessDenied(TaskdiagError, PermissionError):
    """The user lacks a privilege that the operation needs (EPERM)."""


class Busy(TaskdiagError, BlockingIOError):
    """The previous answer has not been read to its end yet (EBUSY)."""


class EngineUnavailable(TaskdiagError, OSError):
    """The engine that was asked for cannot work here; the message says why."""

    def __str__(self) -> str:
        return str(self.args[-1]) if self.args else ""


class DecodeError(TaskdiagError, ValueError):
    """A stream is malformed at byte ``offset``."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(f"byte {offset}: {message}")
        self.offset = offset


def one_line(text: str) -> str:
    """Join the two lines that matter of a message with a log: the first, and the reason.

    >>> one_line("it failed:\\n0: r0 = 1\\nR1 is not there\\nprocessed 1 insns")
    'it failed: R1 is not there'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # In a verifier's log the last line before the statistics says what is wrong.
    said = [line for line in lines if not line.startswith("processed ")]
    return " ".join(lines[:1] if len(said) < 2 else [lines[0], said[-1]])


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to "unknown name": the most similar known names, or all of them.

    >>> nearest("dmup", ["ps", "dump"]), nearest("xyz", ["ps", "dump"])
    ("did you mean 'dump'?", 'choose from ps, dump')
    """
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(name.lower(), names, 1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
