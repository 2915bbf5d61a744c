"""Requests: which attribute groups (show flags) of which tasks (strategy and pid)."""

from __future__ import annotations

from .abi import EXTENDED_REQUEST, REQUEST, REQUEST_SIZE, Dump, Show
from .errors import NoSuchProcess, RequestError, UnsupportedRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("Request", "parse_show")

_SHOW_ALL = sum(Show)
_WITH_PID = (Dump.ONE, Dump.CHILDREN, Dump.THREAD)


def parse_show(names: str | Iterable[str]) -> Show:
    """Turn group names into show flags.

    >>> parse_show("base,stat") == Show.BASE | Show.STAT
    True

    Raises RequestError for an unknown or empty name, TypeError for what is not a string.
    """
    show = Show(0)
    for name in names.split(",") if isinstance(names, str) else names:
        if not isinstance(name, str):
            raise TypeError(f"a group is named by a string, such as 'base', not by {name!r}")
        try:
            show |= Show[name.strip().upper()]
        except KeyError:
            from .errors import nearest

            known = [group.name.lower() for group in Show if group.name]
            what = f"unknown group {name!r}" if name.strip() else f"empty group name in {names!r}"
            raise RequestError(f"{what}: {nearest(name.strip(), known)}") from None
    return show


class Request:
    """A request, checked when it is made.

    >>> Request(Show.BASE, Dump.ONE, 1)
    Request(<Show.BASE: 1>, <Dump.ONE: 1>, pid=1)

    ``show`` may hold VMA_STAT alone; it is part of VMA records, so it implies VMA.
    ``pid`` matters to ONE, CHILDREN and THREAD only and must fit a u32.  It may be the id
    of any thread: ONE then shows that thread, as ``/proc/TID`` does, and the other two
    mean its process.  ``seq`` is echoed in every message of the answer.

    Raises RequestError for flags, strategies and pids outside the contract.
    """

    __slots__ = ("pid", "seq", "show", "strategy")

    def __init__(
        self, show: int = Show.BASE, strategy: int = Dump.ALL, pid: int = 0, seq: int = 0
    ) -> None:
        unknown = show & ~_SHOW_ALL
        if show < 0 or unknown:
            raise RequestError(f"unknown show flags {unknown:#x}: known are {_SHOW_ALL:#x}")
        try:
            strategy = Dump(strategy)
        except ValueError:
            raise RequestError(f"unknown dump strategy {strategy}: choose from 0 to 4") from None
        if strategy in _WITH_PID and not 0 < pid <= 0xFFFFFFFF:
            raise RequestError(f"pid {pid} is out of range: a pid is from 1 to {0xFFFFFFFF}")
        if not 0 <= seq <= 0xFFFFFFFF:
            raise RequestError(f"sequence number {seq} is out of range: it is a u32")
        if show & Show.VMA_STAT:
            show |= Show.VMA
        self.show = Show(show)
        self.strategy = strategy
        self.pid = pid if strategy in _WITH_PID else 0
        self.seq = seq

    @property
    def threads(self) -> bool:
        """Whether the answer has a message per thread rather than per process."""
        return self.strategy in (Dump.ALL_THREAD, Dump.THREAD)

    def encode(self) -> bytes:
        """The 40 bytes of ``nlmsghdr`` and ``task_diag_pid``.

        >>> Request(Show.BASE | Show.CRED, Dump.THREAD, 7).encode().hex(" ", 4)
        '28000000 00000100 00000000 00000000 03000000 00000000 04000000 00000000 07000000 00000000'
        """
        return REQUEST.pack(REQUEST_SIZE, 0, 1, self.seq, 0, self.show, self.strategy, self.pid)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """The request that a client has written.

        It is taken as the reference took it.  Existing C clients leave the header's type
        and flags and whatever follows the structure uninitialised, so none of that
        matters, except that the extended type is refused.  Unknown show flags are
        ignored.  Pid 0 is one that no process has.

        Raises RequestError if it is short, longer than what was written, or its strategy
        is unknown; UnsupportedRequest if it is of the extended type; NoSuchProcess.
        """
        if len(data) < REQUEST_SIZE:
            raise RequestError(f"short request: {len(data)} bytes, at least {REQUEST_SIZE} needed")
        length, kind, _, seq, _, show, strategy, pid = REQUEST.unpack_from(data)
        if not REQUEST_SIZE <= length <= len(data):
            raise RequestError(
                f"nlmsg_len is {length}: it must be from {REQUEST_SIZE} to the {len(data)} written"
            )
        if kind == EXTENDED_REQUEST:
            raise UnsupportedRequest("extended requests (type 0xd102) are not supported yet")
        if not pid and strategy in _WITH_PID:
            raise NoSuchProcess(pid)
        return cls(show & _SHOW_ALL, strategy, pid, seq)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def key(self) -> tuple[int, int, int, int]:
        """Everything that the answer depends on, to be used in a dictionary."""
        return int(self.show), int(self.strategy), self.pid, self.seq

    def __repr__(self) -> str:
        seq = f", seq={self.seq}" if self.seq else ""
        return f"Request({self.show!r}, {self.strategy!r}, pid={self.pid}{seq})"
