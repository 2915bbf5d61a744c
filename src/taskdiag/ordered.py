"""Work on many items by several threads, with the results in order.

Worth it where most of the work is done inside system calls, which release the GIL.
"""

from __future__ import annotations

import os
import sys
from _queue import SimpleQueue
from _thread import allocate_lock, start_new_thread
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any, TypeVar

    T = TypeVar("T")
    R = TypeVar("R")

__all__ = ("ordered",)

#: Threads that work on one answer, the caller's included.
_MOST_THREADS = 4
#: Results of each thread that may wait for their turn, and their size altogether.
_WAITING, _WAITING_SIZE = 16, 1 << 22


def ordered(
    work: Callable[[T], R], items: Iterator[T], size: Callable[[R], int]
) -> Generator[R, None, None]:
    """``work(item)`` for each item, in the order of the items.

    ``size`` is how much a result counts against the limit of what may wait.  What ``work``
    or ``items`` raise is raised here, after the results before it.  The caller's thread
    works too; the others are started at the second item, inherit its credentials, and have
    ended when this generator has.  With a single CPU there are none.

    >>> list(ordered(bytes.upper, iter([b"a", b"b", b"c"]), len))
    [b'A', b'B', b'C']
    """
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    if threads == 1:
        yield from map(work, items)
        return
    for item in items:
        yield work(item)
        break
    team = _Team(work, items, size, threads)
    try:
        yield from team.results()
    finally:
        team.end()


class _Team:
    """The threads of one call, and what they have not handed over yet."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        items: Iterator[Any],
        size: Callable[[Any], int],
        threads: int,
    ) -> None:
        self._work = work
        self._items = items
        self._size = size
        self._lock = allocate_lock()
        #: One queue for each item taken, for its result or the error.
        self._taken: deque[SimpleQueue[tuple[Any, int, BaseException | None]]] = deque()
        self._most = _WAITING * threads
        self._waiting = 0
        self._over = False
        #: Receives something whenever a result is handed over.
        self._room: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._threads = 0
        for _ in range(threads - 1):
            try:
                start_new_thread(self._run, ())
            except RuntimeError:
                # There are as many threads as this user may have.
                break
            self._threads += 1

    def results(self) -> Iterator[Any]:
        """The results in order; works on items itself while the first is not ready."""
        while True:
            first = self._taken[0] if self._taken else None
            if first is None:
                if not self._step() and not self._taken:
                    return
                continue
            if not self._over and first.empty() and not self._full():
                self._step()
                continue
            result, size, error = first.get()
            with self._lock:
                self._taken.popleft()
                self._waiting -= size
            if self._room.empty():
                self._room.put(None)
            if error is not None:
                raise error
            yield result

    def _full(self) -> bool:
        return len(self._taken) >= self._most or self._waiting >= _WAITING_SIZE

    def _step(self) -> bool:
        """Take an item and work on it; False if there is none left."""
        done: SimpleQueue[tuple[Any, int, BaseException | None]] = SimpleQueue()
        with self._lock:
            if self._over:
                return False
            try:
                item = next(self._items)
            except StopIteration:
                self._over = True
                return False
            except BaseException as error:
                self._over = True
                self._taken.append(done)
                done.put((None, 0, error))
                return False
            self._taken.append(done)
        try:
            result = self._work(item)
            size = self._size(result)
        except BaseException as error:
            self._over = True
            done.put((None, 0, error))
            return False
        with self._lock:
            self._waiting += size
        done.put((result, size, None))
        return True

    def _run(self) -> None:
        try:
            while not self._over:
                if self._full():
                    self._room.get()
                elif not self._step():
                    break
        finally:
            self._ended.put(None)

    def end(self) -> None:
        """Stop the other threads and wait until they have ended."""
        self._over = True
        # Where a generator is closed because the interpreter ends, they do not run any more.
        if sys.is_finalizing():
            return
        for _ in range(self._threads):
            self._room.put(None)
        for _ in range(self._threads):
            self._ended.get()
