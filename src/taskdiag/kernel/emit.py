"""What all kernel subjects need to emit code: member loads, locals, the current message.

Registers have the same use throughout an iterator program:

    R6  the task               R8  its signal_struct
    R7  its mm, 0 if none      R9  the arena, if the program has one
    R0 to R5 are scratch: calls and functions of the subject modules may change them.
    A function that computes a number leaves it in R0.
"""

from __future__ import annotations

import os

from .asm import R0, R1, R2, R3, R6, R7, R8, R9, R10, Assembler, Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .facts import Facts
    from .viewer import Viewer

__all__ = (
    "ARENA",
    "ARENA_LOCALS",
    "ARENA_SIZE",
    "FLAGS",
    "FRAME",
    "HELPERS",
    "MM",
    "SIGNAL",
    "TASK",
    "Emitter",
    "Host",
)

TASK, MM, SIGNAL, ARENA = R6, R7, R8, R9

#: Bytes of the stack for locals; the message has the rest of the 512.
FRAME = 72

#: Size of the arena: locals, a message of at most 32 KiB (the iterator's buffer), and room
#: for one more path after it.
ARENA_SIZE = 48 << 10
#: Where the message starts in the arena; R9 points there.
ARENA_LOCALS = 64

#: ``enum bpf_func_id`` (include/uapi/linux/bpf.h)
HELPERS = {
    "map_lookup_elem": 1,
    "probe_read_kernel": 113,
    "probe_read_kernel_str": 115,
    "seq_write": 127,
    "d_path": 147,
    "find_vma": 180,
    "loop": 181,
    "copy_from_user_task": 191,
    "map_lookup_percpu_elem": 195,
}

_IN_ARENA = ("length", "first", "last file", "last record")

#: The offset of ``task_diag_msg.flags`` in a message.
FLAGS = 24

_ROOTS = {
    "task": (TASK, "task_struct"),
    "mm": (MM, "mm_struct"),
    "signal": (SIGNAL, "signal_struct"),
}


class Host:
    """What programs depend on in the running system, other than its types.

    ``per_cpu``      ``__per_cpu_offset[]`` of the possible CPUs
    ``special_ops``  the address of ``special_mapping_vmops``
    ``gate``         the record of the gate VMA, b"" if there is none
    ``hides_first``  whether iterators do not visit process 1; None if not yet known

    Each is determined when a request first needs it.  ``marker`` is a random number that marks
    records without a name, see `stacked`.
    """

    __slots__ = ("gate", "hides_first", "marker", "per_cpu", "special_ops")

    def __init__(
        self, per_cpu: tuple[int, ...] = (), special_ops: int = 0, gate: bytes = b""
    ) -> None:
        self.per_cpu = per_cpu
        self.special_ops = special_ops
        self.gate = gate
        self.hides_first: bool | None = None
        self.marker = os.urandom(12)


