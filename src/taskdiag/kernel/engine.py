"""The kernel engine: compiles a request, runs the program, and makes the answer of its output."""

from __future__ import annotations

import errno
import os
import sys
import time
from itertools import chain

from ..abi import Dump, Show
from ..errors import EngineUnavailable, NoSuchProcess
from ..netlink import in_order
from ..readahead import readahead
from ..request import Request
from . import first_process, mm, probe, vma
from .compile import compile_request, missing_features
from .emit import Host
from .facts import Facts
from .own_viewer import OwnViewer
from .programs import Programs, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .compile import Program
    from .completion import Completion
    from .programs import Loaded
    from .viewer import Viewer
    from .viewer_root import ViewerRoot

__all__ = ("KernelEngine",)

#: Buffers for one readv(2) when a thread reads ahead.  With fewer calls, this thread and the
#: one that works on the answer wait less for the GIL.  Without a second thread a single
#: buffer is faster, because it stays in the processor's cache.
_FILLS = 8
_PID_1 = (1).to_bytes(4, sys.byteorder)
#: The most bytes of an answer that has to be sorted as a whole.
_MOST_SORTED = 1 << 28


class KernelEngine:
    """Answers requests by BPF iterators.

    >>> from taskdiag import Request, Show
    >>> sum(len(chunk) for chunk in KernelEngine().stream(Request(Show.BASE)))
    7600

    With ``insist``, requests with groups that this kernel cannot serve by BPF are refused;
    otherwise procfs serves these groups.  ``viewer`` is who the answers are for, by default
    this process.

    Raises EngineUnavailable if BPF cannot be used.
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
        # For other viewers /proc must not be used unchecked: it shows what we may see.
        self._own = viewer is None
        self._viewer = viewer
        # These are the same for every viewer, so several engines may share them.
        self.facts = facts or Facts.live()
        self.host = host or Host()
        self.programs = Programs(self.facts)
        self.own = OwnViewer(self.facts, self.programs)

    def stream(self, request: Request, root: ViewerRoot | None = None) -> Iterator[bytes]:
        """Return the answer, in chunks of whole processes.

        The program is loaded and the iterator created before this returns, so errors of the
        kernel are raised here: EngineUnavailable, NoSuchProcess, VerifierError.

        ``root`` is the viewer's root directory, if paths below it differ from those of this
        process.  It must stay open until the answer has been read.
        """
        viewer = self._view(fresh=True)
        if request.strategy in (Dump.THREAD, Dump.CHILDREN):
            process = self._process(request.pid)
            request = Request(request.show, request.strategy, process, request.seq)
        elsewhere = self._elsewhere(request)
        first = self._first_tasks(request, elsewhere, root)
        if first and request.strategy in (Dump.ONE, Dump.THREAD):
            return iter((b"".join(data for _, data in first),))
        inside = request
        if elsewhere:
            inside = Request(request.show & ~elsewhere, request.strategy, request.pid, request.seq)
        key, loaded = self.load(inside, numbered=bool(elsewhere))
        try:
            fd = loaded.iterate(**_narrowed(request, viewer))
        except BaseException:
            loaded.close()
            raise
        chunks = self._read(key, loaded, Run(fd), request, elsewhere, root)
        if loaded.program.arena and not _proc_is_ours():
            # A task may have to be completed from procfs, which cannot be used.  So the whole
            # answer is made first: if that fails, no part of it has been returned.
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
        """Return a descriptor of an iterator that is the whole answer, or None if it takes more.

        The descriptor does not depend on this engine, so it may be read at any time and by
        another process.  Raises what `stream` raises, except that the answer about an unknown
        pid is empty.
        """
        plain = not request.show & (Show.CMDLINE | Show.VMA) and request.strategy in (
            Dump.ALL, Dump.ALL_THREAD, Dump.ONE,
        )  # fmt: skip
        viewer = self._view(fresh=True)
        if not plain or viewer.foreign or self._elsewhere(request):
            return None
        if self._first_tasks(Request(Show(0), request.strategy, request.pid), Show(0), None):
            # The viewer may see process 1, which the iterator does not visit.
            return None
        key, loaded = self.load(request)
        try:
            if loaded.program.arena:
                # Only one run at a time may use an arena.
                return None
            return loaded.iterate(**_narrowed(request, viewer))
        finally:
            self.programs.keep(key, loaded)

    def _elsewhere(self, request: Request) -> Show:
        """The groups that procfs must serve; VMA is one of them if VMA_STAT is."""
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
        """The whole answer about one process, threads in order; NoSuchProcess if it is empty."""
        data = b"".join(chunks)
        if not data and self._own and request.pid in first_process.threads():
            # Some kernels hide process 1 from iterators.
            from ..procfs import ProcfsEngine

            return ProcfsEngine().stream(request)
        if not data:
            raise NoSuchProcess(request.pid)
        return iter((in_order(data) if request.strategy == Dump.THREAD else data,))

    def _process(self, pid: int) -> int:
        """The process of a thread; both are numbers in the viewer's pid namespace.

        Raises NoSuchProcess if no thread that the viewer may see has that number.
        """
        from .recheck import CHECK

        found = self._find(pid) if self._view().foreign else self.check(pid).get(pid)
        if found:
            return int(CHECK.unpack(found)[1])
        if not self._view().foreign and pid in first_process.threads():
            # Some kernels hide process 1 from iterators.
            if self._own:
                from ..procfs import ProcfsEngine

                for _ in ProcfsEngine().stream(Request(0, Dump.ONE, pid)):
                    return 1
            elif self._hides_first() and self.check(pid, by_number=True):
                return 1
        raise NoSuchProcess(pid)

    def _find(self, pid: int) -> bytes:
        """The CHECK of a thread (`recheck`), by its number in the viewer's pid namespace.

        b"" if there is no such thread, or the viewer may not see it.
        """
        from .recheck import check_program

        loaded = self.programs.load(check_program(self.facts, self._view(), pid))
        try:
            return loaded.read_whole(0)
        finally:
            loaded.close()

    def _first_tasks(
        self, request: Request, elsewhere: Show, root: ViewerRoot | None
    ) -> list[tuple[int, bytes]]:
        """Process 1 for the answer to another viewer, if iterators do not visit it."""
        viewer = self._view()
        if viewer.foreign or (self._own and viewer.rule is None) or not self._hides_first():
            return []
        from .first_process_reader import first_tasks

        return first_tasks(self, request, elsewhere, root)

    def _hides_first(self) -> bool:
        """Whether iterators do not visit process 1 although programs can reach it."""
        if self.host.hides_first is None:
            self.host.hides_first = (
                self.own.home()[0] == 0
                and first_process.reachable(self.facts)
                and not self.programs.ask(probe.pid_namespace(self.facts), tid=1)
            )
        return self.host.hides_first

    def load(
        self, request: Request, *, numbered: bool = False, by_number: bool = False
    ) -> tuple[object, Loaded]:
        """Return a program for a request, and its key.

        It is a kept program that is not in use, or a new one.
        """
        viewer = self._view()
        compiled_in = request.strategy == Dump.CHILDREN or (viewer.foreign and request.pid)
        narrow = request.strategy
        if narrow == Dump.THREAD and not compiled_in:
            # The same program as for all threads; the iterator is narrowed to the process.
            narrow = Dump.ALL_THREAD
        # Messages that may be deferred need the number as well, to be completed.
        numbered = viewer.foreign and (numbered or bool(request.show & (Show.CMDLINE | Show.VMA)))
        pid = request.pid if compiled_in else 0
        key = (int(request.show), narrow, pid, request.seq, numbered, by_number)

        def make() -> Program:
            self._ask_about(request.show)
            return compile_request(
                request, self.facts, viewer, self.host, numbered=numbered, by_number=by_number
            )

        return key, self.programs.take(key, make)

    def check(self, tid: int, *, by_number: bool = False) -> dict[int, bytes]:
        """The CHECK (`recheck`) of a thread, or of all threads if ``tid`` is 0.

        Threads that the viewer may not see are left out.  The numbers of threads, as keys and in
        ``tid``, are those of this process's pid namespace.
        """
        from .recheck import CHECK, check_program

        key = "check", by_number
        loaded = self.programs.take(
            key, lambda: check_program(self.facts, self._view(), by_number=by_number)
        )
        try:
            data = loaded.read_whole(tid, by_number=by_number)
        finally:
            self.programs.keep(key, loaded)
        pieces = [data[at : at + CHECK.size] for at in range(0, len(data), CHECK.size)]
        return {CHECK.unpack(piece)[5]: piece for piece in pieces}

    def again(
        self,
        request: Request,
        root: ViewerRoot | None,
        tid: int,
        *,
        numbered: bool = False,
        by_number: bool = False,
    ) -> bytes:
        """Run the program of a request again, for one thread; returns what it writes."""
        key, loaded = self.load(request, numbered=numbered, by_number=by_number)
        try:
            return loaded.read_whole(tid, by_number=by_number, root=root)
        finally:
            self.programs.keep(key, loaded)

    def prepare(self, show: Show) -> None:
        """Determine now what programs for these groups depend on in `host`."""
        for group, why in missing_features(self.facts).items():
            if why:
                show &= ~group
        self._ask_about(show)

    def _ask_about(self, show: Show) -> None:
        """Determine what programs for these groups depend on in the host, if not yet known."""
        host = self.host
        if show & Show.VMA and not host.special_ops:
            (host.special_ops,) = self.programs.ask(probe.special_ops(self.facts))
            host.gate = vma.gate_record()
        if show & Show.STATM and not host.per_cpu:
            base, *areas = self.programs.ask(probe.per_cpu_areas(self.facts, mm.possible_cpus()))
            host.per_cpu = tuple(area - base & 0xFFFFFFFFFFFFFFFF for area in areas if area)

    def _view(self, fresh: bool = False) -> Viewer:
        """Who the answer is for.  With ``fresh``, this process is looked at again."""
        if self._viewer is None:
            self._viewer = self.own.viewer()
        elif fresh and self._own:
            viewer = self.own.viewer(self._viewer)
            if viewer.key() != self._viewer.key():
                self.programs.close()
                self._viewer = viewer
        return self._viewer

    def _read(
        self,
        key: object,
        loaded: Loaded,
        run: Run,
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
                    completion = completion or self._completion(
                        request, elsewhere, since, root, loaded
                    )
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
                self.programs.keep(key, loaded)
            else:
                loaded.close()

    def _completion(
        self,
        request: Request,
        elsewhere: Show,
        since: float,
        root: ViewerRoot | None,
        loaded: Loaded,
    ) -> Completion:
        """The `Completion` of an answer that was begun at ``since``."""
        from .completion import Completion

        viewer = self._view()
        inside = Request(request.show & ~elsewhere, request.strategy, request.pid, request.seq)
        # A viewer who sees every task, by the same numbers, may see all that we can read.
        same = self._own or (viewer.rule is None and not viewer.foreign)
        return Completion(
            request,
            elsewhere,
            since,
            lambda tid: self.again(inside, root, tid, numbered=bool(elsewhere)),
            None if same else self.check,
            root,
            marker=self.host.marker,
            keep_name=loaded.keep_name,
        )

    def close(self) -> None:
        """Free the programs that are kept; one in use is freed when its answer has been read."""
        self.programs.close()
        self.own.close()


def _sorted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The whole answer in the order of the viewer's pids, which may differ from that of ours."""
    pieces, size = [], 0
    for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > _MOST_SORTED:
            raise EngineUnavailable(errno.EFBIG, "the answer is too long to be put in order")
    if pieces:
        yield in_order(b"".join(pieces))


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
    """Add process 1 if the kernel hides it; see `completion.with_init`."""
    first = next(chunks, b"")
    if first[16:20] != _PID_1:
        from .completion import with_init

        yield from with_init(chain((first,), chunks), request)
    else:
        yield first
        yield from chunks
