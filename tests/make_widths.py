"""Prints src/taskdiag/widths.py from the wcwidth(3) of the running C library.

    python tests/make_widths.py > src/taskdiag/widths.py

The table that is checked in is that of glibc 2.36, see tests/test_widths.py.
"""

from __future__ import annotations

import ctypes

TOP = '''"""How many cells of a terminal each character takes, as wcwidth(3) of glibc 2.36 says.

Printed by tests/make_widths.py: Unicode 14, with the C library's own rules for conjoining
Hangul, characters of format and symbols that terminals draw wide.  What Unicode 14 does
not assign is not printable, and neither are controls, surrogates and noncharacters.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, repeat

__all__ = ("width",)

#: Runs of characters of equal width: the length of each but the last, in hexadecimal.
_LENGTHS = """
{lengths}
"""
#: Their widths; "-" where characters are not printable.
_WIDTHS = (
{widths}
)

_ENDS = list(accumulate(map(int, _LENGTHS.split(), repeat(16))))


def width(code: int) -> int:
    """The cells that a code point takes: 0, 1 or 2; -1 if it is not printable.

    >>> width(ord("a")), width(ord("\\u65e5")), width(0x301), width(0x378)
    (1, 2, 0, -1)
    """
    digit = _WIDTHS[bisect_right(_ENDS, code)]
    return -1 if digit == "-" else int(digit)
'''


def widths() -> list[int]:
    """wcwidth(3) of every code point, in a UTF-8 locale.  Raises OSError without one."""
    libc = ctypes.CDLL(None)
    libc.setlocale.restype = ctypes.c_char_p
    if not libc.setlocale(0, b"C.UTF-8"):
        raise OSError("the C library has no locale C.UTF-8")
    # The first is NUL, of width 0 but nothing to print.
    return [-1, *map(libc.wcwidth, range(1, 0x110000))]


def runs(values: list[int]) -> list[tuple[int, int]]:
    """Length and width of each run of equal widths."""
    found: list[tuple[int, int]] = []
    for value in values:
        if found and found[-1][1] == value:
            found[-1] = found[-1][0] + 1, value
        else:
            found.append((1, value))
    return found


def folded(words: list[str], between: str) -> list[str]:
    """The words in lines of up to 90 characters."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(between) + len(word) > 90:
            lines.append("")
        lines[-1] += (between if lines[-1] else "") + word
    return lines


def source() -> str:
    """The module, as text."""
    found = runs(widths())
    lengths = "\n".join(folded([f"{length:x}" for length, _ in found[:-1]], " "))
    digits = folded(["-" if width < 0 else str(width) for _, width in found], "")
    signs = "\n".join(f'    "{line}"' for line in digits)
    return TOP.replace("{lengths}", lengths).replace("{widths}", signs)


if __name__ == "__main__":
    print(source(), end="")
