"""The procfs engine: the same requests and the same stream, read from /proc.

It works for everyone and everywhere, and it is the oracle that other engines are
tested against.  `TaskReader` reads single tasks, which the kernel engine uses for groups
that the running kernel cannot give it.
"""

from __future__ import annotations

from .engine import ProcfsEngine
from .reader import open_procfs
from .task import TaskReader

__all__ = ("ProcfsEngine", "TaskReader", "open_procfs")
