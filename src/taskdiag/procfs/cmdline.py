"""/proc/PID/cmdline: the argument bytes, and whether there are any to have."""

from __future__ import annotations

from .reader import Directory

__all__ = ("has_mm", "read")


def read(directory: Directory) -> bytes:
    """The argument bytes; none for an empty command line and for a task without memory."""
    return directory.read("cmdline")


def has_mm(directory: Directory) -> bool:
    """Whether the task has an address space: kernel threads and zombies have none."""
    return b"\nVmSize:" in directory.read("status")
