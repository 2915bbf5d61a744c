"""The programs of a request as annotated text, without loading them.

This needs no privilege: programs are made from type information that everybody may read.
Numbers that only the kernel knows are replaced by stand-ins, and the text says so.
"""

from __future__ import annotations

import os

from .. import abi
from ..abi import Dump, Show
from ..capability import CAP_SYS_PTRACE, effective
from ..request import Request
from . import mm, vma
from .annotate import Annotator
from .compile import Program, compile_request, missing_features
from .disasm import listing
from .emit import Host
from .viewer import INIT_PID_NS, INIT_USER_NS, Rule, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .facts import Facts

__all__ = ("explain",)

#: Not a possible kernel address, so that it is recognized in the listing.
_STAND_IN = 0x1111_1111_1111_1111

_WHICH = {
    Dump.ALL: "every process",
    Dump.ONE: "process {pid}",
    Dump.ALL_THREAD: "every thread",
    Dump.CHILDREN: "the children of process {pid}",
    Dump.THREAD: "every thread of process {pid}",
}


def explain(request: Request, facts: Facts) -> Iterator[str]:
    """The lines that explain how the kernel engine would answer the request.

    Raises EngineUnavailable if the kernel has no BTF, or lacks a structure that a group is
    read from.
    """
    lacking = missing_features(facts, threads=request.threads)
    elsewhere = Show(0)
    yield f"; {_WHICH[request.strategy].format(pid=request.pid)}: {_names(request.show)}"
    for group in _groups(request.show):
        if lacking[group]:
            elsewhere |= group
            yield f"; {_names(group)}: from procfs (missing: {lacking[group]})"
    if elsewhere & Show.VMA_STAT and not elsewhere & Show.VMA:
        elsewhere |= Show.VMA
        yield "; vma: from procfs as well, since vma_stat is part of its records"
    viewer, host = _viewer(), _stand_in_host(request.show & ~elsewhere, facts)
    yield from _stand_ins(viewer, host)
    if request.strategy == Dump.CHILDREN:
        yield ""
        yield f"; First: is there a process {request.pid}?"
        first = Request(Show(0), Dump.ONE, request.pid)
        yield from _program(first, compile_request(first, facts, viewer, host, Annotator), facts)
    inside = Request(request.show & ~elsewhere, request.strategy, request.pid, request.seq)
    yield ""
    yield from _program(inside, compile_request(inside, facts, viewer, host, Annotator), facts)


def _program(request: Request, program: Program, facts: Facts) -> Iterator[str]:
    code = program.code
    narrow = {Dump.ONE: f"tid = {request.pid}", Dump.THREAD: f"pid = {request.pid}"}
    attach = "iter.s/task, which may sleep" if program.sleepable else "iter/task"
    maps = sorted({name for _, name in code.maps})
    yield (
        f"; {attach}: {len(code.insns) // 8} instructions"
        + (f", maps {', '.join(maps)}" if maps else ", no map")
        + f", run for {narrow.get(request.strategy, 'all tasks')}"
    )
    yield "; r6 = task, r7 = its mm, r8 = its signal, " + (
        "r9 = the message" if program.arena else "the message is on the stack (r10)"
    )
    yield from listing(code, facts.btf.name, _describe)


def _stand_in_host(show: Show, facts: Facts) -> Host:
    host = Host()
    if show & Show.STATM and not facts.has_member("mm_struct", "rss_stat.count"):
        host.per_cpu = tuple(_STAND_IN + cpu for cpu in range(mm.possible_cpus()))
    if show & Show.VMA:
        host.special_ops = _STAND_IN
        host.gate = vma.gate_record()
        host.marker = bytes(len(host.marker))
    return host


def _stand_ins(viewer: Viewer, host: Host) -> Iterator[str]:
    """Lines that say which numbers of the listing are not those of a real program."""
    if host.per_cpu:
        count = len(host.per_cpu)
        yield (
            f"; stand-ins: {_STAND_IN:#x} and up for the offsets of the {count} CPUs' data"
            " (a real program has those of the kernel)"
        )
    if host.special_ops:
        yield (
            f"; stand-in: {_STAND_IN:#x} for the address of special_mapping_vmops"
            " (a real program has that of the kernel)"
        )
    if not any(host.marker):
        yield (
            "; stand-in: 0 for the marker of records whose name is not known yet"
            " (a real program has a random number)"
        )
    if viewer.level:
        yield (
            f"; stand-in: level {viewer.level} for the depth of this pid namespace"
            " (a real program has that of the kernel)"
        )
    if viewer.rule is not None:
        yield "; access: without CAP_SYS_PTRACE, only tasks that this user may trace are shown"
        if viewer.rule.level:
            yield (
                "; stand-in: level 1, address 0 for this user namespace"
                " (a real program has those of the kernel)"
            )


def _viewer() -> Viewer:
    """This process as a viewer, as far as /proc shows it."""
    level, pids = _namespace("pid", INIT_PID_NS)
    depth, users = _namespace("user", INIT_USER_NS)
    uid, gid, caps = os.geteuid(), os.getegid(), effective()
    if caps is None:
        caps = 0 if uid else 1 << CAP_SYS_PTRACE
    if caps & 1 << CAP_SYS_PTRACE and not depth:
        return Viewer(level, pids)
    return Viewer(level, pids, rule=Rule(uid, gid, uid, caps, level=depth, inum=users))


def _namespace(kind: str, first: int) -> tuple[int, int]:
    """The depth of this process's namespace, 1 if it is not the first, and its inode number."""
    try:
        inode = os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0, first
    return int(inode != first), inode


def _groups(show: Show) -> list[Show]:
    # Since Python 3.11 flags can be iterated over.
    return [group for group in Show if group & show]


def _names(show: Show) -> str:
    return ", ".join(str(group.name).lower() for group in _groups(show)) or "just the numbers"


def _describe(note: str) -> str:
    """A note with the catalogue's entry: ``base.ppid = parent_nr(task)``."""
    group, _, field = note.partition(".")
    attr = next((attr for attr in abi.GROUPS if attr.name.lower() == group), None)
    if attr is None:
        return note
    if not field:
        return f"{note}: {abi.GROUPS[attr].doc}"
    return f"{note} = {abi.GROUPS[attr][field].kernel}"
