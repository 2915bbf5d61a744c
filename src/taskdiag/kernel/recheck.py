"""Checking that a viewer may see what was read from /proc on its behalf.

Some groups come from procfs, which checks the privileges of this process, not the viewer's.
So a program with the viewer's access rule is run before and after /proc is read.  If the task
is visible both times, is the same task and has not called execve in between, the viewer may see
what was read.
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

#: pid and tgid in the viewer's pid namespace; start time in ns; number of execve calls; tgid and
#: pid in the pid namespace that the iterator walks.
CHECK = Struct("=IIQQII")


def check_program(
    facts: Facts, viewer: Viewer, pid_nr: int = 0, *, by_number: bool = False
) -> Program:
    """Make a program that writes a CHECK of each task that the viewer may see.

    With ``pid_nr`` it does so only for the thread with that number in the viewer's pid
    namespace.  ``by_number`` is as for `compile.prologue`.
    """
    c = Emitter(facts, viewer, threads=True, size=CHECK.size, arena=False, host=Host())
    request = Request(0, Dump.ONE, pid_nr) if pid_nr else Request(0, Dump.ALL_THREAD)
    prologue(c, request, by_number)
    c.note("check")
    pid.tgid_nr(c)
    c.put(4, R0, 4)
    for off, member in ((8, "start_boottime"), (16, "self_exec_id")):
        c.follow(R0, TASK, "task_struct", member)
        c.put(off, R0, 8)
    pid.home_tgid(c)
    c.put(24, R0, 4)
    pid.home_nr(c)
    c.put(28, R0, 4)
    pid.pid_nr(c)
    c.jump("==", R0, 0, "skip")
    c.put(0, R0, 4)
    c.write(CHECK.size)
    c.label("skip")
    c.mov(R0, 0)
    c.exit()
    access.subprograms(c)
    return Program(c.assemble(), sleepable=False, arena=False)
