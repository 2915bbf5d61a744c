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
    from collections.abc import Generator, Iterator
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ("readahead",)

#: Chunks that may lie ready; each is at most some 64 KiB.
_MOST = 256
#: How soon a reader that has data gets the interpreter, in seconds.
_SWITCH = 1e-6


def readahead(chunks: Iterator[T]) -> Generator[T, None, None]:
    """The same chunks, read by a thread of their own.

    >>> list(readahead(iter([b"a", b"b"])))
    [b'a', b'b']

    What reading raises is raised here, after the chunks before it.  With a single CPU
    there is nothing to gain, and no thread.
    """
    if len(os.sched_getaffinity(0)) == 1:
        yield from chunks
        return
    ready: SimpleQueue[T | BaseException | None] = SimpleQueue()
    # One for each chunk that may be read.
    leave: SimpleQueue[None] = SimpleQueue()
    for _ in range(_MOST):
        leave.put(None)
    over = False

    def read() -> None:
        end: BaseException | None = None
        try:
            for chunk in chunks:
                ready.put(chunk)
                leave.get()
                if over:
                    break
        except BaseException as error:
            end = error
        ready.put(end)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    start_new_thread(read, ())
    chunk: T | BaseException | None = None
    try:
        while True:
            chunk = ready.get()
            if chunk is None:
                return
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
            leave.put(None)
    finally:
        # Whoever owns what is read from may close it now: the thread is done with it.
        over = True
        leave.put(None)
        # Where the interpreter ends, the thread does not run any more.
        while not (chunk is None or isinstance(chunk, BaseException) or sys.is_finalizing()):
            chunk = ready.get()
        sys.setswitchinterval(interval)
