"""Reading one task from /proc: all its attributes, or none."""

from __future__ import annotations

from struct import error as StructError

from ..abi import Attr
from ..netlink import pack_task
from . import access, cmdline, maps, stat
from .comm import COMM_MAX, kernel_comm, needs_care
from .pair import read_pair
from .plan import plan_for, statistics
from .reader import Changed, Directory, Malformed, Refused, Vanished
from .records import Records
from .status import unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .plan import Plan

    #: Attributes (type and payload, in the stream's order), and VMA records.
    Answer = tuple[list[tuple[int, bytes]], list[bytes]]

__all__ = ("TaskReader",)

#: How often a task is read again if it has changed while it was read.
_ATTEMPTS = 100
#: The number of processes for which the thread that shows the mappings is remembered.
_REMEMBERED = 4096
_CMDLINE = int(Attr.CMDLINE)
#: Fields of stat, as indices: state, number of threads, start time.
_STATE, _THREADS, _START = 2, 19, 21


class TaskReader:
    """Reads the groups of one answer for one task after the other.

    ``root`` is a descriptor from `open_procfs`, which still belongs to the caller, and ``show``
    are the groups.  With ``threads``, STAT is that of the thread, and mappings come with one
    thread of a process: the leader or, if it has exited, the live thread with the lowest
    number.  Otherwise everything is about the whole process.  With ``ask``, tasks that the
    caller may not see are left out; otherwise that is not checked.  ``through`` is as in
    `Directory`.  ``old`` is called with a start time (as in /proc/PID/stat), and returns
    whether a task that was started then surely had its number before `read` was called.  If
    it is given, `read` needs fewer system calls.

    One object serves one answer; several threads may use it.  What it remembers must not be
    used for an answer to somebody else, see `Records`.

    >>> root = open_procfs()
    >>> attrs, vmas = TaskReader(root, Show.BASE).read(1, 1)
    >>> [kind for kind, _ in attrs], vmas
    ([0], [])

    Raises EngineUnavailable if /proc lacks what the groups need.
    """

    def __init__(
        self,
        root: int,
        show: int,
        *,
        threads: bool = False,
        ask: bool = False,
        seq: int = 0,
        through: Callable[..., Any] | None = None,
        old: Callable[[int], bool] | None = None,
    ) -> None:
        self._root = root
        self._through = through
        self._old = old
        self._plan = plan_for(show)
        self._whole = not threads
        self._ask = ask
        self._seq = seq
        self._records = Records(statistics if self._plan.statistics else None)
        self._showing: dict[int, int] = {}

    @property
    def slow(self) -> bool:
        """Whether most of the time passes in system calls, so that several threads help."""
        return bool(self._plan.mappings)

    def message(self, tgid: int, tid: int) -> bytes | None:
        """The messages about one task; None as for `read`."""
        plan = self._plan
        if plan.messages:
            where = self._where(tgid, tid)
            try:
                if plan.status is None:
                    status, stat = b"", read_pair(self._root, where, "stat", "", self._ask)[0]
                else:
                    second = "stat" if plan.stat else ""
                    status, stat = read_pair(self._root, where, "status", second, self._ask)
            except Vanished:
                return None
            for make in plan.messages:
                message = make(status, stat, tid, tgid, self._seq)
                if message is not None:
                    return message
        answer = self.read(tgid, tid)
        return None if answer is None else pack_task(tid, tgid, answer[0], answer[1], self._seq)

    def read(self, tgid: int, tid: int, same: Callable[[int], bool] | None = None) -> Answer | None:
        """The attributes of one task, as types and payloads, and its VMA records.

        None if there is no such task, or it no longer exists.

        ``same`` is called with the start time of the task that has the number now (in ticks,
        as in /proc/PID/stat), and returns whether it is the right one.  After that, only this
        task is read.

        Raises EngineUnavailable, and OSError with the path of the file that could not be
        read.
        """
        plan = self._plan
        mappings = bool(plan.mappings) and self._shows_mappings(tgid, tid)
        if same is not None and plan.files == 1 and plan.mappings and not mappings:
            return [], []
        if same is not None and mappings and plan.files == 1 and not self._ask:
            vmas = self._mappings_of_old(tgid, tid)
            if vmas:
                return [], vmas
        # A single file is always about one task.
        pinned = self._ask or plan.files > 1 or same is not None
        for _ in range(_ATTEMPTS):
            try:
                where = self._where(tgid, tid)
                with Directory(self._root, where, pinned, self._through) as directory:
                    if self._ask:
                        access.check(directory)
                    if same is not None and not same(start_time(directory)):
                        return None
                    records = self._records if mappings else None
                    return read_directory(plan, directory, tgid, records, self._ask)
            except Vanished:
                return None
            except Changed:
                pinned = True
        return None

    def _mappings_of_old(self, tgid: int, tid: int) -> list[bytes]:
        """The mappings of a task, if ``old`` says that it is the right one.

        Otherwise the list is empty, and the task must be read step by step.

        The files are opened by their paths: the mappings first, then stat.  If the task that
        has the number at the end is old, it had the number all along, so the mappings are of
        this task.
        """
        if self._old is None:
            return []
        try:
            directory = Directory(self._root, self._where(tgid, tid), False, self._through)
            vmas = _vmas(self._plan, directory, True, self._records)
            return vmas if self._old(start_time(directory)) else []
        except (Vanished, Changed):
            return []

    def _where(self, tgid: int, tid: int) -> str:
        """The directory below /proc.  /proc/TID shows the whole process, for any thread."""
        return str(tid) if self._whole else f"{tgid}/task/{tid}"

    def _shows_mappings(self, tgid: int, tid: int) -> bool:
        """Whether the mappings of a process come with that thread."""
        if self._whole or tid == tgid:
            return True
        showing = self._showing.get(tgid)
        if showing is None:
            if len(self._showing) >= _REMEMBERED:
                self._showing.clear()
            showing = self._showing[tgid] = first_with_memory(self._root, tgid)
        return showing == tid


