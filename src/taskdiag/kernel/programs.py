"""Loaded programs: running them, reading what they write, and keeping them.

A loaded program is kept for the next request of the same shape.  Nothing outlives the
process: no object is pinned, and the kernel frees a program when its descriptors are closed.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys

from ..errors import EngineUnavailable
from . import bpf, first_process, probe, vma
from .emit import ARENA_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .compile import Program
    from .facts import Facts
    from .viewer_root import ViewerRoot

__all__ = ("Loaded", "Programs", "Run")

#: The iterator's buffer (bpf_seq_read(), kernel/bpf/bpf_iter.c).
_BUFFER = 8 * mmap.PAGESIZE
#: How many programs are kept, not counting those in use.
_KEPT = 16


class Loaded:
    """A program in the kernel, with the maps that it needs.  Freed by `close`."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self.program = program
        self.fd = -1
        self._maps: dict[str, int] = {}
        #: The keys of the names in the map.
        self._named: set[bytes] = set()
        self.deferred: mmap.mmap | None = None
        try:
            if any(name == probe.PERCPU_MAP for _, name in program.code.maps):
                self._maps[probe.PERCPU_MAP] = bpf.create_map(bpf.MAP_TYPE_PERCPU_ARRAY, 4, 8, 1)
            if any(name == first_process.WANTED for _, name in program.code.maps):
                self._maps[first_process.WANTED] = bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8, 1)
            if any(name == vma.NAMES for _, name in program.code.maps):
                sizes = vma.KEY.size, vma.NAME_KEPT.size, vma.NAMES_KEPT
                self._maps[vma.NAMES] = bpf.create_map(bpf.MAP_TYPE_HASH, *sizes, bpf.F_NO_PREALLOC)
            if program.arena:
                self._maps["arena"] = bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, ARENA_SIZE, 1)
                self._maps["deferred"] = bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8, 1, bpf.F_MMAPABLE)
                self.deferred = mmap.mmap(
                    self._maps["deferred"], mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ
                )
            self.fd = bpf.load_program(
                program.code,
                facts.type_id("func", "bpf_iter_task"),
                self._maps,
                sleepable=program.sleepable,
            )
        except BaseException:
            self.close()
            raise

    def read(
        self, fd: int, fills: int = 1, root: ViewerRoot | None = None
    ) -> Generator[tuple[bytes, bool], None, None]:
        """Yield what a run writes: whole messages, and whether any of them is incomplete.

        The program runs during readv(2); meanwhile this thread has the root directory
        ``root``, if given.
        """
        self._forget_names()
        buffer = memoryview(bytearray((fills + 1) * _BUFFER))
        pieces = _pieces(buffer, self.program.size, fills)
        before = self._count()
        while True:
            try:
                length = os.readv(fd, pieces) if root is None else root.call(os.readv, fd, pieces)
            except BlockingIOError:
                # EAGAIN: the kernel passed over a million tasks without output and gave
                # up the CPU (bpf_seq_read()).  Read again.
                continue
            if not length:
                return
            after = self._count()
            yield bytes(buffer[:length]), after != before
            before = after

    def keep_name(self, key: bytes, name: bytes) -> None:
        """Give the program the name of a file (`stacked`), for the rest of this run.

        It may not be taken: there is only room for so many, and for names of a usual length.
        """
        names = self._maps.get(vma.NAMES, -1)
        size = len(name) + 1
        if names < 0 or len(self._named) >= vma.NAMES_KEPT or size > vma.NAME_KEPT.size - 8:
            return
        self._named.add(key)
        try:
            bpf.map_update(names, key, vma.NAME_KEPT.pack(size, name))
        except bpf.BpfError:
            # There is no memory for it.
            self._named.discard(key)

    def _forget_names(self) -> None:
        """Remove all names: files may be renamed, and paths depend on who reads."""
        for key in list(self._named):
            try:
                bpf.map_delete(self._maps[vma.NAMES], key)
            except bpf.BpfError as error:
                if error.errno != errno.ENOENT:
                    raise
            self._named.discard(key)

    def _count(self) -> bytes:
        """The number of incomplete pieces so far, as bytes to compare."""
        return b"" if self.deferred is None else self.deferred[:8]

    def iterate(self, tid: int = 0, pid: int = 0) -> int:
        """Start a run over all tasks, one thread or one process; returns its descriptor."""
        link = bpf.create_link(self.fd, tid, pid)
        try:
            return bpf.create_iterator(link)
        finally:
            os.close(link)

    def read_whole(
        self, tid: int, *, by_number: bool = False, root: ViewerRoot | None = None
    ) -> bytes:
        """Everything that a run over one thread writes, or over all threads if ``tid`` is 0.

        ``by_number`` is for programs that `iterate_hidden` runs; ``root`` is as for `read`.
        """
        fd = self.iterate_hidden(tid) if by_number else self.iterate(tid=tid)
        try:
            return b"".join(data for data, _ in self.read(fd, root=root))
        finally:
            os.close(fd)

    def iterate_hidden(self, tid: int) -> int:
        """Start a run about a thread of process 1; returns its descriptor.

        The program must have been compiled with ``by_number``.  No other run of it may be
        started until this one has been read.
        """
        from _thread import get_native_id

        bpf.map_update(self._maps[first_process.WANTED], bytes(4), tid.to_bytes(8, sys.byteorder))
        return self.iterate(tid=get_native_id())

    def close(self) -> None:
        """Free the program and its maps."""
        if self.deferred is not None:
            self.deferred.close()
            self.deferred = None
        for fd in (self.fd, *self._maps.values()):
            if fd >= 0:
                os.close(fd)
        self.fd, self._maps = -1, {}

    def __del__(self) -> None:
        # An answer that was never read is freed only here.  When the interpreter exits,
        # modules may be gone already; the descriptors are then closed with the process.
        if os is not None:
            self.close()


