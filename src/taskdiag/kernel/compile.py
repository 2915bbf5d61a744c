"""The compiler: a request becomes one iterator program that writes finished messages.

The program has code only for the groups of the request.  The catalogue (:mod:`taskdiag.abi`)
says for every field how the kernel reaches it: a path from the task or its mm, or one of the
functions named in ``FUNCTIONS``.
"""

from __future__ import annotations

from .. import abi
from ..abi import NLM_F_MULTI, RESPONSE, Attr, Dump, Show
from . import access, cmdline, cred, first_process, mm, names, pid, sched, tty, vma
from .asm import R0, R1, R2, R3, R4, Code, signed32
from .emit import ARENA, ARENA_LOCALS, FLAGS, FRAME, MM, SIGNAL, TASK, Emitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..request import Request
    from .emit import Host
    from .facts import Facts
    from .viewer import Viewer

__all__ = (
    "FUNCTIONS",
    "Program",
    "compile_request",
    "missing_features",
    "prologue",
)


_HEAD = abi.MSG.size
_LEN, _SEQ, _PORT, _PID, _TGID = 0, 8, 12, 16, 20

#: The functions that ``kernel`` entries of the catalogue may name; each leaves a number in R0.
FUNCTIONS: dict[str, Callable[[Emitter], None]] = {
    "hiwater_vm(mm)": mm.hiwater_vm,
    "lib(mm)": mm.lib,
    "nice(task)": sched.nice,
    "parent_nr(task)": pid.parent_nr,
    "pgrp_nr(task)": pid.pgrp_nr,
    "pid_nr(task)": pid.pid_nr,
    "priority(task)": sched.priority,
    "processor(task)": sched.processor,
    "session_nr(task)": pid.session_nr,
    "start_time(task)": sched.start_time,
    "state(task)": sched.state,
    "text(mm)": mm.text,
    "tgid_nr(task)": pid.tgid_nr,
    "tpgid(task)": tty.tpgid,
    "tracer_nr(task)": pid.tracer_nr,
    "tty_nr(task)": tty.tty_nr,
}

#: The conversions that they may apply to a path; each changes the number in R0.
CONVERSIONS: dict[str, Callable[[Emitter], None]] = {
    "clock_t": sched.clock_t,
    "gid": cred.gid,
    "uid": cred.uid,
}


class Program:
    """A compiled request.

    ``code`` is what the kernel loads, and ``sleepable`` says that it may sleep.  A program with
    an ``arena`` has state, so only one run of it may be under way.  ``size`` is the size of its
    messages if nearly all have the same, else 0.
    """

    __slots__ = ("arena", "code", "size", "sleepable")

    def __init__(self, code: Code, *, sleepable: bool, arena: bool, size: int = 0) -> None:
        self.code = code
        self.sleepable = sleepable
        self.arena = arena
        self.size = size


def missing_features(facts: Facts, *, threads: bool = False) -> dict[Show, str]:
    """Return for each group what this kernel lacks to serve it by BPF, "" if nothing.

    ``threads`` is for thread strategies, which need no sums over the threads of a process.
    """
    answer = dict.fromkeys(Show, "")
    answer[Show.STAT] = "" if threads else sched.missing(facts)
    answer[Show.STATM] = mm.missing(facts)
    answer[Show.CMDLINE] = cmdline.missing(facts)
    answer[Show.VMA] = vma.missing(facts)
    answer[Show.NAME] = names.missing(facts)
    answer[Show.VMA_STAT] = "a page walk, which BPF does not offer"
    return answer