class Emitter(Assembler):
    """An assembler with the running kernel's types, for a program that builds a message.

    ``threads`` says that messages are about threads, and ``any_thread`` that the task need not
    be the leader of its process.  ``size`` is the size of the fixed part of the message, which
    is on the stack, or with ``arena`` in the arena.
    """

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
        super().__init__()
        self.facts = facts
        self.viewer = viewer
        self.threads = threads
        self.any_thread = threads
        self.arena = arena
        self.host = host
        self._out, self._start = (ARENA, 0) if arena else (R10, -(FRAME + (size + 7 & ~7)))
        self._locals: dict[str, int] = {}
        self._used = 0

    # --- Locals ---------------------------------------------------------------

    def local(self, name: str, size: int = 8) -> int:
        """The frame offset of a local, which is allocated when it is first used."""
        if name not in self._locals:
            self._used += size
            if self._used > (512 if self.arena else FRAME):
                raise AssertionError(f"no room for local {name}")
            self._locals[name] = -self._used
        return self._locals[name]

    def scratch(self) -> int:
        """The frame offset of 24 bytes that any function may overwrite."""
        return self.local("scratch", 24)

    def get(self, dst: Reg, name: str) -> None:
        """``dst`` = a local."""
        base, at = self._place(name)
        self.load(dst, base, at)

    def set(self, name: str, src: int) -> None:
        """A local = ``src``."""
        base, at = self._place(name)
        self.store(base, at, src)

    def _place(self, name: str) -> tuple[Reg, int]:
        # Variables that a loop changes are in the arena.  The verifier does not track numbers
        # there, so all iterations look the same to it, and it stops following the loop.
        if name in _IN_ARENA:
            return ARENA, -8 * (1 + _IN_ARENA.index(name))
        return R10, self.local(name)

    # --- The kernel's structures -------------------------------------------------

    def follow(self, dst: Reg, base: Reg, struct: str, path: str) -> int:
        """``dst = base->path``, following the pointers in the path; returns the value's size.

        A load through an invalid pointer gives 0.
        """
        *hops, last = self.facts.path(struct, path)
        for hop in hops:
            self.load(dst, base, hop.offset)
            base = dst
        self.load(dst, base, last.offset, last.size)
        return last.size

    def resolve(self, expression: str) -> tuple[Reg, str, str]:
        """The register, structure and path that ``task->signal->cutime`` starts with."""
        root, _, path = expression.partition("->")
        base, struct = _ROOTS[root]
        if path.startswith("signal->") and root == "task":
            base, struct, path = SIGNAL, "signal_struct", path[8:]
        return base, struct, path

    def follow_expression(self, dst: Reg, expression: str) -> int:
        """`follow` for an expression that starts at a root: ``task->signal->cutime``."""
        base, struct, path = self.resolve(expression)
        return self.follow(dst, base, struct, path)

    def untrusted(self, dst: Reg, src: Reg, struct: str) -> None:
        """``dst = src``, as a pointer that can be read through but not passed to functions.

        For every pointer that is loaded through a trusted one, the verifier looks up, by
        name in all of BTF, which fields inherit trust.  That takes half a millisecond.
        """
        # Since Linux kernel commit a35b9af4ec2c ("bpf: Add a kfunc for generic type cast")
        # (in v6.2), there is a function for this.
        if self.facts.has("func", "bpf_rdonly_cast"):
            self.mov(R1, src)
            self.mov(R2, self.facts.type_id("struct", struct))
            self.kfunc("bpf_rdonly_cast")
            src = R0
        self.mov(dst, src)

    def kfunc(self, name: str) -> None:
        """Call a kernel function by name."""
        self.call_kfunc(self.facts.type_id("func", name))

    def helper(self, name: str) -> None:
        """Call a helper by name."""
        self.call(HELPERS[name])

    # --- The message ---------------------------------------------------------------

    def put(self, off: int, src: int, size: int) -> None:
        """Write ``src`` (a register or an immediate) at offset ``off`` of the message.

        Stores to the stack must be aligned.  An unaligned number is written in pieces,
        which changes the register.
        """
        at = self._start + off
        if self.arena or not at % size:
            self.store(self._out, at, src, size)
            return
        piece = 4 if size == 8 and not at % 4 else 1
        for index in range(0, size, piece):
            if not isinstance(src, Reg):
                self.store(self._out, at + index, src >> 8 * index & (1 << 8 * piece) - 1, piece)
                continue
            self.store(self._out, at + index, src, piece)
            if index + piece < size:
                self.alu("rsh", src, 8 * piece)

    def take(self, dst: Reg, off: int, size: int) -> None:
        """``dst`` = a number that `put` wrote with this size at offset ``off`` of the message."""
        at = self._start + off
        if self.arena or not at % size:
            self.load(dst, self._out, at, size)
        else:
            # Only used for a u64 that put() wrote in two halves.
            self.load(dst, self._out, at + 4, 4)
            self.alu("lsh", dst, 32)
            self.load(R3, self._out, at, 4)
            self.alu("or", dst, R3)

    def address(self, dst: Reg, off: int) -> None:
        """``dst`` = the address of offset ``off`` of the message."""
        self.mov(dst, self._out)
        if self._start + off:
            self.alu("add", dst, self._start + off)

    def defer(self) -> None:
        """Mark the message as to be completed from procfs, and count it for the engine."""
        self.put(FLAGS, -(1 << 31), 4)
        self.count_deferred()

    def count_deferred(self) -> None:
        """Tell the engine that a part of the message is left to user space."""
        self.map_value(R1, "deferred")
        self.load(R2, R1, 0)
        self.alu("add", R2, 1)
        self.store(R1, 0, R2)

    def write(self, length: int) -> None:
        """Write the message to the output; ``length`` is R3 or a constant."""
        if not (isinstance(length, Reg) and length == R3):
            self.mov(R3, length)
        self.address(R2, 0)
        self.get(R1, "seq")
        self.helper("seq_write")

    def at_least(self, dst: Reg, other: Reg) -> None:
        """``dst = max(dst, other)`` for unsigned numbers."""
        done = self.fresh("at_least")
        self.jump(">=", dst, other, done)
        self.mov(dst, other)
        self.label(done)

    def not_negative(self, dst: Reg) -> None:
        """``dst = max(dst, 0)`` for signed numbers."""
        done = self.fresh("not_negative")
        self.jump("s>=", dst, 0, done)
        self.mov(dst, 0)
        self.label(done)

    def result(self, value: int) -> None:
        """``R0 = value``, for functions that leave a number in R0."""
        self.mov(R0, value)