class Run:
    """The descriptor of one run of a program, closed at the latest when the object is freed."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if os is not None:
            self.close()


class Programs:
    """Loads programs, and keeps those that are not in use.  Freed by `close`.

    Several threads may use it.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        #: How many programs are kept.
        self.kept = _KEPT
        self._idle: dict[object, Loaded] = {}

    def take(self, key: object, make: Callable[[], Program]) -> Loaded:
        """The program kept under ``key``, or a new one made by ``make``.

        It belongs to the caller until it is passed to `keep`, or closed.
        """
        idle = self._idle.pop(key, None)
        return self.load(make()) if idle is None else idle

    def load(self, program: Program) -> Loaded:
        """Load a program.  Raises VerifierError, EngineUnavailable."""
        try:
            return Loaded(program, self._facts)
        except bpf.VerifierError:
            raise
        except bpf.BpfError as error:
            raise EngineUnavailable(error.errno, _refusal(error)) from None

    def ask(self, program: Program, tid: int = 0) -> tuple[int, ...]:
        """Run a program once for a thread, by default this one; returns the u64s it writes."""
        from _thread import get_native_id

        loaded = self.load(program)
        try:
            # Not the main thread, which may have exited and then has no memory.
            data = loaded.read_whole(tid or get_native_id())
        finally:
            loaded.close()
        return tuple(
            int.from_bytes(data[at : at + 8], sys.byteorder) for at in range(0, len(data), 8)
        )

    def keep(self, key: object, loaded: Loaded) -> None:
        """Keep a program for the next `take`.  If there are too many, the oldest is freed."""
        # Several threads may be here at once; each step is atomic.
        if self._idle.setdefault(key, loaded) is not loaded:
            loaded.close()
            return
        while len(self._idle) > self.kept:
            oldest = self._idle.pop(next(iter(list(self._idle)), None), None)
            if oldest is not None:
                oldest.close()

    def close(self) -> None:
        """Free the programs that are kept; those in use are freed by their users."""
        while self._idle:
            self._idle.popitem()[1].close()


def _pieces(buffer: memoryview, size: int, fills: int) -> list[memoryview]:
    """Cut a buffer so that one readv(2) returns as many whole messages as possible.

    For each piece the kernel fills its own buffer once, with as many messages of ``size`` as
    fit (seq_write() leaves one byte free), and continues with the next piece if all of them
    fitted into this one.  The last piece has room for a whole buffer, so that no message is
    cut.
    """
    most = (_BUFFER - 1) // size * size if size else 0
    cuts = [most * index for index in range(fills)] if size else [0]
    return [buffer[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(buffer)], strict=True)]


def _refusal(error: bpf.BpfError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the kernel engine needs CAP_BPF and CAP_PERFMON (or root): see taskdiag doctor"
    if error.errno == errno.ENOSYS:
        return "the kernel engine needs bpf(2), which this kernel lacks"
    why = os.strerror(error.errno or 0)
    return f"the kernel refused to load a program ({why}): see taskdiag doctor"
