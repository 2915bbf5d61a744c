"""The kernel engine: loads the program for a request and reads the iterator.

A loaded program is kept for the next request of the same shape.  Nothing outlives
the process: no pinned object, and what the descriptors held goes when they are closed.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from itertools import chain

from ..abi import Dump, Show
from ..capability import CAP_SYS_PTRACE, effective
from ..errors import EngineUnavailable, NoSuchProcess
from ..netlink import in_order
from ..readahead import readahead
from ..request import Request
from . import bpf, mm, probe, vma
from .compile import compile_request, missing_features
from .emit import ARENA_SIZE, Host
from .facts import Facts
from .viewer import INIT_PID_NS, INIT_USER_NS, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from .compile import Program

__all__ = ("KernelEngine", "Loaded")

#: The iterator's buffer (bpf_seq_read(), kernel/bpf/bpf_iter.c).
_BUFFER = 8 * mmap.PAGESIZE
#: How often that is filled for one readv(2) when a thread reads ahead: the fewer calls, the
#: less it and the one that works on the answer wait for each other.  Alone, a buffer that
#: stays in the processor's cache is faster.
_FILLS = 8
_PID_1 = (1).to_bytes(4, sys.byteorder)
#: Loaded programs that are kept, besides those in use.
_KEPT = 16
#: Bytes of an answer that has to be put in order as a whole.
_MOST_SORTED = 1 << 28


class Loaded:
    """A program in the kernel, with the maps that it needs.  Freed by `close`."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self.program = program
        self.fd = -1
        self._maps: dict[str, int] = {}
        self.deferred: mmap.mmap | None = None
        try:
            if any(name == probe.PERCPU_MAP for _, name in program.code.maps):
                self._maps[probe.PERCPU_MAP] = bpf.create_map(bpf.MAP_TYPE_PERCPU_ARRAY, 4, 8, 1)
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

    def read(self, fd: int, fills: int = 1) -> Generator[tuple[bytes, bool], None, None]:
        """What a run writes: whole messages, and whether any was left to procfs in part."""
        buffer = memoryview(bytearray((fills + 1) * _BUFFER))
        pieces = _pieces(buffer, self.program.size, fills)
        before = self._count()
        while True:
            try:
                length = os.readv(fd, pieces)
            except BlockingIOError:
                # A long way without a task to show: the kernel pauses to be polite.
                continue
            if not length:
                return
            after = self._count()
            yield bytes(buffer[:length]), after != before
            before = after

    def _count(self) -> bytes:
        """How many messages were left to procfs so far, as an opaque value."""
        return b"" if self.deferred is None else self.deferred[:8]

    def iterate(self, tid: int = 0, pid: int = 0) -> int:
        """A descriptor to read one run from, over all tasks or those of a thread or process."""
        link = bpf.create_link(self.fd, tid, pid)
        try:
            return bpf.create_iterator(link)
        finally:
            os.close(link)

    def close(self) -> None:
        """Give the program and its maps back."""
        if self.deferred is not None:
            self.deferred.close()
            self.deferred = None
        for fd in (self.fd, *self._maps.values()):
            if fd >= 0:
                os.close(fd)
        self.fd, self._maps = -1, {}

    def __del__(self) -> None:
        # Of an answer that nobody began to read no other code of ours runs any more.  At
        # the interpreter's end modules may be gone, and descriptors go with the process.
        if os is not None:
            self.close()


