"""``taskdiag decode``: a saved stream as JSON lines."""

from __future__ import annotations

import os
from sys import byteorder

from ..abi import RESPONSE
from ..decoder import decode
from ..errors import DecodeError, RequestError, TaskdiagError
from ..netlink import LONGEST, rechunk
from ..views.jsonl import lines
from .arguments import asks_for_help, unknown
from .output import write, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("run",)

_HELP = """\
usage: taskdiag decode [FILE]

Turn the output of taskdiag dump --raw into JSON lines.  Without FILE, or with -, read
standard input.  The whole stream is checked before the first line is printed.  If it is cut
or damaged, the only output is an error that says where.  An empty stream is the answer about
no task.
"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises TaskdiagError if the input is not a whole stream, OSError."""
    if asks_for_help(args):
        write(_HELP.encode())
        return 0
    if len(args) > 1:
        raise RequestError("decode takes one file: taskdiag decode [FILE]")
    name = args[0] if args else "-"
    if not name:
        raise RequestError("the name of the file is empty: taskdiag decode [FILE]")
    if name.startswith("-") and name != "-":
        raise unknown(name, "decode")
    where = "standard input" if name == "-" else name
    try:
        chunks = list(_chunks(name))
        what = _what_else(chunks[0]) if chunks else ""
        if what:
            raise TaskdiagError(f"{where} is not a taskdiag stream: {what}")
        for _ in decode(chunks):
            pass
        write_all(lines(decode(chunks)))
    except DecodeError as error:
        raise TaskdiagError(f"{where} is not a whole stream: {error}") from None
    return 0


#: How files begin that are easily taken for a stream, and what they are.
_MAGIC = {
    b"\x1f\x8b": "it is compressed by gzip",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd",
    b"\xfd7zXZ": "it is compressed by xz",
    b"BZh": "it is compressed by bzip2",
    b'{"': "it is JSON already; taskdiag dump --raw makes a stream",
}


def _what_else(data: bytes) -> str:
    """What data is instead of a stream; "" if its beginning is that of a stream."""
    length, kind = int.from_bytes(data[:4], byteorder), int.from_bytes(data[4:6], byteorder)
    if len(data) < 4 or (length <= LONGEST and (len(data) < 6 or kind == RESPONSE)):
        return ""
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            return what
    if data[4:6] == RESPONSE.to_bytes(2, byteorder)[::-1]:
        return "it is in the byte order of another machine"
    if data[:256].isascii() and not any(byte < 32 and byte not in b"\t\n\r" for byte in data[:256]):
        return "it is text; taskdiag dump --raw makes a stream"
    return f"its first message has type {kind:#x} instead of {RESPONSE:#x}"


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