def compile_request(
    request: Request,
    facts: Facts,
    viewer: Viewer,
    host: Host,
    emitter: type[Emitter] = Emitter,
    *,
    numbered: bool = False,
    by_number: bool = False,
) -> Program:
    """Make the program for a request.  This kernel must serve all groups of the request.

    ``host`` must have ``per_cpu`` for STATM, and ``special_ops`` and ``gate`` for VMA.
    ``emitter`` is another class in order to record more about the code (`annotate`).  With
    ``numbered``, ``nlmsg_pid`` of each message is the task's number in the pid namespace that
    the iterator walks; `completion` needs it.  ``by_number`` is as for `prologue`.
    """
    show = request.show
    access.check_groups(show, viewer.rule)
    sleepable = bool(show & Show.CMDLINE)
    sums = bool(show & Show.STAT) and not request.threads
    layout = _Layout(show)
    variable, at = layout.variable, layout.size
    # A subprogram takes 32 bytes of stack.  With an access rule two of them are active at
    # once, otherwise one.
    deep = FRAME + at > 512 - (32 if viewer.rule is None else 64)
    any_thread = request.threads or request.strategy == Dump.ONE
    arena = variable or deep or (sums and (any_thread or sched.needs_room(facts)))
    c = emitter(facts, viewer, threads=request.threads, size=at, arena=arena, host=host)
    c.any_thread = any_thread

    prologue(c, request, by_number)
    _header(c, request.seq)
    _rcu(c, sleepable, "lock")
    for attr, offset in layout.offsets.items():
        if attr != Attr.STATM:
            _attribute(c, attr, offset)
    _rcu(c, sleepable, "unlock")
    if layout.with_mm:
        _memory(c, layout, sleepable)
    _numbers(c, layout, numbered)
    c.note("write")
    _write(c, layout)
    c.goto("skip")
    if layout.with_mm:
        _without_memory(c, layout, numbered)
    c.label("skip")
    c.mov(R0, 0)
    c.exit()
    _subprograms(c, show, sums)
    return Program(c.assemble(), sleepable=sleepable, arena=arena, size=0 if variable else at)


class _Layout:
    """Where the groups are in a message.

    ``offsets`` are the offsets of the payloads of the fixed groups, in the order of the
    message, and ``size`` is where the last of them ends.  For a task without memory they end
    at ``fixed``.  In a ``variable`` message the command line and the mappings follow.
    """

    __slots__ = ("fixed", "offsets", "show", "size", "variable", "with_mm")

    def __init__(self, show: Show) -> None:
        self.show = show
        self.variable = bool(show & (Show.CMDLINE | Show.VMA))
        self.with_mm = self.variable or bool(show & Show.STATM)
        self.offsets: dict[Attr, int] = {}
        self.size = _HEAD
        for attr, group in abi.GROUPS.items():
            if show & (1 << attr):
                self.offsets[attr] = self.size + 4
                self.size += 4 + group.size
        self.fixed = self.offsets[Attr.STATM] - 4 if Attr.STATM in self.offsets else self.size


def _memory(c: Emitter, layout: _Layout, sleepable: bool) -> None:
    """The groups about the task's memory.  Jumps to ``no mm`` if it has none."""
    show = layout.show
    c.note("mm")
    mm.load_mm(c)
    c.jump("==", MM, 0, "no mm")
    c.set("tries", 2)
    c.label("mm")
    if layout.variable:
        # If this is the second attempt, the first may have deferred groups.
        c.put(FLAGS, 0, 4)
    if Attr.STATM in layout.offsets:
        _attribute(c, Attr.STATM, layout.offsets[Attr.STATM])
    if layout.variable:
        c.set("length", layout.size)
    if show & Show.CMDLINE:
        c.note("cmdline")
        cmdline.emit(c, layout.size)
    if show & Show.VMA:
        c.note("vma")
        _rcu(c, sleepable, "lock")
        vma.emit(c)
        _rcu(c, sleepable, "unlock")
    _repeat_if_mm_changed(c)
    access.again(c)


def _without_memory(c: Emitter, layout: _Layout, numbered: bool) -> None:
    """The message about a task without memory, which ends before the groups about memory."""
    c.label("no mm")
    if layout.variable:
        c.put(FLAGS, 0, 4)
    _numbers(c, layout, numbered)
    c.put(_LEN, layout.fixed, 4)
    c.write(layout.fixed)


