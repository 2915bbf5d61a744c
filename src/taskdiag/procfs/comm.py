"""``task->comm`` of kernel threads, from the longer names that /proc shows.

/proc/PID/comm, stat and status show the full name of a kernel thread, and for a
workqueue worker also what it works on (fs/proc/array.c, ``proc_task_name``;
kernel/workqueue.c, ``wq_worker_comm``).  BASE has only the 15 bytes of ``task->comm``.
"""

from __future__ import annotations

import re

from .reader import Directory, Malformed, Vanished
from .stat import parse

__all__ = ("COMM_MAX", "kernel_comm", "needs_care")

COMM_MAX = 15
_PF_WQ_WORKER = 0x20
_PF_KTHREAD = 0x200000

# kernel/workqueue.c, create_worker(): a worker of a CPU's pool, or of an unbound one.
_POOL_WORKER = re.compile(rb"(kworker/(?:u[0-9]+|[0-9]+):[0-9]+H?)(?:[-+].*)?\Z", re.DOTALL)


def needs_care(name: bytes) -> bool:
    """Whether the name shown for a task without address space may be longer than its comm."""
    return len(name) > COMM_MAX or b"+" in name or b"-" in name


def kernel_comm(name: bytes, directory: Directory) -> bytes:
    """The comm of a task without address space whose name in /proc is ``name``.

    Raises Vanished, Malformed.
    """
    flags = parse(directory.read("stat"))[8]
    if not flags.isdigit():
        raise Malformed(f"/proc/PID/stat shows {flags!r} as flags")
    if int(flags) & _PF_WQ_WORKER:
        name = worker_comm(name, directory)
    return name[:COMM_MAX]


def worker_comm(name: bytes, directory: Directory) -> bytes:
    """The comm of a workqueue worker.

    A rescuer is named after its workqueue.  That name may contain any character, so the
    start of the description cannot be found in the name alone.  /proc/PID/sched starts with
    the bare comm, followed by `` (PID, #threads:``, if the kernel has that file.
    """
    found = _POOL_WORKER.match(name)
    if found:
        return found[1]
    try:
        comm, mark, _ = directory.read("sched").partition(b" (")
    except Vanished:
        mark = b""
    return comm if mark and name.startswith(comm) else rescuer_comm(name)


def rescuer_comm(name: bytes) -> bytes:
    """The comm of a rescuer, whose description repeats the name of its workqueue.

    >>> rescuer_comm(b"kworker/R-nvme-nvme"), rescuer_comm(b"rcu_gp-rcu_gp")
    (b'kworker/R-nvme', b'rcu_gp')
    """
    bare = name.removeprefix(b"kworker/R-")
    half = len(bare) // 2
    if len(bare) % 2 and bare[half] in b"+-" and bare[:half] == bare[half + 1 :]:
        return name[: len(name) - half - 1][:COMM_MAX]
    return name[:COMM_MAX]
