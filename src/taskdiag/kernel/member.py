"""The place and type of a member of a kernel structure, as found in BTF and kept in the cache."""

from __future__ import annotations

__all__ = ("Member",)


class Member:
    """A member of a structure: where it is, how to load it, and its type.

    Typedefs and qualifiers are resolved in all attributes except ``type``.

    ``name``       the path that was looked up, for messages
    ``offset``     bytes from the start of the object
    ``size``       bytes to load there; for a bit-field, of the unit that holds it
    ``kind``       "int", "ptr", "struct", "union", "array", "enum", "float", ...
    ``type_id``    BTF id of the type
    ``signed``     whether an int or an enum is signed
    ``bit_offset`` for a bit-field, how far to shift right after loading ``size`` bytes, else 0
    ``bit_size``   for a bit-field, how many bits to keep after that, else 0
    ``pointee``    for a pointer, the name of the structure or union; None without a name
    ``pointee_id`` for a pointer, BTF id of what it points to; 0 for ``void *``
    ``count``      for an array, the number of elements; 0 if it is flexible
    ``elem_size``  for an array, bytes of an element
    ``elem_id``    for an array, BTF id of the element's type
    ``type``       the type as C writes it: "struct mm_struct *", "kuid_t", "char[16]"
    """

    __slots__ = (
        "bit_offset",
        "bit_size",
        "count",
        "elem_id",
        "elem_size",
        "kind",
        "name",
        "offset",
        "pointee",
        "pointee_id",
        "signed",
        "size",
        "type",
        "type_id",
    )

    def __init__(
        self,
        name: str,
        offset: int,
        size: int,
        kind: str,
        type_id: int,
        type: str,
        signed: bool = False,
        bit_offset: int = 0,
        bit_size: int = 0,
        pointee: str | None = None,
        pointee_id: int = 0,
        count: int = 0,
        elem_size: int = 0,
        elem_id: int = 0,
    ) -> None:
        self.name = name
        self.offset = offset
        self.size = size
        self.kind = kind
        self.type_id = type_id
        self.type = type
        self.signed = signed
        self.bit_offset = bit_offset
        self.bit_size = bit_size
        self.pointee = pointee
        self.pointee_id = pointee_id
        self.count = count
        self.elem_size = elem_size
        self.elem_id = elem_id

    def __repr__(self) -> str:
        extra = f", bits {self.bit_offset}+{self.bit_size}" if self.bit_size else ""
        return f"<Member {self.name}: {self.type} at {self.offset}, {self.size} bytes{extra}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Member):
            return NotImplemented
        return all(getattr(self, slot) == getattr(other, slot) for slot in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def encode(self) -> str:
        r"""Return one line for the cache: twelve words, then name and type after tabs.

        >>> Member("tgid", 2436, 4, "int", 12, "pid_t", signed=True).encode()
        '2436 4 int 12 1 0 0 - 0 0 0 0\ttgid\tpid_t'
        """
        return (
            f"{self.offset} {self.size} {self.kind} {self.type_id} {self.signed:d} "
            f"{self.bit_offset} {self.bit_size} {self.pointee or '-'} {self.pointee_id} "
            f"{self.count} {self.elem_size} {self.elem_id}\t{self.name}\t{self.type}"
        )

    @classmethod
    def decode(cls, text: str) -> Member:
        """Parse what `encode` returned.  Raises ValueError."""
        words, name, type = text.split("\t")
        offset, size, kind, type_id, signed, shift, bits, pointee, target, count, each, elem = (
            words.split(" ")
        )
        return cls(
            name, int(offset), int(size), kind, int(type_id), type, signed == "1",
            int(shift), int(bits), None if pointee == "-" else pointee, int(target),
            int(count), int(each), int(elem),
        )  # fmt: skip
