"""One task from /proc: its attributes, whole or not at all."""

from __future__ import annotations

import os
from struct import error as StructError

from ..abi import Attr
from ..netlink import pack_task
from . import access, cmdline, maps, stat
from .comm import COMM_MAX, kernel_comm, needs_care
from .pair import read_pair
from .plan import plan_for, statistics
from .reader import Changed, Directory, Malformed, Refused, Vanished, open_procfs
from .status import unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plan import Plan

    #: Attributes (type and payload, in the stream's order), and VMA records.
    Answer = tuple[list[tuple[int, bytes]], list[bytes]]

__all__ = ("attributes", "read_message", "read_task")

#: How often a task is read anew that turns into something else while it is read.
_ATTEMPTS = 100
_CMDLINE = int(Attr.CMDLINE)


def attributes(
    pid: int, tid: int | None, show: int, whole: bool = True, root: int | None = None
) -> Answer | None:
    """The attributes of one task, as types and payloads, and its VMA records.

    ``pid`` is the process, ``tid`` the thread, None meaning the leader.  With ``whole``
    STAT is that of the whole process, without it that of the thread, and VMA records come
    with the leader only.  None if there is no such task, or not any more.

    >>> attrs, vmas = attributes(1, None, Show.BASE)
    >>> [kind for kind, _ in attrs], vmas
    ([0], [])

    ``root`` is a descriptor from `open_procfs`, for callers who ask about many tasks.
    Nobody is asked whether the caller may see the task.  Raises EngineUnavailable, and
    OSError with the path of the file that could not be read.
    """
    tid = tid or pid
    where = str(tid) if whole else f"{pid}/task/{tid}"
    proc = open_procfs() if root is None else root
    try:
        return read_task(proc, where, plan_for(show), whole or tid == pid, False, pid)
    finally:
        if root is None:
            os.close(proc)


def read_message(
    root: int, where: str, plan: Plan, tid: int, tgid: int, ask: bool, seq: int
) -> bytes | None:
    """The messages about one task, of a directory below ``root``; None as for `read_task`."""
    if plan.messages:
        try:
            if plan.status is None:
                status, stat = b"", read_pair(root, where, "stat", "", ask)[0]
            else:
                second = "stat" if plan.stat else ""
                status, stat = read_pair(root, where, "status", second, ask)
        except Vanished:
            return None
        for make in plan.messages:
            message = make(status, stat, tid, tgid, seq)
            if message is not None:
                return message
    # /proc/TID shows the mappings of any thread.
    mapped = tid == tgid or "/" not in where
    answer = read_task(root, where, plan, mapped, ask, tgid)
    return None if answer is None else pack_task(tid, tgid, answer[0], answer[1], seq)


def read_task(
    root: int, where: str, plan: Plan, mapped: bool, ask: bool, tgid: int
) -> Answer | None:
    """The same for a directory below ``root``, which must be one of process ``tgid``.

    ``mapped`` says whether VMA records are wanted; with ``ask`` it is None also if the
    caller may not see the task.
    """
    # A single file is of one moment and one task anyway.
    pinned = ask or plan.files > 1
    for _ in range(_ATTEMPTS):
        try:
            with Directory(root, where, pinned) as directory:
                if ask:
                    access.check(directory)
                return read_directory(plan, directory, mapped, ask, tgid)
        except Vanished:
            return None
        except Changed:
            pinned = True
    return None


def read_directory(
    plan: Plan, directory: Directory, mapped: bool, strict: bool, tgid: int | None = None
) -> Answer:
    """The attributes of the task of a directory.

    ``tgid`` is its process, by default the one that the directory's name starts with.

    A caller who may see every task may still be kept from the mappings of one by a
    security module.  That one then has no VMA records, unless ``strict``: then it is
    not shown at all.

    Raises Vanished, Changed, Malformed.
    """
    values: tuple[bytes | None, ...] = ()
    fields: list[bytes] = []
    name = b""
    has_mm: bool | None = None
    if plan.status is not None:
        values = plan.status(directory.read("status"))
        process = tgid or directory.where.partition("/")[0]
        if values[-1] == b"0" or values[-2] != str(process).encode():
            raise Vanished(directory.where)
        has_mm = values[-3] is not None
        if plan.comm is not None:
            name = _comm(values[plan.comm] or b"", has_mm, directory)
    if plan.stat:
        fields = stat.parse(directory.read("stat"))
        # As in status: no threads, no session, no parent: released while it was read.
        if fields[19] == b"0":
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
        has_mm = bool(args) or _still(has_mm, directory)
        if has_mm:
            attrs.append((_CMDLINE, args))
    vmas: list[bytes] = []
    if plan.mappings and mapped and has_mm is not False:
        try:
            vmas = _vmas(plan, directory, has_mm)
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


def _still(had_mm: bool | None, directory: Directory) -> bool:
    """Whether a task that shows no memory contents has an address space all the same.

    Raises Changed if it had one before and has lost it: it exits, and what was read of
    it so far is of another time.
    """
    if not directory.pinned:
        raise Changed
    has_mm = cmdline.has_mm(directory)
    if had_mm and not has_mm:
        raise Changed
    return has_mm


def _vmas(plan: Plan, directory: Directory, has_mm: bool | None) -> list[bytes]:
    data = directory.read_mappings(plan.mappings)
    if not data:
        if _still(has_mm, directory):
            # It has an address space, so it has mappings; these were of its last one.
            raise Changed
        return []
    if plan.mappings == "smaps":
        found = maps.parse_smaps(data, statistics)
    else:
        found = maps.parse_maps(data)
    # Only the process's directory has map_files, its threads' have not.
    up = "../../" if "/task/" in directory.where else ""
    return maps.records(found, directory, up)
