"""The kernel engine: has a request compiled and loaded, and makes the answer of what the
iterator gives.
"""

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

#: Buffers for one readv(2) when a thread reads ahead.  Fewer calls mean that it and the
#: thread that works on the answer wait less for the GIL.  Without a second thread one
#: buffer, which stays in the processor's cache, is faster.
_FILLS = 8
_PID_1 = (1).to_bytes(4, sys.byteorder)
#: Bytes of an answer that has to be put in order as a whole.
_MOST_SORTED = 1 << 28


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
        self.programs = Programs(self.facts)
        self.own = OwnViewer(self.facts, self.programs)

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
        if self._first_tasks(Request(Show(0), request.strategy, request.pid), Show(0), None):
            # It is not in what the iterator gives.
            return None
        key, loaded = self.load(request)
        try:
            if loaded.program.arena:
                # An arena serves one run at a time.
                return None
            return loaded.iterate(**_narrowed(request, viewer))
        finally:
            self.programs.keep(key, loaded)

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
        """What `recheck` says of a thread, by its number in the viewer's pid namespace."""
        from .recheck import check_program

        loaded = self.programs.load(check_program(self.facts, self._view(), pid))
        try:
            return loaded.read_whole(0)
        finally:
            loaded.close()

    def _first_tasks(
        self, request: Request, elsewhere: Show, root: ViewerRoot | None
    ) -> list[tuple[int, bytes]]:
        """Process 1 in the answer for another viewer, where iterators do not visit it."""
        viewer = self._view()
        if viewer.foreign or (self._own and viewer.rule is None) or not self._hides_first():
            return []
        from .first_process_reader import first_tasks

        return first_tasks(self, request, elsewhere, root)

    def _hides_first(self) -> bool:
        """Whether iterators do not visit process 1, though programs can reach it."""
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

        def make() -> Program:
            self._ask_about(request.show)
            return compile_request(
                request, self.facts, viewer, self.host, numbered=numbered, by_number=by_number
            )

        return key, self.programs.take(key, make)

    def check(self, tid: int, *, by_number: bool = False) -> dict[int, bytes]:
        """What `recheck` says of a thread, or with 0 of all that the viewer may see.

        By their numbers in this process' pid namespace.
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
        """What the program for a request writes about one thread now."""
        key, loaded = self.load(request, numbered=numbered, by_number=by_number)
        try:
            return loaded.read_whole(tid, by_number=by_number, root=root)
        finally:
            self.programs.keep(key, loaded)

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
            (host.special_ops,) = self.programs.ask(probe.special_ops(self.facts))
            host.gate = vma.gate_record()
        if show & Show.STATM and not host.per_cpu:
            base, *areas = self.programs.ask(probe.per_cpu_areas(self.facts, mm.possible_cpus()))
            host.per_cpu = tuple(area - base & 0xFFFFFFFFFFFFFFFF for area in areas if area)

    def _view(self, fresh: bool = False) -> Viewer:
        """Who the answer is for; where that is this process, with ``fresh`` as it is now."""
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
                self.programs.keep(key, loaded)
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
            lambda tid: self.again(inside, root, tid, numbered=bool(elsewhere)),
            None if same else self.check,
            root,
        )

    def close(self) -> None:
        """Free the programs that are kept; those in use go when their answer is read."""
        self.programs.close()
        self.own.close()


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
