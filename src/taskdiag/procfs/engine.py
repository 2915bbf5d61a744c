"""The engine: finds the tasks that a request is about, and reads one after the other."""

from __future__ import annotations

import os

from ..abi import Dump
from ..errors import NoSuchProcess
from . import access
from .reader import Directory, Vanished, open_procfs
from .stat import parse
from .status import parse_lines
from .task import TaskReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..request import Request

__all__ = ("ProcfsEngine",)

#: Chunks grow to about this size before they are handed on.
_CHUNK = 1 << 16
#: With this many threads or more, a listing may take several system calls (24 bytes an entry,
#: 32 KiB a call), and the kernel may skip entries between them.
_LONG_LISTING = 1000
_PPID = 3


class ProcfsEngine:
    """Answers requests by reading /proc: works for everyone and everywhere.

    An answer has the tasks that a procfs mounted with hidepid=2 would show to the caller, with
    the numbers that they have in this /proc.

    >>> engine = ProcfsEngine()
    >>> len(b"".join(engine.stream(Request(Show.BASE, Dump.ONE, os.getpid()))))
    76

    Raises EngineUnavailable if /proc is not mounted, or is not this process's.
    """

    name = "procfs"

    def __init__(self) -> None:
        os.close(open_procfs())

    def stream(self, request: Request) -> Iterator[bytes]:
        """The answer, in chunks of whole processes.

        Raises NoSuchProcess, with the first chunk, if the request names a process that
        is not there or not the caller's to see; EngineUnavailable; OSError with the path
        of a file that could not be read.
        """
        root = open_procfs()
        try:
            scan = _Scan(root, request)
            chunk = bytearray()
            for message in scan.messages():
                chunk += message
                if len(chunk) >= _CHUNK:
                    yield bytes(chunk)
                    chunk.clear()
            if chunk:
                yield bytes(chunk)
        finally:
            os.close(root)


class _Scan:
    """One answer in the making."""

    def __init__(self, root: int, request: Request) -> None:
        self._root = root
        self._request = request
        self._ask = not access.sees_everything(root)
        self._reader = TaskReader(
            root, request.show, threads=request.threads, ask=self._ask, seq=request.seq
        )

    def messages(self) -> Iterator[bytes]:
        """The messages of one task after the other."""
        pid = self._request.pid
        strategy = self._request.strategy
        if strategy == Dump.ALL:
            return self._read((int(name), int(name)) for name in self._processes())
        if strategy == Dump.ALL_THREAD:
            return self._read(self._all_threads())
        if strategy == Dump.CHILDREN:
            children = self._children(self._process(pid))
            return self._read((int(name), int(name)) for name in children)
        process = self._process(pid)
        if strategy == Dump.THREAD:
            return self._some(self._read(self._threads(process)))
        return self._some(self._read([(int(process), pid)]))

    def _read(self, tasks: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The messages of tasks given as process and thread."""
        read = self._reader.message
        if self._reader.slow:
            from ..ordered import ordered

            found = ordered(lambda task: read(*task) or b"", iter(tasks), len)
            yield from filter(None, found)
            return
        for pid, tid in tasks:
            message = read(pid, tid)
            if message is not None:
                yield message

    def _some(self, found: Iterator[bytes]) -> Iterator[bytes]:
        """The same messages; raises NoSuchProcess if there is none, since the task has ended."""
        empty = True
        for message in found:
            empty = False
            yield message
        if empty:
            raise NoSuchProcess(self._request.pid)

    def _process(self, pid: int) -> str:
        """The directory of a thread's process.

        /proc/TID opens for every thread, though only processes are listed.

        Raises NoSuchProcess unless both the thread and its process are there to be seen.
        """
        try:
            found = self._seen(str(pid))
            if found != str(pid):
                self._seen(found)
        except Vanished:
            raise NoSuchProcess(pid) from None
        return found

    def _seen(self, where: str) -> str:
        """The number of the process that a directory is about.  Raises Vanished."""
        with Directory(self._root, where) as directory:
            if self._ask:
                access.check(directory)
            (tgid,) = parse_lines(directory.read("status"), [("Tgid", 0)], [])
        # It is "0" if the task was released while the file was read.
        if not tgid or tgid == b"0":
            raise Vanished(where)
        return tgid.decode()

    def _processes(self) -> list[str]:
        """The directories of all processes; the kernel lists each once, in ascending order."""
        return [name for name in os.listdir(self._root) if name.isdigit()]

    def _children(self, parent: str) -> Iterator[str]:
        """The directories of processes whose parent is that one."""
        wanted = parent.encode()
        for name in self._processes():
            try:
                if parse(Directory(self._root, name, pinned=False).read("stat"))[_PPID] == wanted:
                    yield name
            except Vanished:
                continue

    def _threads(self, process: str) -> list[tuple[int, int]]:
        """The threads of a process, ascending; none if it is gone or hidden."""
        try:
            with Directory(self._root, process) as directory:
                if self._ask:
                    access.check(directory)
                found = set(directory.names("task"))
                if len(found) >= _LONG_LISTING:
                    # If the thread at which one call ended exits before the next, the
                    # kernel goes on by position and skips one (first_tid, fs/proc/base.c).
                    found.update(directory.names("task"))
        except Vanished:
            return []
        pid = int(process)
        return [(pid, tid) for tid in sorted(map(int, found))]

    def _all_threads(self) -> list[tuple[int, int]]:
        """The threads of all processes, ascending."""
        found = [thread for process in self._processes() for thread in self._threads(process)]
        found.sort(key=lambda thread: thread[1])
        return found
