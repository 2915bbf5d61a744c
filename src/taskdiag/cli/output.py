"""Standard output, written without a buffer, so that there is nothing to flush at the end."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("write", "write_all")

#: Bytes to collect before they are written.
_BLOCK = 1 << 18


def write(data: bytes) -> None:
    """Write all of ``data``.

    Raises BrokenPipeError if the reader has gone, OSError that names standard output for
    any other error.
    """
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(1, rest) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def write_all(pieces: Iterable[bytes]) -> bool:
    """Write ``pieces`` in large blocks.  Returns whether there was anything to write."""
    held: list[bytes] = []
    size, some = 0, False
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _BLOCK:
            write(b"".join(held))
            held, size, some = [], 0, True
    write(b"".join(held))
    return some or size > 0
