"""Process 1 on hosts whose kernel hides it from BPF.

Some hardened guest kernels do: iterators do not visit it and its threads, and functions
that look tasks up do not find them.  But its pid namespace points to it, so the program
that would have been called for such a task is called for another one and goes to look.
Such a pointer is good for reading only; what takes more is left to procfs.
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
    """Whether programs on this kernel can follow the list of threads of a process."""
    # Since Linux kernel commits a35b9af4ec2c ("bpf: Add a kfunc for generic type cast") (in
    # v6.2) and 6018e1f407cc ("bpf: implement numbers iterator") (in v6.4).
    return facts.has("func", "bpf_rdonly_cast") and facts.has("func", "bpf_iter_num_new")


def threads() -> list[int]:
    """The threads of process 1, ascending; just its leader where /proc does not tell."""
    try:
        return sorted(int(name) for name in os.listdir("/proc/1/task"))
    except OSError:
        return [1]


def left_to_procfs(show: Show, threads: bool) -> Show:
    """Which of these groups take more than reading: functions that want a task they trust."""
    return show & (Show.CMDLINE | Show.VMA | Show.VMA_STAT | (0 if threads else Show.STAT))


def find(c: Emitter, leave: str) -> None:
    """R6 = the thread of process 1 whose number is in the map `WANTED`, from any task in R6.

    Goes to ``leave`` if there is none.  The thread stays readable as long as the program
    runs, which must be one that does not sleep.
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
    # R6 = the node of a thread in the list, which ends at the head: no thread has its number.
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
    # Whatever it was, it must be what was wanted.
    c.load(R1, R6, member("task_struct", "pid").offset, 4)
    c.map_value(R2, WANTED)
    c.load(R2, R2, 0)
    c.jump("!=", R1, R2, leave)
    c.load(R1, R6, member("task_struct", "tgid").offset, 4)
    c.jump("!=", R1, 1, leave)
