"""Process 1 on hosts whose kernel hides it from BPF.

Some hardened guest kernels hide it: iterators do not visit process 1 and its threads, and
functions that look tasks up do not find them.  But its pid namespace points to it, so a
program that is called for any other task can find it.  Such a pointer can only be read
through, not passed to kernel functions, so groups that need these are left to procfs.
"""

from __future__ import annotations

import os

from ..abi import Show
from .asm import R0, R1, R2, R3, R6, R10

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter
    from .facts import Facts

__all__ = ("WANTED", "find", "left_to_procfs", "reachable", "threads")

#: The name of the map that holds the number of the thread to look for.
WANTED = "wanted"
#: PID_MAX_LIMIT (include/linux/threads.h): no process has more threads.
_MOST_THREADS = 4 << 20


def reachable(facts: Facts) -> bool:
    """Whether programs on this kernel can follow the list of threads of process 1."""
    # Since Linux kernel commits a35b9af4ec2c ("bpf: Add a kfunc for generic type cast") (in
    # v6.2) and 6018e1f407cc ("bpf: implement numbers iterator") (in v6.4).
    return facts.has("func", "bpf_rdonly_cast") and facts.has("func", "bpf_iter_num_new")


def threads() -> list[int]:
    """The thread ids of process 1, ascending; only its leader if /proc cannot be read."""
    try:
        return sorted(int(name) for name in os.listdir("/proc/1/task"))
    except OSError:
        return [1]


def left_to_procfs(show: Show, threads: bool) -> Show:
    """Which of these groups need kernel functions that accept only a trusted task pointer."""
    return show & (Show.CMDLINE | Show.VMA | Show.VMA_STAT | (0 if threads else Show.STAT))


def find(c: Emitter, leave: str) -> None:
    """R6 = the thread of process 1 whose number is in the map `WANTED`; R6 was any task.

    Jumps to ``leave`` if there is no such thread.  The program must not sleep: then the thread
    stays readable until the program ends.
    """
    member = c.facts.member
    numbers = c.local("iterator")
    node = member("task_struct", "thread_node").offset
    loop, found = c.fresh("thread"), c.fresh("found")

    def iterator(name: str) -> None:
        c.mov(R1, R10)
        c.alu("add", R1, numbers)
        c.kfunc(f"bpf_iter_num_{name}")

    c.follow(R1, R6, "task_struct", "thread_pid->numbers[0].ns->child_reaper")
    c.follow(R1, R1, "task_struct", "signal->thread_head.next")
    c.mov(R6, R1)
    c.mov(R2, 0)
    c.mov(R3, _MOST_THREADS)
    iterator("new")
    c.label(loop)
    iterator("next")
    c.jump("==", R0, 0, found)
    # R6 = a node of the list.  The list ends at its head, where a "pid" is read that no thread
    # has, or the loop ends.
    c.alu("sub", R6, node)
    c.untrusted(R6, R6, "task_struct")
    c.load(R1, R6, member("task_struct", "pid").offset, 4)
    c.map_value(R2, WANTED)
    c.load(R2, R2, 0)
    c.jump("==", R1, R2, found)
    c.load(R6, R6, node)
    c.goto(loop)
    c.label(found)
    iterator("destroy")
    c.untrusted(R6, R6, "task_struct")
    # The loop may have ended without finding the thread, so check what it ended at.
    c.load(R1, R6, member("task_struct", "pid").offset, 4)
    c.map_value(R2, WANTED)
    c.load(R2, R2, 0)
    c.jump("!=", R1, R2, leave)
    c.load(R1, R6, member("task_struct", "tgid").offset, 4)
    c.jump("!=", R1, 1, leave)
