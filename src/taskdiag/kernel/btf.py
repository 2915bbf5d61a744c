"""BTF, the kernel's own description of its types: find types, members, enumerators by name.

The format is Documentation/bpf/btf.rst of the kernel.  A blob is one pass over the type
section to learn where each type begins (20 ms for a kernel's 126,000 types); all else
is looked up when asked for, by searching the string section for the name and the type
section for the name's offset, which costs about a millisecond a name.  `facts.Facts`
remembers the answers, so that most runs never come here.

A blob is hostile until proven otherwise: every walk is bounded, and whatever is wrong with
it raises `BtfError`.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from struct import Struct

from ..errors import EngineUnavailable, TaskdiagError
from .member import Member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("HEADER", "KINDS", "MAGIC", "VMLINUX", "Btf", "BtfError", "NotFound", "parse_path")

VMLINUX = "/sys/kernel/btf/vmlinux"

#: Names of the kinds, by number (include/uapi/linux/btf.h).
KINDS = (
    "void",
    "int",
    "ptr",
    "array",
    "struct",
    "union",
    "enum",
    "fwd",
    "typedef",
    "volatile",
    "const",
    "restrict",
    "func",
    "func_proto",
    "var",
    "datasec",
    "float",
    "decl_tag",
    "type_tag",
    "enum64",
)
_NUMBER = {name: number for number, name in enumerate(KINDS)}

MAGIC = 0xEB9F
#: magic, version, flags, header length, offset and length of types and of strings
HEADER = Struct("=HBBIIIII")
#: Words of 4 bytes that follow a type's three, and how many follow for each of its vlen.
_FIXED = {"int": 1, "array": 3, "var": 1, "decl_tag": 1}
_EACH = {"struct": 3, "union": 3, "enum": 2, "func_proto": 2, "datasec": 3, "enum64": 3}
#: Looked through on the way to what a type really is.
_WRAPPERS = frozenset(("typedef", "volatile", "const", "restrict", "type_tag"))
_COMPOSITE = frozenset(("struct", "union"))
#: enum in `type_id`, `has` and `member`: either width answers to "enum".
_SAME = {"enum": ("enum", "enum64")}

_INT_SIGNED = 1
_POINTER = 8
#: No chain of typedefs, qualifiers or arrays in a kernel comes near; a cycle reaches it.
_DEEPEST = 64
_LONGEST_PATH = 1000
_MOST_STEPS = 32
#: Beyond any C identifier of a kernel (its symbols have 511 characters at most).
_LONGEST_NAME = 1024
_LONGEST_DUMP = 20_000


class BtfError(TaskdiagError, ValueError):
    """The BTF is malformed, or the question makes no sense for it."""


class NotFound(BtfError, KeyError):
    """No type, member or enumerator of that name is in this BTF."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


def parse_path(path: str) -> list[tuple[str, str]]:
    """Take a member path apart: pairs of "." or "->" and a name, or "[" and an index.

    >>> parse_path("mm->rss_stat[1].count")
    [('.', 'mm'), ('->', 'rss_stat'), ('[', '1'), ('.', 'count')]

    Raises BtfError for anything else than C member access.
    """
    if len(path) > _LONGEST_PATH:
        raise BtfError(f"a member path of {len(path)} characters, the most is {_LONGEST_PATH}")
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
        if len(steps) > _MOST_STEPS:
            raise BtfError(f"member path {path!r}: more than {_MOST_STEPS} steps")
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


class _Words(dict[int, int]):
    """Words that a type takes, by its info word; filled in as they are met."""

    def __missing__(self, info: int) -> int:
        kind = KINDS[info >> 24 & 0x1F]
        words = 3 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        if kind == "void":
            raise IndexError
        self[info] = words
        return words


