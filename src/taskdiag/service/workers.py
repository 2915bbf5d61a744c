"""Worker threads: work waits in one queue per user, and users are served in turn.

No matter how much one user requests, the first request of another waits for at most one piece
of work of each other user.  A user has a limited number of workers at a time, because a worker
may be blocked by slow memory that a command line is read from.
"""

from __future__ import annotations

import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Work = Callable[[], None]

__all__ = ("WorkerPool",)


class _Queue:
    """The work that waits for one user, and how many workers that user has."""

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
        self._queues: dict[Hashable, _Queue] = {}
        # Users whose work waits and who may have another worker; the next one first.
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
        """Append work to a user's queue."""
        with self._change:
            queue = self._queues.get(user)
            if queue is None:
                queue = self._queues[user] = _Queue()
            queue.work.append(work)
            if len(queue.work) == 1 and queue.busy < self._each:
                self._ready.append(user)
                self._change.notify()

    def end(self, timeout: float) -> bool:
        """Let workers finish what they are doing; False if one did not in time."""
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
                queue = self._queues[user]
                work = queue.work.popleft()
                queue.busy += 1
                self._requeue(user, queue)
            try:
                work()
            finally:
                with self._change:
                    was_full = queue.busy == self._each
                    queue.busy -= 1
                    if was_full:
                        self._requeue(user, queue)
                    if not queue.busy and not queue.work:
                        del self._queues[user]

    def _requeue(self, user: Hashable, queue: _Queue) -> None:
        """Put a user after all others, if the user has work that waits."""
        if queue.work and queue.busy < self._each and user not in self._ready:
            self._ready.append(user)
            self._change.notify()