def _write(c: Emitter, layout: _Layout) -> None:
    """Write the length into the message, and the message to the reader."""
    if not layout.variable:
        c.put(_LEN, layout.size, 4)
        c.write(layout.size)
        return
    c.get(R3, "length")
    # The verifier does not know the bounds of a number from the arena, so they are checked.
    c.jump(">", R3, cmdline.LONGEST, "skip")
    c.put(_LEN, R3, 4)
    c.write(R3)


def _subprograms(c: Emitter, show: Show, sums: bool) -> None:
    """The subprograms and callbacks that the program calls, after its end."""
    if show & Show.STAT:
        c.note("stat.utime")
        sched.mul_div(c)
        if sums:
            sched.add_thread(c)
    if show & Show.CMDLINE:
        c.note("cmdline")
        cmdline.is_anonymous(c)
    access.subprograms(c)


def _rcu(c: Emitter, sleepable: bool, action: str) -> None:
    """``rcu_read_lock()`` or ``_unlock()``, for programs that may sleep.

    All others run under the lock anyway.
    """
    # Since Linux kernel commit 9bb00b2895cb ("bpf: Add kfunc bpf_rcu_read_lock/unlock()")
    # (in v6.2), programs can take the lock.
    if sleepable and c.facts.has("func", "bpf_rcu_read_lock"):
        c.kfunc(f"bpf_rcu_read_{action}")


def prologue(c: Emitter, request: Request, by_number: bool = False) -> None:
    """Load the registers from the context; jump to ``skip`` if the request excludes the task.

    The pid of THREAD and CHILDREN must be that of the process, not of one of its threads.
    With ``by_number`` the task is not the iterator's but a thread of process 1, see
    `first_process`.
    """
    facts = c.facts
    c.note("context")
    c.load(TASK, R1, facts.member("bpf_iter__task", "task").offset)
    c.jump("==", TASK, 0, "skip")
    c.load(R2, R1, facts.member("bpf_iter__task", "meta").offset)
    c.load(R2, R2, facts.member("bpf_iter_meta", "seq").offset)
    c.set("seq", R2)
    if by_number:
        first_process.find(c, "skip")
    # Kernel functions accept only the trusted pointer from the iterator.
    c.set("task", TASK)
    c.untrusted(TASK, TASK, "task_struct")
    c.load(SIGNAL, TASK, facts.member("task_struct", "signal").offset)
    if c.arena:
        c.map_value(ARENA, "arena", ARENA_LOCALS)
    if not c.any_thread:
        c.note("group leaders")
        c.follow(R1, TASK, "task_struct", "pid")
        c.follow(R2, TASK, "task_struct", "tgid")
        c.jump("!=", R1, R2, "skip", bits=32)
    access.filter_task(c)
    if c.viewer.foreign and request.strategy in (Dump.ONE, Dump.THREAD):
        # The iterator cannot be narrowed to a number of another pid namespace.
        c.note("process")
        (pid.pid_nr if request.strategy == Dump.ONE else pid.tgid_nr)(c)
        c.mov(R1, request.pid)
        c.jump("!=", R0, R1, "skip")
    if request.strategy == Dump.CHILDREN:
        c.note("children")
        pid.parent_nr(c)
        c.mov(R1, request.pid)
        c.jump("!=", R0, R1, "skip")


def _header(c: Emitter, seq: int) -> None:
    """The parts of the two headers that do not depend on the task."""
    c.note("nlmsghdr")
    c.put(4, RESPONSE | NLM_F_MULTI << 16, 4)
    c.put(_SEQ, signed32(seq), 4)
    c.put(_PORT, 0, 4)
    c.put(FLAGS, 0, 4)


def _numbers(c: Emitter, layout: _Layout, numbered: bool) -> None:
    """Write the task's numbers, after everything else.

    A task that was reaped meanwhile has no number any more, and is skipped.
    """
    base = layout.offsets.get(Attr.BASE)
    if numbered:
        pid.home_nr(c)
        c.put(_PORT, R0, 4)
    group = abi.BASE
    for name, off in (("pid", _PID), ("tgid", _TGID)):
        c.note(f"base.{name}")
        FUNCTIONS[group[name].kernel](c)
        c.jump("==", R0, 0, "skip")
        if base is not None:
            c.put(base + group[name].offset, R0, 4)
        c.put(off, R0, 4)


