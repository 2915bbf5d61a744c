"""Member paths: from ``signal->pids[PIDTYPE_SID]->numbers[0].nr`` to the loads it takes."""

from __future__ import annotations

import sys

from ..member import Member
from .format import COMPOSITE, BtfError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .reader import Btf

__all__ = ("follow_path", "member_names", "parse_path")

_INT_SIGNED = 1
_MAX_PATH = 1000
_MAX_STEPS = 32


def parse_path(path: str) -> list[tuple[str, str]]:
    """Split a member path into pairs: "." or "->" and a name, or "[" and an index.

    >>> parse_path("mm->rss_stat[1].count")
    [('.', 'mm'), ('->', 'rss_stat'), ('[', '1'), ('.', 'count')]

    Raises BtfError for anything other than C member access.
    """
    if len(path) > _MAX_PATH:
        raise BtfError(f"a member path of {len(path)} characters; the limit is {_MAX_PATH}")
    steps: list[tuple[str, str]] = []
    at, end = 0, len(path)
    operator = "."
    while True:
        start = at
        while at < end and _is_word(path[at]):
            at += 1
        name = path[start:at]
        if not name or (operator != "[" and name[0].isdigit()):
            wanted = "an index" if operator == "[" else "a member's name"
            raise BtfError(f"member path {path!r}: expected {wanted} at character {start + 1}")
        steps.append((operator, name))
        if len(steps) > _MAX_STEPS:
            raise BtfError(f"member path {path!r}: more than {_MAX_STEPS} steps")
        if operator == "[":
            if path[at : at + 1] != "]":
                raise BtfError(f"member path {path!r}: expected ']' at character {at + 1}")
            at += 1
        if at == end:
            return steps
        operator = "->" if path.startswith("->", at) else path[at]
        if operator not in (".", "->", "["):
            raise BtfError(f"member path {path!r}: expected '.', '->' or '[' at character {at + 1}")
        at += len(operator)


