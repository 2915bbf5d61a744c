"""What can go wrong, each error also a built-in that callers already catch."""

from __future__ import annotations

import errno

__all__ = (
    "AccessDenied",
    "Busy",
    "DecodeError",
    "EngineUnavailable",
    "NoSuchProcess",
    "RequestError",
    "TaskdiagError",
    "UnsupportedRequest",
)


class TaskdiagError(Exception):
    """The base of every error that this package raises on purpose."""


class RequestError(TaskdiagError, ValueError):
    """The request itself makes no sense (EINVAL)."""


class UnsupportedRequest(RequestError):
    """A kind of request that this version does not answer (EOPNOTSUPP)."""


class NoSuchProcess(TaskdiagError, ProcessLookupError):
    """No process has that pid, or it is not the requester's to see (ESRCH)."""

    def __init__(self, pid: int) -> None:
        super().__init__(errno.ESRCH, f"no process has pid {pid}")
        self.pid = pid

    def __str__(self) -> str:
        return f"no process has pid {self.pid}"


class AccessDenied(TaskdiagError, PermissionError):
    """The operation needs a privilege that this user lacks (EPERM)."""


class Busy(TaskdiagError, BlockingIOError):
    """The previous answer was not read to its end yet (EBUSY)."""


class EngineUnavailable(TaskdiagError, OSError):
    """The engine that was asked for cannot work here; the message says why."""

    def __str__(self) -> str:
        return str(self.args[-1]) if self.args else ""


class DecodeError(TaskdiagError, ValueError):
    """A stream breaks the contract at byte ``offset``."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(f"byte {offset}: {message}")
        self.offset = offset
