"""An emitter that also records what its numbers mean, for people who read the program.

`compile_request` emits the same code with it as without it.  Only `explain` uses it, so
that an ordinary compilation does not pay for the comments.

    >>> program = compile_request(Request(Show.BASE), facts, Viewer(), Host(), Annotator)
    >>> program.code.comments[0]
    'bpf_iter__task::task'
"""

from __future__ import annotations

from copy import copy

from .asm import CALL, Code, Reg
from .emit import Emitter
from .facts import Facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .btf import Btf
    from .member import Member
    from .viewer import Viewer

__all__ = ("Annotator", "Named")


class Named(int):
    """A number with the name of what it stands for.  Sums keep the name.

    >>> (Named(8, "pid::numbers") + 16).name
    'pid::numbers+16'
    """

    name: str

    def __new__(cls, value: int, name: str) -> Named:
        number = super().__new__(cls, value)
        number.name = name
        return number

    def __add__(self, other: int) -> int:
        total = int(self) + int(other)
        if isinstance(other, Named):
            # The offset of a member that is a structure, plus one inside that structure.
            return Named(total, f"{self.name}.{other.name.partition('::')[2]}")
        return Named(total, f"{self.name}{int(other):+d}" if other else self.name)


class _NamingFacts(Facts):
    """The same answers as other facts, as numbers named after the question."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @property
    def btf(self) -> Btf:
        return self._facts.btf

    def _raw(self, key: str, compute: Callable[[Btf], str]) -> str:
        return self._facts._raw(key, compute)

    def type_id(self, kind: str, name: str) -> int:
        return Named(super().type_id(kind, name), name if kind == "func" else f"{kind} {name}")

    def enumerator(self, name: str) -> int:
        return Named(super().enumerator(name), name)

    def member(self, type: str | int, path: str) -> Member:
        return _renamed(super().member(type, path), _bare(type), path)

    def path(self, type: str | int, path: str) -> list[Member]:
        found, owner = [], _bare(type)
        for member in super().path(type, path):
            found.append(_renamed(member, owner, member.name))
            owner = member.pointee or "?"
        return found


def _bare(type: str | int) -> str:
    return str(type).rpartition(" ")[2]


def _renamed(member: Member, owner: str, path: str) -> Member:
    other = copy(member)
    other.offset = Named(member.offset, f"{owner}::{path}")
    return other


class Annotator(Emitter):
    """An emitter whose code has comments: members, names of locals, places in the message."""

    def __init__(self, facts: Facts, viewer: Viewer, **options: Any) -> None:
        super().__init__(_NamingFacts(facts), viewer, **options)
        self._comments: dict[int, str] = {}

    def _emit(self, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        for number in (off, imm):
            if isinstance(number, Named) and code != CALL:  # the text of a call has the name
                self._comments[len(self)] = number.name
        super()._emit(code, dst, src, off, imm)

    def get(self, dst: Reg, name: str) -> None:
        """``dst`` = a local."""
        self._comments[len(self)] = f"local {name}"
        super().get(dst, name)

    def set(self, name: str, src: int) -> None:
        """A local = ``src``."""
        self._comments[len(self)] = f"local {name}"
        super().set(name, src)

    def put(self, off: int, src: int, size: int) -> None:
        """Write ``src`` at offset ``off`` of the message."""
        self._comments[len(self)] = f"message +{off}"
        super().put(off, src, size)

    def take(self, dst: Reg, off: int, size: int) -> None:
        """``dst`` = a number that was written at offset ``off`` of the message."""
        self._comments[len(self)] = f"message +{off}"
        super().take(dst, off, size)

    def assemble(self) -> Code:
        """The bytecode, with the comments.  Raises AsmError as `Assembler.assemble` does."""
        code = super().assemble()
        code.comments = self._comments
        return code
