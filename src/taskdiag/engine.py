"""Engines answer requests: the protocol that they keep, and the choice between them."""

from __future__ import annotations

import errno
import os

from .capability import may_load_bpf
from .errors import EngineUnavailable, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from .request import Request

    class Engine(Protocol):
        """Whoever answers requests."""

        @property
        def name(self) -> str:
            """kernel, service or procfs."""

        def stream(self, request: Request) -> Iterator[bytes]:
            """The answer, in chunks of whole processes.

            Raises NoSuchProcess when the request names a pid that is not there,
            at the latest with the first chunk.
            """


__all__ = ("ENGINES", "Auto", "Engine", "choose")

#: In the order of choice.
ENGINES = ("kernel", "service", "procfs")


def choose(name: str | None = None, *, read_ahead: bool = False) -> Engine:
    """The engine of that name, else of ``TASKDIAG_ENGINE``, else the best one here.

    >>> choose("procfs").name
    'procfs'

    The kernel engine asked for by name answers without the help of procfs or not at all,
    but for VMA_STAT, which no kernel can give otherwise.

    With ``read_ahead`` a thread reads what comes next while the caller works, for
    engines whose answer is made by someone else (:mod:`taskdiag.readahead`).

    Raises RequestError for an unknown name, EngineUnavailable if an engine asked for
    by name cannot work here.
    """
    wanted = name or os.environ.get("TASKDIAG_ENGINE") or "auto"
    if wanted != "auto":
        if wanted not in ENGINES:
            raise RequestError(f"unknown engine {wanted!r}: choose from auto, {', '.join(ENGINES)}")
        return _open(wanted, read_ahead, insist=True)
    return Auto(read_ahead)


class Auto:
    """The best engine that works here for the request at hand.

    What an engine can do shows only when it is asked: the kernel may refuse a program.
    """

    name = "auto"

    def __init__(self, read_ahead: bool = False) -> None:
        self._read_ahead = read_ahead

    def stream(self, request: Request) -> Iterator[bytes]:
        """The answer of the first engine that is available for it."""
        for candidate in ENGINES[:-1]:
            try:
                return _open(candidate, self._read_ahead).stream(request)
            except EngineUnavailable:
                continue
        return _open(ENGINES[-1], self._read_ahead).stream(request)


#: Engines keep what the next request can use again: loaded programs, an open /proc.
_opened: dict[tuple[str, bool, bool], Engine] = {}


def _open(name: str, read_ahead: bool, insist: bool = False) -> Engine:
    # Asked each time: a process may give up its privileges, and what it loaded with them.
    if name == "kernel" and not may_load_bpf():
        for key in [key for key in _opened if key[0] == name]:
            del _opened[key]
        raise EngineUnavailable(
            errno.EPERM,
            "the kernel engine needs CAP_BPF and CAP_PERFMON (or root): see taskdiag doctor",
        )
    key = name, read_ahead, insist
    if key not in _opened:
        _opened[key] = _make(*key)
    return _opened[key]


def _make(name: str, read_ahead: bool, insist: bool) -> Engine:
    # Imported here: a command loads the engine that answers it and no other.
    if name == "kernel":
        from .kernel import KernelEngine

        return KernelEngine(read_ahead=read_ahead, insist=insist)
    if name == "service":
        from .service import ServiceEngine

        return ServiceEngine(read_ahead=read_ahead)
    from .procfs import ProcfsEngine

    return ProcfsEngine()
