"""The two functions that most programs need: `dump` for objects, `stream` for raw bytes."""

from __future__ import annotations

from .abi import Dump, Show
from .decoder import decode
from .engine import choose
from .request import Request, parse_show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .engine import Engine
    from .task import Task

__all__ = ("dump", "stream")


def stream(
    show: int | str | Iterable[str] = Show.BASE,
    strategy: int | None = None,
    pid: int | None = None,
    *,
    engine: Engine | str | None = None,
) -> Iterator[bytes]:
    """Send a request, and return the answer as netlink messages, in chunks of whole processes.

    >>> import os
    >>> answer = b"".join(stream("base", pid=os.getpid()))
    >>> len(answer)  # one message: header 28, attribute header 4, BASE 44
    76

    ``show`` is a group name, several (``"base,cred"`` or a list), or `Show` flags.
    ``strategy`` is a `Dump`; by default ONE with a ``pid`` and ALL without.  ``engine`` is
    the name of an engine or an engine; by default the best one that works here.

    Raises TypeError for an argument of a wrong type, RequestError for a request that is
    malformed, NoSuchProcess for the pid of no process, EngineUnavailable if the engine
    asked for cannot work here.
    """
    if strategy is None:
        strategy = Dump.ALL if pid is None else Dump.ONE
    _check("strategy", strategy, "a Dump, such as Dump.ALL")
    _check("pid", 0 if pid is None else pid, "an integer")
    if isinstance(show, (bytes, float)) or not (isinstance(show, int) or hasattr(show, "__iter__")):
        raise TypeError(f"show must be group names, such as 'base,cred', or Show, not {show!r}")
    flags = show if isinstance(show, int) else parse_show(show)
    request = Request(flags, strategy, 0 if pid is None else pid)
    chosen = choose(engine) if engine is None or isinstance(engine, str) else engine
    if not hasattr(chosen, "stream"):
        raise TypeError(f"engine must be the name of an engine or an engine, not {engine!r}")
    return chosen.stream(request)


def dump(
    show: int | str | Iterable[str] = Show.BASE,
    strategy: int | None = None,
    pid: int | None = None,
    *,
    engine: Engine | str | None = None,
) -> Iterator[Task]:
    """Send a request, and return an iterator of `Task` objects, in ascending order of pid.

    >>> import os
    >>> [task.tgid == os.getpid() for task in dump("base", Dump.THREAD, os.getpid())]
    [True]

    Parameters and exceptions are those of `stream`.
    """
    return decode(stream(show, strategy, pid, engine=engine))


def _check(name: str, value: object, kind: str) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be {kind}, not {value!r}")
