"""Checks that two contenders give the same answer: only then are their times comparable.

Only what both say of the population is compared, since it does not change between two
reads.  The other processes of the host do, and may have any name and any number of mappings,
so nothing is assumed of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import taskdiag
from taskdiag.abi import VmaFlag
from taskdiag.netlink import messages

__all__ = (
    "CheckError", "bytes_of", "json_rows", "lines_by_pid", "map_files", "mappings_of",
    "maps_by_pid", "maps_of", "same", "stat_files", "stats_of",
)  # fmt: skip

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class CheckError(Exception):
    """Two contenders disagree; the message says where first."""


def same(members: Iterable[int], ours: Mapping[int, Any], peer: Mapping[int, Any]) -> int:
    """Compare what both say of every member, and return how many were compared.

    Raises CheckError if one of them misses a member, or if they differ about one.
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

    ``without`` are columns that change even if the process does nothing.
    """
    found = {}
    for line in text.split("\n"):
        words = line.split()
        if len(words) > column and words[column].isdigit():
            kept = [word for index, word in enumerate(words) if index not in without]
            found[int(words[column])] = kept
    return found


def stats_of(data: bytes) -> dict[int, tuple[Any, ...]]:
    """The fields of /proc/PID/stat that a stream with BASE and STAT has: see `stat_files`."""
    found = {}
    for task in taskdiag.decode([data]):
        base, stat = task.base, task.stat
        assert base is not None
        assert stat is not None
        found[task.pid] = (
            base.comm, base.state.letter, base.ppid, base.pgid, base.sid, *stat[:8], stat.threads,
        )  # fmt: skip
    return found


def stat_files(output: bytes, members: Container[int]) -> dict[int, tuple[Any, ...]]:
    """The same of the members, from the check output of c/read_stat.c (proc_pid_stat(5))."""
    found = {}
    for (pid,), content in _framed(output):
        if int(pid) in members:
            head, _, rest = content.rpartition(b") ")
            words = rest.split()
            numbers = [int(word) for word in words[1:]]
            found[int(pid)] = (
                os.fsdecode(head.partition(b" (")[2]), words[0].decode(), *numbers[:3],
                *numbers[6:14], numbers[16],
            )  # fmt: skip
    return found


def maps_of(data: bytes) -> dict[int, tuple[Any, ...]]:
    """The threads and mappings of each process, of a stream of threads with VMA."""
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


def map_files(output: bytes, members: Container[int]) -> dict[int, tuple[Any, ...]]:
    """The same of the members, from the check output of c/read_threads.c (proc_pid_maps(5))."""
    found: dict[int, tuple[list[int], list[Any]]] = {}
    for words, content in _framed(output):
        pid = int(words[1])
        if pid not in members:
            continue
        threads, vmas = found.setdefault(pid, ([], []))
        if words[0] == b"T":
            threads.append(int(words[2]))
        else:
            vmas += map(_mapping, content.rstrip(b"\n").split(b"\n"))
    return {pid: (sorted(threads), vmas) for pid, (threads, vmas) in found.items()}


def mappings_of(data: bytes) -> dict[int, list[tuple[int, int]]]:
    """Of a stream with VMA, start and end of each process's mappings."""
    return {
        task.pid: [(vma.start, vma.end) for vma in task.vmas or ()]
        for task in taskdiag.decode([data])
    }


def maps_by_pid(output: bytes) -> dict[int, list[tuple[int, int]]]:
    """The same from maps or smaps, as c/read_proc.c prints them.

    Newlines in names are escaped there, so that every line is the kernel's.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    current: list[tuple[int, int]] = []
    for line in output.split(b"\n"):
        if line.isdigit():
            current = found.setdefault(int(line), [])
            continue
        span = line.partition(b" ")[0]
        start, dash, end = span.partition(b"-")
        # Lines of statistics have a colon there.
        if dash and not span.endswith(b":"):
            current.append((int(start, 16), int(end, 16)))
    return found


def _mapping(line: bytes) -> tuple[int, int, str, int, str, int, str]:
    """A line of maps, as `maps_of` has it."""
    span, perms, offset, device, inode, *name = line.split(None, 5)
    start, _, end = span.partition(b"-")
    return (
        int(start, 16), int(end, 16), perms.decode(), int(offset, 16), device.decode(),
        int(inode), os.fsdecode(b"".join(name)),
    )  # fmt: skip


def _framed(output: bytes) -> Iterator[tuple[list[bytes], bytes]]:
    """The records of a C program's check output: words, and the bytes that follow.

    A record is a line; unless it is a "T" line, its last word is a number of bytes to follow.
    """
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        words = output[at:end].split()
        at = end + 1
        if words[0] == b"T":
            yield words, b""
            continue
        size = int(words.pop())
        yield words, output[at : at + size]
        at += size


def bytes_of(data: bytes) -> dict[int, str]:
    """The messages of a stream by pid, in hexadecimal."""
    return {pid: data[at:end].hex() for at, end, pid, _, _ in messages(data)}


def json_rows(path: Path, *, psutil: bool) -> dict[int, tuple[Any, ...]]:
    """The ten attributes of each process, in seconds and bytes."""
    found = {}
    for row in json.loads(path.read_text()):
        pid, ppid, name, state, uid, gid, utime, stime, rss, threads = row
        if psutil:
            state = {"sleeping": "interruptible"}.get(state, state)
        else:
            utime, stime, rss = utime / _TICK, stime / _TICK, rss * _PAGE
        found[pid] = (ppid, name, state, uid, gid, utime, stime, rss, threads)
    return found
