"""Completing the kernel's messages with groups that procfs serves.

It is used for groups that this kernel cannot serve by BPF (`compile.missing_features`), and for
single tasks that a program left unfinished, because the command line or the mappings are longer
than one message.

A task's number may be given to another task between the message and the read from /proc.
`Completion` says how that is noticed.
"""

from __future__ import annotations

import errno
import os

from ..abi import DEFERRED, MSG, ORDER, Attr, Show
from ..errors import EngineUnavailable
from ..netlink import attributes, in_order, messages, pack_task
from ..ordered import ordered
from ..procfs import TaskReader, open_procfs
from .recheck import CHECK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..request import Request
    from .stacked import KeepName, StackedNames
    from .viewer_root import ViewerRoot

    #: Called with the number of a thread in our pid namespace, or 0 for all threads.  Returns
    #: the CHECK of each of these threads that the viewer may see, by the thread's number.
    Check = Callable[[int], dict[int, bytes]]

__all__ = ("Completion", "merged", "with_init")

#: Completed messages are handed on in chunks of about this size.
_CHUNK = 1 << 16
#: How many tasks, and bytes about them, are held back at most until it is known that the
#: viewer may see them.
_HELD, _HELD_SIZE = 1024, 1 << 22
#: From this many tasks on, checking all threads of the host at once is cheaper.
_MANY = 32
#: How often a task is read again if it has changed each time.
_ATTEMPTS = 10
_TICKS = os.sysconf("SC_CLK_TCK")
#: Start times from here on, in ticks, are negative numbers of nanoseconds shown as unsigned.
_NEGATIVE = (1 << 63) // (1_000_000_000 // _TICKS)


class _Task:
    """One message of the kernel, taken apart.

    ``home`` is the number of the thread in our pid namespace and ``process`` that of its
    process; ``tid`` and ``tgid`` are the numbers in the viewer's.  ``lacking`` are the groups
    to read from /proc.
    """

    __slots__ = ("data", "found", "home", "lacking", "process", "seq", "tgid", "tid")

    def __init__(self, data: bytes, request: Request, elsewhere: Show) -> None:
        _, _, _, self.seq, port, self.tid, self.tgid, flags = MSG.unpack_from(data)
        self.home = port or self.tid
        self.process = self.tgid
        self.data = data if not port else data[:12] + bytes(4) + data[16:]
        self.lacking = elsewhere
        self.found: list[tuple[int, bytes]] = []
        if elsewhere or flags & DEFERRED:
            self.found = [
                (kind, data[start:end])
                for kind, start, end in attributes(data, MSG.size, len(data))
            ]
        if flags & DEFERRED:
            had = {kind for kind, _ in self.found}
            for group in (Show.CMDLINE, Show.VMA):
                if request.show & group and Attr[str(group.name)] not in had:
                    self.lacking |= group

    def with_groups(self, attrs: list[tuple[int, bytes]], vmas: list[bytes]) -> bytes:
        """The messages about the task, with the attributes and mappings read from /proc."""
        plain = sorted(self.found + attrs, key=lambda item: ORDER.index(Attr(item[0])))
        return pack_task(self.tid, self.tgid, plain, vmas, self.seq)


