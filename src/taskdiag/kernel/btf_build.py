"""Building BTF: the types that a program is loaded with, and made-up kernels for tests.

The kernel requires the types of a program's functions if it calls any of them back, as
bpf_loop does.

    >>> build = BtfBuilder()
    >>> u32, ptr = build.integer("unsigned int", 4), build.ptr(0)
    >>> proto = build.func_proto(build.integer("long", 8, signed=True), [("i", u32), ("ctx", ptr)])
    >>> build.func("each", proto)
    5
    >>> len(build.blob())
    138
"""

from __future__ import annotations

from struct import Struct, pack

from .btf import HEADER, KINDS, MAGIC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ("EXTERN", "GLOBAL", "STATIC", "BtfBuilder")

#: Linkage of a function or variable.
STATIC, GLOBAL, EXTERN = 0, 1, 2

_SIGNED, _CHAR, _BOOL = 1, 2, 4
_TYPE = Struct("=III")
_NUMBER = {name: number for number, name in enumerate(KINDS)}


class BtfBuilder:
    """Collects types.  Each method adds one and returns its id; 0 is ``void``.

    A member is (name, type, bit offset) or (name, type, bit offset, bit-field size).
    Without a name it is anonymous.
    """

    def __init__(self) -> None:
        self._strings = bytearray(b"\0")
        self._offsets = {"": 0}
        self._types: list[bytes] = []

    def __len__(self) -> int:
        return len(self._types) + 1

    def string(self, text: str) -> int:
        """The offset of a name in the string section, where it is added if it is new."""
        at = self._offsets.get(text)
        if at is None:
            at = self._offsets[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return at

    def raw(
        self,
        kind: str,
        name: str = "",
        third: int = 0,
        words: Iterable[int] = (),
        vlen: int = 0,
        flag: bool = False,
    ) -> int:
        """Any type.  ``third`` is a size or another type, ``words`` are what follows it."""
        info = flag << 31 | _NUMBER[kind] << 24 | vlen
        tail = [word & 0xFFFFFFFF for word in words]
        self._types.append(
            _TYPE.pack(self.string(name), info, third) + pack(f"={len(tail)}I", *tail)
        )
        return len(self._types)

    def integer(
        self,
        name: str,
        size: int,
        signed: bool = False,
        bits: int | None = None,
        offset: int = 0,
        char: bool = False,
        boolean: bool = False,
    ) -> int:
        """An integer of ``size`` bytes; it may use only ``bits`` bits, from ``offset`` on."""
        encoding = _SIGNED * signed | _CHAR * char | _BOOL * boolean
        word = encoding << 24 | offset << 16 | (8 * size if bits is None else bits)
        return self.raw("int", name, size, [word])

    def floating(self, name: str, size: int) -> int:
        """A floating-point number."""
        return self.raw("float", name, size)

    def ptr(self, to: int) -> int:
        """A pointer."""
        return self.raw("ptr", "", to)

    def typedef(self, name: str, to: int) -> int:
        """Another name for a type."""
        return self.raw("typedef", name, to)

    def const(self, of: int) -> int:
        """A type qualified with const."""
        return self.raw("const", "", of)

    def volatile(self, of: int) -> int:
        """A type qualified with volatile."""
        return self.raw("volatile", "", of)

    def restrict(self, of: int) -> int:
        """A pointer qualified with restrict."""
        return self.raw("restrict", "", of)

    def type_tag(self, name: str, of: int) -> int:
        """A tag ("rcu", "user") on the type that a pointer points to."""
        return self.raw("type_tag", name, of)

    def decl_tag(self, name: str, of: int, component: int = -1) -> int:
        """A tag on a declaration, or on its member or parameter ``component``."""
        return self.raw("decl_tag", name, of, [component])

    def array(self, element: int, count: int, index: int) -> int:
        """An array.  ``index`` is the type of its indices, which may be any integer."""
        return self.raw("array", "", 0, [element, index, count])

    def struct(self, name: str, size: int, members: Sequence[tuple[str | int, ...]]) -> int:
        """A structure of ``size`` bytes."""
        return self._composite("struct", name, size, members)

    def union(self, name: str, size: int, members: Sequence[tuple[str | int, ...]]) -> int:
        """A union of ``size`` bytes."""
        return self._composite("union", name, size, members)

    def fwd(self, name: str, union: bool = False) -> int:
        """The declaration of a structure or union."""
        return self.raw("fwd", name, flag=union)

    def enum(
        self, name: str, values: Sequence[tuple[str, int]], size: int = 4, signed: bool = False
    ) -> int:
        """An enumeration with values of at most 32 bits."""
        words = [word for text, value in values for word in (self.string(text), value)]
        return self.raw("enum", name, size, words, len(values), signed)

    def enum64(self, name: str, values: Sequence[tuple[str, int]], signed: bool = False) -> int:
        """An enumeration with values of 64 bits."""
        words = [word for text, value in values for word in (self.string(text), value, value >> 32)]
        return self.raw("enum64", name, 8, words, len(values), signed)

    def func_proto(self, returns: int, parameters: Sequence[tuple[str, int]]) -> int:
        """The type of a function.  As last parameter, ("", 0) stands for "..."."""
        words = [word for text, type in parameters for word in (self.string(text), type)]
        return self.raw("func_proto", "", returns, words, len(parameters))

    def func(self, name: str, proto: int, linkage: int = STATIC) -> int:
        """A function."""
        return self.raw("func", name, proto, vlen=linkage)

    def var(self, name: str, type: int, linkage: int = GLOBAL) -> int:
        """A variable."""
        return self.raw("var", name, type, [linkage])

    def datasec(self, name: str, size: int, variables: Sequence[tuple[int, int, int]]) -> int:
        """A section, given by the (variable, offset, size) of each of its variables."""
        words = [word for variable in variables for word in variable]
        return self.raw("datasec", name, size, words, len(variables))

    def blob(self) -> bytes:
        """The complete BTF, with its header."""
        types, strings = b"".join(self._types), bytes(self._strings)
        head = HEADER.pack(MAGIC, 1, 0, HEADER.size, 0, len(types), len(types), len(strings))
        return head + types + strings

    def _composite(
        self, kind: str, name: str, size: int, members: Sequence[tuple[str | int, ...]]
    ) -> int:
        # With kind_flag an offset word holds the bit-field's size in its top byte.
        flag = any(len(member) > 3 for member in members)
        words: list[int] = []
        self.string(name)  # so that its string comes before those of the members
        for text, type, offset, *bits in members:
            width = bits[0] if bits else 0
            words += (self.string(str(text)), int(type), int(offset) | int(width) << 24)
        return self.raw(kind, name, size, words, len(members), flag)
