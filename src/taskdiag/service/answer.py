"""Answers for the file: each read returns whole messages, as many as fit the buffer."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from struct import Struct

from ..netlink import shorten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from ..request import Request
    from .backend import Lease

__all__ = ("LONGEST_MESSAGE", "Answer", "MessageBuffer")

#: The longest message on the file: the size of the buffers of clients of the reference.
LONGEST_MESSAGE = 16384
#: The iterator's buffer (bpf_seq_read(), kernel/bpf/bpf_iter.c).  A read(2) with that much
#: room ends between two messages.
_BUFFER = 8 * mmap.PAGESIZE
#: How often that is filled for one chunk.
_FILLS = 2
#: How many bytes are made ahead of the reader; one chunk in any case.
_AHEAD = 4 * _FILLS * _BUFFER
#: Threads that read ahead, for all open files together.
_READERS = 8

_LENGTH = Struct("=I")


class MessageBuffer:
    """Cuts chunks of whole messages into pieces of whole messages, none of them too long.

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
        #: While ``_data`` is a message that was divided: its chunk, and where it goes on.
        self._later: tuple[bytes, int] | None = None
        self._ended = False

    def read(self, size: int) -> bytes:
        """As many whole messages as fit, b"" at the end.

        Raises OSError (EMSGSIZE) if the next one does not fit; it stays.
        """
        pieces: list[bytes] = []
        while self._next():
            start, end = self._at, self._cut(size)
            if end == start:
                break
            pieces.append(self._data[start:end])
            self._at = end
            size -= end - start
        if not pieces and not self._ended:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _next(self) -> bool:
        """Go on to a message that is short enough for the file; False if there is none."""
        while self._at == len(self._data):
            if self._later is not None:
                (self._data, self._at), self._later = self._later, None
                continue
            self._data, self._at = next(self._chunks, b"") if not self._ended else b"", 0
            if not self._data:
                self._ended = True
                return False
            self._each = _common_length(self._data)
            if self._each > LONGEST_MESSAGE:
                self._each = 0
        if not self._each:
            at = self._at
            (length,) = _LENGTH.unpack_from(self._data, at)
            if length > LONGEST_MESSAGE:
                # The rest of the chunk may be large, so it is not copied.
                self._later = self._data, at + length
                self._data = shorten(self._data[at : at + length], LONGEST_MESSAGE)
                self._at = 0
        return True

    def _cut(self, size: int) -> int:
        """The end of the messages that fit, before the first that is too long for the file."""
        data, at, each = self._data, self._at, self._each
        if each:
            return min(at + size // each * each, len(data))
        most, length_at = min(at + size, len(data)), _LENGTH.unpack_from
        while at < most:
            (length,) = length_at(data, at)
            if at + length > most or length > LONGEST_MESSAGE:
                break
            at += length
        return at


def _common_length(data: bytes) -> int:
    """The length of every message, 0 if they differ.

    If all messages had the length of the first one, it would be found wherever one of them
    began.  If it is, then they do.
    """
    (length,) = _LENGTH.unpack_from(data)
    count, rest = divmod(len(data), length)
    if rest or any(data[byte::length] != data[byte : byte + 1] * count for byte in range(4)):
        return 0
    return int(length)


class Answer:
    """The answer to one request.  Freed by `close`.

    Raises what `Lease.open` and `Lease.stream` raise.
    """

    def __init__(self, lease: Lease, request: Request) -> None:
        self._lease = lease
        fd = lease.open(request)
        self._source = lease.stream(request) if fd is None else _Descriptor(fd)
        self._ahead = _ReadAhead(self._source)
        self._buffer = MessageBuffer(self._ahead)

    def read(self, size: int) -> bytes:
        """As `MessageBuffer.read`; also raises errors of making the answer."""
        return self._buffer.read(size)

    def close(self) -> None:
        """Stop making the answer, which need not have been read to its end."""
        self._ahead.stop()
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
        self._lease.close()


class _Descriptor:
    """The chunks read from an iterator's descriptor, several of its buffers at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __iter__(self) -> _Descriptor:
        return self

    def __next__(self) -> bytes:
        pieces: list[bytes] = []
        while len(pieces) < _FILLS:
            try:
                piece = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                # After a million tasks without output the kernel returns EAGAIN.
                continue
            if not piece:
                break
            pieces.append(piece)
        if not pieces:
            raise StopIteration
        return b"".join(pieces)

    def close(self) -> None:
        os.close(self._fd)


class _ReadAhead:
    """The same chunks; the next ones are made by a thread while one is consumed.

    If the threads for this are busy or blocked, the consumer makes its next chunk itself.
    """

    _threads: ThreadPoolExecutor | None = None

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._change = threading.Condition()
        self._ready: deque[bytes] = deque()
        self._held = 0
        self._error: BaseException | None = None
        self._ended = False
        #: Makes chunks until enough are ready; None if it is done with that.
        self._task: Future[None] | None = None

    def __iter__(self) -> _ReadAhead:
        return self

    def __next__(self) -> bytes:
        chunk = self._take()
        if chunk is None:
            chunk = next(self._chunks, b"")
        if not chunk:
            self._ended = True
            raise StopIteration
        with self._change:
            if self._task is None and not self._ended and self._held <= _AHEAD // 2:
                if _ReadAhead._threads is None:
                    _ReadAhead._threads = ThreadPoolExecutor(_READERS, "reader")
                self._task = _ReadAhead._threads.submit(self._make)
        return chunk

    def _take(self) -> bytes | None:
        """The next chunk, b"" at the end; None if no thread is making it."""
        with self._change:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return b""
                if self._task is None or self._task.cancel():
                    self._task = None
                    return None
                self._change.wait()
            chunk = self._ready.popleft()
            self._held -= len(chunk)
            return chunk

    def _make(self) -> None:
        more = True
        while more:
            chunk, error = b"", None
            try:
                chunk = next(self._chunks, b"")
            except BaseException as caught:
                error = caught
            with self._change:
                if chunk:
                    self._ready.append(chunk)
                    self._held += len(chunk)
                else:
                    self._error, self._ended = error, True
                more = not self._ended and self._held < _AHEAD
                if not more:
                    self._task = None
                self._change.notify()

    def stop(self) -> None:
        """Stop making chunks, and wait for the one that is being made."""
        with self._change:
            self._ended = True
            while self._task is not None and not self._task.cancel():
                self._change.wait()
