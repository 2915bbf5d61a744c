"""VMA records from the text of maps and smaps, made in bulk.

`maps` parses line by line and accepts whatever Linux may write.  This module is for the
common case, and much faster.  It relies on two properties of these files:

- The part of a line of maps after the addresses (permissions, offset, device, inode and
  path) is the same in every process that maps the same part of the same file.
- The lines of an entry of smaps have fixed widths (fs/proc/task_mmu.c, ``SEQ_PUT_DEC``), as
  long as no number has more than eight digits.  So the statistics of an entry are a slice
  of the text, and entries with equal slices have equal statistics.

Many entries of smaps, such as those of unused parts of libraries, are even equal in all that
follows the addresses.  What they become is looked up by all of this text at once.

An entry that does not look as expected is handed to the parsers of `maps`.
"""

from __future__ import annotations

import re
import sys
from array import array
from itertools import chain
from operator import itemgetter
from struct import Struct
from struct import error as StructError

from .. import abi
from ..netlink import pack_vma
from . import maps
from .reader import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    T = TypeVar("T")
    #: Called with start, end and name as shown; returns the exact name (`maps.exact_name`).
    ExactName = Callable[[int, int, bytes], bytes]

__all__ = ("Records",)

#: How many entries of each kind are remembered.
_REMEMBERED = 2048
#: start, end and vm_flags, which differ between records with the same text.
_HEAD = Struct("=QQQ")
_HEAD_SIZE = _HEAD.size
_FLAGS = Struct("=Q")
#: The digits of an address nearly everywhere, and of the longest one.
_DIGITS, _MOST_DIGITS = 12, 16
_PADDING = b"0" * (_MOST_DIGITS - _DIGITS)
#: Start and end, as bytes.
_ADDRESSES = Struct("16s")
_NO_STATISTICS = bytes(abi.VMA_STAT.size)

_NUMBER_LINE = re.compile(rb"[A-Za-z_]+: *[0-9]{1,8}( kB)?\Z")
_VMFLAGS = b"\nVmFlags: "
#: A line of smaps that counts kB: the key and its colon, eight digits, the unit.
_LINE = "16s8s4s"
_LINE_LENGTH = 28


class _Layout:
    """The lines of an entry of smaps, as this kernel writes them.

    ``lines`` are those that `statistics` needs, ``before`` and ``after`` how many bytes
    there are between the entry's first line and them, and from them to the VmFlags line.

    ``entries`` cuts a file that ends with a VmFlags line into its entries.  Each is given as
    its addresses, all that follows them, and an empty text; or as two empty texts and the
    whole entry, if it has another layout.
    """

    __slots__ = ("_begin", "_end", "_flags", "_keys", "_names", "_numbers", "_unpack", "entries")

    def __init__(self, before: int, lines: list[bytes], after: int) -> None:
        self._begin = before
        self._end = before + _LINE_LENGTH * len(lines)
        self._flags = self._end + after + len(_VMFLAGS) - 1
        # Every entry matches one of the alternatives, so nothing is left out between two.
        self.entries = re.compile(
            rb"([0-9a-f]+-[0-9a-f]+)( [^\n]*\n.{%d}(?<=\n)VmFlags: [^\n]*\n)"
            rb"|(.*?\nVmFlags: [^\n]*\n)" % (self._end + after),
            re.DOTALL,
        ).findall
        self._unpack = Struct("=" + _LINE * len(lines)).unpack
        self._keys = tuple(line[:16] for line in lines)
        names = [line.partition(b":")[0] for line in lines]
        self._names = [name for name in names if name in _WANTED]
        self._numbers = itemgetter(*(1 + 3 * names.index(name) for name in self._names))

    def split(self, rest: bytes) -> tuple[bytes, bytes, bytes]:
        """The rest of the first line, ``lines``, and the flags of what follows the addresses."""
        at = rest.index(b"\n") + 1
        return (
            rest[1 : at - 1],
            rest[at + self._begin : at + self._end],
            rest[at + self._flags : -1],
        )

    def numbers(self, text: bytes) -> dict[bytes, int] | None:
        """The numbers of an entry, in kB, from its slice; None if it has other lines."""
        found = self._unpack(text)
        if found[::3] != self._keys or set(found[2::3]) != {b" kB\n"}:
            return None
        try:
            return dict(zip(self._names, map(int, self._numbers(found)), strict=True))
        except ValueError:
            return None


_WANTED = {field.procfs.partition(":")[2].encode() for field in abi.VMA_STAT.fields}


