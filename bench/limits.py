"""Raise the limits on the number of processes for a while, where that is allowed.

proc_sys_kernel(5): pid_max, threads-max; proc_sys_vm(5): max_map_count; cgroups(7): pids.max;
getrlimit(2): RLIMIT_NPROC.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

__all__ = ("LimitError", "memory", "raised")

#: How many tasks the rest of the host may start meanwhile.
_SLACK = 2000
#: The most mappings that a thread of a population adds to its process.
_MAPS_PER_THREAD = 2


class LimitError(Exception):
    """The host does not allow what was asked for; the message says which limit it is."""


@contextlib.contextmanager
def raised(tasks: int, threads: int = 1) -> Iterator[None]:
    """Make room for ``tasks`` processes of ``threads`` threads each, until the block is left.

    Raises LimitError if a limit is too low and cannot be raised.
    """
    wanted = tasks * threads + _running() + _SLACK
    with contextlib.ExitStack() as stack:
        # A pid cannot be reused while anything refers to it: allow for twice as many.
        stack.enter_context(_file(Path("/proc/sys/kernel/pid_max"), 2 * wanted, wanted))
        stack.enter_context(_file(Path("/proc/sys/kernel/threads-max"), wanted))
        maps = 100 + _MAPS_PER_THREAD * threads
        stack.enter_context(_file(Path("/proc/sys/vm/max_map_count"), maps))
        for path in _cgroups():
            stack.enter_context(_file(path, wanted))
        stack.enter_context(_rlimit(wanted))
        yield


def memory() -> dict[str, int]:
    """/proc/meminfo, in bytes.

    >>> memory()["MemTotal"]
    24694587392
    """
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        found[name] = int(number) * (1024 if unit == "kB" else 1)
    return found


def _running() -> int:
    """The number of tasks on the host: the fourth field of /proc/loadavg is running/all."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])


def _cgroups() -> Iterator[Path]:
    """The pids.max files of our cgroup and of all its ancestors (cgroups(7))."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "pids":
            root = Path("/sys/fs/cgroup/pids")
        elif not controllers:
            root = Path("/sys/fs/cgroup")
        else:
            continue
        here = root / path.lstrip("/")
        for directory in (here, *here.parents):
            if not directory.is_relative_to(root):
                break
            if (directory / "pids.max").exists():
                yield directory / "pids.max"


@contextlib.contextmanager
def _file(path: Path, wanted: int, needed: int | None = None) -> Iterator[None]:
    """Raise the limit in a file to ``wanted`` if it is lower; at least ``needed`` is required."""
    try:
        before = path.read_text().strip()
    except OSError:
        yield
        return
    if before == "max" or int(before) >= wanted:
        yield
        return
    try:
        path.write_text(f"{wanted}\n")
    except OSError as error:
        if int(before) < (needed or wanted):
            raise LimitError(
                f"{path} is {before} and {needed or wanted} is needed, "
                f"but it cannot be raised: {error.strerror}"
            ) from None
        yield
        return
    try:
        yield
    finally:
        path.write_text(f"{before}\n")


@contextlib.contextmanager
def _rlimit(wanted: int) -> Iterator[None]:
    """Raise RLIMIT_NPROC.  It does not apply to root (getrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() == 0 or soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    if hard not in (resource.RLIM_INFINITY,) and hard < wanted:
        raise LimitError(f"RLIMIT_NPROC is {hard} and {wanted} is needed: run as root")
    resource.setrlimit(resource.RLIMIT_NPROC, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
