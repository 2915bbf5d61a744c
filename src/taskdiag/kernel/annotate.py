"""An emitter that takes down what its numbers mean, for people who read the program.

`compile_request` emits with it the very same code as without; an ordinary compilation
knows nothing of it and pays nothing for it.

    >>> program = compile_request(Request(Show.BASE), facts, Viewer(), Host(), Annotator)
    >>> program.code.comments[0]
    'bpf_iter__task::task'
"""

from __future__ import annotations

from copy import copy

from .asm import Code, Reg
from .emit import Emitter
from .facts import Facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .btf import Btf
    from .emit import Host
    from .member import Member
    from .viewer import Viewer

__all__ = ("Annotator", "Named")


class Named(int):
    """A number that knows where it comes from; sums of them know as well.

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
            # The offset of a member that is a structure, and of a member of that.
            return Named(total, f"{self.name}.{other.name.partition('::')[2]}")
        return Named(total, f"{self.name}{int(other):+d}" if other else self.name)


class _NamingFacts(Facts):
    """The same answers, as numbers that know what was asked."""

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
    """Comments loads with the member, locals with their name, writes with their place."""

    def __init__(
        self,
        facts: Facts,
        viewer: Viewer,
        *,
        threads: bool,
        size: int,
        arena: bool,
        host: Host,
    ) -> None:
        super().__init__(
            _NamingFacts(facts), viewer, threads=threads, size=size, arena=arena, host=host
        )
        self._comments: dict[int, str] = {}

    def _emit(self, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        for number in (off, imm):
            if isinstance(number, Named) and code != 0x85:  # a call names its function itself
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
        """Write ``src`` at ``off`` of the message."""
        self._comments[len(self)] = f"message +{off}"
        super().put(off, src, size)

    def take(self, dst: Reg, off: int, size: int) -> None:
        """Read back a number of the message."""
        self._comments[len(self)] = f"message +{off}"
        super().take(dst, off, size)

    def assemble(self) -> Code:
        """Resolve labels.  Raises AsmError."""
        code = super().assemble()
        code.comments = self._comments
        return code
