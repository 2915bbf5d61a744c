"""Reading a task from /proc for a viewer who may see less than we.

Programs decide who sees what, but some groups come from procfs, which asks about *our*
privileges and not the viewer's.  So the kernel is asked before and after: if the task is
visible both times, is the same task and has not called execve in between, then what was
read in between was the viewer's to see.
"""

from __future__ import annotations

from struct import Struct

from ..abi import Dump
from ..request import Request
from . import access, pid
from .asm import R0
from .compile import Program, prologue
from .emit import TASK, Emitter, Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .facts import Facts
    from .viewer import Viewer

__all__ = ("CHECK", "check_program")

#: pid and tgid as the viewer numbers them; start in ns; count of execve calls; the number
#: of the process in the pid namespace that the iterator walks.
CHECK = Struct("=IIQQI4x")


def check_program(facts: Facts, viewer: Viewer, pid_nr: int = 0) -> Program:
    """Write a CHECK about the task, if the viewer may see it.

    With ``pid_nr`` only about the thread to which the viewer's pid namespace gives that
    number.
    """
    c = Emitter(facts, viewer, threads=True, size=CHECK.size, arena=False, host=Host())
    prologue(c, Request(0, Dump.ONE, pid_nr) if pid_nr else Request(0, Dump.ALL_THREAD))
    c.note("check")
    pid.tgid_nr(c)
    c.put(4, R0, 4)
    for off, member in ((8, "start_boottime"), (16, "self_exec_id")):
        c.follow(R0, TASK, "task_struct", member)
        c.put(off, R0, 8)
    pid.home_tgid(c)
    c.put(24, R0, 4)
    c.put(28, 0, 4)
    pid.pid_nr(c)
    c.jump("==", R0, 0, "skip")
    c.put(0, R0, 4)
    c.write(CHECK.size)
    c.label("skip")
    c.mov(R0, 0)
    c.exit()
    access.subprograms(c)
    return Program(c.assemble(), sleepable=False, arena=False)
