"""Whether two contenders give the same answer: only then is their time worth comparing.

What is compared is what both say of the population, which stands still; the rest of the
host moves between two reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import taskdiag
from taskdiag.abi import VmaFlag
from taskdiag.netlink import messages

__all__ = (
    "CheckError", "bytes_of", "json_rows", "lines_by_pid", "map_lines", "mappings_of",
    "maps_by_pid", "maps_of", "same", "stat_lines", "stats_of",
)  # fmt: skip

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class CheckError(Exception):
    """Two contenders disagree; the message says where first."""


def same(members: Iterable[int], ours: Mapping[int, Any], peer: Mapping[int, Any]) -> int:
    """Compare what both say of every member; gives how many were compared.

    Raises CheckError if either misses one or they differ about one.
    """
    count = 0
    for pid in members:
        for who, answer in (("ours", ours), ("the peer's", peer)):
            if pid not in answer:
                raise CheckError(f"{who} misses process {pid}")
        if ours[pid] != peer[pid]:
            raise CheckError(f"process {pid}: ours says {ours[pid]!r}, the peer {peer[pid]!r}")
        count += 1
    if not count:
        raise CheckError("there is no population to compare")
    return count


def lines_by_pid(text: str, column: int, without: tuple[int, ...] = ()) -> dict[int, list[str]]:
    """The words of every line of a table, by the pid in ``column``.

    ``without`` are columns that move even where the processes stand still.
    """
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > column and words[column].isdigit():
            kept = [word for index, word in enumerate(words) if index not in without]
            found[int(words[column])] = kept
    return found


def stats_of(data: bytes) -> dict[int, tuple[Any, ...]]:
    """Of a stream with BASE and STAT, what /proc/PID/stat shows, too: see `stat_lines`."""
    found = {}
    for task in taskdiag.decode([data]):
        base, stat = task.base, task.stat
        assert base is not None
        assert stat is not None
        found[task.pid] = (
            base.comm, base.state.letter, base.ppid, base.pgid, base.sid, *stat[:8], stat.threads,
        )  # fmt: skip
    return found


def stat_lines(text: str) -> dict[int, tuple[Any, ...]]:
    """The same from lines of /proc/PID/stat, by proc_pid_stat(5)."""
    found = {}
    for line in text.splitlines():
        head, _, rest = line.rpartition(") ")
        pid, _, comm = head.partition(" (")
        if pid.isdigit():
            words = rest.split()
            numbers = [int(word) for word in words[1:]]
            found[int(pid)] = (comm, words[0], *numbers[:3], *numbers[6:14], numbers[16])
    return found


def maps_of(data: bytes) -> dict[int, tuple[Any, ...]]:
    """Of a stream of threads with VMA, the threads and mappings of each process."""
    found: dict[int, tuple[list[int], list[Any]]] = {}
    for task in taskdiag.decode([data]):
        threads, vmas = found.setdefault(task.tgid, ([], []))
        threads.append(task.pid)
        for vma in task.vmas or ():
            perms = "".join(
                letter if vma.flags & flag else "-"
                for letter, flag in (("r", VmaFlag.READ), ("w", VmaFlag.WRITE), ("x", VmaFlag.EXEC))
            ) + ("s" if vma.flags & VmaFlag.MAYSHARE else "p")
            device = f"{vma.major:02x}:{vma.minor:02x}"
            vmas.append((vma.start, vma.end, perms, vma.pgoff, device, vma.inode, vma.name or ""))
    return {pid: (sorted(threads), vmas) for pid, (threads, vmas) in found.items()}


def map_lines(text: str) -> dict[int, tuple[Any, ...]]:
    """The same from the check output of c/read_threads.c."""
    found: dict[int, tuple[list[int], list[Any]]] = {}
    for line in text.splitlines():
        kind, pid, rest = line.split(" ", 2)
        threads, vmas = found.setdefault(int(pid), ([], []))
        if kind == "T":
            threads.append(int(rest))
            continue
        span, perms, offset, device, inode, *name = rest.split(None, 5)
        start, _, end = span.partition("-")
        vmas.append(
            (
                int(start, 16), int(end, 16), perms, int(offset, 16), device, int(inode),
                name[0] if name else "",
            )
        )  # fmt: skip
    return {pid: (sorted(threads), vmas) for pid, (threads, vmas) in found.items()}


def mappings_of(data: bytes) -> dict[int, list[tuple[int, int]]]:
    """Of a stream with VMA, start and end of each process's mappings."""
    return {
        task.pid: [(vma.start, vma.end) for vma in task.vmas or ()]
        for task in taskdiag.decode([data])
    }


def maps_by_pid(text: str) -> dict[int, list[tuple[int, int]]]:
    """The same from maps or smaps, as c/read_proc.c prints them."""
    found: dict[int, list[tuple[int, int]]] = {}
    current: list[tuple[int, int]] = []
    for line in text.splitlines():
        if line.isdigit():
            current = found.setdefault(int(line), [])
            continue
        span = line.partition(" ")[0]
        start, dash, end = span.partition("-")
        # Lines of statistics have a colon there.
        if dash and not span.endswith(":"):
            current.append((int(start, 16), int(end, 16)))
    return found


def bytes_of(data: bytes) -> dict[int, str]:
    """The messages of a stream by pid, byte for byte, as hexadecimal digits."""
    return {pid: data[at:end].hex() for at, end, pid, _, _ in messages(data)}


def json_rows(path: Path, *, psutil: bool) -> dict[int, tuple[Any, ...]]:
    """The ten attributes in common units: seconds and bytes."""
    found = {}
    for row in json.loads(path.read_text()):
        pid, ppid, name, state, uid, gid, utime, stime, rss, threads = row
        if psutil:
            state = {"sleeping": "interruptible"}.get(state, state)
        else:
            utime, stime, rss = utime / _TICK, stime / _TICK, rss * _PAGE
        found[pid] = (ppid, name, state, uid, gid, utime, stime, rss, threads)
    return found
