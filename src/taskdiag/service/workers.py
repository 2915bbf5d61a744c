"""Whose turn it is: work waits in one line per user, and users take turns.

However much one user asks for, another's first request is at most one turn of each
other user away.  A user has at most so many workers at a time, because a worker may be
held up: by a slow memory that a command line is read from.
"""

from __future__ import annotations

import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Work = Callable[[], None]

__all__ = ("WorkerPool",)


class _Line:
    """What waits for one user, and how many workers it has."""

    __slots__ = ("busy", "work")

    def __init__(self) -> None:
        self.busy = 0
        self.work: deque[Work] = deque()


class WorkerPool:
    """Worker threads that serve users in turn.

    ``each`` is the most workers that one user has at a time.
    """

    def __init__(self, workers: int, each: int) -> None:
        self._each = each
        self._lines: dict[Hashable, _Line] = {}
        # Users that have something to do and may have another worker, in order of turns.
        self._ready: deque[Hashable] = deque()
        self._change = threading.Condition()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._run, name=f"worker-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, user: Hashable, work: Work) -> None:
        """Put something at the end of a user's line."""
        with self._change:
            line = self._lines.get(user)
            if line is None:
                line = self._lines[user] = _Line()
            line.work.append(work)
            if len(line.work) == 1 and line.busy < self._each:
                self._ready.append(user)
                self._change.notify()

    def end(self, timeout: float) -> bool:
        """Let the workers finish what they are at; False if one did not in time."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._ready and not self._ended:
                    self._change.wait()
                if self._ended:
                    return
                user = self._ready.popleft()
                line = self._lines[user]
                work = line.work.popleft()
                line.busy += 1
                self._queue(user, line)
            try:
                work()
            finally:
                with self._change:
                    was_full = line.busy == self._each
                    line.busy -= 1
                    if was_full:
                        self._queue(user, line)
                    if not line.busy and not line.work:
                        del self._lines[user]

    def _queue(self, user: Hashable, line: _Line) -> None:
        """Give a user another turn, behind all others, if it has something to do."""
        if line.work and line.busy < self._each and user not in self._ready:
            self._ready.append(user)
            self._change.notify()
