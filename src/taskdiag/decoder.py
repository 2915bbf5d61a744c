"""The decoder: makes `Task` objects of a stream, and checks all that the contract requires."""

from __future__ import annotations

from itertools import repeat
from struct import Struct

from . import abi
from .abi import MSG, MSG_FLAG_CONT, Attr
from .errors import DecodeError
from .netlink import attributes, messages, vma_records
from .task import Layout, Task, check_vma

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Part = tuple[bytes, int, Layout]

__all__ = ("decode",)

_SIZES = {int(kind): group.size for kind, group in abi.GROUPS.items()}
_BASE = int(Attr.BASE)
_new: Callable[..., Any] = tuple.__new__
_IDENTITY = Struct("=II16xB")  # tgid, pid and state of task_diag_base


def decode(chunks: Iterable[bytes]) -> Iterator[Task]:
    """Decode a stream, given as whole messages in any number of chunks.

    >>> import os, taskdiag
    >>> [task.pid == os.getpid() for task in decode(taskdiag.stream("base", pid=os.getpid()))]
    [True]

    Messages joined by CONT become one task.  Attributes of unknown types are skipped, and
    are available as `Task.unknown`.

    Raises DecodeError if the stream is truncated, overlong, misaligned or inconsistent.  The
    error says at which byte of the whole stream, and what was expected there.
    """
    base = 0
    parts: tuple[Part, ...] = ()
    joined: tuple[int, int] | None = None
    layouts: dict[int, _Uniform] = {}
    usual: _Uniform | None = None
    for data in chunks:
        if usual is not None and joined is None and usual.holds(data):
            yield from usual.tasks(data)
            base += len(data)
            continue
        for at, end, pid, tgid, flags in messages(data, base):
            if joined is not None and joined != (pid, tgid):
                raise DecodeError(
                    base + at + 16,
                    f"message about task {pid} of process {tgid}, "
                    f"expected more about task {joined[0]} of process {joined[1]}",
                )
            # Most messages have the layout of an earlier one.  Then comparing all attribute
            # headers at once is enough.
            usual = layouts.get(end - at)
            if usual is not None and usual.fits(data, at):
                layout = usual.layout
            else:
                layout, fixed = _layout(data, at, end, base)
                if fixed:
                    usual = layouts[end - at] = _Uniform(data, at, end, layout)
            span = layout.get(_BASE)
            if span is not None:
                _check_identity(data, at + span[0], pid, tgid, base)
            if flags & MSG_FLAG_CONT:
                joined = pid, tgid
                parts += ((data, at, layout),)
                continue
            if joined is None:
                yield _task((pid, tgid, data, at, layout, ()))
                continue
            parts += ((data, at, layout),)
            _check_joined(parts, base + at)
            yield _task((pid, tgid, *parts[0], parts[1:]))
            parts, joined = (), None
        base += len(data)
    if joined is not None:
        raise DecodeError(base, f"truncated: more messages about process {joined[1]} must follow")


def _task(values: tuple[Any, ...]) -> Task:
    return _new(Task, values)  # type: ignore[no-any-return]


class _Uniform:
    """Messages of one length and layout, all of whose attributes are of fixed size.

    A chunk that consists only of such messages is checked as a whole, one byte position
    after the other, and its tasks are created without executing Python code for each.
    """

    def __init__(self, data: bytes, at: int, end: int, layout: Layout) -> None:
        self.layout = layout
        self._size = end - at
        code = f"={MSG.size}x"
        for start, stop in layout.values():
            code += f"HH{abi.align(stop - start)}x"
        self._headers = Struct(code)
        self._expected = self._headers.unpack_from(data, at)
        # The bytes that are equal in all such messages: length, type and flags in the nlmsghdr,
        # the flags in the task_diag_msg (no CONT), and the attribute headers.
        same = [*range(8), *range(24, MSG.size)]
        for start, _ in layout.values():
            same += range(start - 4, start)
        message = bytearray(data[at:end])
        message[24 : MSG.size] = bytes(MSG.size - 24)
        self._same = [(offset, bytes(message[offset : offset + 1])) for offset in same]
        span = layout.get(_BASE)
        self._base = None if span is None else span[0]
        self._ids = Struct(f"=16xII{self._size - 24}x")

    def fits(self, data: bytes, at: int) -> bool:
        """Whether the message at ``at``, which has the right length, has this layout."""
        return self._headers.unpack_from(data, at) == self._expected

    def holds(self, data: bytes) -> bool:
        """Whether a chunk consists only of such messages, and all of them are valid."""
        size = self._size
        if len(data) % size:
            return False
        number = len(data) // size
        for offset, byte in self._same:
            if data[offset::size] != byte * number:
                return False
        at = self._base
        if at is None:
            return True
        # BASE has tgid before pid.
        for offset in range(4):
            if data[16 + offset :: size] != data[at + 4 + offset :: size]:
                return False
            if data[20 + offset :: size] != data[at + offset :: size]:
                return False
        return max(data[at + 24 :: size]) <= abi.State.IDLE

    def tasks(self, data: bytes) -> Iterator[Task]:
        """The tasks of a chunk that `holds`."""
        pids, tgids = zip(*self._ids.iter_unpack(data), strict=True)
        offsets = range(0, len(data), self._size)
        values = zip(pids, tgids, repeat(data), offsets, repeat(self.layout), repeat(()))
        return map(_new, repeat(Task), values)


def _layout(data: bytes, at: int, end: int, base: int) -> tuple[Layout, bool]:
    """The layout of a message, and whether all its attributes are of fixed size."""
    layout: Layout = {}
    fixed = True
    for kind, start, stop in attributes(data, at + MSG.size, end, base):
        if kind in layout:
            raise DecodeError(base + start - 2, f"a second attribute of type {kind}")
        size = _SIZES.get(kind)
        if size is None:
            fixed = False
            if kind == Attr.VMA:
                for first, behind in vma_records(data, start, stop, base):
                    check_vma(data, first, behind, base)
        elif stop - start != size:
            raise DecodeError(
                base + start - 4,
                f"{Attr(kind).name} attribute of {stop - start} bytes, expected {size}",
            )
        layout[kind] = start - at, stop - at
    return layout, fixed


def _check_identity(data: bytes, at: int, pid: int, tgid: int, base: int) -> None:
    found_tgid, found_pid, state = _IDENTITY.unpack_from(data, at)
    if (found_tgid, found_pid) != (tgid, pid):
        raise DecodeError(
            base + at,
            f"BASE is about task {found_pid} of process {found_tgid}, "
            f"its message about task {pid} of process {tgid}",
        )
    if state > abi.State.IDLE:
        raise DecodeError(base + at + 24, f"unknown state {state}, expected 0 to 8")


def _check_joined(parts: tuple[Part, ...], offset: int) -> None:
    """Check that only CMDLINE and VMA, which may be continued, appear more than once."""
    kinds: set[int] = set()
    for _, _, layout in parts:
        for kind in layout:
            if kind in kinds and kind in _SIZES:
                raise DecodeError(offset, f"a second {Attr(kind).name} in joined messages")
            kinds.add(kind)