class Btf:
    """One BTF blob, indexed.

    >>> btf = Btf.load()
    >>> btf.member("struct task_struct", "tgid")
    <Member tgid: pid_t at 2436, 4 bytes>
    >>> btf.enumerator("PIDTYPE_SID")
    3

    Types are named as C names them, "struct mm_struct" or "union x" or "kuid_t"; a bare
    name is a struct, else a union, else a typedef; an int is a type id.
    """

    def __init__(self, blob: bytes) -> None:
        """Index ``blob``.  Raises BtfError, naming the offset, if it is malformed."""
        types, strings = _sections(blob)
        self._base = types.start
        self._types = blob[types.start : types.stop]
        self._strings = blob[strings.start : strings.stop]
        self._words = array("I")
        if self._words.itemsize != 4:  # pragma: no cover - no such Linux
            raise BtfError("this interpreter has no array of 32-bit words")
        self._words.frombytes(self._types)
        self._starts = self._index()

    @classmethod
    def load(cls, path: str = VMLINUX) -> Btf:
        """The running kernel's BTF.  Raises EngineUnavailable if there is none."""
        try:
            with open(path, "rb", 0) as file:
                blob = file.read()
        except FileNotFoundError:
            raise EngineUnavailable(
                f"this kernel does not describe its types: {path} does not exist"
                " (it needs CONFIG_DEBUG_INFO_BTF, and /sys mounted)"
            ) from None
        except OSError as error:
            raise EngineUnavailable(f"cannot read {path}: {error.strerror}") from error
        return cls(blob)

    def __len__(self) -> int:
        """How many types there are, ``void`` (0) included."""
        return len(self._starts)

    # -- finding by name ---------------------------------------------------------------

    def type_id(self, kind: str, name: str) -> int:
        """The id of the first type of that kind ("struct", "func", ...) and name.

        Raises NotFound.
        """
        found = self._find_type(kind, name)
        if found is None:
            raise NotFound(f"this kernel has no {kind} {name!r}")
        return found

    def has(self, kind: str, name: str) -> bool:
        """Whether there is a type of that kind and name."""
        return self._find_type(kind, name) is not None

    def enumerator(self, name: str) -> int:
        """An enumerator's value, from whichever enum: ``enumerator("MM_ANONPAGES")`` is 1.

        Raises NotFound.
        """
        found = self._find_enumerator(name)
        if found is None:
            raise NotFound(f"this kernel has no enumerator {name!r}")
        return found

    def has_enumerator(self, name: str) -> bool:
        """Whether any enum has that enumerator."""
        return self._find_enumerator(name) is not None

    # -- questions about types ---------------------------------------------------------

    def kind(self, type_id: int) -> str:
        """The kind of a type, by name: "struct", "typedef", ..."""
        return self._record(type_id)[0]

    def name(self, type_id: int) -> str:
        """The name of a type, empty if it has none."""
        return self._string(self._words[self._at(type_id)]) if type_id else ""

    def strip(self, type_id: int) -> int:
        """What is left without typedefs, qualifiers and tags."""
        for _ in range(_DEEPEST):
            kind, at, _ = self._record(type_id)
            if kind not in _WRAPPERS:
                return type_id
            type_id = self._words[at + 2]
        raise self._error(type_id, f"a chain of more than {_DEEPEST} typedefs and qualifiers")

    def size(self, type: str | int) -> int:
        """Bytes that an object of the type takes: ``size("struct list_head")`` is 16."""
        type_id, times = self._type(type), 1
        for _ in range(_DEEPEST):
            type_id = self.strip(type_id)
            kind, at, _ = self._record(type_id)
            if kind == "array":
                times *= self._words[at + 5]
                type_id = self._words[at + 3]
                continue
            if kind == "var":
                type_id = self._words[at + 2]
                continue
            if kind == "ptr":
                return _POINTER * times
            if kind in ("int", "struct", "union", "enum", "enum64", "float", "datasec"):
                return self._words[at + 2] * times
            raise BtfError(f"{self.spell(type_id)} has no size")
        raise self._error(type_id, f"arrays nested more than {_DEEPEST} deep")

    def member(self, type: str | int, path: str) -> Member:
        """Where a member lies in one object of the type, pointers not followed.

        >>> btf.member("struct task_struct", "se.sum_exec_runtime")
        <Member se.sum_exec_runtime: u64 at 320, 8 bytes>

        Raises NotFound, naming the component that is not there, and BtfError if a
        pointer would have to be followed.
        """
        return self._walk(type, path, follow=False)[0]

    def path(self, type: str | int, path: str) -> list[Member]:
        """The loads that a path takes: a pointer member for each dereference, then the member.

        >>> btf.path("task_struct", "signal->pids[PIDTYPE_SID]->numbers[0].nr")
        [<Member signal: struct signal_struct * at 2880, 8 bytes>,
         <Member pids[PIDTYPE_SID]: struct pid * at 424, 8 bytes>,
         <Member numbers[0].nr: int at 112, 4 bytes>]

        A "." after a pointer follows it as "->" does.  An index may be an enumerator.
        Raises as `member`.
        """
        return self._walk(type, path, follow=True)

    def has_member(self, type: str | int, path: str) -> bool:
        """Whether `path` would find it (False also if the type is not there)."""
        try:
            self._walk(type, path, follow=True)
        except NotFound:
            return False
        return True

    def func_proto(self, name: str) -> list[tuple[str, str]]:
        """A function's parameters: name and type of each.

        >>> btf.func_proto("bpf_iter_task_new")
        [('it', 'struct bpf_iter_task *'), ('task__nullable', 'struct task_struct *'),
         ('flags', 'unsigned int')]
        """
        proto = self._word(self.type_id("func", name), 2)
        kind, at, info = self._record(proto)
        if kind != "func_proto":
            raise self._error(proto, f"function {name!r} is of kind {kind}")
        words = self._words
        return [
            (self._string(words[p]), self.spell(words[p + 1]) if words[p + 1] else "...")
            for p in range(at + 3, at + 3 + 2 * (info & 0xFFFF), 2)
        ]

    def spell(self, type_id: int, declares: str = "") -> str:
        """A type as C writes it, or the declaration of a name of that type.

        >>> btf.spell(btf.member("task_struct", "comm").type_id, "comm")
        'char comm[16]'
        """
        return _Printer(self).declare(type_id, declares)

    def dump(self, type: str | int) -> str:
        """The definition of a type as C text, offsets and sizes in comments.

        >>> print(btf.dump("struct list_head"))
        struct list_head {
                struct list_head *next; /* 0, 8 */
                struct list_head *prev; /* 8, 8 */
        }; /* 16 */
        """
        return _Printer(self).definition(self._type(type))

    # -- the blob ------------------------------------------------------------------------

    def _index(self) -> array[int]:
        """Where each type's words begin; void has none."""
        starts, length, words = array("I", [0]), _Words(), self._words
        at, end, add = 0, len(self._words), starts.append
        try:
            while at < end:
                add(at)
                at += length[words[at + 1]]
        except IndexError:
            at = starts[-1]
            if at + 1 < end:
                kind = words[at + 1] >> 24 & 0x1F
                raise BtfError(f"byte {self._base + 4 * at + 4}: unknown kind {kind}") from None
            raise BtfError(f"byte {self._base + 4 * at}: half a type at the end") from None
        if at != end:
            at = starts[-1]
            raise BtfError(f"byte {self._base + 4 * at}: a type that is longer than the section")
        return starts

    def _at(self, type_id: int) -> int:
        if not 0 < type_id < len(self._starts):
            raise BtfError(f"type {type_id} does not exist; there are {len(self._starts)}")
        return self._starts[type_id]

    def _record(self, type_id: int) -> tuple[str, int, int]:
        """A type's kind, where its words begin, and its info word."""
        if type_id == 0:
            return "void", 0, 0
        at = self._at(type_id)
        info = self._words[at + 1]
        return KINDS[info >> 24 & 0x1F], at, info

    def _word(self, type_id: int, index: int) -> int:
        return self._words[self._at(type_id) + index]

    def _error(self, type_id: int, what: str) -> BtfError:
        where = self._base + 4 * (self._starts[type_id] if type_id < len(self._starts) else 0)
        return BtfError(f"byte {where}: type {type_id}: {what}")

    def _string(self, offset: int) -> str:
        if offset >= len(self._strings):
            raise BtfError(f"name at {offset}, beyond the {len(self._strings)} bytes of strings")
        end = self._strings.index(b"\0", offset)
        if end - offset > _LONGEST_NAME:
            raise BtfError(f"name at {offset}: {end - offset} characters long")
        return self._strings[offset:end].decode("ascii", "backslashreplace")

    def _named(self, name: str) -> Iterator[int]:
        """Every word of the type section that may be the offset of this name."""
        if not name or not name.isascii() or "\0" in name:
            return
        # The kernel's strings are unique, so nearly always this is the one offset.
        whole = list(_finds(self._strings, f"\0{name}\0".encode(), 1))
        if len(whole) == 1:
            found = False
            for at in self._words_equal(whole[0]):
                found = True
                yield at
            if found:
                return
        # Strings may share their tails, or come twice: look at all words that could be it.
        offsets = set(_finds(self._strings, f"{name}\0".encode(), 0))
        if offsets:
            for at, word in enumerate(self._words):
                if word in offsets:
                    yield at

    def _words_equal(self, value: int) -> Iterator[int]:
        for at in _finds(self._types, value.to_bytes(4, sys.byteorder), 0):
            if not at & 3:
                yield at >> 2

    def _find_type(self, kind: str, name: str) -> int | None:
        kinds = _SAME.get(kind, (kind,))
        if kind not in _NUMBER:
            raise BtfError(f"there is no kind of type {kind!r}")
        starts, words = self._starts, self._words
        for at in self._named(name):
            type_id = bisect_right(starts, at, 1) - 1
            if type_id and starts[type_id] == at and (KINDS[words[at + 1] >> 24 & 0x1F] in kinds):
                return type_id
        return None

    def _find_enumerator(self, name: str) -> int | None:
        words = self._words
        for at in self._named(name):
            type_id = bisect_right(self._starts, at, 1) - 1
            kind, start, info = self._record(type_id)
            each = _EACH.get(kind, 1)
            if at < start + 3 or (at - start - 3) % each:
                continue
            if kind == "enum":
                return _value(words[at + 1], 32, info)
            if kind == "enum64":
                return _value(words[at + 1] | words[at + 2] << 32, 64, info)
        return None

    def _type(self, type: str | int) -> int:
        """The id that a type's name stands for."""
        if isinstance(type, int):
            self._record(type)
            return type
        kind, _, name = type.rpartition(" ")
        if kind:
            return self.type_id(kind, name)
        for kind in ("struct", "union", "typedef", "enum", "int"):
            found = self._find_type(kind, name)
            if found is not None:
                return found
        raise NotFound(f"this kernel has no type {name!r}")

    # -- members -------------------------------------------------------------------------

    def _members(self, type_id: int) -> Iterator[tuple[int, int, int, int]]:
        """Each member of a struct or union: name offset, type, bit offset, bit-field size."""
        _, at, info = self._record(type_id)
        words = self._words
        for p in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            where = words[p + 2]
            if info >> 31:
                yield words[p], words[p + 1], where & 0xFFFFFF, where >> 24
            else:
                yield words[p], words[p + 1], where, 0

    def _find_member(self, owner: int, name: str) -> tuple[int, int, int] | None:
        """Type, bit offset and bit-field size of a member, anonymous ones looked into."""
        needle, strings = f"{name}\0".encode("ascii", "replace"), self._strings
        todo, seen = [(owner, 0)], set()
        for type_id, base in todo:  # grows as it goes
            if type_id in seen:
                continue
            seen.add(type_id)
            for name_at, inner, where, bits in self._members(type_id):
                if strings.startswith(needle, name_at):
                    return inner, base + where, bits
                if strings.startswith(b"\0", name_at):
                    inner = self.strip(inner)
                    if self.kind(inner) in _COMPOSITE:
                        todo.append((inner, base + where))
        return None

    def _all_members(self, owner: int) -> list[str]:
        names: list[str] = []
        todo, seen = [owner], set()
        for type_id in todo:
            if type_id in seen:
                continue
            seen.add(type_id)
            for name_at, inner, _, _ in self._members(type_id):
                name = self._string(name_at)
                if name:
                    names.append(name)
                elif self.kind(inner := self.strip(inner)) in _COMPOSITE:
                    todo.append(inner)
        return names

    def _walk(self, type: str | int, path: str, follow: bool) -> list[Member]:
        steps = parse_path(path)
        place = _Place(self._type(type))
        loads: list[Member] = []
        trail = ""  # what has been walked, for errors
        for operator, word in steps:
            kind = self.kind(self.strip(place.type_id))
            if kind == "ptr" and trail:
                if not follow:
                    raise BtfError(f"{path!r}: {trail!r} is a pointer, not part of the object")
                loads.append(self._describe(place))
                target = self.strip(self._word(self.strip(place.type_id), 2))
                place = _Place(target)
            elif operator == "->":
                raise BtfError(f"{path!r}: {trail!r} is no pointer ({self.spell(place.type_id)})")
            if operator == "[":
                self._index_into(place, word, kind, path, trail)
                trail += f"[{word}]"
                place.name += f"[{word}]"
            else:
                self._step_into(place, word, path, trail)
                trail += (operator if trail else "") + word
                place.name += (operator if place.name else "") + word
        return [*loads, self._describe(place)]

    def _step_into(self, place: _Place, name: str, path: str, trail: str) -> None:
        owner = self.strip(place.type_id)
        kind = self.kind(owner)
        where = f"{trail!r} in {path!r}" if trail else self.spell(place.type_id)
        if kind == "fwd":
            raise NotFound(f"{where}: {self.spell(owner)} is declared but nowhere defined")
        if kind not in _COMPOSITE:
            raise NotFound(f"{where} has no members, it is {self.spell(place.type_id)}")
        found = self._find_member(owner, name)
        if found is None:
            raise NotFound(
                f"{self.spell(owner)} has no member {name!r}"
                + (f" (in {path!r})" if path != name else "")
                + _nearest(name, self._all_members(owner))
            )
        type_id, bits, bit_size = found
        place.type_id = type_id
        place.bits += bits
        place.bit_size = bit_size

    def _index_into(self, place: _Place, word: str, kind: str, path: str, trail: str) -> None:
        index = self._index_value(word, path)
        array_id = self.strip(place.type_id)
        if kind == "ptr":  # followed already: its target is the element
            element = array_id
        elif kind == "array":
            at = self._at(array_id)
            element, count = self._words[at + 3], self._words[at + 5]
            # numbers[1] of struct pid before 6.5 and numbers[] since (b69f0aeb0689):
            # a short array is often a flexible one written the old way.
            if index >= count > 1:
                raise NotFound(f"{path!r}: {trail!r} has {count} elements, none is [{word}]")
        else:
            raise BtfError(f"{path!r}: {trail!r} is no array ({self.spell(place.type_id)})")
        place.bits += 8 * index * self.size(element)
        place.type_id = element
        place.bit_size = 0

    def _index_value(self, word: str, path: str) -> int:
        if not word[0].isdigit():
            index = self.enumerator(word)
        else:
            try:
                index = int(word, 16 if word[:2] in ("0x", "0X") else 10)
            except ValueError:
                raise BtfError(f"{path!r}: {word!r} is neither a number nor a name") from None
        if not 0 <= index < 1 << 32:
            raise BtfError(f"{path!r}: index {index} is out of range")
        return index

    def _describe(self, place: _Place) -> Member:
        type_id = self.strip(place.type_id)
        kind, at, info = self._record(type_id)
        words = self._words
        size = 0 if kind in ("void", "fwd", "func", "func_proto") else self.size(type_id)
        bits, shift, bit_size, signed = place.bits, 0, place.bit_size, False
        if kind == "int":
            word = words[at + 3]
            signed = bool(word >> 24 & _INT_SIGNED)
            # Bit-fields before kind_flag: an int of fewer bits, or not at a whole byte.
            bits += word >> 16 & 0xFF
            if not bit_size and (word & 0xFF != 8 * size & 0xFF or bits & 7):
                bit_size = word & 0xFF
        elif kind in ("enum", "enum64"):
            kind, signed = "enum", bool(info >> 31)
        offset = bits >> 3
        if bit_size:
            offset, size, shift = _unit(bits, bit_size, size, place.name)
        member = Member(
            place.name, offset, size, kind, type_id, self.spell(place.type_id), signed,
            shift, bit_size,
        )  # fmt: skip
        if kind == "ptr":
            target = self.strip(words[at + 2])
            member.pointee_id = target
            if self.kind(target) in ("struct", "union", "fwd"):
                member.pointee = self.name(target) or None
        elif kind == "array":
            member.elem_id = self.strip(words[at + 3])
            member.elem_size = self.size(member.elem_id)
            member.count = words[at + 5]
        return member


