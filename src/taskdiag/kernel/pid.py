"""Numbers of tasks, processes, groups and sessions, in the viewer's pid namespace.

include/linux/pid.h and kernel/pid.c.
"""

from __future__ import annotations

from .asm import R0, R1, R2, R3, R10
from .emit import SIGNAL, TASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .asm import Reg
    from .emit import Emitter

__all__ = (
    "home_nr",
    "home_tgid",
    "nr",
    "parent_nr",
    "pgrp_nr",
    "pid_nr",
    "session_nr",
    "tgid_nr",
    "tracer_nr",
)


def nr(c: Emitter, home: bool = False) -> None:
    """``pid_nr_ns(R1, ns)``: R0 = the number of the ``struct pid`` in R1, 0 if it has none.

    The number is that in the viewer's pid namespace, or with ``home`` in the namespace that
    the iterator walks.
    """
    level, pid_ns = c.viewer.home if home else (c.viewer.level, c.viewer.pid_ns)
    numbers = c.facts.member("pid", "numbers")
    upid = c.facts.size(c.facts.type_id("struct", "upid"))
    at = numbers.offset + level * upid
    if not level:
        c.load(R0, R1, at + c.facts.member("upid", "nr").offset, 4)
        return
    done = c.fresh("nr")
    c.mov(R0, 0)
    c.load(R2, R1, c.facts.member("pid", "level").offset, 4)
    c.jump("<", R2, level, done)
    # Since Linux kernel commit b69f0aeb0689 ("pid: Replace struct pid 1-element array
    # with flex-array") (in v6.5), the verifier lets loads reach beyond the first number.
    if numbers.size:
        _read_upid(c, at, upid)
    else:
        c.load(R3, R1, at + c.facts.member("upid", "ns").offset)
        c.load(R2, R3, c.facts.member("pid_namespace", "ns.inum").offset, 4)
        c.load(R3, R1, at + c.facts.member("upid", "nr").offset, 4)
    c.mov(R1, pid_ns)
    c.jump("!=", R2, R1, done)
    c.mov(R0, R3)
    c.label(done)


def _read_upid(c: Emitter, at: int, size: int) -> None:
    """Read a ``struct upid``: R2 = the inode number of its namespace, R3 = its number.

    It is at offset ``at`` from R1, and copied to the stack.
    """
    here = c.scratch()
    c.mov(R3, R1)
    c.alu("add", R3, at)
    c.mov(R1, R10)
    c.alu("add", R1, here)
    c.mov(R2, size)
    c.helper("probe_read_kernel")
    c.load(R3, R10, here + c.facts.member("upid", "ns").offset)
    c.alu("add", R3, c.facts.member("pid_namespace", "ns.inum").offset)
    c.mov(R1, R10)
    c.alu("add", R1, here + 8)
    c.mov(R2, 4)
    c.helper("probe_read_kernel")
    c.load(R2, R10, here + 8, 4)
    c.load(R3, R10, here + c.facts.member("upid", "nr").offset, 4)
    c.mov(R0, 0)


def pid_nr(c: Emitter, task: Reg = TASK) -> None:
    """``task_pid_nr_ns()``: the thread id; 0 once the task has been reaped."""
    c.load(R1, task, c.facts.member("task_struct", "thread_pid").offset)
    nr(c)


def home_nr(c: Emitter) -> None:
    """The thread id in the pid namespace that the iterator walks."""
    c.load(R1, TASK, c.facts.member("task_struct", "thread_pid").offset)
    nr(c, home=True)


def home_tgid(c: Emitter) -> None:
    """The process id in the pid namespace that the iterator walks."""
    c.follow(R1, SIGNAL, "signal_struct", "pids[PIDTYPE_TGID]")
    nr(c, home=True)


def tgid_nr(c: Emitter, task: Reg = TASK) -> None:
    """``task_tgid_nr_ns()``: the process id."""
    if task != TASK:
        c.follow(R1, task, "task_struct", "signal->pids[PIDTYPE_TGID]")
    else:
        c.follow(R1, SIGNAL, "signal_struct", "pids[PIDTYPE_TGID]")
    nr(c)


def pgrp_nr(c: Emitter) -> None:
    """``task_pgrp_nr_ns()``: the process group id."""
    c.follow(R1, SIGNAL, "signal_struct", "pids[PIDTYPE_PGID]")
    nr(c)


def session_nr(c: Emitter) -> None:
    """``task_session_nr_ns()``: the session id."""
    c.follow(R1, SIGNAL, "signal_struct", "pids[PIDTYPE_SID]")
    nr(c)


def parent_nr(c: Emitter) -> None:
    """The id of the parent process: of ``real_parent``, which may wait(2) for this one."""
    c.load(R1, TASK, c.facts.member("task_struct", "real_parent").offset)
    tgid_nr(c, R1)


def tracer_nr(c: Emitter) -> None:
    """``ptrace_parent()``: the id of the thread that traces the task; 0 if there is none."""
    done = c.fresh("tracer")
    c.mov(R0, 0)
    c.load(R1, TASK, c.facts.member("task_struct", "ptrace").offset, 4)
    c.jump("==", R1, 0, done)
    c.load(R1, TASK, c.facts.member("task_struct", "parent").offset)
    pid_nr(c, R1)
    c.label(done)