class _Run:
    """The descriptor of one run of a program, closed at the latest when it is forgotten."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Give it back."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if os is not None:
            self.close()


class KernelEngine:
    """Answers requests by BPF iterators.

    >>> from taskdiag import Request, Show
    >>> sum(len(chunk) for chunk in KernelEngine().stream(Request(Show.BASE)))
    7600

    ``insist`` refuses requests whose groups this kernel cannot serve by BPF, where
    otherwise procfs serves just those.  ``viewer`` is who the answer is for, by default
    this process.

    Raises EngineUnavailable where BPF is not to be had.
    """

    name = "kernel"

    def __init__(
        self,
        *,
        insist: bool = False,
        viewer: Viewer | None = None,
        facts: Facts | None = None,
        host: Host | None = None,
        read_ahead: bool = False,
    ) -> None:
        self._insist = insist
        self._read_ahead = read_ahead
        # For other viewers /proc would tell more than they may see.
        self._own = viewer is None
        self._viewer = viewer
        # What is the same for every viewer, so that many engines may share it.
        self.facts = facts or Facts.live()
        self.host = host or Host()
        #: How many programs are kept for the next request of their shape.
        self.kept = _KEPT
        self._idle: dict[object, Loaded] = {}

    def stream(self, request: Request) -> Iterator[bytes]:
        """The answer, in chunks of whole processes.

        The program is loaded and the iterator made before this returns, so what the
        kernel refuses is raised here: EngineUnavailable, NoSuchProcess, VerifierError.
        """
        viewer = self._view(fresh=True)
        if request.strategy in (Dump.THREAD, Dump.CHILDREN):
            process = self._process(request.pid)
            request = Request(request.show, request.strategy, process, request.seq)
        elsewhere = self._elsewhere(request)
        inside = request
        if elsewhere:
            inside = Request(request.show & ~elsewhere, request.strategy, request.pid, request.seq)
        key, loaded = self._load(inside, numbered=bool(elsewhere))
        try:
            fd = loaded.iterate(**_narrowed(request, viewer))
        except BaseException:
            loaded.close()
            raise
        chunks = self._read(key, loaded, _Run(fd), request, elsewhere)
        if loaded.program.arena and not _proc_is_ours():
            # Should a task need procfs to complete it, there will be no answer rather
            # than half of one.
            chunks = iter(list(chunks))
        if request.strategy in (Dump.ONE, Dump.THREAD):
            return self._present(chunks, request)
        if viewer.foreign:
            return _sorted(chunks)
        if request.strategy in (Dump.ALL, Dump.ALL_THREAD) and self._own and viewer.rule is None:
            return _with_init(chunks, request)
        return chunks

    def open(self, request: Request) -> int | None:
        """A descriptor to read the whole answer from, where one iterator gives it.

        None where it takes more: `stream` then.  It holds no state of this engine, so it
        may be read at any time, by anyone.  Raises what `stream` raises, but an unknown
        pid is an answer without a message.
        """
        plain = not request.show & (Show.CMDLINE | Show.VMA) and request.strategy in (
            Dump.ALL, Dump.ALL_THREAD, Dump.ONE,
        )  # fmt: skip
        viewer = self._view(fresh=True)
        if not plain or viewer.foreign or self._elsewhere(request):
            return None
        key, loaded = self._load(request)
        try:
            if loaded.program.arena:
                # It has state, which is for one run at a time.
                return None
            return loaded.iterate(**_narrowed(request, viewer))
        finally:
            self._keep(key, loaded)

    def _elsewhere(self, request: Request) -> Show:
        """The groups that procfs must serve, with VMA wherever VMA_STAT lies in it."""
        lacking = missing_features(self.facts, threads=request.threads)
        missing = Show(0)
        for group, why in lacking.items():
            if request.show & group and why:
                missing |= group
                if self._insist and group != Show.VMA_STAT:
                    raise EngineUnavailable(
                        errno.EOPNOTSUPP,
                        f"this kernel cannot serve {str(group.name).lower()} by BPF: "
                        f"it lacks {why}",
                    )
        return missing | Show.VMA if missing & Show.VMA_STAT else missing

    def _present(self, chunks: Iterator[bytes], request: Request) -> Iterator[bytes]:
        """The same chunks; NoSuchProcess now if there are none, and threads in order."""
        data = b"".join(chunks)
        if not data and request.pid == 1 and self._own:
            # Hidden from iterators by some kernels: see with_init().
            from ..procfs import ProcfsEngine

            return ProcfsEngine().stream(request)
        if not data:
            raise NoSuchProcess(request.pid)
        return iter((in_order(data) if request.strategy == Dump.THREAD else data,))

    def _process(self, pid: int) -> int:
        """The process of a thread; both are numbers of the viewer's pid namespace.

        Raises NoSuchProcess if no thread has that number, or it is not the viewer's to see.
        """
        from .recheck import CHECK

        found = self._find(pid) if self._view().foreign else self._check(pid)
        if found:
            return int(CHECK.unpack(found)[1])
        if pid == 1 and self._own:
            # Some kernels hide it from iterators: see with_init().
            from ..procfs import ProcfsEngine

            for _ in ProcfsEngine().stream(Request(0, Dump.ONE, 1)):
                return 1
        raise NoSuchProcess(pid)

    def _find(self, pid: int) -> bytes:
        """What `recheck` says of a thread, by its number in the viewer's pid namespace."""
        from .recheck import check_program

        loaded = self._insert(check_program(self.facts, self._view(), pid))
        try:
            fd = loaded.iterate()
            try:
                return b"".join(data for data, _ in loaded.read(fd))
            finally:
                os.close(fd)
        finally:
            loaded.close()

    def _load(self, request: Request, *, numbered: bool = False) -> tuple[object, Loaded]:
        """A loaded program for a request: one that lies idle, or a new one."""
        viewer = self._view()
        compiled_in = request.strategy == Dump.CHILDREN or (viewer.foreign and request.pid)
        narrow = request.strategy
        if narrow == Dump.THREAD and not compiled_in:
            # The program for all threads; the iterator is narrowed.
            narrow = Dump.ALL_THREAD
        # Deferred messages are completed too.
        numbered = viewer.foreign and (numbered or bool(request.show & (Show.CMDLINE | Show.VMA)))
        key = (int(request.show), narrow, request.pid if compiled_in else 0, request.seq, numbered)
        idle = self._idle.pop(key, None)
        if idle is not None:
            return key, idle
        self._ask_about(request.show)
        program = compile_request(request, self.facts, viewer, self.host, numbered=numbered)
        return key, self._insert(program)

    def _check(self, tid: int) -> bytes:
        """What `recheck` says of a thread, by its number in this process' pid namespace."""
        loaded = self._idle.pop("check", None)
        if loaded is None:
            from .recheck import check_program

            loaded = self._insert(check_program(self.facts, self._view()))
        try:
            fd = loaded.iterate(tid=tid)
            try:
                return os.read(fd, _BUFFER)
            finally:
                os.close(fd)
        finally:
            self._keep("check", loaded)

    def prepare(self, show: Show) -> None:
        """Find out beforehand what these groups need to know of `host`."""
        for group, why in missing_features(self.facts).items():
            if why:
                show &= ~group
        self._ask_about(show)

    def _ask_about(self, show: Show) -> None:
        """Find out what programs for these groups need to know of the host."""
        host = self.host
        if show & Show.VMA and not host.special_ops:
            (host.special_ops,) = self._ask(probe.special_ops(self.facts))
            host.gate = vma.gate_record()
        if show & Show.STATM and not host.per_cpu:
            base, *areas = self._ask(probe.per_cpu_areas(self.facts, mm.possible_cpus()))
            host.per_cpu = tuple(area - base & 0xFFFFFFFFFFFFFFFF for area in areas if area)

    def _insert(self, program: Program) -> Loaded:
        try:
            return Loaded(program, self.facts)
        except bpf.VerifierError:
            raise
        except bpf.BpfError as error:
            raise EngineUnavailable(error.errno, _refusal(error)) from None

    def _view(self, fresh: bool = False) -> Viewer:
        """Who the answer is for; where that is this process, with ``fresh`` as it is now."""
        if self._viewer is None:
            level, inode = self.home()
            self._viewer = Viewer(level, inode) if _sees_everything() else self._identify()
        elif fresh and self._own and not (self._viewer.rule is None and _sees_everything()):
            viewer = self._identify()
            if viewer.key() != self._viewer.key():
                self.close()
                self._viewer = viewer
        return self._viewer

    def home(self) -> tuple[int, int]:
        """How deep the pid namespace of this process lies, and its inode number."""
        try:
            inode = os.stat("/proc/self/ns/pid").st_ino
        except OSError:
            inode = 0
        if inode == INIT_PID_NS:
            return 0, inode
        level, inode = self._ask(probe.pid_namespace(self.facts))
        return level, inode

    def _identify(self) -> Viewer:
        """Ask the kernel whose credentials this thread has."""
        from _thread import get_native_id

        from .identity import Reader

        home = self.home()
        reader = Reader(self.facts, *home)
        try:
            return reader.of_task(get_native_id()).viewer(home)
        finally:
            reader.close()

    def _ask(self, program: Program) -> tuple[int, ...]:
        """Run a program that writes u64 about this process' main thread, once."""
        loaded = self._insert(program)
        try:
            fd = loaded.iterate(tid=os.getpid())
            try:
                data = os.read(fd, 4096)
            finally:
                os.close(fd)
        finally:
            loaded.close()
        return tuple(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))

    def _read(
        self, key: object, loaded: Loaded, run: _Run, request: Request, elsewhere: Show
    ) -> Iterator[bytes]:
        whole = False
        chunks = loaded.read(run.fd, _FILLS if self._read_ahead else 1)
        if self._read_ahead:
            chunks = readahead(chunks)
        numbered = self._view().foreign and loaded.deferred is not None
        try:
            for data, deferred in chunks:
                if elsewhere or numbered or deferred:
                    from .completion import complete

                    check = None if self._own else self._check
                    data = complete(data, request, elsewhere, check)
                if data:
                    yield data
            whole = True
        finally:
            chunks.close()
            run.close()
            if whole:
                self._keep(key, loaded)
            else:
                loaded.close()

    def _keep(self, key: object, loaded: Loaded) -> None:
        """Keep a program for the next request of its shape, instead of the oldest kept."""
        # Several threads may do this at once: each step is atomic.
        if self._idle.setdefault(key, loaded) is not loaded:
            loaded.close()
            return
        while len(self._idle) > self.kept:
            oldest = self._idle.pop(next(iter(list(self._idle))), None)
            if oldest is not None:
                oldest.close()

    def close(self) -> None:
        """Free the programs that are kept; those in use go when their answer is read."""
        while self._idle:
            self._idle.popitem()[1].close()


