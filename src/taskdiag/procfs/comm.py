"""``task->comm`` of kernel threads, for which /proc shows more than that.

/proc/PID/comm, stat and status show the full name of a kernel thread, and for a
workqueue worker what it works on (fs/proc/array.c, ``proc_task_name``;
kernel/workqueue.c, ``wq_worker_comm``).  The contract is about the 15 bytes that the
task itself holds.
"""

from __future__ import annotations

import re

from .reader import Directory, Malformed, Vanished
from .stat import parse

__all__ = ("COMM_MAX", "kernel_comm", "needs_care")

COMM_MAX = 15
_PF_WQ_WORKER = 0x20
_PF_KTHREAD = 0x200000

# kernel/workqueue.c, create_worker(): of a CPU's pool, or of an unbound one.
_POOL_WORKER = re.compile(rb"(kworker/(?:u[0-9]+|[0-9]+):[0-9]+H?)(?:[-+].*)?\Z", re.DOTALL)


def needs_care(name: bytes) -> bool:
    """Whether the name of a task without address space may be more than its comm."""
    return len(name) > COMM_MAX or b"+" in name or b"-" in name


def kernel_comm(name: bytes, directory: Directory) -> bytes:
    """The comm of a task without address space that /proc shows as ``name``.

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

    Rescuers are called after their workqueue, which may hold any character, so that the
    name alone does not tell where the description starts.  /proc/PID/sched shows the
    bare comm, in front of `` (PID, #threads:``, where the kernel has that file.
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
    """The comm of a rescuer; its description is the name of its workqueue once more.

    >>> rescuer_comm(b"kworker/R-nvme-nvme"), rescuer_comm(b"rcu_gp-rcu_gp")
    (b'kworker/R-nvme', b'rcu_gp')
    """
    bare = name.removeprefix(b"kworker/R-")
    half = len(bare) // 2
    if len(bare) % 2 and bare[half] in b"+-" and bare[:half] == bare[half + 1 :]:
        return name[: len(name) - half - 1][:COMM_MAX]
    return name[:COMM_MAX]
