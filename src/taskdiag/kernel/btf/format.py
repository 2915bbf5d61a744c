"""The BTF format: the header, the kinds of types, and the errors of those who read it.

Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from __future__ import annotations

from struct import Struct

from ...errors import EngineUnavailable

__all__ = (
    "COMPOSITE",
    "EACH",
    "FIXED",
    "HEADER",
    "KINDS",
    "MAGIC",
    "MAX_DEPTH",
    "NUMBER",
    "WRAPPERS",
    "BtfError",
    "NotFound",
    "sections",
)

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
NUMBER = {name: number for number, name in enumerate(KINDS)}

MAGIC = 0xEB9F
#: magic, version, flags, header length, offset and length of types and of strings
HEADER = Struct("=HBBIIIII")
#: 4-byte words that follow the three common ones of a type.
FIXED = {"int": 1, "array": 3, "var": 1, "decl_tag": 1}
#: The same, for each of the vlen members, values, parameters or variables.
EACH = {"struct": 3, "union": 3, "enum": 2, "func_proto": 2, "datasec": 3, "enum64": 3}
#: Kinds that only rename or qualify another type.
WRAPPERS = frozenset(("typedef", "volatile", "const", "restrict", "type_tag"))
COMPOSITE = frozenset(("struct", "union"))

#: Limit for chains of typedefs, qualifiers or arrays: far above any kernel's, so that
#: only a cycle reaches it.
MAX_DEPTH = 64


class BtfError(EngineUnavailable, ValueError):
    """The BTF is malformed, or it does not fit the question.

    Either way no program can be made from it, so another engine has to answer.
    """


class NotFound(BtfError, KeyError):
    """The BTF has no type, member or enumerator of that name."""


def sections(blob: bytes) -> tuple[range, range]:
    """The byte ranges of the type section and of the string section.

    Raises BtfError if the header is not valid, with the offset of what is wrong.
    """
    if not blob:
        raise BtfError("it is empty")
    if len(blob) < HEADER.size:
        raise BtfError(f"it has {len(blob)} bytes, too few for a header of {HEADER.size}")
    magic, version, _, header, type_at, type_len, str_at, str_len = HEADER.unpack_from(blob)
    if magic == 0x9FEB:
        raise BtfError("it is BTF of a machine with the other byte order")
    if magic != MAGIC:
        raise BtfError(f"it is not BTF: its magic number is {magic:#06x}, not {MAGIC:#x}")
    if version != 1:
        raise BtfError(f"byte 2: BTF version {version} is not supported, only version 1")
    if header < HEADER.size:
        raise BtfError(f"byte 4: the header has {header} bytes, expected at least {HEADER.size}")
    types = range(header + type_at, header + type_at + type_len)
    strings = range(header + str_at, header + str_at + str_len)
    if type_at & 3 or type_len & 3:
        raise BtfError(f"byte 8: the types are not aligned to 4 bytes ({type_at}, {type_len})")
    for at, name, section in ((8, "types", types), (16, "strings", strings)):
        if section.stop > len(blob):
            raise BtfError(
                f"byte {at}: the {name} end at byte {section.stop}, the data at byte {len(blob)}"
            )
    if not str_len or blob[strings.start] or blob[strings.stop - 1]:
        raise BtfError(f"byte {strings.start}: the strings do not begin and end with a NUL")
    return types, strings
