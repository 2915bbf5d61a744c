"""Tasks as typed objects, which the decoder makes of a stream.

The tuples have the fields of the contract's structures (:mod:`taskdiag.abi`), in
the contract's units.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import abi
from .abi import Attr, State, VmaFlag
from .errors import DecodeError
from .netlink import vma_records

__all__ = ("Base", "Cred", "Name", "Sched", "Stat", "Statm", "Task", "Tty", "Vma", "VmaStat")


class Base(NamedTuple):
    """Identity, family and state (``task_diag_base``)."""

    tgid: int
    pid: int
    ppid: int
    tpid: int
    sid: int
    pgid: int
    state: State
    comm: str


class Cred(NamedTuple):
    """Credentials (``task_diag_creds``); capabilities are 64-bit masks."""

    cap_inheritable: int
    cap_permitted: int
    cap_effective: int
    cap_bset: int
    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int


class Stat(NamedTuple):
    """Faults and times (``task_diag_stat``); times in clock ticks (``SC_CLK_TCK``)."""

    minflt: int
    cminflt: int
    majflt: int
    cmajflt: int
    utime: int
    stime: int
    cutime: int
    cstime: int
    threads: int


class Statm(NamedTuple):
    """Memory (``task_diag_statm``); in pages, but ``ptes`` and ``pmds`` in bytes."""

    anon: int
    file: int
    shmem: int
    total_vm: int
    total_rss: int
    hiwater_vm: int
    hiwater_rss: int
    text: int
    lib: int
    swap: int
    ptes: int
    pmds: int
    locked_vm: int
    pinned_vm: int
    data_vm: int
    stack_vm: int


class Tty(NamedTuple):
    """Controlling terminal: device number (0 = none) and foreground process group."""

    tty_nr: int
    tpgid: int


class Sched(NamedTuple):
    """Scheduling; ``start_time`` in clock ticks since boot."""

    start_time: int
    flags: int
    nice: int
    priority: int
    rt_priority: int
    policy: int
    processor: int


class Name(NamedTuple):
    """Full name, as /proc/PID/comm shows it (``task_diag_name``)."""

    name: str


class VmaStat(NamedTuple):
    """Page statistics of a mapping, in bytes; ``pss`` in bytes << 12."""

    resident: int
    shared_clean: int
    shared_dirty: int
    private_clean: int
    private_dirty: int
    referenced: int
    anonymous: int
    anonymous_thp: int
    swap: int
    pss: int


class Vma(NamedTuple):
    """One memory mapping; ``name`` as /proc/PID/maps shows it, without its escapes."""

    start: int
    end: int
    flags: VmaFlag
    pgoff: int
    major: int
    minor: int
    inode: int
    generation: int
    name: str | None
    stat: VmaStat | None


#: The payloads of a message: attribute type to (start, end), counted from the message's start.
Layout = dict[int, tuple[int, int]]
Unpack = Callable[[bytes, int], tuple[Any, ...]]


class Task(tuple[Any, ...]):
    """One task of an answer.  Groups that were not requested or do not apply are None.

    A group is unpacked each time it is used, so groups that are not used cost nothing.  The
    structure of the stream has been checked before.

    >>> import os, taskdiag
    >>> task = next(taskdiag.dump("base,stat", pid=os.getpid()))
    >>> task.base.comm, task.stat.threads, task.cred
    ('py...', ..., None)
    """

    __slots__ = ()

    # A tuple, because no other object is created as fast.  Its items are pid, tgid, the place
    # of the first message (buffer, offset, layout), and a tuple of such places for the messages
    # joined to it.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def pid(self) -> int:
        """The thread id, in the requester's pid namespace."""
        return self[0]  # type: ignore[no-any-return]

    @property
    def tgid(self) -> int:
        """The process (thread group) id."""
        return self[1]  # type: ignore[no-any-return]

    def _parts(self) -> Iterator[tuple[bytes, int, Layout]]:
        """Buffer, offset and layout of each message about the task."""
        yield self[2], self[3], self[4]
        yield from self[5]

    def payloads(self, kind: int) -> list[bytes]:
        """The raw payloads of one attribute type, which need not be known to this version."""
        found = []
        for data, at, layout in self._parts():
            span = layout.get(kind)
            if span is not None:
                found.append(bytes(data[at + span[0] : at + span[1]]))
        return found

    @property
    def unknown(self) -> dict[int, bytes]:
        """Attributes of types that this version does not know: type to payload."""
        return {
            kind: b"".join(self.payloads(kind))
            for _, _, layout in self._parts()
            for kind in layout
            if kind not in _KNOWN
        }

    # The groups with a fixed layout are alike.  They stay unrolled because a loop over
    # tasks spends its time in them.

    @property
    def base(self) -> Base | None:
        """Identity, family and state; None unless asked for."""
        _, _, data, at, layout, more = self
        span = layout.get(0)
        if span is not None:
            values = _BASE(data, at + span[0])
        elif (values := _joined(more, 0, _BASE)) is None:
            return None
        tgid, pid, ppid, tpid, sid, pgid, state, comm = values
        name = str(comm.partition(b"\0")[0], _ENCODING, "surrogateescape")
        base: Base = _new(Base, (tgid, pid, ppid, tpid, sid, pgid, _STATES[state], name))
        return base

    @property
    def cred(self) -> Cred | None:
        """Credentials; None unless asked for."""
        _, _, data, at, layout, more = self
        span = layout.get(1)
        if span is not None:
            values = _CRED(data, at + span[0])
        elif (values := _joined(more, 1, _CRED)) is None:
            return None
        cred: Cred = _new(Cred, values)
        return cred

    @property
    def stat(self) -> Stat | None:
        """Faults and times; None unless asked for."""
        _, _, data, at, layout, more = self
        span = layout.get(4)
        if span is not None:
            values = _STAT(data, at + span[0])
        elif (values := _joined(more, 4, _STAT)) is None:
            return None
        stat: Stat = _new(Stat, values)
        return stat

    @property
    def statm(self) -> Statm | None:
        """Memory; None unless asked for, and for kernel threads and zombies."""
        _, _, data, at, layout, more = self
        span = layout.get(5)
        if span is not None:
            values = _STATM(data, at + span[0])
        elif (values := _joined(more, 5, _STATM)) is None:
            return None
        statm: Statm = _new(Statm, values)
        return statm

    @property
    def tty(self) -> Tty | None:
        """Controlling terminal; None unless asked for."""
        _, _, data, at, layout, more = self
        span = layout.get(32)
        if span is not None:
            values = _TTY(data, at + span[0])
        elif (values := _joined(more, 32, _TTY)) is None:
            return None
        tty: Tty = _new(Tty, values)
        return tty

    @property
    def sched(self) -> Sched | None:
        """Scheduling; None unless asked for."""
        _, _, data, at, layout, more = self
        span = layout.get(33)
        if span is not None:
            values = _SCHED(data, at + span[0])
        elif (values := _joined(more, 33, _SCHED)) is None:
            return None
        sched: Sched = _new(Sched, values)
        return sched

    @property
    def name(self) -> Name | None:
        """Full name; None unless asked for."""
        _, _, data, at, layout, more = self
        span = layout.get(34)
        if span is not None:
            values = _NAME(data, at + span[0])
        elif (values := _joined(more, 34, _NAME)) is None:
            return None
        text = str(values[0].partition(b"\0")[0], _ENCODING, "surrogateescape")
        name: Name = _new(Name, (text,))
        return name

    @property
    def cmdline_raw(self) -> bytes | None:
        """The argument bytes as they are in memory, with their NULs; None as for `cmdline`."""
        found = self.payloads(Attr.CMDLINE)
        return b"".join(found) if found else None

    @property
    def cmdline(self) -> list[str] | None:
        """The arguments; None unless asked for, and for kernel threads and zombies.

        Bytes that are not UTF-8 become surrogate escapes, which `os.fsencode` turns back into
        bytes.
        """
        raw = self.cmdline_raw
        if raw is None:
            return None
        if not raw:
            return []
        return os.fsdecode(raw.removesuffix(b"\0")).split("\0")

    @property
    def vmas(self) -> list[Vma] | None:
        """Mappings, ascending; None unless asked for, and for kernel threads and zombies."""
        found = self.payloads(Attr.VMA)
        if not found:
            return None
        return [
            _vma(payload, start)
            for payload in found
            for start, _ in vma_records(payload, 0, len(payload))
        ]

    def __repr__(self) -> str:
        groups = "|".join(
            Attr(kind).name for _, _, layout in self._parts() for kind in layout if kind in _KNOWN
        )
        return f"<Task pid={self.pid} tgid={self.tgid} {groups}>"


