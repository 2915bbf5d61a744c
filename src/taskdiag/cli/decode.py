"""``taskdiag decode``: a saved stream as JSON lines."""

from __future__ import annotations

import os

from ..decoder import decode
from ..errors import DecodeError, RequestError, TaskdiagError
from ..netlink import rechunk
from ..views.jsonl import lines
from .output import write, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("run",)

_HELP = """\
usage: taskdiag decode [FILE]

Turn what taskdiag dump --raw printed into JSON lines.  Without FILE, or where it is -,
standard input is read.  The whole stream is checked before the first line is printed:
of a stream that is cut or damaged nothing is printed but what is wrong with it, and where.
"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises TaskdiagError for what is not a stream, OSError."""
    if "--help" in args:
        write(_HELP.encode())
        return 0
    if len(args) > 1:
        raise RequestError("decode takes one file: taskdiag decode [FILE]")
    name = args[0] if args else "-"
    if name.startswith("-") and name != "-":
        raise RequestError(f"unknown argument {name!r}: taskdiag decode [FILE]")
    try:
        chunks = list(_chunks(name))
        for _ in decode(chunks):
            pass
        write_all(lines(decode(chunks)))
    except DecodeError as error:
        where = "standard input" if name == "-" else name
        raise TaskdiagError(f"{where} is not a whole stream: {error}") from None
    return 0


def _chunks(name: str) -> Iterator[bytes]:
    source = 0 if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    def read() -> bytes:
        try:
            return os.read(source, 1 << 20)
        except OSError as error:
            where = "standard input" if name == "-" else name
            raise OSError(error.errno, error.strerror, where) from None

    try:
        yield from rechunk(read)
    finally:
        if source:
            os.close(source)