class Completion:
    """Completes the messages of one answer.

    ``elsewhere`` are the groups that all messages lack; a message that the program deferred
    lacks more.  ``since`` is a time before the first message was written, on CLOCK_BOOTTIME in
    seconds.  ``again`` runs the same program for one thread, given its number in our pid
    namespace.  ``check`` is for viewers who may see less than this process (`recheck`), and
    ``root`` for viewers with another root directory.

    A task's number may be given to another task after its message was written.  The other
    task was then started after ``since``, because the kernel allocates the number before it
    takes the start time (kernel/fork.c, ``copy_process``).  So a task that was started before
    ``since`` is the one of the message.  For a task that was started later, the program is
    run again while a descriptor of the task's directory in /proc is open.  As long as this
    descriptor can be read, the new message is about the same task.

    ``marker`` is that of the programs (`Host.marker`), and ``keep_name`` gives the program that
    writes the answer a name that was found (`Loaded.keep_name`).

    Raises EngineUnavailable if /proc cannot be used.
    """

    def __init__(
        self,
        request: Request,
        elsewhere: Show,
        since: float,
        again: Callable[[int], bytes],
        check: Check | None = None,
        root: ViewerRoot | None = None,
        *,
        marker: bytes = b"",
        keep_name: KeepName | None = None,
    ) -> None:
        self._request = request
        self._through = None if root is None else root.call
        self._marker = marker
        self._keep_name = keep_name
        self._names: StackedNames | None = None
        self._elsewhere = elsewhere
        self._run_again = again
        self._check = check
        self._since = since
        self._readers: dict[Show, TaskReader] = {}
        self._before: dict[int, bytes] = {}
        self._proc = -1

    def close(self) -> None:
        """Close the descriptor of /proc."""
        proc, self._proc = self._proc, -1
        if proc >= 0:
            os.close(proc)

    def complete(self, data: bytes) -> Iterator[bytes]:
        """Yield the same messages, complete, without those about tasks that no longer exist."""
        if self._proc < 0:
            self._proc = _procfs()
        parts = list(self._parts(self._with_names(data)))
        tasks = [part for part in parts if isinstance(part, _Task)]
        if self._check is None:
            completed: Iterator[bytes] = ordered(self._read, iter(tasks), len)
        else:
            completed = self._visible(tasks, self._check)
        chunk = bytearray()
        for part in parts:
            chunk += part if isinstance(part, bytes) else next(completed)
            if len(chunk) >= _CHUNK:
                yield bytes(chunk)
                chunk.clear()
        if chunk:
            yield bytes(chunk)

    def _with_names(self, data: bytes) -> bytes:
        """The same messages; none has a record without the name of its file."""
        if not self._marker or self._marker not in data:
            return data
        if self._names is None:
            from .stacked import StackedNames

            self._names = StackedNames(
                self._proc, self._marker, self._run_again, self._through, self._keep_name
            )
        return self._names.complete(data)

    def _again(self, tid: int) -> bytes:
        return self._with_names(self._run_again(tid))

    def _parts(self, data: bytes) -> Iterator[bytes | _Task]:
        """Yield incomplete messages as tasks, and the complete ones between them as bytes."""
        at = begin = 0
        while at < len(data):
            length, _, _, _, port, _, _, flags = MSG.unpack_from(data, at)
            if self._elsewhere or port or flags & DEFERRED:
                if begin < at:
                    yield data[begin:at]
                begin = at + length
                task = _Task(data[at:begin], self._request, self._elsewhere)
                yield task if task.lacking else task.data
            at += length
        if begin < at:
            yield data[begin:at]

    def _read(self, task: _Task) -> bytes:
        """The complete messages about a task, b"" if it no longer exists."""
        for _ in range(_ATTEMPTS):
            newer: list[_Task] = []

            def same(start: int, task: _Task = task, newer: list[_Task] = newer) -> bool:
                if self._old(start):
                    return True
                data = self._again(task.home)
                if not data:
                    return False
                now = _Task(data, self._request, self._elsewhere)
                now.process = task.process
                newer.append(now)
                return (now.tid, now.tgid, now.lacking) == (task.tid, task.tgid, task.lacking)

            answer = self._reader(task.lacking).read(task.process, task.home, same)
            if answer is not None:
                return (newer[0] if newer else task).with_groups(*answer)
            if not newer or (newer[0].tid, newer[0].tgid) != (task.tid, task.tgid):
                return b""
            if not newer[0].lacking:
                return newer[0].data
            if newer[0].lacking == task.lacking:
                return b""
            task = newer[0]
        return b""

    def _old(self, start: int) -> bool:
        """Whether a task with that start time was started before ``since``."""
        # In a time namespace, a task older than the zero of its clock has a huge one.
        return (start + 1) / _TICKS <= self._since or start >= _NEGATIVE

    def _reader(self, show: Show) -> TaskReader:
        reader = self._readers.get(show)
        if reader is None:
            threads = self._request.threads
            reader = TaskReader(
                self._proc, show, threads=threads, through=self._through, old=self._old
            )
            self._readers[show] = reader
        return reader

    def _visible(self, tasks: list[_Task], check: Check) -> Iterator[bytes]:
        """Yield the complete messages about each task, b"" for those the viewer may not see.

        The viewer must be allowed to see a task before and after it is read.
        """
        before = self._checks(tasks, check, self._before)
        held: list[tuple[_Task, bytes]] = []
        size = 0

        def read(task: _Task) -> bytes:
            return self._read(task) if _matches(task, before) else b""

        for task, piece in zip(tasks, ordered(read, iter(tasks), len), strict=True):
            held.append((task, piece))
            size += len(piece)
            if len(held) >= _HELD or size >= _HELD_SIZE:
                yield from self._still_visible(held, before, check)
                held, size = [], 0
        yield from self._still_visible(held, before, check)

    def _still_visible(
        self, held: list[tuple[_Task, bytes]], before: dict[int, bytes], check: Check
    ) -> Iterator[bytes]:
        """Yield the messages of the tasks that are still the same and still visible."""
        after = self._checks([task for task, _ in held], check, {})
        for task, piece in held:
            if task.home not in after or after[task.home] == before.get(task.home):
                yield piece if task.home in after else b""
            else:
                yield self._read_alone(task, check)

    def _read_alone(self, task: _Task, check: Check) -> bytes:
        """The complete messages about a task that changed: by execve, or it is another task."""
        for _ in range(_ATTEMPTS):
            before = check(task.home)
            if not _matches(task, before):
                break
            piece = self._read(task)
            if check(task.home) == before:
                return piece
        return b""

    def _checks(
        self, tasks: list[_Task], check: Check, known: dict[int, bytes]
    ) -> dict[int, bytes]:
        """The CHECK of each task that the viewer may see; ``known`` ones are not made again."""
        wanted = [task.home for task in tasks if task.home not in known]
        if len(wanted) >= _MANY:
            # The CHECKs may be older than the messages of the next call: `_matches` compares.
            self._before = check(0)
            return self._before
        found = known.copy()
        for tid in wanted:
            found.update(check(tid))
        return found