def _joined(more: tuple[tuple[bytes, int, Layout], ...], kind: int, unpack: Unpack) -> Any:
    """The values of a group from the messages joined to the first one, None if it is in none."""
    for data, at, layout in more:
        if kind in layout:
            return unpack(data, at + layout[kind][0])
    return None


# Creating the tuple directly takes half the time of Base(...) and Base._make().
_new: Callable[..., Any] = tuple.__new__
_BASE, _CRED, _STAT, _STATM, _TTY, _SCHED, _NAME = (
    group.struct.unpack_from
    for group in (abi.BASE, abi.CRED, abi.STAT, abi.STATM, abi.TTY, abi.SCHED, abi.NAME)
)
_ENCODING = sys.getfilesystemencoding()
_KNOWN = frozenset(int(kind) for kind in Attr)
_STATES = tuple(State)


def check_vma(data: bytes, at: int, end: int, base: int = 0) -> None:
    """Check the offsets and lengths in a VMA record.  Raises DecodeError."""
    name_off, name_len, stat_off, stat_len = abi.VMA.struct.unpack_from(data, at)[9:]
    length = end - at
    behind = length - stat_len
    if stat_len and (stat_len != abi.VMA_STAT.size or not abi.VMA.size <= stat_off <= behind):
        raise DecodeError(
            base + at + 58,
            f"VMA statistics of {stat_len} bytes at {stat_off}, "
            f"expected {abi.VMA_STAT.size} within the record's {length}",
        )
    if name_len and not abi.VMA.size <= name_off <= length - name_len:
        raise DecodeError(
            base + at + 54,
            f"VMA name of {name_len} bytes at {name_off}, expected within the record's {length}",
        )
    if name_len and data[at + name_off + name_len - 1]:
        raise DecodeError(base + at + name_off + name_len - 1, "VMA name without its NUL")


def _vma(data: bytes, at: int) -> Vma:
    values = abi.VMA.struct.unpack_from(data, at)
    name_off, name_len, stat_off, stat_len = values[9:]
    name = data[at + name_off : at + name_off + name_len - 1] if name_len else None
    stat = VmaStat._make(abi.VMA_STAT.struct.unpack_from(data, at + stat_off)) if stat_len else None
    start, stop, flags, pgoff, major, minor, inode, generation = values[:8]
    path = None if name is None else os.fsdecode(name)
    return Vma(start, stop, VmaFlag(flags), pgoff, major, minor, inode, generation, path, stat)
