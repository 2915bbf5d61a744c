"""Answers as the file gives them: whole messages, as many as the reader's buffer holds."""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from struct import Struct

from ..netlink import shorten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from concurrent.futures import Future

    from ..request import Request
    from .backend import Lease

__all__ = ("LONGEST_MESSAGE", "Answer", "MessageBuffer")

#: The longest message on the file: what clients of the reference have buffers for.
LONGEST_MESSAGE = 16384
#: The iterator's buffer (bpf_seq_read(), kernel/bpf/bpf_iter.c).  A read(2) with that much
#: room ends between two messages.
_BUFFER = 8 * mmap.PAGESIZE
#: How often that is filled for one chunk.
_FILLS = 4
#: Threads that read ahead, for all open files together.  What they read takes no longer
#: than one walk over the tasks of the host.
_READERS = 4

_LENGTH = Struct("=I")


class MessageBuffer:
    """Cuts chunks of whole messages into pieces of whole messages.

    >>> buffer = MessageBuffer(iter([bytes([40, 0, 0, 0]) + bytes(36)] * 3))
    >>> [len(buffer.read(100)) for _ in range(3)]
    [80, 40, 0]
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._data = b""
        self._at = 0
        #: The length of all messages in ``_data``, 0 if it is not the same for all.
        self._each = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        """As many whole messages as fit, b"" at the end.

        Raises OSError (EMSGSIZE) if the next one does not fit; it stays.
        """
        while len(self._data) - self._at < size and not self._ended:
            chunk = next(self._chunks, b"")
            if not chunk:
                self._ended = True
                break
            self._data = self._data[self._at :] + chunk
            self._at = 0
            self._each = _common_length(self._data)
        start = self._at
        end = self._cut(start + size)
        if end == start < len(self._data):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        self._at = end
        return self._data[start:end]

    def _cut(self, most: int) -> int:
        """The last end of a message up to ``most``."""
        data, at = self._data, self._at
        if len(data) <= most:
            return len(data)
        if self._each:
            return at + (most - at) // self._each * self._each
        while True:
            end: int = at + _LENGTH.unpack_from(data, at)[0]
            if end > most:
                return at
            at = end


def _common_length(data: bytes) -> int:
    """The length of every message, 0 if they differ.

    If each place where a message of the first one's length would begin holds that length,
    then there the messages begin.
    """
    (length,) = _LENGTH.unpack_from(data)
    count, rest = divmod(len(data), length)
    if rest or any(data[byte::length] != data[byte : byte + 1] * count for byte in range(4)):
        return 0
    return int(length)


class Answer:
    """The answer to one request; `close` gives back what it holds.

    Raises what `Lease.open` and `Lease.stream` raise.
    """

    def __init__(self, lease: Lease, request: Request) -> None:
        self._lease = lease
        fd = lease.open(request)
        self._chunks = _short(lease.stream(request)) if fd is None else _ReadAhead(fd)
        self._buffer = MessageBuffer(self._chunks)

    def read(self, size: int) -> bytes:
        """As `MessageBuffer.read`; raises what making the answer raises, too."""
        return self._buffer.read(size)

    def close(self) -> None:
        """Stop, however much of it was read."""
        self._chunks.close()
        self._lease.close()


def _short(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    for chunk in chunks:
        yield shorten(chunk, LONGEST_MESSAGE)


class _ReadAhead:
    """What an iterator's descriptor gives.  The next chunk is read while one is consumed."""

    _pool: ThreadPoolExecutor | None = None

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._next: Future[bytes] | None = None

    def __iter__(self) -> _ReadAhead:
        return self

    def __next__(self) -> bytes:
        chunk = self._fill() if self._next is None else self._next.result()
        if not chunk:
            raise StopIteration
        if _ReadAhead._pool is None:
            _ReadAhead._pool = ThreadPoolExecutor(_READERS, "reader")
        self._next = _ReadAhead._pool.submit(self._fill)
        return chunk

    def _fill(self) -> bytes:
        pieces: list[bytes] = []
        while len(pieces) < _FILLS:
            try:
                piece = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                # A long way without a task to show: the kernel pauses to be polite.
                continue
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the descriptor, when nothing is reading from it any more."""
        if self._next is not None and not self._next.cancel():
            self._next.exception()
        os.close(self._fd)
