"""Engines answer requests.  This module has their protocol, and chooses one."""

from __future__ import annotations

import errno
import os

from .capability import may_load_bpf
from .errors import EngineUnavailable, RequestError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from .request import Request

    class Engine(Protocol):
        """What every engine offers."""

        @property
        def name(self) -> str:
            """The name by which `choose` finds it: kernel, service or procfs."""

        def stream(self, request: Request) -> Iterator[bytes]:
            """The answer, in chunks of whole processes.

            Raises NoSuchProcess for the pid of no process, no later than the first chunk.
            """


__all__ = ("ENGINES", "Auto", "Engine", "choose", "wanted")

#: The engines, best first.
ENGINES = ("kernel", "service", "procfs")


def wanted(name: str | None = None) -> str:
    """The name given, else that in ``TASKDIAG_ENGINE``, else "auto".

    >>> wanted("procfs")
    'procfs'

    Raises RequestError for the name of no engine.
    """
    chosen = name or os.environ.get("TASKDIAG_ENGINE") or "auto"
    if chosen != "auto" and chosen not in ENGINES:
        where = "" if name else "TASKDIAG_ENGINE: "
        known = nearest(chosen, ("auto", *ENGINES))
        raise RequestError(f"{where}unknown engine {chosen!r}: {known}")
    return chosen


def choose(name: str | None = None, *, read_ahead: bool = False) -> Engine:
    """The engine with that name, else that of ``TASKDIAG_ENGINE``, else the best one here.

    >>> choose("procfs").name
    'procfs'

    If the kernel engine is asked for by name, it does not fall back to procfs for groups
    that BPF cannot serve here, except for VMA_STAT, which BPF can serve nowhere.

    With ``read_ahead``, a thread reads the next part of the answer while the caller works on
    this one (:mod:`taskdiag.readahead`).

    Raises RequestError for an unknown name, EngineUnavailable if an engine asked for
    by name cannot work here.
    """
    chosen = wanted(name)
    return Auto(read_ahead) if chosen == "auto" else _open(chosen, read_ahead, insist=True)


class Auto:
    """The best engine that works here, chosen again for each request.

    Engines must be tried, because the kernel may refuse a program when it is loaded.
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


#: Engines are kept because they keep what the next request can reuse: programs, an open /proc.
_opened: dict[tuple[str, bool, bool], Engine] = {}


def _open(name: str, read_ahead: bool, insist: bool = False) -> Engine:
    # Checked every time: the process may have dropped its privileges since, and must then
    # not go on to use what was loaded with them.
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
    # Imported here, so that a command loads only the engine that answers it.
    if name == "kernel":
        from .kernel import KernelEngine

        return KernelEngine(read_ahead=read_ahead, insist=insist)
    if name == "service":
        from .service import ServiceEngine

        return ServiceEngine(read_ahead=read_ahead)
    from .procfs import ProcfsEngine

    return ProcfsEngine()