def _repeat_if_mm_changed(c: Emitter) -> None:
    """Read the memory groups again if the task changed its mm (exec, exit) meanwhile."""
    c.note("mm")
    c.load(R1, TASK, c.facts.member("task_struct", "mm").offset)
    c.jump("==", R1, MM, "settled")
    c.mov(MM, R1)
    c.jump("==", MM, 0, "no mm")
    c.get(R1, "tries")
    c.alu("sub", R1, 1)
    c.set("tries", R1)
    c.jump("!=", R1, 0, "mm")
    c.label("settled")


def _attribute(c: Emitter, attr: Attr, at: int) -> None:
    """One fixed group: its attribute header, then its fields in order."""
    group = abi.GROUPS[attr]
    label = attr.name.lower()
    c.note(label)
    c.put(at - 4, 4 + group.size | attr << 16, 4)
    done: set[str] = set()
    if attr == Attr.STAT:
        fields = {n: at + group[n].offset for n in ("minflt", "majflt", "utime", "stime")}
        sched.totals(c, *fields.values())
        c.note("stat.utime")
        sched.adjust(c, fields["utime"], fields["stime"])
        done = set(fields)
    if attr == Attr.STATM:
        done = _statm(c, group, at)
    if attr == Attr.BASE:
        done = {"pid", "tgid"}
    if attr == Attr.NAME:
        c.note("name.name")
        names.emit(c, at)
        done = {"name"}
    end = 0
    for field in group.fields:
        if field.offset > end:
            c.put(at + end, 0, field.offset - end)
        end = field.offset + field.size
        if field.name not in done:
            c.note(f"{label}.{field.name}")
            _field(c, field, at + field.offset)
    _pad(c, at + end, group.size - end)


def _pad(c: Emitter, at: int, count: int) -> None:
    """Clear padding, so that no earlier contents of the stack leave the kernel."""
    for index in range(count):
        c.put(at + index, 0, 1)


def _statm(c: Emitter, group: abi.Group, at: int) -> set[str]:
    """The memory counters and the fields computed from them; returns the names of all these."""
    counters = {
        field.kernel[len("mm_counter(") : -1]: at + field.offset
        for field in group.fields
        if field.kernel.startswith("mm_counter(")
    }
    mm.read_counters(c, counters)
    for name, function in (("total_rss", mm.rss), ("hiwater_rss", mm.hiwater_rss)):
        function(c, counters)
        c.put(at + group[name].offset, R0, 8)
    return {f.name for f in group.fields if f.kernel.startswith("mm_counter(")} | {
        "total_rss", "hiwater_rss",
    }  # fmt: skip


def _field(c: Emitter, field: abi.Field, at: int) -> None:
    """One field, by its expression in the catalogue."""
    text = field.kernel
    if text.isdigit():
        c.put(at, int(text), field.size)
        return
    function = FUNCTIONS.get(text)
    if function is not None:
        function(c)
        c.put(at, R0, field.size)
        return
    outer, bracket, rest = text.partition("(")
    if bracket:
        c.follow_expression(R0, rest[:-1])
        CONVERSIONS[outer](c)
        c.put(at, R0, field.size)
        return
    _copy(c, field, at)


def _copy(c: Emitter, field: abi.Field, at: int) -> None:
    """A field that is a plain member of a structure."""
    base, struct, path = c.resolve(field.kernel)
    *hops, last = c.facts.path(struct, path)
    for hop in hops:
        c.load(R4, base, hop.offset)
        base = R4
    if last.size <= 8:
        c.load(R0, base, last.offset, last.size)
        if last.size > field.size and field.size == 4:
            c.alu("mov", R0, R0, bits=32)
        c.put(at, R0, field.size)
        return
    for index in range(0, field.size, 8):
        c.load(R0, base, last.offset + index, 8)
        c.put(at + index, R0, 8)