class _Place:
    """Where a walk along a path has come to: a type, some bits into an object."""

    __slots__ = ("bit_size", "bits", "name", "type_id")

    def __init__(self, type_id: int) -> None:
        self.type_id = type_id
        self.bits = 0
        self.bit_size = 0
        self.name = ""


class _Printer:
    """Writes types as C; gives up on what no human would read."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self.left = _LONGEST_DUMP

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise BtfError(f"a type of more than {_LONGEST_DUMP} parts")

    def declare(self, type_id: int, name: str = "", depth: int = 0) -> str:
        """``name`` declared as of that type; without a name the type alone."""
        btf, front = self.btf, ""
        for _ in range(_DEEPEST):
            self._spend()
            kind, at, info = btf._record(type_id)
            if kind in ("const", "volatile", "restrict"):
                type_id = btf._words[at + 2]
                if btf.kind(type_id) == "ptr":
                    name = f"{kind} {name}".rstrip()
                elif kind != "restrict":
                    front += f"{kind} "
            elif kind == "type_tag":
                type_id = btf._words[at + 2]
            elif kind == "ptr":
                type_id = btf._words[at + 2]
                name = f"*{name}"
            elif kind == "array":
                type_id = btf._words[at + 3]
                count = btf._words[at + 5]
                name = f"({name})" if name.startswith("*") else name
                name += f"[{count or ''}]"
            elif kind == "func_proto":
                name = f"({name})" if name.startswith("*") else name
                name += f"({self._parameters(at, info, depth)})"
                type_id = btf._words[at + 2]
            else:
                space = " " if name and not name.startswith("[") else ""
                return f"{front}{self._base(type_id)}{space}{name}"
        raise btf._error(type_id, f"a declaration more than {_DEEPEST} deep")

    def _parameters(self, at: int, info: int, depth: int) -> str:
        if depth > 8:
            return "..."
        btf, words = self.btf, self.btf._words
        shown = [
            self.declare(words[p + 1], btf._string(words[p]), depth + 1) if words[p + 1] else "..."
            for p in range(at + 3, at + 3 + 2 * (info & 0xFFFF), 2)
        ]
        return ", ".join(shown) or "void"

    def _base(self, type_id: int) -> str:
        btf = self.btf
        kind, _, info = btf._record(type_id)
        name = btf.name(type_id)
        if kind == "void":
            return "void"
        if kind == "fwd":
            kind = "union" if info >> 31 else "struct"
        if kind in ("struct", "union", "enum", "enum64"):
            return f"{kind.removesuffix('64')} {name or '{...}'}"
        return name or kind

    def definition(self, type_id: int) -> str:
        """The whole type, semicolon and all."""
        btf = self.btf
        kind, at, info = btf._record(type_id)
        if kind in _COMPOSITE:
            body = self._body(type_id, 0)
            return f"{body}; /* {btf._words[at + 2]} */"
        if kind in ("enum", "enum64"):
            return f"{self._enum(type_id)};"
        if kind == "typedef":
            inner, name = btf._words[at + 2], btf.name(type_id)
            if btf.kind(inner) in ("struct", "union", "enum", "enum64") and not btf.name(inner):
                return f"typedef {self._whole(inner, 0)} {name};"
            return f"typedef {self.declare(inner, name)};"
        if kind == "func":
            return f"{self.declare(btf._words[at + 2], btf.name(type_id))};"
        if kind == "var":
            return f"{self.declare(btf._words[at + 2], btf.name(type_id))};"
        if kind == "datasec":
            lines = [f"/* section {btf.name(type_id)}, {btf._words[at + 2]} bytes */"]
            for p in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
                var, offset, size = btf._words[p : p + 3]
                lines.append(f"{self.definition_of_var(var)} /* {offset}, {size} */")
            return "\n".join(lines)
        return f"{self.declare(type_id)};"

    def definition_of_var(self, type_id: int) -> str:
        """A variable (or, in a program's BTF, a function) of a section."""
        if self.btf.kind(type_id) not in ("var", "func"):
            raise self.btf._error(type_id, "neither a variable nor a function")
        return self.definition(type_id)

    def _whole(self, type_id: int, depth: int) -> str:
        if self.btf.kind(type_id) in _COMPOSITE:
            return self._body(type_id, depth)
        return self._enum(type_id)

    def _enum(self, type_id: int) -> str:
        btf = self.btf
        kind, at, info = btf._record(type_id)
        lines, each = [f"enum {btf.name(type_id)}".rstrip() + " {"], _EACH[kind]
        for p in range(at + 3, at + 3 + each * (info & 0xFFFF), each):
            self._spend()
            value = btf._words[p + 1] | (btf._words[p + 2] << 32 if each == 3 else 0)
            value = _value(value, 32 * (each - 1), info)
            lines.append(f"\t{btf._string(btf._words[p])} = {value},")
        return "\n".join([*lines, "}"])

    def _body(self, type_id: int, depth: int) -> str:
        btf, indent = self.btf, "\t" * depth
        kind = btf.kind(type_id)
        if depth > 16:
            raise btf._error(type_id, "anonymous members more than 16 deep")
        lines = [f"{kind} {btf.name(type_id)}".rstrip() + " {"]
        for name_at, inner, where, bits in btf._members(type_id):
            self._spend()
            name = btf._string(name_at)
            if bits:
                place = f"{where >> 3}:{where & 7}, {bits} bits"
                text = f"{self.declare(inner, name)}:{bits}"
            else:
                place = f"{where >> 3}, {btf.size(inner)}"
                text = self._member(inner, name, depth + 1)
            lines.append(f"{indent}\t{text}; /* {place} */")
        return "\n".join([*lines, indent + "}"])

    def _member(self, type_id: int, name: str, depth: int) -> str:
        """A member's declaration; a structure that has no name is written out in place."""
        btf, base = self.btf, type_id
        for _ in range(_DEEPEST):
            kind, at, _ = btf._record(base)
            if kind not in ("ptr", "array", "const", "volatile", "type_tag"):
                break
            base = btf._words[at + (3 if kind == "array" else 2)]
        text = self.declare(type_id, name)
        if kind in ("struct", "union", "enum", "enum64") and not btf.name(base):
            return text.replace(f"{kind.removesuffix('64')} {{...}}", self._whole(base, depth), 1)
        return text


def _sections(blob: bytes) -> tuple[range, range]:
    """Where the types and the strings lie in a blob, checked."""
    if len(blob) < HEADER.size:
        raise BtfError(f"byte 0: {len(blob)} bytes, a BTF header needs {HEADER.size}")
    magic, version, _, header, type_at, type_len, str_at, str_len = HEADER.unpack_from(blob)
    if magic == 0x9FEB:
        raise BtfError("byte 0: BTF of the other byte order")
    if magic != MAGIC:
        raise BtfError(f"byte 0: magic {magic:#06x}, BTF has {MAGIC:#06x}")
    if version != 1:
        raise BtfError(f"byte 2: BTF version {version}, expected 1")
    if header < HEADER.size:
        raise BtfError(f"byte 4: a header of {header} bytes, expected {HEADER.size}")
    types = range(header + type_at, header + type_at + type_len)
    strings = range(header + str_at, header + str_at + str_len)
    if types.stop > len(blob) or type_at & 3 or type_len & 3:
        raise BtfError(f"byte 8: types at {types.start} to {types.stop}, of {len(blob)} bytes")
    if strings.stop > len(blob):
        raise BtfError(
            f"byte 16: strings at {strings.start} to {strings.stop}, of {len(blob)} bytes"
        )
    if not str_len or blob[strings.start] or blob[strings.stop - 1]:
        raise BtfError(f"byte {strings.start}: strings that neither begin nor end with a NUL")
    return types, strings


def _finds(where: bytes, what: bytes, skip: int) -> Iterator[int]:
    """Every place of ``what`` in ``where``, ``skip`` bytes on."""
    at = where.find(what)
    while at >= 0:
        yield at + skip
        at = where.find(what, at + 1)


def _value(raw: int, bits: int, info: int) -> int:
    """An enumerator's value: signed if the enum's kind_flag says so.

    Before that flag had this meaning (6.0, 6089fb325cf7) it was always 0 and values of
    32 bits were signed: they still are read so, as no kernel index or count is near 2**31.
    """
    if (info >> 31 or bits == 32) and raw >> (bits - 1):
        raw -= 1 << bits
    return raw


def _unit(bits: int, bit_size: int, size: int, name: str) -> tuple[int, int, int]:
    """What to load to get a bit-field: byte offset, size, and how far to shift right.

    The unit is the declared type's, made wider when the field crosses it (packed
    structures), as libbpf's CO-RE relocations have it.
    """
    size = max(size, 1)
    while size <= 8:
        offset = bits // (8 * size) * size
        inside = bits - 8 * offset
        if inside + bit_size <= 8 * size:
            shift = inside if sys.byteorder == "little" else 8 * size - inside - bit_size
            return offset, size, shift
        size *= 2
    raise BtfError(f"bit-field {name!r} of {bit_size} bits fits no load")


def _nearest(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    names = [other for other in names[:2000] if len(other) <= 64]
    near = get_close_matches(name[:64], names, 3, 0.5)
    near += [other for other in names if name and name in other and other not in near][:3]
    return f"; near it: {', '.join(near[:4])}" if near else ""