def _matches(task: _Task, checks: dict[int, bytes]) -> bool:
    """Whether there is a CHECK of this task; sets ``task.process`` from it."""
    found = checks.get(task.home)
    if found is None:
        return False
    tid, tgid, _, _, task.process, _ = CHECK.unpack(found)
    return bool((tid, tgid) == (task.tid, task.tgid))


def with_init(chunks: Iterable[bytes], request: Request) -> Iterator[bytes]:
    """Add process 1, from /proc, to an answer about all tasks, where it belongs.

    Every pid namespace has a process 1, but some hardened guest kernels hide it from BPF.
    """
    return merged(chunks, _init_messages(request))


def merged(chunks: Iterable[bytes], hidden: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """Merge the chunks of an answer with more tasks, in the order of their numbers.

    Each item of ``hidden`` is the number of a task and its messages.
    """
    for chunk in chunks:
        if not hidden:
            yield chunk
            continue
        last = max(pid for _, _, pid, _, _ in messages(chunk))
        yield in_order(chunk + b"".join([data for tid, data in hidden if tid < last]))
        hidden = [(tid, data) for tid, data in hidden if tid > last]
    yield from (data for _, data in hidden)


def _init_messages(request: Request) -> list[tuple[int, bytes]]:
    try:
        proc = _procfs()
    except EngineUnavailable:
        return []
    try:
        reader = TaskReader(proc, request.show, threads=request.threads, seq=request.seq)
        found = [
            (tid, reader.message(1, tid))
            for tid in (_init_threads(proc) if request.threads else [1])
        ]
        return [(tid, message) for tid, message in found if message is not None]
    except OSError:
        # A security module may hide it from everybody.
        return []
    finally:
        os.close(proc)


def _init_threads(proc: int) -> list[int]:
    fd = os.open("1/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return sorted(int(name) for name in os.listdir(fd))
    finally:
        os.close(fd)


def _procfs() -> int:
    """Open /proc, which must be that of our own pid namespace."""
    proc = open_procfs()
    try:
        if os.readlink("self", dir_fd=proc) == str(os.getpid()):
            return proc
    except OSError:
        pass
    os.close(proc)
    raise EngineUnavailable(
        errno.ENOENT, "/proc shows another pid namespace, so it cannot complete the answer"
    )
