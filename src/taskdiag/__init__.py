"""Ask Linux about processes in one transaction.

>>> import os, taskdiag
>>> [(task.base.comm, task.stat.utime) for task in taskdiag.dump("base,stat", pid=os.getpid())]
[('py...', ...)]
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .abi import Dump, Show, State, VmaFlag
    from .api import dump, stream
    from .decoder import decode
    from .errors import (
        AccessDenied,
        Busy,
        DecodeError,
        EngineUnavailable,
        NoSuchProcess,
        RequestError,
        TaskdiagError,
        UnsupportedRequest,
    )
    from .request import Request
    from .task import Base, Cred, Sched, Stat, Statm, Task, Tty, Vma, VmaStat

__all__ = (
    "AccessDenied",
    "Base",
    "Busy",
    "Cred",
    "DecodeError",
    "Dump",
    "EngineUnavailable",
    "Name",
    "NoSuchProcess",
    "Request",
    "RequestError",
    "Sched",
    "Show",
    "Stat",
    "State",
    "Statm",
    "Task",
    "TaskdiagError",
    "Tty",
    "UnsupportedRequest",
    "Vma",
    "VmaFlag",
    "VmaStat",
    "decode",
    "dump",
    "stream",
)

__version__ = "0.1.0"

_HOMES = {
    "abi": ("Dump", "Show", "State", "VmaFlag"),
    "api": ("dump", "stream"),
    "decoder": ("decode",),
    "errors": (
        "AccessDenied", "Busy", "DecodeError", "EngineUnavailable", "NoSuchProcess",
        "RequestError", "TaskdiagError", "UnsupportedRequest",
    ),
    "request": ("Request",),
    "task": ("Base", "Cred", "Name", "Sched", "Stat", "Statm", "Task", "Tty", "Vma", "VmaStat"),
}  # fmt: skip


def __getattr__(name: str) -> object:
    # Start-up is part of the speed: a command that never decodes into objects does
    # not import what decodes.
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            value: object = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
