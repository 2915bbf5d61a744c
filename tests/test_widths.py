"""Printable characters and their widths beside the C library's."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tools
from conftest import need
from taskdiag.terminal import cells, clean, clip
from taskdiag.widths import width

HERE = Path(__file__).resolve().parent
MAKER = HERE / "make_widths.py"
TABLE = HERE.parent / "src" / "taskdiag" / "widths.py"
#: Of which the table is.
VERSION = "2.36"

libc = ctypes.CDLL(None)
_LC_CTYPE_MASK = 1


def glibc() -> str:
    """The version of the C library, "" if it is not glibc."""
    try:
        function = libc.gnu_get_libc_version
    except AttributeError:
        return ""
    function.restype = ctypes.c_char_p
    return str(function().decode())


def newer() -> bool:
    return [*map(int, glibc().split("."))] >= [*map(int, VERSION.split("."))]


@contextmanager
def in_utf8() -> Iterator[None]:
    """The C library's functions use UTF-8 in this thread."""
    libc.newlocale.restype = libc.uselocale.restype = ctypes.c_void_p
    libc.uselocale.argtypes = libc.freelocale.argtypes = [ctypes.c_void_p]
    made = libc.newlocale(_LC_CTYPE_MASK, b"C.UTF-8", None)
    if not made:
        pytest.skip("the C library has no locale C.UTF-8")
    before = libc.uselocale(made)
    try:
        yield
    finally:
        libc.uselocale(before)
        libc.freelocale(made)


def test_the_table_is_that_of_the_c_library() -> None:
    """Every code point: the module is printed anew and compared."""
    if glibc() != VERSION:
        pytest.skip(f"the table is that of glibc {VERSION}, and this is {glibc() or 'another one'}")
    made = subprocess.run([sys.executable, MAKER], capture_output=True, text=True, check=False)
    if "no locale" in made.stderr:
        pytest.skip("the C library has no locale C.UTF-8")
    assert made.stderr == ""
    assert made.stdout == TABLE.read_text()


def test_what_is_printable_stays_so_in_later_versions() -> None:
    if not glibc() or not newer():
        pytest.skip(f"this C library knows less than the table, which is that of glibc {VERSION}")
    with in_utf8():
        wrong = [code for code in range(0x110000) if width(code) >= 0 and not libc.iswprint(code)]
    assert [hex(code) for code in wrong] == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\u1112\u1161\u11ab", 2),  # conjoining jamo: the vowel and what follows it take none
        ("\u0600", 1),  # prepended characters of format
        ("\u00ad", 1),
        ("\u200b\u200e\u2060\U000e0001", 0),
        ("\u4dc0", 2),  # hexagrams
        ("\U0001f200", 2),  # squared
        ("\u0301\u20dd", 0),
        ("\U0001f600\u65e5", 4),
    ],
)
def test_cells(text: str, wanted: int) -> None:
    assert clean(text.encode(), utf8=True) == text.encode()
    assert cells(text.encode()) == wanted


@pytest.mark.parametrize(
    "text", ["\x01", "\x7f", "\x85", "\u2028", "\u2029", "\u0378", "\ufffe", "\U0010ffff", "\u0530"]
)
def test_what_is_not_printable_is_a_question_mark(text: str) -> None:
    assert clean(f"a{text}b".encode(), utf8=True) == b"a?b"


def test_what_takes_no_cell_is_dropped_behind_the_last() -> None:
    assert clip("ab\u0301c".encode(), 3) == "ab\u0301c".encode()
    assert clip("ab\u0301c".encode(), 2) == b"ab"
    assert clip("\u0301".encode(), 0) == b""


#: Bytes of a character by its first byte, as UTF_tab of procps-ng has them.
_SIZES = [1] * 0x80 + [0] * 0x42 + [2] * 0x1E + [3] * 0x10 + [4] * 5 + [0] * 11


def as_procps(raw: bytes) -> bytes:
    """What ps of procps-ng 4.0.2 shows of a name, by the C library.

    Its library looks at first bytes only (library/escape.c); then ps takes what is left
    apart with mbrtowc(3).
    """
    at = 0
    while at < len(raw) and _SIZES[raw[at]] and at + _SIZES[raw[at]] <= len(raw):
        at += _SIZES[raw[at]]
    rest = bytes(
        ord("?" if byte > 127 else "." if byte in (127, *range(32)) else chr(byte))
        for byte in raw[at:]
    )
    raw, shown, at = raw[:at] + rest, b"", 0
    libc.mbrtowc.restype = ctypes.c_ssize_t
    while at < len(raw):
        state = ctypes.create_string_buffer(64)
        wide = ctypes.c_uint32()
        length = libc.mbrtowc(ctypes.byref(wide), raw[at:] + bytes(6), 6, state)
        if length <= 0 or not libc.iswprint(wide):
            shown += b"?"
            at += max(length, 1)
        else:
            shown += raw[at : at + length]
            at += length
    return shown


_PIECES = st.sampled_from(
    [b"a", b"\x1b", b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xc2", b"\xdf", b"\xe0", b"\xe6\x97",
     b"\xed\xa0", b"\xed\x9f", b"\xef\xbf\xbe", b"\xf0", b"\xf0\x90", b"\xf4", b"\xf4\x8f",
     b"\xf4\x90", b"\xf4\xbf\xbf", b"\xf5", b"\xf7\xbf", b"\xf8", b"\xfd", b"\xff",
     "\u65e5".encode(), "\u0378".encode(), "\u1160".encode(), "\U0010fffd".encode()]
)  # fmt: skip


@given(st.lists(_PIECES | st.binary(max_size=3), max_size=8).map(b"".join))
@example(b"\xf4\x90\x80\x80\xf4\xf4\x90\x80\x80\x80")
@example(b"\xf4\xbf\xbf\xbf\xf7\xbf\xbf\xbf\xed\xa0\x80")
def test_malformed_sequences(raw: bytes) -> None:
    if glibc() != VERSION:
        pytest.skip(f"the oracle is glibc {VERSION}, and this is {glibc() or 'another one'}")
    raw = raw.replace(b"\0", b"")
    with in_utf8():
        wanted = as_procps(raw)
    assert clean(raw, utf8=True) == wanted


@given(st.binary(max_size=40))
def test_clean_text_is_text(raw: bytes) -> None:
    shown = clean(raw, utf8=True)
    assert all(width(ord(char)) >= 0 for char in shown.decode())
    assert clean(shown, utf8=True) == shown


@pytest.mark.parametrize(
    "variables",
    ["", "LANG=C", "LANG=POSIX", "LC_ALL=C", "LANG=C.UTF-8", "LC_CTYPE=C.UTF-8", "LC_ALL=C.utf8",
     "LANG=C LC_CTYPE=C.UTF-8", "LC_ALL=C LANG=C.UTF-8", "LANG=xx_XX.UTF-8", "LC_ALL=xx_XX"],
)  # fmt: skip
def test_the_locale_is_that_of_other_programs(variables: str) -> None:
    need("locale")
    charmap = tools.find("locale") or ""
    environment = dict(item.split("=") for item in variables.split())
    theirs = subprocess.run([charmap, "charmap"], capture_output=True, env=environment, check=False)
    script = "from taskdiag.terminal import is_utf8; print(is_utf8())"
    environment["PYTHONPATH"] = str(TABLE.parent.parent)
    mine = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert (mine.stdout == b"True\n") == (theirs.stdout == b"UTF-8\n"), mine.stderr
