"""The kernel engine: loads the program for a request and reads the iterator.

A loaded program is kept for the next request of the same shape.  Nothing outlives
the process: no pinned object, and what the descriptors held goes when they are closed.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time
from itertools import chain

from ..abi import Dump, Show
from ..capability import CAP_SYS_PTRACE, effective
from ..errors import EngineUnavailable, NoSuchProcess
from ..netlink import in_order
from ..readahead import readahead
from ..request import Request
from . import bpf, first_process, mm, probe, vma
from .compile import compile_request, missing_features
from .emit import ARENA_SIZE, Host
from .facts import Facts
from .viewer import INIT_PID_NS, INIT_TIME_NS, INIT_USER_NS, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from .compile import Program
    from .completion import Completion
    from .identity_reader import Reader
    from .viewer_root import ViewerRoot

__all__ = ("KernelEngine", "Loaded")

#: The iterator's buffer (bpf_seq_read(), kernel/bpf/bpf_iter.c).
_BUFFER = 8 * mmap.PAGESIZE
#: Buffers for one readv(2) when a thread reads ahead.  Fewer calls mean that it and the
#: thread that works on the answer wait less for the GIL.  Without a second thread one
#: buffer, which stays in the processor's cache, is faster.
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
            if any(name == first_process.WANTED for _, name in program.code.maps):
                self._maps[first_process.WANTED] = bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8, 1)
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
        """What a run writes: whole messages, and whether any was left to procfs in part.

        ``root`` is taken on while the program runs, which is during readv(2).
        """
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

    def read_whole(
        self, tid: int, *, by_number: bool = False, root: ViewerRoot | None = None
    ) -> bytes:
        """All that a run over one thread writes, or with 0 over all threads.

        ``by_number`` as for `look_at`, ``root`` as for `read`.
        """
        fd = self.look_at(tid) if by_number else self.iterate(tid=tid)
        try:
            return b"".join(data for data, _ in self.read(fd, root=root))
        finally:
            os.close(fd)

    def look_at(self, tid: int) -> int:
        """A descriptor to read one run from, of a program made ``by_number``: about that
        thread.  Nobody else may run it until that has been read.
        """
        from _thread import get_native_id

        bpf.map_update(self._maps[first_process.WANTED], bytes(4), tid.to_bytes(8, sys.byteorder))
        return self.iterate(tid=get_native_id())

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
        # If nobody began to read the answer, only this frees it.  When the interpreter
        # exits, modules may be gone already; descriptors are then closed with the process.
        if os is not None:
            self.close()


class _Run:
    """The descriptor of one run of a program; closed when the object is freed, if not before."""

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
        self._identities: Reader | None = None

    def stream(self, request: Request, root: ViewerRoot | None = None) -> Iterator[bytes]:
        """The answer, in chunks of whole processes.

        The program is loaded and the iterator made before this returns, so what the
        kernel refuses is raised here: EngineUnavailable, NoSuchProcess, VerifierError.

        ``root`` is the viewer's root directory where paths from this process's own would
        not be the viewer's; to be kept open until the answer has been read.
        """
        viewer = self._view(fresh=True)
        if request.strategy in (Dump.THREAD, Dump.CHILDREN):
            process = self._process(request.pid)
            request = Request(request.show, request.strategy, process, request.seq)
        elsewhere = self._elsewhere(request)
        first = self._first_process(request, elsewhere, root)
        if first and request.strategy in (Dump.ONE, Dump.THREAD):
            return iter((b"".join(data for _, data in first),))
        inside = request
        if elsewhere:
            inside = Request(request.show & ~elsewhere, request.strategy, request.pid, request.seq)
        key, loaded = self._load(inside, numbered=bool(elsewhere))
        try:
            fd = loaded.iterate(**_narrowed(request, viewer))
        except BaseException:
            loaded.close()
            raise
        chunks = self._read(key, loaded, _Run(fd), request, elsewhere, root)
        if loaded.program.arena and not _proc_is_ours():
            # A task may need procfs to complete it, which is not there.  So the answer is
            # made as a whole first: if it fails, nothing of it has been given.
            chunks = iter(list(chunks))
        if request.strategy in (Dump.ONE, Dump.THREAD):
            return self._present(chunks, request)
        if viewer.foreign:
            return _sorted(chunks)
        if request.strategy in (Dump.ALL, Dump.ALL_THREAD) and self._own and viewer.rule is None:
            return _with_init(chunks, request)
        if first:
            from .completion import merged

            return merged(chunks, first)
        return chunks

    def open(self, request: Request) -> int | None:
        """A descriptor of an iterator that gives the whole answer, None if none does.

        It does not depend on this engine, so it may be read at any time and by another
        process.  Raises what `stream` raises, except that an unknown pid is an empty
        answer.
        """
        plain = not request.show & (Show.CMDLINE | Show.VMA) and request.strategy in (
            Dump.ALL, Dump.ALL_THREAD, Dump.ONE,
        )  # fmt: skip
        viewer = self._view(fresh=True)
        if not plain or viewer.foreign or self._elsewhere(request):
            return None
        if self._first_process(Request(Show(0), request.strategy, request.pid), Show(0), None):
            # It is not in what the iterator gives.
            return None
        key, loaded = self._load(request)
        try:
            if loaded.program.arena:
                # An arena serves one run at a time.
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
        if not data and self._own and request.pid in first_process.threads():
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

        found = self._find(pid) if self._view().foreign else self._check(pid).get(pid)
        if found:
            return int(CHECK.unpack(found)[1])
        if not self._view().foreign and pid in first_process.threads():
            # Some kernels hide process 1 from iterators.
            if self._own:
                from ..procfs import ProcfsEngine

                for _ in ProcfsEngine().stream(Request(0, Dump.ONE, pid)):
                    return 1
            elif self._hides_first() and self._check(pid, by_number=True):
                return 1
        raise NoSuchProcess(pid)

    def _find(self, pid: int) -> bytes:
        """What `recheck` says of a thread, by its number in the viewer's pid namespace."""
        from .recheck import check_program

        loaded = self._insert(check_program(self.facts, self._view(), pid))
        try:
            return loaded.read_whole(0)
        finally:
            loaded.close()

    def _first_process(
        self, request: Request, elsewhere: Show, root: ViewerRoot | None
    ) -> list[tuple[int, bytes]]:
        """The tasks of process 1 that the request is about, as number and messages, where the
        kernel hides them from iterators.

        Empty if the viewer may not see them, which the program decides as it does for
        every other task.
        """
        viewer = self._view()
        if viewer.foreign or (self._own and viewer.rule is None) or not self._hides_first():
            return []
        tids = first_process.threads()
        if request.strategy == Dump.CHILDREN or (
            request.strategy in (Dump.ONE, Dump.THREAD) and request.pid not in tids
        ):
            return []
        if request.strategy == Dump.ONE:
            tids = [request.pid]
        elif not request.threads:
            tids = [1]
        elsewhere |= first_process.left_to_procfs(request.show, request.threads)
        strategy = Dump.ALL_THREAD if request.threads else Dump.ONE
        inside = Request(request.show & ~elsewhere, strategy, 1, request.seq)
        key, loaded = self._load(inside, by_number=True)
        try:
            found = []
            for tid in tids:
                data = self._read_by_number(loaded, tid, inside, request, elsewhere, root)
                if data:
                    found.append((tid, data))
            return found
        finally:
            self._keep(key, loaded)

    def _read_by_number(
        self,
        loaded: Loaded,
        tid: int,
        inside: Request,
        request: Request,
        elsewhere: Show,
        root: ViewerRoot | None,
    ) -> bytes:
        """The messages about one thread, complete; ``inside`` is what ``loaded`` answers."""
        since = time.clock_gettime(time.CLOCK_BOOTTIME)
        run = _Run(loaded.look_at(tid))
        try:
            pieces = list(loaded.read(run.fd, root=root))
        finally:
            run.close()
        data = b"".join(piece for piece, _ in pieces)
        if data and (elsewhere or any(deferred for _, deferred in pieces)):
            from .completion import Completion

            completion = Completion(
                request,
                elsewhere,
                since,
                lambda tid: self._again(inside, root, tid, by_number=True),
                lambda tid: self._check(tid, by_number=True),
                root,
            )
            try:
                data = b"".join(completion.complete(data))
            finally:
                completion.close()
        return data

    def _hides_first(self) -> bool:
        """Whether iterators do not visit process 1, though programs can reach it."""
        if self.host.hides_first is None:
            self.host.hides_first = (
                self.home()[0] == 0
                and first_process.reachable(self.facts)
                and not self._ask(probe.pid_namespace(self.facts), tid=1)
            )
        return self.host.hides_first

    def _load(
        self, request: Request, *, numbered: bool = False, by_number: bool = False
    ) -> tuple[object, Loaded]:
        """A loaded program for a request: one that is kept and not in use, or a new one."""
        viewer = self._view()
        compiled_in = request.strategy == Dump.CHILDREN or (viewer.foreign and request.pid)
        narrow = request.strategy
        if narrow == Dump.THREAD and not compiled_in:
            # The program for all threads; the iterator is narrowed.
            narrow = Dump.ALL_THREAD
        # Deferred messages are completed too.
        numbered = viewer.foreign and (numbered or bool(request.show & (Show.CMDLINE | Show.VMA)))
        pid = request.pid if compiled_in else 0
        key = (int(request.show), narrow, pid, request.seq, numbered, by_number)
        idle = self._idle.pop(key, None)
        if idle is not None:
            return key, idle
        self._ask_about(request.show)
        program = compile_request(
            request, self.facts, viewer, self.host, numbered=numbered, by_number=by_number
        )
        return key, self._insert(program)

    def _check(self, tid: int, *, by_number: bool = False) -> dict[int, bytes]:
        """What `recheck` says of a thread, or with 0 of all that the viewer may see.

        By their numbers in this process' pid namespace.
        """
        key = "check", by_number
        loaded = self._idle.pop(key, None)
        if loaded is None:
            from .recheck import check_program

            loaded = self._insert(check_program(self.facts, self._view(), by_number=by_number))
        from .recheck import CHECK

        try:
            data = loaded.read_whole(tid, by_number=by_number)
        finally:
            self._keep(key, loaded)
        pieces = [data[at : at + CHECK.size] for at in range(0, len(data), CHECK.size)]
        return {CHECK.unpack(piece)[5]: piece for piece in pieces}

    def _again(
        self,
        request: Request,
        root: ViewerRoot | None,
        tid: int,
        *,
        numbered: bool = False,
        by_number: bool = False,
    ) -> bytes:
        """What the program for a request writes about one thread now."""
        key, loaded = self._load(request, numbered=numbered, by_number=by_number)
        try:
            return loaded.read_whole(tid, by_number=by_number, root=root)
        finally:
            self._keep(key, loaded)

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
            self._viewer = Viewer(level, inode) if _is_host_root() else self._identify()
        elif fresh and self._own and not (self._viewer.plain and _is_host_root()):
            viewer = self._identify()
            if viewer.key() != self._viewer.key():
                self._forget_programs()
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
        """Ask the kernel for the credentials and namespaces of this thread."""
        from _thread import get_native_id

        home = self.home()
        if self._identities is None:
            from .identity_reader import Reader

            self._identities = Reader(self.facts, *home, sockets=False)
        return self._identities.of_task(get_native_id()).viewer(home)

    def _ask(self, program: Program, tid: int = 0) -> tuple[int, ...]:
        """Run a program that writes u64 about a thread, by default this one, once."""
        from _thread import get_native_id

        loaded = self._insert(program)
        try:
            # Not the main thread, which may have exited and has no memory then.
            fd = loaded.iterate(tid=tid or get_native_id())
            try:
                data = os.read(fd, 4096)
            finally:
                os.close(fd)
        finally:
            loaded.close()
        return tuple(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))

    def _read(
        self,
        key: object,
        loaded: Loaded,
        run: _Run,
        request: Request,
        elsewhere: Show,
        root: ViewerRoot | None,
    ) -> Iterator[bytes]:
        whole = False
        since = time.clock_gettime(time.CLOCK_BOOTTIME)
        completion: Completion | None = None
        chunks = loaded.read(run.fd, _FILLS if self._read_ahead else 1, root)
        if self._read_ahead:
            chunks = readahead(chunks)
        numbered = self._view().foreign and loaded.deferred is not None
        try:
            for data, deferred in chunks:
                if elsewhere or numbered or deferred:
                    completion = completion or self._completion(request, elsewhere, since, root)
                    yield from completion.complete(data)
                else:
                    yield data
            whole = True
        finally:
            chunks.close()
            if completion is not None:
                completion.close()
            run.close()
            if whole:
                self._keep(key, loaded)
            else:
                loaded.close()

    def _completion(
        self, request: Request, elsewhere: Show, since: float, root: ViewerRoot | None
    ) -> Completion:
        """What completes an answer from /proc that was begun at ``since``."""
        from .completion import Completion

        viewer = self._view()
        inside = Request(request.show & ~elsewhere, request.strategy, request.pid, request.seq)
        # Who sees every task by the numbers that we see them by sees what we see.
        same = self._own or (viewer.rule is None and not viewer.foreign)
        return Completion(
            request,
            elsewhere,
            since,
            lambda tid: self._again(inside, root, tid, numbered=bool(elsewhere)),
            None if same else self._check,
            root,
        )

    def _keep(self, key: object, loaded: Loaded) -> None:
        """Keep a program for the next request of its shape; the oldest kept may go for it."""
        # Several threads may be here at once; each step is atomic.
        if self._idle.setdefault(key, loaded) is not loaded:
            loaded.close()
            return
        while len(self._idle) > self.kept:
            oldest = self._idle.pop(next(iter(list(self._idle)), None), None)
            if oldest is not None:
                oldest.close()

    def close(self) -> None:
        """Free the programs that are kept; those in use go when their answer is read."""
        self._forget_programs()
        if self._identities is not None:
            self._identities.close()
            self._identities = None

    def _forget_programs(self) -> None:
        while self._idle:
            self._idle.popitem()[1].close()


def _is_host_root() -> bool:
    """Whether this thread has CAP_SYS_PTRACE over the host and the host's boot time clock.

    Then no rule is needed and no offset, and the kernel need not be asked (which takes a
    program).  False where /proc does not tell.
    """
    try:
        if os.stat("/proc/thread-self/ns/user").st_ino != INIT_USER_NS:
            return False
    except OSError:
        return False
    try:
        if os.stat("/proc/thread-self/ns/time").st_ino != INIT_TIME_NS:
            return False
    except FileNotFoundError:
        # A kernel before 5.6, or without CONFIG_TIME_NS.
        pass
    except OSError:
        return False
    return bool((effective() or 0) & 1 << CAP_SYS_PTRACE)


def _sorted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The whole answer in the order of the viewer's pids, which may differ from ours."""
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

    The kernel fills its own buffer once for each piece, with as many messages of ``size``
    as fit (seq_write() leaves one byte free), and goes on to the next piece if all of that
    went into the last.  The last piece has room for a whole buffer, so that no message is
    cut.
    """
    most = (_BUFFER - 1) // size * size if size else 0
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