def _is_word(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_")


def follow_path(btf: Btf, type_id: int, path: str, *, pointers: bool) -> list[Member]:
    """The loads that a path from an object of that type takes.

    Each is a pointer that has to be followed, except the last, which is the member itself.
    Raises BtfError for a path through a pointer unless ``pointers`` allows it.
    """
    return _Walk(btf, type_id, path).run(pointers)


def member_names(btf: Btf, type_id: int) -> list[str]:
    """The names of a structure's members, including those of anonymous ones."""
    names: list[str] = []
    todo, seen = [type_id], set()
    for owner in todo:  # grows during the loop
        if owner in seen:
            continue
        seen.add(owner)
        for name_at, inner, _, _ in btf.members(owner):
            name = btf.string(name_at)
            if name:
                names.append(name)
            elif btf.kind(inner := btf.strip(inner)) in COMPOSITE:
                todo.append(inner)
    return names


def _find_member(btf: Btf, owner: int, name: str) -> tuple[int, int, int] | None:
    """Type, bit offset and bit-field size of a member, also inside anonymous ones."""
    expected = f"{name}\0".encode("ascii", "replace")
    todo, seen = [(owner, 0)], set()
    for type_id, base in todo:  # grows during the loop
        if type_id in seen:
            continue
        seen.add(type_id)
        for name_at, inner, where, bits in btf.members(type_id):
            if btf.string_is(name_at, expected):
                return inner, base + where, bits
            if btf.string_is(name_at, b"\0"):
                inner = btf.strip(inner)
                if btf.kind(inner) in COMPOSITE:
                    todo.append((inner, base + where))
    return None


class _Walk:
    """A position on the way along a path: a type, and an offset into the current object.

    ``name`` is the path within the current object, ``trail`` the whole path up to here,
    for errors.
    """

    __slots__ = ("bit_size", "bits", "btf", "name", "path", "trail", "type_id")

    def __init__(self, btf: Btf, type_id: int, path: str) -> None:
        self.btf = btf
        self.path = path
        self.trail = ""
        self._enter(type_id)

    def _enter(self, type_id: int) -> None:
        """Start at the beginning of an object."""
        self.type_id = type_id
        self.bits = 0
        self.bit_size = 0
        self.name = ""

    def run(self, pointers: bool) -> list[Member]:
        """Follow the path to its end; gives the loads."""
        btf = self.btf
        loads: list[Member] = []
        for operator, word in parse_path(self.path):
            kind = btf.kind(btf.strip(self.type_id))
            if kind == "ptr" and self.trail:
                if not pointers:
                    raise self._error("is a pointer, not part of the object")
                loads.append(self._describe())
                self._enter(btf.strip(btf.target(btf.strip(self.type_id))))
            elif operator == "->":
                raise self._error(f"is not a pointer ({btf.spell(self.type_id)})")
            if operator == "[":
                self._index(word, kind)
                self.trail += f"[{word}]"
                self.name += f"[{word}]"
            else:
                self._step(word)
                self.trail += (operator if self.trail else "") + word
                self.name += (operator if self.name else "") + word
        return [*loads, self._describe()]

    def _error(self, what: str) -> BtfError:
        return BtfError(f"{self.path!r}: {self.trail!r} {what}")

    def _step(self, name: str) -> None:
        """Go on to a member of the current structure."""
        btf = self.btf
        owner = btf.strip(self.type_id)
        kind = btf.kind(owner)
        where = f"{self.trail!r} in {self.path!r}" if self.trail else btf.spell(self.type_id)
        if kind == "fwd":
            raise NotFound(f"{where}: {btf.spell(owner)} is declared but not defined")
        if kind not in COMPOSITE:
            raise NotFound(f"{where} has no members: its type is {btf.spell(self.type_id)}")
        found = _find_member(btf, owner, name)
        if found is None:
            raise NotFound(
                f"{btf.spell(owner)} has no member {name!r}"
                + (f" (in {self.path!r})" if self.path != name else "")
                + _similar(name, member_names(btf, owner))
            )
        type_id, bits, bit_size = found
        self.type_id = type_id
        self.bits += bits
        self.bit_size = bit_size

    def _index(self, word: str, kind: str) -> None:
        """Go on to an element of the current array."""
        btf = self.btf
        index = self._index_value(word)
        array_id = btf.strip(self.type_id)
        if kind == "ptr":  # already followed: its target is the element
            element = array_id
        elif kind == "array":
            at = btf.start(array_id)
            element, count = btf.words[at + 3], btf.words[at + 5]
            # An array of one element may be a flexible one, written the old way: numbers[1]
            # of struct pid before v6.5, numbers[] since (commit b69f0aeb0689).
            if index >= count > 1:
                raise NotFound(
                    f"{self.path!r}: {self.trail!r} has {count} elements, so there is no [{word}]"
                )
        else:
            raise self._error(f"is not an array ({btf.spell(self.type_id)})")
        self.bits += 8 * index * btf.size(element)
        self.type_id = element
        self.bit_size = 0

    def _index_value(self, word: str) -> int:
        if not word[0].isdigit():
            index = self.btf.enumerator(word)
        else:
            try:
                index = int(word, 16 if word[:2] in ("0x", "0X") else 10)
            except ValueError:
                raise BtfError(f"{self.path!r}: {word!r} is neither a number nor a name") from None
        if not 0 <= index < 1 << 32:
            raise BtfError(f"{self.path!r}: index {index} is out of range")
        return index

    def _describe(self) -> Member:
        """The current position as a `Member`."""
        btf, words = self.btf, self.btf.words
        type_id = btf.strip(self.type_id)
        kind, at, info = btf.record(type_id)
        size = 0 if kind in ("void", "fwd", "func", "func_proto") else btf.size(type_id)
        bits, shift, bit_size, signed = self.bits, 0, self.bit_size, False
        if kind == "int":
            word = words[at + 3]
            signed = bool(word >> 24 & _INT_SIGNED)
            # Before kind_flag a bit-field was an int of fewer bits, or one that does not
            # start at a whole byte.
            bits += word >> 16 & 0xFF
            if not bit_size and (word & 0xFF != 8 * size & 0xFF or bits & 7):
                bit_size = word & 0xFF
        elif kind in ("enum", "enum64"):
            kind, signed = "enum", bool(info >> 31)
        offset = bits >> 3
        if bit_size:
            offset, size, shift = _load_unit(bits, bit_size, size, self.name)
        member = Member(
            self.name, offset, size, kind, type_id, btf.spell(self.type_id), signed,
            shift, bit_size,
        )  # fmt: skip
        if kind == "ptr":
            target = btf.strip(words[at + 2])
            member.pointee_id = target
            if btf.kind(target) in ("struct", "union", "fwd"):
                member.pointee = btf.name(target) or None
        elif kind == "array":
            member.elem_id = btf.strip(words[at + 3])
            member.elem_size = btf.size(member.elem_id)
            member.count = words[at + 5]
        return member


def _load_unit(bits: int, bit_size: int, size: int, name: str) -> tuple[int, int, int]:
    """What to load to get a bit-field: byte offset, size, and how far to shift right.

    The unit is that of the declared type, or a wider one if the field crosses it (in
    packed structures): libbpf's CO-RE relocations do the same.
    """
    size = max(size, 1)
    while size <= 8:
        offset = bits // (8 * size) * size
        inside = bits - 8 * offset
        if inside + bit_size <= 8 * size:
            shift = inside if sys.byteorder == "little" else 8 * size - inside - bit_size
            return offset, size, shift
        size *= 2
    raise BtfError(f"bit-field {name!r} of {bit_size} bits does not fit a load of 8 bytes")


def _similar(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    names = [other for other in names[:2000] if len(other) <= 64]
    near = get_close_matches(name[:64], names, 3, 0.5)
    near += [other for other in names if name and name in other and other not in near][:3]
    return f"; similar names: {', '.join(near[:4])}" if near else ""
