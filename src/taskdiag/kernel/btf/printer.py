"""Types written as C, with offsets and sizes in comments."""

from __future__ import annotations

from .format import COMPOSITE, EACH, MAX_DEPTH, BtfError
from .index import enum_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .reader import Btf

__all__ = ("Printer",)

#: Declarations and members of one text.
_MAX_PARTS = 20_000


class Printer:
    """Writes types of one blob.  Raises BtfError for a type of more than 20,000 parts."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self._left = _MAX_PARTS

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise BtfError(f"a type of more than {_MAX_PARTS} parts")

    def declare(self, type_id: int, name: str = "", depth: int = 0) -> str:
        """A declaration of ``name`` with that type; without a name, just the type."""
        btf, front = self.btf, ""
        for _ in range(MAX_DEPTH):
            self._spend()
            kind, at, info = btf.record(type_id)
            if kind in ("const", "volatile", "restrict"):
                type_id = btf.words[at + 2]
                if btf.kind(type_id) == "ptr":
                    name = f"{kind} {name}".rstrip()
                elif kind != "restrict":
                    front += f"{kind} "
            elif kind == "type_tag":
                type_id = btf.words[at + 2]
            elif kind == "ptr":
                type_id = btf.words[at + 2]
                name = f"*{name}"
            elif kind == "array":
                type_id = btf.words[at + 3]
                count = btf.words[at + 5]
                name = f"({name})" if name.startswith("*") else name
                name += f"[{count or ''}]"
            elif kind == "func_proto":
                name = f"({name})" if name.startswith("*") else name
                name += f"({self._parameters(at, info, depth)})"
                type_id = btf.words[at + 2]
            else:
                space = " " if name and not name.startswith("[") else ""
                return f"{front}{self._base(type_id)}{space}{name}"
        raise btf.error(type_id, f"a declaration more than {MAX_DEPTH} deep")

    def _parameters(self, at: int, info: int, depth: int) -> str:
        if depth > 8:
            return "..."
        btf, words = self.btf, self.btf.words
        shown = [
            self.declare(words[p + 1], btf.string(words[p]), depth + 1) if words[p + 1] else "..."
            for p in range(at + 3, at + 3 + 2 * (info & 0xFFFF), 2)
        ]
        return ", ".join(shown) or "void"

    def _base(self, type_id: int) -> str:
        btf = self.btf
        kind, _, info = btf.record(type_id)
        name = btf.name(type_id)
        if kind == "void":
            return "void"
        if kind == "fwd":
            kind = "union" if info >> 31 else "struct"
        if kind in ("struct", "union", "enum", "enum64"):
            return f"{kind.removesuffix('64')} {name or '{...}'}"
        return name or kind

    def definition(self, type_id: int) -> str:
        """The definition of a type, semicolon included."""
        btf = self.btf
        kind, at, info = btf.record(type_id)
        if kind in COMPOSITE:
            body = self._body(type_id, 0)
            return f"{body}; /* {btf.words[at + 2]} */"
        if kind in ("enum", "enum64"):
            return f"{self._enum(type_id)};"
        if kind == "typedef":
            inner, name = btf.words[at + 2], btf.name(type_id)
            if btf.kind(inner) in ("struct", "union", "enum", "enum64") and not btf.name(inner):
                return f"typedef {self._whole(inner, 0)} {name};"
            return f"typedef {self.declare(inner, name)};"
        if kind == "func":
            return f"{self.declare(btf.words[at + 2], btf.name(type_id))};"
        if kind == "var":
            return f"{self.declare(btf.words[at + 2], btf.name(type_id))};"
        if kind == "datasec":
            lines = [f"/* section {btf.name(type_id)}, {btf.words[at + 2]} bytes */"]
            for p in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
                var, offset, size = btf.words[p : p + 3]
                lines.append(f"{self._variable(var)} /* {offset}, {size} */")
            return "\n".join(lines)
        return f"{self.declare(type_id)};"

    def _variable(self, type_id: int) -> str:
        """A variable of a section, or in a program's BTF a function."""
        if self.btf.kind(type_id) not in ("var", "func"):
            raise self.btf.error(type_id, "expected a variable or a function")
        return self.definition(type_id)

    def _whole(self, type_id: int, depth: int) -> str:
        if self.btf.kind(type_id) in COMPOSITE:
            return self._body(type_id, depth)
        return self._enum(type_id)

    def _enum(self, type_id: int) -> str:
        btf = self.btf
        kind, at, info = btf.record(type_id)
        lines, each = [f"enum {btf.name(type_id)}".rstrip() + " {"], EACH[kind]
        for p in range(at + 3, at + 3 + each * (info & 0xFFFF), each):
            self._spend()
            value = btf.words[p + 1] | (btf.words[p + 2] << 32 if each == 3 else 0)
            value = enum_value(value, 32 * (each - 1), info)
            lines.append(f"\t{btf.string(btf.words[p])} = {value},")
        return "\n".join([*lines, "}"])

    def _body(self, type_id: int, depth: int) -> str:
        btf, indent = self.btf, "\t" * depth
        kind = btf.kind(type_id)
        if depth > 16:
            raise btf.error(type_id, "anonymous members more than 16 deep")
        lines = [f"{kind} {btf.name(type_id)}".rstrip() + " {"]
        for name_at, inner, where, bits in btf.members(type_id):
            self._spend()
            name = btf.string(name_at)
            if bits:
                place = f"{where >> 3}:{where & 7}, {bits} bits"
                text = f"{self.declare(inner, name)}:{bits}"
            else:
                place = f"{where >> 3}, {btf.size(inner)}"
                text = self._member(inner, name, depth + 1)
            lines.append(f"{indent}\t{text}; /* {place} */")
        return "\n".join([*lines, indent + "}"])

    def _member(self, type_id: int, name: str, depth: int) -> str:
        """A member's declaration; the members of an anonymous structure are written out."""
        btf, base = self.btf, type_id
        for _ in range(MAX_DEPTH):
            kind, at, _ = btf.record(base)
            if kind not in ("ptr", "array", "const", "volatile", "type_tag"):
                break
            base = btf.words[at + (3 if kind == "array" else 2)]
        text = self.declare(type_id, name)
        if kind in ("struct", "union", "enum", "enum64") and not btf.name(base):
            return text.replace(f"{kind.removesuffix('64')} {{...}}", self._whole(base, depth), 1)
        return text
