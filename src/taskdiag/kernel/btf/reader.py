"""The running kernel's types: find types, members and enumerators by name."""

from __future__ import annotations

from ...errors import EngineUnavailable
from .format import MAX_DEPTH, NUMBER, BtfError, NotFound
from .index import Index
from .paths import follow_path
from .printer import Printer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..member import Member

__all__ = ("VMLINUX", "Btf", "cannot_read")

VMLINUX = "/sys/kernel/btf/vmlinux"

#: "enum" in a question stands for enums of either width.
_SAME = {"enum": ("enum", "enum64")}
_POINTER = 8
_SIZED = ("int", "struct", "union", "enum", "enum64", "float", "datasec")


class Btf(Index):
    """One BTF blob, indexed.

    >>> btf = Btf.load()
    >>> btf.member("struct task_struct", "tgid")
    <Member tgid: pid_t at 2436, 4 bytes>
    >>> btf.enumerator("PIDTYPE_SID")
    3

    A type is named as in C, "struct mm_struct", "union x" or "kuid_t"; a name alone is
    looked up as struct, union, typedef, enum and int, in this order.  An int is a type id.
    """

    @classmethod
    def load(cls, path: str = VMLINUX) -> Btf:
        """The BTF of the running kernel.

        Raises EngineUnavailable if the file is missing or unreadable, and BtfError, which
        is a kind of it, if it holds no valid BTF.  The message names the file.
        """
        try:
            with open(path, "rb", 0) as file:
                blob = file.read()
        except OSError as error:
            raise cannot_read(path, error) from None
        return cls(blob, path)

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
        """An enumerator's value, from any enum: ``enumerator("MM_ANONPAGES")`` is 1.

        Raises NotFound.
        """
        found = self.find_enumerator(name)
        if found is None:
            raise NotFound(f"this kernel has no enumerator {name!r}")
        return found

    def has_enumerator(self, name: str) -> bool:
        """Whether any enum has that enumerator."""
        return self.find_enumerator(name) is not None

    def _find_type(self, kind: str, name: str) -> int | None:
        if kind not in NUMBER:
            raise BtfError(f"there is no kind of type {kind!r}")
        return self.find_type(_SAME.get(kind, (kind,)), name)

    def _type(self, type: str | int) -> int:
        """The id of a type given by name or id."""
        if isinstance(type, int):
            self.record(type)
            return type
        kind, _, name = type.rpartition(" ")
        if kind:
            return self.type_id(kind, name)
        for kind in ("struct", "union", "typedef", "enum", "int"):
            found = self._find_type(kind, name)
            if found is not None:
                return found
        raise NotFound(f"this kernel has no type {name!r}")

    # -- questions about types ---------------------------------------------------------

    def size(self, type: str | int) -> int:
        """The size of a type in bytes: ``size("struct list_head")`` is 16."""
        type_id, times = self._type(type), 1
        for _ in range(MAX_DEPTH):
            type_id = self.strip(type_id)
            kind, at, _ = self.record(type_id)
            if kind == "array":
                times *= self.words[at + 5]
                type_id = self.words[at + 3]
                continue
            if kind == "var":
                type_id = self.words[at + 2]
                continue
            if kind == "ptr":
                return _POINTER * times
            if kind in _SIZED:
                return self.words[at + 2] * times
            raise BtfError(f"{self.spell(type_id)} has no size")
        raise self.error(type_id, f"arrays nested more than {MAX_DEPTH} deep")

    def member(self, type: str | int, path: str) -> Member:
        """Where a member lies within an object of the type; pointers are not followed.

        >>> btf.member("struct task_struct", "se.sum_exec_runtime")
        <Member se.sum_exec_runtime: u64 at 320, 8 bytes>

        Raises NotFound, naming the part of the path that does not exist, and BtfError if
        a pointer would have to be followed.
        """
        return follow_path(self, self._type(type), path, pointers=False)[0]

    def path(self, type: str | int, path: str) -> list[Member]:
        """The loads that a path takes: each pointer to be followed, then the member.

        >>> btf.path("task_struct", "signal->pids[PIDTYPE_SID]->numbers[0].nr")
        [<Member signal: struct signal_struct * at 2880, 8 bytes>,
         <Member pids[PIDTYPE_SID]: struct pid * at 424, 8 bytes>,
         <Member numbers[0].nr: int at 112, 4 bytes>]

        A "." after a pointer follows it as "->" does.  An index may be an enumerator.
        Raises NotFound, naming the part of the path that does not exist.
        """
        return follow_path(self, self._type(type), path, pointers=True)

    def has_member(self, type: str | int, path: str) -> bool:
        """Whether `path` would find it (False also if there is no such type)."""
        try:
            self.path(type, path)
        except NotFound:
            return False
        return True

    def func_proto(self, name: str) -> list[tuple[str, str]]:
        """The parameters of a function: name and type of each.

        >>> btf.func_proto("bpf_iter_task_new")
        [('it', 'struct bpf_iter_task *'), ('task__nullable', 'struct task_struct *'),
         ('flags', 'unsigned int')]

        Raises NotFound.
        """
        proto = self.target(self.type_id("func", name))
        kind, at, info = self.record(proto)
        if kind != "func_proto":
            raise self.error(proto, f"function {name!r} is of kind {kind}")
        words = self.words
        return [
            (self.string(words[p]), self.spell(words[p + 1]) if words[p + 1] else "...")
            for p in range(at + 3, at + 3 + 2 * (info & 0xFFFF), 2)
        ]

    # -- types as C ----------------------------------------------------------------------

    def spell(self, type_id: int, declares: str = "") -> str:
        """A type as C writes it, or the declaration of a name of that type.

        >>> btf.spell(btf.member("task_struct", "comm").type_id, "comm")
        'char comm[16]'
        """
        return Printer(self).declare(type_id, declares)

    def dump(self, type: str | int) -> str:
        """The definition of a type as C text, offsets and sizes in comments.

        >>> print(btf.dump("struct list_head"))
        struct list_head {
                struct list_head *next; /* 0, 8 */
                struct list_head *prev; /* 8, 8 */
        }; /* 16 */
        """
        return Printer(self).definition(self._type(type))


def cannot_read(path: str, error: OSError) -> EngineUnavailable:
    """The error for a file of BTF that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return EngineUnavailable(
            f"this kernel does not describe its types: {path} does not exist"
            " (it needs CONFIG_DEBUG_INFO_BTF, and /sys mounted)"
        )
    return EngineUnavailable(error.errno, f"cannot read {path}: {error.strerror}")