def start_time(directory: Directory) -> int:
    """When a task was started, in ticks since boot.  Raises Vanished, Malformed."""
    value = stat.parse(directory.read("stat"))[_START]
    if not value.isdigit():
        raise Malformed(f"/proc/PID/stat shows {value!r} as start time")
    return int(value)


def first_with_memory(root: int, tgid: int) -> int:
    """The thread with which the mappings of a process are shown; 0 if there is none.

    It is the leader, unless the leader has exited while other threads live on.
    """
    try:
        with Directory(root, str(tgid)) as directory:
            if stat.parse(directory.read("stat"))[_STATE] not in (b"Z", b"X"):
                return tgid
            for tid in sorted(map(int, directory.names("task"))):
                try:
                    if cmdline.has_mm(Directory(root, f"{tgid}/task/{tid}", pinned=False)):
                        return tid
                except Vanished:
                    continue
    except Vanished:
        pass
    return 0


def read_directory(
    plan: Plan, directory: Directory, tgid: int, records: Records | None, strict: bool
) -> Answer:
    """Read the attributes of the task of a directory; its mappings only if ``records`` is given.

    ``tgid`` is the process that the task must belong to.

    A security module may refuse the mappings of a task even to a caller who may see every task.
    The task is then shown without mappings, or with ``strict`` not at all.

    Raises Vanished, Changed, Malformed.
    """
    values: tuple[bytes | None, ...] = ()
    fields: list[bytes] = []
    name = b""
    has_mm: bool | None = None
    if plan.status is not None:
        values = plan.status(directory.read("status"))
        if values[-1] == b"0" or values[-2] != b"%d" % tgid:
            raise Vanished(directory.where)
        has_mm = values[-3] is not None
        if plan.comm is not None:
            name = _comm(values[plan.comm] or b"", has_mm, directory)
    if plan.stat:
        fields = stat.parse(directory.read("stat"))
        # A task that was released while the file was written has no threads.
        if fields[_THREADS] == b"0":
            raise Vanished(directory.where)
    try:
        attrs = [
            (kind, fill(fields, values, name))
            for kind, fill, needs_mm in plan.fixed
            if has_mm or not needs_mm
        ]
    except (ValueError, KeyError, TypeError, StructError) as error:
        raise Malformed(f"/proc/{directory.where} shows an unknown value: {error}") from None
    if plan.cmdline and has_mm is not False:
        args = cmdline.read(directory)
        has_mm = bool(args) or _still_has_mm(has_mm, directory)
        if has_mm:
            attrs.append((_CMDLINE, args))
    vmas: list[bytes] = []
    if records is not None and has_mm is not False:
        try:
            vmas = _vmas(plan, directory, has_mm, records)
        except Refused:
            if strict:
                raise
    return attrs, vmas


def _comm(shown: bytes, has_mm: bool, directory: Directory) -> bytes:
    name = unescape(shown)
    if has_mm or not needs_care(name):
        return name
    if not directory.pinned:
        raise Changed
    return kernel_comm(name, directory) if needs_care(name) else name[:COMM_MAX]


def _still_has_mm(had_mm: bool | None, directory: Directory) -> bool:
    """Whether a task with an empty command line, or without mappings, has an address space.

    Raises Changed if it had one before and has lost it by exiting: what was read so far then
    does not fit the rest.
    """
    if not directory.pinned:
        raise Changed
    has_mm = cmdline.has_mm(directory)
    if had_mm and not has_mm:
        raise Changed
    return has_mm


def _vmas(plan: Plan, directory: Directory, has_mm: bool | None, records: Records) -> list[bytes]:
    # map_files is only in the directory of the process, not in those of its threads.
    up = "../../" if "/task/" in directory.where else ""

    def exact(start: int, end: int, shown: bytes) -> bytes:
        return maps.exact_name(directory, up, start, end, shown)

    last = b"VmFlags:" if plan.mappings == "smaps" else b""
    found: list[bytes] = []
    for text in directory.read_mappings(plan.mappings, last):
        found += records(text, exact)
    if not found and _still_has_mm(has_mm, directory):
        # It has an address space, so it has mappings; those read were of an earlier one.
        raise Changed
    return found