def _sees_everything() -> bool:
    """Whether this thread has CAP_SYS_PTRACE over the host, so that no rule is needed."""
    try:
        if os.stat("/proc/thread-self/ns/user").st_ino != INIT_USER_NS:
            return False
    except OSError:
        return False
    return bool((effective() or 0) & 1 << CAP_SYS_PTRACE)


def _sorted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All of it, by the viewer's numbers, which need not be in the order of ours."""
    pieces, size = [], 0
    for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > _MOST_SORTED:
            raise EngineUnavailable(errno.EFBIG, "the answer is too long to be put in order")
    if pieces:
        yield in_order(b"".join(pieces))


def _pieces(buffer: memoryview, size: int, fills: int) -> list[memoryview]:
    """Cut a buffer so that one readv(2) brings as many whole messages as it can.

    The kernel fills its own buffer anew for each piece, as long as the one before took
    all: as many messages of ``size`` as fit.  The last piece takes whatever there is, so
    that no message is left in part.
    """
    most = _BUFFER // size * size if size else 0
    cuts = [most * index for index in range(fills)] if size else [0]
    return [buffer[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(buffer)], strict=True)]


def _proc_is_ours() -> bool:
    """Whether /proc is mounted, and shows our pid namespace."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _narrowed(request: Request, viewer: Viewer) -> dict[str, int]:
    if viewer.foreign:
        return {}
    if request.strategy == Dump.ONE:
        return {"tid": request.pid}
    if request.strategy == Dump.THREAD:
        return {"pid": request.pid}
    return {}


def _with_init(chunks: Iterator[bytes], request: Request) -> Iterator[bytes]:
    """The same chunks, with process 1 if the kernel hides it; see `completion.with_init`."""
    first = next(chunks, b"")
    if first[16:20] != _PID_1:
        from .completion import with_init

        yield from with_init(chain((first,), chunks), request)
    else:
        yield first
        yield from chunks


def _refusal(error: bpf.BpfError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the kernel engine needs CAP_BPF and CAP_PERFMON (or root): see taskdiag doctor"
    if error.errno == errno.ENOSYS:
        return "the kernel engine needs bpf(2), which this kernel lacks"
    why = os.strerror(error.errno or 0)
    return f"the kernel refused to load a program ({why}): see taskdiag doctor"
