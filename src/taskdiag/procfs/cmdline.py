"""/proc/PID/cmdline: the argument bytes, and whether a task has an address space."""

from __future__ import annotations

from .reader import Directory

__all__ = ("has_mm", "read")


def read(directory: Directory) -> bytes:
    """The argument bytes; b"" also for a task without address space."""
    return directory.read("cmdline")


def has_mm(directory: Directory) -> bool:
    """Whether the task has an address space.  Kernel threads and zombies have none."""
    return b"\nVmSize:" in directory.read("status")
