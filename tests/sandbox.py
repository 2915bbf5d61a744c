"""Pieces of programs run by the kernel on numbers that a test chose, instead of on tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct

from taskdiag.kernel import bpf
from taskdiag.kernel.asm import R0, R1, R6, R9, Reg
from taskdiag.kernel.emit import Emitter, Host
from taskdiag.kernel.facts import Facts
from taskdiag.kernel.viewer import Viewer

WORD = Struct("=Q")


class Sandbox(Emitter):
    """An emitter whose kernel is one map: R9 points to numbers of eight bytes.

    ``members`` says which of them stands for a member that the code follows.  The message
    is the map as well.
    """

    def __init__(self, members: dict[str, int], *, threads: bool = False) -> None:
        super().__init__(Facts.live(), Viewer(), threads=threads, size=0, arena=True, host=Host())
        self.members = members
        self.load(R6, R1, self.facts.member("bpf_iter__task", "task").offset)
        self.jump("==", R6, 0, "end")
        self.map_value(R9, "numbers")

    def follow(self, dst: Reg, base: Reg, struct: str, path: str) -> int:
        """``dst`` = the number that stands for the member."""
        self.load(dst, R9, 8 * self.members[path])
        return 8

    def end(self) -> None:
        """The program's end; subprograms may follow."""
        self.label("end")
        self.mov(R0, 0)
        self.exit()


@contextmanager
def running(c: Sandbox, count: int) -> Iterator[Callable[[list[int]], list[int]]]:
    """A function that puts ``count`` numbers into the map, runs the program and gives back
    what it left there."""
    held = [bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8 * count, 1)]
    key = bytes(4)
    try:
        code = c.assemble()
        target = c.facts.type_id("func", "bpf_iter_task")
        held.append(bpf.load_program(code, target, {"numbers": held[0]}))
        held.append(bpf.create_link(held[1], tid=os.getpid()))

        def run(numbers: list[int]) -> list[int]:
            data = b"".join(WORD.pack(number) for number in numbers)
            bpf.map_update(held[0], key, data.ljust(8 * count, b"\0"))
            iterator = bpf.create_iterator(held[2])
            try:
                assert os.read(iterator, 4096) == b""
            finally:
                os.close(iterator)
            found = bpf.map_lookup(held[0], key, 8 * count)
            return [number for (number,) in WORD.iter_unpack(found)]

        yield run
    finally:
        for fd in held:
            os.close(fd)
