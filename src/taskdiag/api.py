"""The two calls that most programs need: `dump` for objects, `stream` for raw bytes."""

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
    """Ask, and yield the answer as netlink messages, in chunks of whole processes.

    >>> b"".join(stream("base", pid=1))[:4].hex()
    '4c000000'

    ``show`` is show flags or group names (``"base,cred"``).  ``strategy`` is a `Dump`;
    without one it is ONE where ``pid`` is given and ALL where not.  ``engine`` is an
    engine or its name; without one the best that works here.

    Raises RequestError for a request that makes no sense, NoSuchProcess for a pid
    that is not there, EngineUnavailable if the engine asked for cannot work here.
    """
    flags = show if isinstance(show, int) else parse_show(show)
    if strategy is None:
        strategy = Dump.ALL if pid is None else Dump.ONE
    request = Request(flags, strategy, 0 if pid is None else pid)
    chosen = choose(engine) if engine is None or isinstance(engine, str) else engine
    return chosen.stream(request)


def dump(
    show: int | str | Iterable[str] = Show.BASE,
    strategy: int | None = None,
    pid: int | None = None,
    *,
    engine: Engine | str | None = None,
) -> Iterator[Task]:
    """Ask, and yield one `Task` per task, in ascending order of pid.

    >>> import os
    >>> [task.tgid == os.getpid() for task in dump("base", Dump.THREAD, os.getpid())]
    [True]

    Parameters and errors are those of `stream`.
    """
    return decode(stream(show, strategy, pid, engine=engine))
