"""The procfs engine: the same requests and the same stream, read from /proc.

It works for every user on every host, and the tests compare the other engines with it.
`TaskReader` reads single tasks; the kernel engine uses it for groups that it cannot serve.
"""

from __future__ import annotations

from .engine import ProcfsEngine
from .reader import open_procfs
from .task import TaskReader

__all__ = ("ProcfsEngine", "TaskReader", "open_procfs")
