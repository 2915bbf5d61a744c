"""Full names of tasks, as /proc/PID/comm shows them.

A kernel thread may have a name longer than ``task->comm``, and a workqueue worker is shown
with what it works on: fs/proc/array.c (proc_task_name), kernel/kthread.c (get_kthread_comm),
kernel/workqueue.c (wq_worker_comm).  The name of every other task is its comm.
"""

from __future__ import annotations

from .. import abi
from .asm import R0, R1, R2, R3, R7, R10
from .emit import TASK
from .mm import PF_KTHREAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter
    from .facts import Facts

__all__ = ("emit", "missing")

PF_WQ_WORKER = 0x00000020

_SIZE = abi.NAME.size
_COMM = 16
#: The longest id of a worker (WORKER_ID_LEN), without its NUL.
_LONGEST_ID = 41

# The task's memory is not known yet when this is emitted, so its register is free.
_OBJECT = R7


def missing(facts: Facts) -> str:
    """Return which member this kernel's type information lacks, "" if none."""
    for struct, members in (("kthread", ("data",)), ("worker", ("pool", "desc", "current_work"))):
        for member in members:
            if not facts.has_member(struct, member):
                return f"{struct}::{member}"
    return ""


def emit(c: Emitter, at: int) -> None:
    """Write the name at ``at`` of the message, padded with NULs."""
    done, worker = c.fresh("named"), c.fresh("worker")
    _comm(c, at)
    c.follow(R1, TASK, "task_struct", "flags")
    c.alu("and", R1, PF_KTHREAD)
    c.jump("==", R1, 0, done)
    c.follow(_OBJECT, TASK, "task_struct", _kthread(c.facts))
    c.jump("==", _OBJECT, 0, done)
    c.follow(R1, TASK, "task_struct", "flags")
    c.jump("&", R1, PF_WQ_WORKER, worker)
    _full_name(c, at, done)
    c.goto(done)
    c.label(worker)
    _worker(c, at, done)
    c.label(done)


def _kthread(facts: Facts) -> str:
    # Since Linux kernel commit e32cf5dfbe22 ("kthread: Generalize pf_io_worker so it can
    # point to struct kthread") (in v5.17), a task points to its struct kthread here.
    if facts.has_member("task_struct", "worker_private"):
        return "worker_private"
    return "set_child_tid"


def _comm(c: Emitter, at: int) -> None:
    offset = c.facts.member("task_struct", "comm").offset
    for index in range(0, _COMM, 8):
        c.load(R0, TASK, offset + index)
        c.put(at + index, R0, 8)
    for index in range(_COMM, _SIZE, 8):
        c.put(at + index, 0, 8)


def _full_name(c: Emitter, at: int, without: str) -> None:
    """Copy ``kthread->full_name``; jump to ``without`` if the thread has none.

    R0 = its length with the NUL.  ``full_name`` is set only if it is longer than comm, so the
    copy overwrites all of comm.
    """
    # Since Linux kernel commit d6986ce24fc0 ("kthread: dynamically allocate memory to store
    # kthread's full name") (in v5.17), names are kept in full.
    if not c.facts.has_member("kthread", "full_name"):
        c.goto(without)
        return
    _word(c, "kthread", "full_name")
    c.jump("==", R3, 0, without)
    c.address(R1, at)
    c.mov(R2, _SIZE)
    c.helper("probe_read_kernel_str")


def _worker(c: Emitter, at: int, done: str) -> None:
    """Append the description of the current work (after ``+``) or the last work (``-``)."""
    short, known, longer, check = (c.fresh(stem) for stem in ("id", "id", "id", "worker"))
    # Since Linux kernel commit 231035f18d6b ("workqueue: Increase worker desc's length to
    # 32") (in v6.10), it is 32 bytes, and was 24 before.
    most = c.facts.member("worker", "desc").size
    # Since Linux kernel commit 2a1b02bcba78 ("workqueue: Refactor worker ID formatting and
    # make wq_worker_comm() use full ID string") (in v6.10), the id is not cut to comm.
    if c.facts.has_enumerator("WORKER_ID_LEN"):
        _full_name(c, at, short)
        c.goto(known)
    c.label(short)
    c.address(R1, at)
    c.mov(R2, _COMM)
    c.mov(R3, TASK)
    c.alu("add", R3, c.facts.member("task_struct", "comm").offset)
    c.helper("probe_read_kernel_str")
    c.label(known)
    c.store(R10, c.scratch() + 8, R0)

    _word(c, "kthread", "data")
    c.jump("==", R3, 0, done)
    c.mov(_OBJECT, R3)
    _word(c, "worker", "pool")
    c.jump("==", R3, 0, done)
    _word(c, "worker", "desc")
    c.alu("and", R3, 0xFF)
    c.jump("==", R3, 0, done)
    _word(c, "worker", "current_work")
    sign, idle = R2, c.fresh("idle")
    c.mov(sign, ord("-"))
    c.jump("==", R3, 0, idle)
    c.mov(sign, ord("+"))
    c.label(idle)

    c.load(R0, R10, c.scratch() + 8)
    c.jump("s<=", R0, 0, done)
    c.alu("sub", R0, 1)
    c.jump(">", R0, _SIZE - 1 - most, longer)
    c.address(R1, at)
    c.alu("add", R1, R0)
    c.store(R1, 0, sign, 1)
    c.alu("add", R1, 1)
    c.mov(R2, most)
    _description(c)
    c.goto(check)
    # The verifier cannot tell that an offset and a length together stay within the field.  So
    # if the description has to be cut, there is separate code for each offset.
    c.label(longer)
    for length in range(_SIZE - most, _LONGEST_ID + 1):
        other = c.fresh("id")
        c.jump("!=", R0, length, other)
        c.address(R1, at + length)
        c.store(R1, 0, sign, 1)
        c.alu("add", R1, 1)
        c.mov(R2, _SIZE - 1 - length)
        _description(c)
        c.goto(check)
        c.label(other)

    # A worker is freed only after its thread has ceased to be a worker.  If that has happened
    # meanwhile, freed memory may have been read.
    c.label(check)
    c.follow(R1, TASK, "task_struct", "flags")
    c.jump("&", R1, PF_WQ_WORKER, done)
    _comm(c, at)


def _description(c: Emitter) -> None:
    c.mov(R3, _OBJECT)
    c.alu("add", R3, c.facts.member("worker", "desc").offset)
    c.helper("probe_read_kernel_str")


def _word(c: Emitter, struct: str, member: str) -> None:
    """R3 = the first 8 bytes of a member of what ``_OBJECT`` points to, 0 on a fault."""
    c.mov(R1, R10)
    c.alu("add", R1, c.scratch())
    c.mov(R2, 8)
    c.mov(R3, _OBJECT)
    c.alu("add", R3, c.facts.member(struct, member).offset)
    c.helper("probe_read_kernel")
    c.load(R3, R10, c.scratch())
