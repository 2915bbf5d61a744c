"""Messages about process 1 on hosts whose kernel hides it from iterators.

See `first_process` for how a program reaches it.
"""

from __future__ import annotations

import time

from ..abi import DEFERRED, MSG, Dump, Show
from ..request import Request
from .first_process import left_to_procfs, threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .engine import KernelEngine
    from .programs import Loaded
    from .viewer_root import ViewerRoot

__all__ = ("first_tasks",)


def first_tasks(
    engine: KernelEngine, request: Request, elsewhere: Show, root: ViewerRoot | None
) -> list[tuple[int, bytes]]:
    """The threads of process 1 that a request is about: the number and messages of each.

    ``elsewhere`` are the groups that procfs serves, and ``root`` is the viewer's root directory
    as in `KernelEngine.stream`.  Threads that the viewer may not see are left out; the program
    applies the access rule, as for every other task.
    """
    tids = threads()
    if request.strategy == Dump.CHILDREN or (
        request.strategy in (Dump.ONE, Dump.THREAD) and request.pid not in tids
    ):
        return []
    if request.strategy == Dump.ONE:
        tids = [request.pid]
    elif not request.threads:
        tids = [1]
    elsewhere |= left_to_procfs(request.show, request.threads)
    strategy = Dump.ALL_THREAD if request.threads else Dump.ONE
    inside = Request(request.show & ~elsewhere, strategy, 1, request.seq)
    key, loaded = engine.load(inside, by_number=True)
    try:
        found = [
            (tid, _read(engine, loaded, tid, inside, request, elsewhere, root)) for tid in tids
        ]
    finally:
        engine.programs.keep(key, loaded)
    return [(tid, data) for tid, data in found if data]


def _read(
    engine: KernelEngine,
    loaded: Loaded,
    tid: int,
    inside: Request,
    request: Request,
    elsewhere: Show,
    root: ViewerRoot | None,
) -> bytes:
    """The complete messages about one thread; ``inside`` is the request ``loaded`` answers."""
    since = time.clock_gettime(time.CLOCK_BOOTTIME)
    data = loaded.read_whole(tid, by_number=True, root=root)
    if not data or not (elsewhere or MSG.unpack_from(data)[-1] & DEFERRED):
        return data
    from .completion import Completion

    completion = Completion(
        request,
        elsewhere,
        since,
        lambda tid: engine.again(inside, root, tid, by_number=True),
        lambda tid: engine.check(tid, by_number=True),
        root,
    )
    try:
        return b"".join(completion.complete(data))
    finally:
        completion.close()
