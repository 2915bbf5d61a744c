"""The bytes of one BTF blob: where each type begins, and the string table.

One pass over the type section learns where each type begins (20 ms for a kernel's
126,000 types).  Names are found when they are asked for, by searching the string section
for the name and then the type section for the name's offset: about a millisecond a name.

A blob is not trusted: every walk is bounded, and whatever is wrong with it raises BtfError.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right

from .format import EACH, FIXED, KINDS, MAX_DEPTH, WRAPPERS, BtfError, sections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Index", "enum_value")

#: Longer than any C identifier of a kernel, whose symbols have at most 511 characters.
_MAX_NAME = 1024


class _Lengths(dict[int, int]):
    """How many words a type takes, by its info word; computed on first use."""

    def __missing__(self, info: int) -> int:
        kind = KINDS[info >> 24 & 0x1F]
        length = 3 + FIXED.get(kind, 0) + EACH.get(kind, 0) * (info & 0xFFFF)
        if kind == "void":
            raise IndexError
        self[info] = length
        return length


class Index:
    """The types of a blob by number, and the words that mention a name.

    ``words`` is the type section as 32-bit words.  ``origin`` is the file that the blob
    comes from, to be named in errors.
    """

    def __init__(self, blob: bytes, origin: str = "") -> None:
        self._prefix = f"cannot use {origin}: " if origin else ""
        try:
            types, strings = sections(blob)
        except BtfError as error:
            raise BtfError(f"{self._prefix}{error}") from None
        self._base = types.start
        self._types = blob[types.start : types.stop]
        self._strings = blob[strings.start : strings.stop]
        self.words = array("I")
        if self.words.itemsize != 4:  # pragma: no cover - no such Linux
            raise BtfError("this interpreter has no array of 32-bit words")
        self.words.frombytes(self._types)
        self._starts = self._find_starts()

    def __len__(self) -> int:
        """How many types there are, ``void`` (0) included."""
        return len(self._starts)

    def _find_starts(self) -> array[int]:
        """The index of each type's first word; ``void`` has no words."""
        starts, length, words = array("I", [0]), _Lengths(), self.words
        at, end, add = 0, len(words), starts.append
        try:
            while at < end:
                add(at)
                at += length[words[at + 1]]
        except IndexError:
            at = starts[-1]
            if at + 1 < end:
                kind = words[at + 1] >> 24 & 0x1F
                raise self._malformed(at + 1, f"unknown kind {kind}") from None
            raise self._malformed(at, "the last type is incomplete") from None
        if at != end:
            raise self._malformed(starts[-1], "the last type extends beyond the section")
        return starts

    # -- records by number -----------------------------------------------------------------

    def start(self, type_id: int) -> int:
        """The index of a type's first word.  Raises BtfError for ``void`` and unknown ids."""
        if not 0 < type_id < len(self._starts):
            raise BtfError(
                f"{self._prefix}type {type_id} does not exist; there are {len(self._starts)}"
            )
        return self._starts[type_id]

    def record(self, type_id: int) -> tuple[str, int, int]:
        """A type's kind, the index of its first word, and its info word."""
        if type_id == 0:
            return "void", 0, 0
        at = self.start(type_id)
        info = self.words[at + 1]
        return KINDS[info >> 24 & 0x1F], at, info

    def kind(self, type_id: int) -> str:
        """The kind of a type, by name: "struct", "typedef", ..."""
        return self.record(type_id)[0]

    def name(self, type_id: int) -> str:
        """The name of a type, empty if it has none."""
        return self.string(self.words[self.start(type_id)]) if type_id else ""

    def target(self, type_id: int) -> int:
        """The type that a pointer, typedef, qualifier, function or variable refers to."""
        return self.words[self.start(type_id) + 2]

    def strip(self, type_id: int) -> int:
        """The type without typedefs, qualifiers and tags."""
        for _ in range(MAX_DEPTH):
            kind, at, _ = self.record(type_id)
            if kind not in WRAPPERS:
                return type_id
            type_id = self.words[at + 2]
        raise self.error(type_id, f"more than {MAX_DEPTH} typedefs and qualifiers in a row")

    def members(self, type_id: int) -> Iterator[tuple[int, int, int, int]]:
        """Each member of a struct or union: name offset, type, bit offset, bit-field size."""
        _, at, info = self.record(type_id)
        words = self.words
        for p in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            where = words[p + 2]
            if info >> 31:
                yield words[p], words[p + 1], where & 0xFFFFFF, where >> 24
            else:
                yield words[p], words[p + 1], where, 0

    def error(self, type_id: int, what: str) -> BtfError:
        """An error about a type, with its place in the blob."""
        at = self._starts[type_id] if type_id < len(self._starts) else 0
        return self._malformed(at, f"type {type_id}: {what}")

    def _malformed(self, at: int, what: str) -> BtfError:
        return BtfError(f"{self._prefix}byte {self._base + 4 * at}: {what}")

    # -- names -------------------------------------------------------------------------------

    def string(self, offset: int) -> str:
        """The string at an offset of the string section."""
        if offset >= len(self._strings):
            raise BtfError(
                f"{self._prefix}a name at offset {offset},"
                f" beyond the {len(self._strings)} bytes of strings"
            )
        end = self._strings.index(b"\0", offset)
        if end - offset > _MAX_NAME:
            raise BtfError(f"{self._prefix}a name of {end - offset} characters")
        return self._strings[offset:end].decode("ascii", "backslashreplace")

    def string_is(self, offset: int, expected: bytes) -> bool:
        """Whether ``expected``, which includes the NUL, is the string at an offset."""
        return self._strings.startswith(expected, offset)

    def find_type(self, kinds: tuple[str, ...], name: str) -> int | None:
        """The first type of one of these kinds and of that name."""
        starts, words = self._starts, self.words
        for at in self._mentions(name):
            type_id = bisect_right(starts, at, 1) - 1
            if type_id and starts[type_id] == at and (KINDS[words[at + 1] >> 24 & 0x1F] in kinds):
                return type_id
        return None

    def find_enumerator(self, name: str) -> int | None:
        """The value of the first enumerator of that name."""
        words = self.words
        for at in self._mentions(name):
            type_id = bisect_right(self._starts, at, 1) - 1
            kind, start, info = self.record(type_id)
            each = EACH.get(kind, 1)
            if at < start + 3 or (at - start - 3) % each:
                continue
            if kind == "enum":
                return enum_value(words[at + 1], 32, info)
            if kind == "enum64":
                return enum_value(words[at + 1] | words[at + 2] << 32, 64, info)
        return None

    def _mentions(self, name: str) -> Iterator[int]:
        """The index of every word that may be the offset of this name."""
        if not name or not name.isascii() or "\0" in name:
            return
        # The kernel's strings are unique, so nearly always this is the only offset.
        whole = list(_occurrences(self._strings, f"\0{name}\0".encode(), 1))
        if len(whole) == 1:
            found = False
            for at in self._words_equal(whole[0]):
                found = True
                yield at
            if found:
                return
        # Strings may share their ends, or occur twice: look for all offsets that name it.
        offsets = set(_occurrences(self._strings, f"{name}\0".encode(), 0))
        if offsets:
            for at, word in enumerate(self.words):
                if word in offsets:
                    yield at

    def _words_equal(self, value: int) -> Iterator[int]:
        for at in _occurrences(self._types, value.to_bytes(4, sys.byteorder), 0):
            if not at & 3:
                yield at >> 2


def enum_value(raw: int, bits: int, info: int) -> int:
    """An enumerator's value: signed if the enum's kind_flag says so.

    The flag has this meaning since v6.0 (commit 6089fb325cf7).  Before, it was always 0 and
    values of 32 bits were signed.  They are still read as signed, since no index or count
    of a kernel comes near 2**31.
    """
    if (info >> 31 or bits == 32) and raw >> (bits - 1):
        raw -= 1 << bits
    return raw


def _occurrences(data: bytes, what: bytes, skip: int) -> Iterator[int]:
    """The offset of every occurrence of ``what``, plus ``skip``."""
    at = data.find(what)
    while at >= 0:
        yield at + skip
        at = data.find(what, at + 1)
