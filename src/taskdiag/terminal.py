"""Text that is safe on a terminal, and how wide it is there.

Names and arguments of processes are whatever their owners chose, terminal escapes
included.  As procps-ng does, every control character (C0, DEL, C1, line and
paragraph separators) and every byte that is not valid in the locale's encoding is
shown as ``?``; each still takes one cell.  Unlike procps-ng, which shows ``.`` for
control characters where the locale is not UTF-8, it is ``?`` in every locale.
"""

from __future__ import annotations

import os

__all__ = ("cells", "clean", "clip", "is_utf8", "terminal_width")

#: Control characters become question marks; bytes from 0x80 stay.
_CONTROLS = bytes(63 if byte < 32 or byte == 127 else byte for byte in range(256))
_NOT_ASCII = bytes(63 if byte < 32 or byte >= 127 else byte for byte in range(256))


def is_utf8() -> bool:
    """Whether the locale's encoding is UTF-8, by the environment alone.

    The variables are looked at in the order of setlocale(3); the locale module
    costs more to import than the whole of ``ps`` has to spare.
    """
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        value = os.environ.get(name)
        if value:
            return value.lower().replace("-", "").partition("@")[0].endswith("utf8")
    return False


_UTF8 = is_utf8()


def clean(raw: bytes, utf8: bool | None = None) -> bytes:
    r"""Replace what a terminal must not see, each with a question mark.

    >>> clean(b"a\x1b[31m\n\xff", utf8=True)
    b'a?[31m??'
    """
    raw = raw.translate(_CONTROLS)
    if raw.isascii():
        return raw
    if not (_UTF8 if utf8 is None else utf8):
        return raw.translate(_NOT_ASCII)
    text = raw.decode("utf-8", "surrogateescape")
    return "".join("?" if _unprintable(char) else char for char in text).encode()


def _unprintable(char: str) -> bool:
    return "\x7f" <= char < "\xa0" or char in "\u2028\u2029" or "\ud800" <= char <= "\udfff"


def cells(raw: bytes) -> int:
    """How many cells of a terminal clean bytes take.

    >>> cells("a日本".encode())
    5
    """
    if raw.isascii():
        return len(raw)
    return sum(map(_width, raw.decode("utf-8", "replace")))


def clip(raw: bytes, room: int) -> bytes:
    """As much of clean bytes as fits into ``room`` cells."""
    if raw.isascii():
        return raw[:room]
    text = raw.decode("utf-8", "replace")
    for index, char in enumerate(text):
        room -= _width(char)
        if room < 0:
            return text[:index].encode()
    return raw


def _width(char: str) -> int:
    if char < "\u0300":
        return 1
    from unicodedata import category, east_asian_width

    if category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def terminal_width() -> int | None:
    """The width that output should keep to; None where it is not bounded.

    As in procps-ng ``COLUMNS`` counts even where standard output is no terminal.
    """
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns > 0:
        return columns
    try:
        columns = os.get_terminal_size(1).columns
    except (OSError, ValueError):
        return None
    return columns or 80
