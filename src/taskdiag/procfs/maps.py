"""/proc/PID/maps and smaps: the memory mappings, and the statistics of their pages.

These parsers work line by line and accept everything that Linux may write.  `records` is
faster, and uses them for entries of an unusual form.
"""

from __future__ import annotations

import re

from ..abi import VmaFlag
from .reader import Directory, Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("flags_of", "parse_smaps", "perms_of")

#: VmFlags of smaps (fs/proc/task_mmu.c, ``show_smap_vma_flags``) in the ABI's numbering.
_NAMES = {
    b"rd": VmaFlag.READ,
    b"wr": VmaFlag.WRITE,
    b"ex": VmaFlag.EXEC,
    b"sh": VmaFlag.SHARED,
    b"mr": VmaFlag.MAYREAD,
    b"mw": VmaFlag.MAYWRITE,
    b"me": VmaFlag.MAYEXEC,
    b"ms": VmaFlag.MAYSHARE,
    b"gd": VmaFlag.GROWSDOWN,
    b"pf": VmaFlag.PFNMAP,
    b"dw": VmaFlag.DENYWRITE,
    b"mp": VmaFlag.MPX,
    b"lo": VmaFlag.LOCKED,
    b"io": VmaFlag.IO,
    b"sr": VmaFlag.SEQ_READ,
    b"rr": VmaFlag.RAND_READ,
    b"dc": VmaFlag.DONTCOPY,
    b"de": VmaFlag.DONTEXPAND,
    b"ac": VmaFlag.ACCOUNT,
    b"nr": VmaFlag.NORESERVE,
    b"ht": VmaFlag.HUGETLB,
    b"ar": VmaFlag.ARCH_1,
    b"dd": VmaFlag.DONTDUMP,
    b"sd": VmaFlag.SOFTDIRTY,
    b"mm": VmaFlag.MIXEDMAP,
    b"hg": VmaFlag.HUGEPAGE,
    b"nh": VmaFlag.NOHUGEPAGE,
    b"mg": VmaFlag.MERGEABLE,
}
_FLAGS = {name: int(flag) for name, flag in _NAMES.items()}

#: A mapping: start, end, flags, pgoff, major, minor, inode, and the name as shown.
Mapping = tuple[int, int, int, int, int, int, int, bytes]

_LINE = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) ([-r][-w][-x][-ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) "
    rb"([0-9]+) *(.*)\Z",
    re.DOTALL,
)


def perms_of(perms: bytes) -> int:
    """The flags that the permission column shows.

    >>> perms_of(b"rw-s")
    139
    """
    found = 0
    for letter, flag in zip(perms, _PERMS, strict=False):
        if letter == flag[0]:
            found |= flag[1]
    return found


_PERMS = (
    (ord("r"), 1 << 0),
    (ord("w"), 1 << 1),
    (ord("x"), 1 << 2),
    (ord("s"), int(VmaFlag.SHARED | VmaFlag.MAYSHARE)),
)
#: All 16 permission columns, looked up rather than computed for every mapping.
_COLUMN = {
    bytes(column): perms_of(bytes(column))
    for column in (
        (r, w, x, s)
        for r in b"r-"
        for w in b"w-"
        for x in b"x-"
        for s in b"ps-"
    )
}  # fmt: skip


def flags_of(names: bytes) -> int:
    """The flags of a VmFlags line.  Flags without a number in the ABI are left out.

    >>> flags_of(b"rd wr mr mw me ac zz")
    262259
    """
    found = 0
    for name in names.split():
        found |= _FLAGS.get(name, 0)
    return found


def parse_line(line: bytes) -> Mapping:
    """One line of maps, without its newline.  Raises Malformed."""
    found = _LINE.match(line)
    if found is None:
        raise Malformed(f"/proc/PID/maps has an unknown line: {line[:100]!r}")
    start, end, perms, pgoff, major, minor, inode, name = found.groups()
    return (
        int(start, 16), int(end, 16), _COLUMN[perms], int(pgoff, 16),
        int(major, 16), int(minor, 16), int(inode), name,
    )  # fmt: skip


def parse_smaps(
    data: bytes, statistics: Callable[[dict[bytes, int]], bytes]
) -> list[tuple[Mapping, bytes]]:
    """The mappings of a smaps file, each with what ``statistics`` makes of its numbers (in kB).

    The flags are those of the line VmFlags, if the kernel writes it.  Raises Malformed.
    """
    lines = data.split(b"\n")
    if lines.pop():
        raise Malformed("/proc/PID/smaps ends in the middle of a line")
    out: list[tuple[Mapping, bytes]] = []
    mapping: Mapping | None = None
    numbers: dict[bytes, int] = {}
    for line in lines:
        key, colon, value = line.partition(b":")
        # "Rss:" and "7f00-7f01 r--p 0 fe:00": only a key has no space before the colon.
        if not colon or b" " in key:
            if mapping is not None:
                out.append((mapping, statistics(numbers)))
            mapping, numbers = parse_line(line), {}
        elif mapping is None:
            raise Malformed(f"/proc/PID/smaps starts with {line[:100]!r}")
        elif key == b"VmFlags":
            mapping = (*mapping[:2], flags_of(value), *mapping[3:])
        else:
            number = value.split()
            if number and number[0].isdigit():
                numbers[key] = int(number[0])
    if mapping is not None:
        out.append((mapping, statistics(numbers)))
    return out


def exact_name(directory: Directory, up: str, start: int, end: int, shown: bytes) -> bytes:
    """The name of a mapping whose name in maps contains ``\\012``.

    maps escapes a newline but not a backslash, so these four characters may stand for a newline
    or for themselves.  The link in map_files has the unescaped name, and may be read by all who
    may read maps.  If it cannot be read because the mapping no longer exists, a newline is
    assumed.
    """
    try:
        return directory.readlink(f"{up}map_files/{start:x}-{end:x}")
    except OSError:
        return shown.replace(b"\\012", b"\n")