def layout_of(entry: bytes) -> _Layout | None:
    """The layout of an entry of smaps; None if it is not one that can be relied on."""
    text, mark, _ = entry[entry.find(b"\n") :].partition(_VMFLAGS)
    lines = text.split(b"\n")[1:]
    names = [line.partition(b":")[0] for line in lines]
    if not mark or not all(map(_NUMBER_LINE.match, lines)):
        return None
    needed = [index for index, name in enumerate(names) if name in _WANTED]
    # A line that this entry lacks could come in another one, outside of the slice.
    if len(needed) < len(_WANTED) or len(set(names)) != len(names):
        return None
    block = lines[needed[0] : needed[-1] + 1]
    # A wider number would move all that follows.
    if any(len(line) + 1 != _LINE_LENGTH for line in block):
        return None
    before, after = lines[: needed[0]], lines[needed[-1] + 1 :]
    return _Layout(_length(before), block, _length(after))


def _length(lines: list[bytes]) -> int:
    return sum(len(line) + 1 for line in lines)


class Records:
    """Makes VMA records of maps files, or of smaps files with ``statistics``.

    One object serves one answer: what it remembers of a task (paths, device numbers) must
    not outlive the answer in which that task may be seen.  Several threads may use it.

    >>> make = Records()
    >>> [len(record) for record in make(b"1000-2000 r--p 00000000 00:00 0 \\n", None)]
    [64]
    """

    def __init__(self, statistics: Callable[[dict[bytes, int]], bytes] | None = None) -> None:
        self._statistics = statistics
        self._layout: _Layout | None = None
        #: By the text after the addresses: flags, the rest of the record's head, and its name.
        self._tails: dict[bytes, tuple[int, bytes, bytes]] = {}
        self._flags: dict[bytes, int] = {}
        self._stats: dict[bytes, bytes] = {}
        #: By all that follows the addresses in an entry of smaps: all that follows in the record.
        self._known: dict[bytes, bytes] = {}

    def __call__(self, data: bytes, exact: ExactName | None) -> list[bytes]:
        """The records of a whole file, in its order.

        ``exact`` is called for names that are ambiguous as shown.  Raises Malformed.
        """
        if data[-1:] != b"\n":
            raise Malformed("a list of mappings below /proc ends in the middle of a line")
        try:
            if self._statistics is None:
                if _VMFLAGS in data:
                    return self._flagged(data, exact)
                return self._maps(data, exact)
            try:
                return self._smaps(data, exact)
            except Malformed:
                # The text was split in the wrong place, which no known kernel causes.
                return self._strict(data, exact)
        except (ValueError, StructError) as error:
            raise Malformed(f"/proc/PID/maps shows a mapping out of range: {error}") from None

    def _maps(self, data: bytes, exact: ExactName | None) -> list[bytes]:
        tails, pack = self._tails, _HEAD.pack
        records = []
        for line in data[:-1].split(b"\n"):
            addresses, _, tail = line.partition(b" ")
            found = tails.get(tail) or self._tail(line, tail)
            if found is None:
                records.append(self._record(maps.parse_line(line), b"", exact))
                continue
            start, _, end = addresses.partition(b"-")
            flags, rest, name = found
            records.append(pack(int(start, 16), int(end, 16), flags) + rest + name)
        return records

    def _flagged(self, data: bytes, exact: ExactName | None) -> list[bytes]:
        """The records of smaps with its flags, but without its statistics."""
        if data.rfind(_VMFLAGS) != data.rfind(b"\n", 0, -1):
            raise Malformed("/proc/PID/smaps ends in the middle of a mapping")
        tails, known, pack = self._tails, self._flags, _HEAD.pack
        records = []
        # Each piece but the first starts with the flags of one mapping and goes on with
        # the header line of the next.
        before, *pieces = data.split(_VMFLAGS)
        line = before.partition(b"\n")[0]
        for piece in pieces:
            shown, _, rest = piece.partition(b"\n")
            flags = known.get(shown)
            if flags is None:
                flags = remember(known, shown, maps.flags_of(shown))
            start, _, others = line.partition(b"-")
            end, _, tail = others.partition(b" ")
            found = tails.get(tail) or self._tail(line, tail)
            if found is None:
                mapping = maps.parse_line(line)
                records.append(self._record((*mapping[:2], flags, *mapping[3:]), b"", exact))
            else:
                head = pack(int(start, 16), int(end, 16), flags)
                records.append(head + found[1] + found[2])
            line = rest.partition(b"\n")[0]
        return records

    def _smaps(self, data: bytes, exact: ExactName | None) -> list[bytes]:
        layout = self._layout or self._learn(data)
        if layout is None:
            return self._strict(data, exact)
        if data.rfind(_VMFLAGS) != data.rfind(b"\n", 0, -1):
            raise Malformed("/proc/PID/smaps ends in the middle of a mapping")
        addresses, rests, others = zip(*layout.entries(data), strict=True)
        found = list(map(self._known.get, rests))
        if not all(found):
            entries = zip(found, addresses, rests, strict=True)
            found = [known or self._known_of(layout, *entry) for known, *entry in entries]
        known = [text for text in found if text]
        if len(known) < len(found):
            return self._mixed(addresses, rests, others, found, exact)
        heads = heads_of(addresses)
        return [head + text for head, text in zip(heads, known, strict=True)]

    def _known_of(self, layout: _Layout, addresses: bytes, rest: bytes) -> bytes | None:
        """What follows the addresses in a record; None if an entry must be parsed by lines."""
        if not rest:
            return None
        known = self._known.get(rest)
        if known is not None:
            return known
        line, text, shown = layout.split(rest)
        stat = self._stats.get(text) or self._stat(layout, text)
        tail = self._tails.get(line) or self._tail(addresses + b" " + line, line)
        if stat is None or tail is None:
            return None
        flags = self._flags.get(shown)
        if flags is None:
            flags = remember(self._flags, shown, maps.flags_of(shown))
        return remember(self._known, rest, _FLAGS.pack(flags) + tail[1] + stat + tail[2])

    def _mixed(
        self,
        addresses: Sequence[bytes],
        rests: Sequence[bytes],
        others: Sequence[bytes],
        found: Sequence[bytes | None],
        exact: ExactName | None,
    ) -> list[bytes]:
        """The records of entries some of which must be parsed by lines."""
        records: list[bytes] = []
        for known, *entry in zip(found, addresses, rests, others, strict=True):
            if known:
                records += [head + known for head in heads_of(entry[:1])]
            else:
                records += self._strict(b"".join(entry), exact)
        return records

    def _learn(self, data: bytes) -> _Layout | None:
        layout = layout_of(data[: data.find(b"\n", data.find(_VMFLAGS) + 1)])
        self._layout = layout
        return layout

    def _stat(self, layout: _Layout, text: bytes) -> bytes | None:
        numbers = layout.numbers(text)
        if numbers is None or self._statistics is None:
            return None
        return remember(self._stats, text, self._statistics(numbers))

    def _tail(self, line: bytes, tail: bytes) -> tuple[int, bytes, bytes] | None:
        """What the text after the addresses stands for; None if that takes more than the text."""
        _, _, flags, pgoff, major, minor, inode, name = maps.parse_line(line)
        if b"\\012" in name:
            return None
        stat = _NO_STATISTICS if self._statistics else b""
        record = pack_vma(0, 0, 0, pgoff, major, minor, inode, 0, name, stat)
        at = abi.VMA.size
        found = flags, record[_HEAD_SIZE:at], record[at + len(stat) :]
        return remember(self._tails, tail, found)

    def _strict(self, data: bytes, exact: ExactName | None) -> list[bytes]:
        """The records of entries of smaps, by the parser that accepts any."""
        assert self._statistics is not None
        found = maps.parse_smaps(data, self._statistics)
        return [self._record(mapping, stat, exact) for mapping, stat in found]

    @staticmethod
    def _record(mapping: maps.Mapping, stat: bytes, exact: ExactName | None) -> bytes:
        start, end, flags, pgoff, major, minor, inode, name = mapping
        if exact is not None and b"\\012" in name:
            name = exact(start, end, name)
        return pack_vma(start, end, flags, pgoff, major, minor, inode, 0, name, stat)


