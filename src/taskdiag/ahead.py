"""Reading ahead: the kernel works on the next chunks while this one is formatted.

read(2) on an iterator does the work of the answer, and releases the GIL meanwhile.
"""

from __future__ import annotations

import os
import sys
from _queue import SimpleQueue
from _thread import start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("ahead",)

#: Chunks that may lie ready; each is at most some 64 KiB.
_MOST = 256
#: How soon a reader that has data gets the interpreter, in seconds.
_SWITCH = 50e-6


def ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, all but the first read by a thread of their own.

    >>> list(ahead(iter([b"a", b"b"])))
    [b'a', b'b']

    What reading raises is raised here, after the chunks before it.  With a single CPU
    there is nothing to gain, and no thread.
    """
    yield from _first(chunks)
    if len(os.sched_getaffinity(0)) == 1:
        yield from chunks
        return
    ready: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
    # One for each chunk that may be read; False ends the reader.
    leave: SimpleQueue[bool] = SimpleQueue()
    for _ in range(_MOST):
        leave.put(True)

    def read() -> None:
        end: BaseException | None = None
        try:
            while leave.get():
                chunk = next(chunks, None)
                if chunk is None:
                    break
                ready.put(chunk)
        except BaseException as error:
            end = error
        ready.put(end)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    start_new_thread(read, ())
    try:
        while True:
            chunk = ready.get()
            if chunk is None:
                return
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
            leave.put(True)
    finally:
        for _ in range(_MOST + 1):
            leave.put(False)
        sys.setswitchinterval(interval)


def _first(chunks: Iterator[bytes]) -> Iterator[bytes]:
    # A short answer is over before a thread has started.
    chunk = next(chunks, None)
    if chunk is not None:
        yield chunk
