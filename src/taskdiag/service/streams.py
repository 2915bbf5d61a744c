"""Answers that go through a pipe: made by workers, read at the client's pace.

A client that stops reading takes up a pipe and an iterator, but no worker.  The number
of such answers is limited, and further ones wait until one ends.

**An incomplete answer never looks complete**: the last bytes are held back until there
are more, or the answer ends.  So if the service dies or abandons an answer, the pipe ends
in the middle of a message.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

__all__ = ("Slots", "Stream")

#: Bytes that are held back: less than any message has.
_TAIL = 4
_PIPE = 1 << 18
#: Seconds that a worker spends on one answer before it takes the next one.
_QUANTUM = 0.05


class Stream:
    """One answer on its way into a pipe.

    ``reader`` is the end for the client, ``writer`` ours.  Raises OSError if there are no
    descriptors left, and what making the beginning of the answer raises.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._tail = b""
        self._ended = False
        # Errors of the engine are raised here, before the client has a descriptor.
        self._take(next(chunks, None))
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.writer, False)
        with contextlib.suppress(OSError):
            # This may exceed pipe-max-size or pipe-user-pages-soft.
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE)
        self.progress = time.monotonic()

    def step(self) -> bool | None:
        """Write until the pipe is full (None), time is up (True) or the end (False).

        Raises BrokenPipeError if nobody reads any more, and errors of making the answer.
        """
        until = time.monotonic() + _QUANTUM
        while time.monotonic() < until:
            if not self._rest:
                if self._ended:
                    return False
                self._take(next(self._chunks, None))
                continue
            try:
                written = os.write(self.writer, self._rest)
            except BlockingIOError:
                return None
            self._rest = self._rest[written:]
            self.progress = time.monotonic()
        return True

    def _take(self, chunk: bytes | None) -> None:
        if chunk is None:
            self._ended = True
            self._rest, self._tail = memoryview(self._tail), b""
        else:
            data = self._tail + chunk
            self._rest, self._tail = memoryview(data)[:-_TAIL], data[-_TAIL:]

    def close_reader(self) -> None:
        """Close our copy of the client's end."""
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def close(self) -> None:
        """Close everything; the answer is complete only if `step` has returned False."""
        self.close_reader()
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()


class Slots:
    """How many streams there may be: in all, and for one user."""

    def __init__(self, most: int, each: int) -> None:
        self._most = most
        self._each = each
        self._lock = threading.Lock()
        self._held: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        self._workers: deque[Hashable] = deque()

    def holds_up(self, user: Hashable) -> bool:
        """Whether a waiting request could start if the user ended one stream."""
        with self._lock:
            if self._held.get(user, 0) >= self._each and user in self._waiting:
                return True
            full = sum(self._held.values()) >= self._most
            return full and any(self._held.get(one, 0) < self._each for one in self._waiting)

    def take(self, user: Hashable, work: Callable[[], None]) -> None:
        """Call ``work`` with a slot: now, or as soon as there is one for this user."""
        with self._lock:
            if not self._may(user):
                line = self._waiting.get(user)
                if line is None:
                    line = self._waiting[user] = deque()
                    self._workers.append(user)
                line.append(work)
                return
            self._held[user] = self._held.get(user, 0) + 1
        work()

    def free(self, user: Hashable) -> None:
        """Free a slot, which goes to the next user who waits."""
        with self._lock:
            self._held[user] -= 1
            if not self._held[user]:
                del self._held[user]
            work = self._next()
        if work is not None:
            work()

    def _may(self, user: Hashable) -> bool:
        return sum(self._held.values()) < self._most and self._held.get(user, 0) < self._each

    def _next(self) -> Callable[[], None] | None:
        for _ in range(len(self._workers)):
            user = self._workers.popleft()
            if not self._may(user):
                self._workers.append(user)
                continue
            line = self._waiting[user]
            work = line.popleft()
            if line:
                self._workers.append(user)
            else:
                del self._waiting[user]
            self._held[user] = self._held.get(user, 0) + 1
            return work
        return None