def heads_of(addresses: Sequence[bytes]) -> Iterator[bytes]:
    r"""Start and end of each mapping, as a record has them, from their hexadecimal digits.

    >>> [head.hex(" ", 8) for head in heads_of([b"7f00-7fff"])]
    ['007f000000000000 ff7f000000000000']

    Raises ValueError if an address has too many digits.
    """
    # The last one is often the vsyscall page, whose addresses are the only longer ones.
    most, others = b"-".join(addresses[:-1]), addresses[-1:]
    dashes = 2 * len(addresses) - 3
    width = _DIGITS + 1
    if len(most) == _DIGITS + dashes * width and most[_DIGITS::width] == b"-" * dashes:
        digits = _PADDING + most.replace(b"-", _PADDING)
    else:
        digits, others = b"", addresses
    numbers = b"-".join(others).split(b"-")
    digits += b"".join([number.rjust(_MOST_DIGITS, b"0") for number in numbers])
    if len(digits) != 2 * _MOST_DIGITS * len(addresses):
        raise ValueError(f"an address has more than {_MOST_DIGITS} digits")
    values = array("Q", bytes.fromhex(digits.decode()))
    if sys.byteorder == "little":
        values.byteswap()
    return chain.from_iterable(_ADDRESSES.iter_unpack(values.tobytes()))


def remember(known: dict[bytes, T], key: bytes, value: T) -> T:
    """Keep a value, instead of all others once there are too many."""
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = value
    return value
