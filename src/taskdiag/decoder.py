"""The decoder: a stream in, `Task` objects out, strict about everything the contract says."""

from __future__ import annotations

from struct import Struct

from . import abi
from .abi import MSG, MSG_FLAG_CONT, Attr
from .errors import DecodeError
from .netlink import attributes, messages, vma_records
from .task import Layout, Task, check_vma

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("decode",)

_SIZES = {int(kind): group.size for kind, group in abi.GROUPS.items()}
_IDENTITY = Struct("=II16xB")  # tgid, pid and state of task_diag_base


def decode(chunks: Iterable[bytes]) -> Iterator[Task]:
    """Decode a stream, given as whole messages in any number of chunks.

    >>> import taskdiag
    >>> [task.pid for task in decode(taskdiag.stream("base", pid=1))]
    [1]

    Messages joined by CONT become one task.  Attributes of unknown types are
    skipped and stay available as `Task.unknown`.

    Raises DecodeError, naming the byte offset in the whole stream and what was
    expected there, if the stream is truncated, overlong, misaligned or contradicts
    itself.
    """
    base = 0
    parts: tuple[tuple[bytes, int, Layout], ...] = ()
    joined: tuple[int, int] | None = None
    layouts: dict[int, tuple[Struct, tuple[int, ...], Layout]] = {}
    for data in chunks:
        for at, end, pid, tgid, flags in messages(data, base):
            if joined is not None and joined != (pid, tgid):
                raise DecodeError(
                    base + at + 16,
                    f"message about task {pid} of process {tgid}, "
                    f"expected more about task {joined[0]} of process {joined[1]}",
                )
            # Most messages have the layout of one seen before: then one comparison
            # of the attribute headers replaces the walk.
            seen = layouts.get(end - at)
            if seen is not None and seen[0].unpack_from(data, at) == seen[1]:
                layout = seen[2]
            else:
                layout, fixed = _layout(data, at, end, base)
                if fixed:
                    layouts[end - at] = _signature(data, at, end, layout)
            span = layout.get(Attr.BASE)
            if span is not None:
                _check_identity(data, at + span[0], pid, tgid, base)
            parts += ((data, at, layout),)
            if flags & MSG_FLAG_CONT:
                joined = pid, tgid
            else:
                if joined is not None:
                    _check_joined(parts, base + at)
                yield Task(pid, tgid, parts)
                parts, joined = (), None
        base += len(data)
    if joined is not None:
        raise DecodeError(base, f"truncated: more messages about process {joined[1]} must follow")


def _layout(data: bytes, at: int, end: int, base: int) -> tuple[Layout, bool]:
    """Walk one message; also says whether all its attributes are of fixed size."""
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


def _signature(
    data: bytes, at: int, end: int, layout: Layout
) -> tuple[Struct, tuple[int, ...], Layout]:
    """A struct that unpacks just the attribute headers, and what they are here."""
    code = f"={MSG.size}x"
    for start, stop in layout.values():
        code += f"HH{abi.align(stop - start)}x"
    struct = Struct(code)
    return struct, struct.unpack_from(data, at), layout


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


def _check_joined(parts: tuple[tuple[bytes, int, Layout], ...], offset: int) -> None:
    """Only what may go on in the next message may appear in several."""
    kinds: set[int] = set()
    for _, _, layout in parts:
        for kind in layout:
            if kind in kinds and kind in _SIZES:
                raise DecodeError(offset, f"a second {Attr(kind).name} in joined messages")
            kinds.add(kind)
