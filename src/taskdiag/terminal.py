"""Text that is safe on a terminal, and how wide it is there.

Names and arguments of processes are whatever their owners chose, terminal escapes
included.  As in procps-ng 4.0.2, a ``?`` stands for every character that is not printable
(controls, separators of lines and paragraphs, what Unicode does not assign) and for every
byte that is no part of a character in the locale's encoding; each takes one cell.  Where
bytes have no encoding, because the locale has none or text is damaged, a ``.`` stands for
controls.  What is printable, and how wide it is, is as wcwidth(3) of glibc has it:
:mod:`taskdiag.widths`.
"""

from __future__ import annotations

import os
import sys

__all__ = ("CONTROL", "cells", "clean", "clip", "is_utf8", "terminal_width")


def _signs(controls: int, others: int | None) -> bytes:
    """A table for bytes.translate(): these for control characters and what is not ASCII."""
    return bytes(
        controls if byte < 32 or byte == 127 else others if others and byte > 127 else byte
        for byte in range(256)
    )


_CONTROLS = _signs(ord("?"), None)
#: The same for bytes without a known encoding.
_BYTES = _signs(ord("."), ord("?"))

#: Bytes of a character by its first byte; 0 where none starts.
_SIZES = bytes(
    1 if byte < 0x80
    else 0 if byte < 0xC2 or byte > 0xF4
    else 2 if byte < 0xE0
    else 3 if byte < 0xF0
    else 4
    for byte in range(256)
)  # fmt: skip


def is_utf8() -> bool:
    """Whether the locale's encoding is UTF-8, without the locale module.

    That module costs more to import than the whole of ``ps`` has to spare.  The variables
    are looked at in the order of setlocale(3).  In the C locale, and where the locale is
    not installed, they do not tell: the interpreter sets LC_CTYPE to a UTF-8 locale then
    (PEP 538), but it also turns on its UTF-8 mode (PEP 540), which up to Python 3.14 it
    does by itself in no other locale.
    """
    asked_for = "PYTHONUTF8" in os.environ or sys.version_info >= (3, 15)
    if sys.flags.utf8_mode and not asked_for and "utf8" not in sys._xoptions:
        return False
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        value = os.environ.get(name)
        if value:
            return value.lower().replace("-", "").partition("@")[0].endswith("utf8")
    return False


_UTF8 = is_utf8()
#: What stands for a control character in text that is ASCII otherwise.
CONTROL = ord("?" if _UTF8 else ".")


def clean(raw: bytes, utf8: bool | None = None) -> bytes:
    r"""Replace what a terminal must not see.

    >>> clean(b"a\x1b[31m\n\xff", utf8=True)
    b'a?[31m??'
    """
    if utf8 is None:
        utf8 = _UTF8
    if not utf8:
        return raw.translate(_BYTES)
    if raw.isascii():
        return raw.translate(_CONTROLS)
    end = _damaged_at(raw)
    text = raw[:end].translate(_CONTROLS).decode("utf-8", "surrogateescape")
    if "\udcf4" in text:
        text = _beyond_unicode(text)
    return text.translate(_SHOWN).encode() + raw[end:].translate(_BYTES)


def _damaged_at(raw: bytes) -> int:
    """Where damage starts: where no character begins, or the last character is incomplete.

    procps-ng looks at the first byte of each character, and from the first damage on treats
    every byte as a character of its own.
    """
    try:
        raw.decode()
        return len(raw)
    except UnicodeDecodeError as error:
        at = error.start
    while at < len(raw):
        size = _SIZES[raw[at]]
        if not size or at + size > len(raw):
            break
        at += size
    return at


def _beyond_unicode(text: str) -> str:
    """The same with one question mark for each code point from U+110000 to U+13FFFF.

    Python does not accept their four bytes as UTF-8; mbrtowc(3) of glibc takes them as one
    character.
    """
    first, *rest = text.split("\udcf4")
    for part in rest:
        if len(part) > 2 and all("\udc80" <= char <= "\udcbf" for char in part[:3]):
            first += "?" + part[3:]
        else:
            first += "\udcf4" + part
    return first


class _Widths(dict[int, int]):
    """Cells by code point, each looked up once; -1 for what is not printable."""

    __slots__ = ()

    def __missing__(self, code: int) -> int:
        # Most runs meet no character beyond ASCII, so the table is loaded only when needed.
        from .widths import width

        self[code] = found = width(code)
        return found


class _Shown(dict[int, int]):
    """What is shown in place of a code point, for str.translate()."""

    __slots__ = ()

    def __missing__(self, code: int) -> int:
        self[code] = found = code if _WIDTHS[code] >= 0 else ord("?")
        return found


_WIDTHS = _Widths()
_SHOWN = _Shown()


def cells(raw: bytes) -> int:
    """How many cells of a terminal these clean bytes take.

    >>> cells("a日本".encode())
    5
    """
    if raw.isascii():
        return len(raw)
    return sum(_WIDTHS[ord(char)] for char in raw.decode("utf-8", "replace"))


def clip(raw: bytes, room: int) -> bytes:
    """Cut clean bytes to ``room`` cells.

    As in procps-ng, characters without a cell are dropped at the cut.

    >>> clip("a日本".encode(), 4).decode()
    'a日'
    """
    if raw.isascii():
        return raw[:room]
    text = raw.decode("utf-8", "replace")
    for index, char in enumerate(text):
        width = _WIDTHS[ord(char)]
        if width > room or not room:
            return text[:index].encode()
        room -= width
    return raw


def terminal_width() -> int | None:
    """The width of the terminal in cells; None if there is no terminal.

    As in procps-ng, ``COLUMNS`` counts even if standard output is not a terminal.
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
