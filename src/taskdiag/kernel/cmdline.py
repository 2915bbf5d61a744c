"""Command lines, read from the task's memory.

fs/proc/base.c (get_mm_cmdline).  Only a sleepable program can do this.
"""

from __future__ import annotations

from ..abi import Attr
from .asm import R0, R1, R2, R3, R4, R5, R10
from .emit import ARENA, MM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter
    from .facts import Facts

__all__ = ("LONGEST", "emit", "is_anonymous", "missing")

#: The longest message.  The iterator's buffer has ``PAGE_SIZE << 3`` bytes
#: (kernel/bpf/bpf_iter.c), and seq_write() fails unless a byte of it stays free; read(2)
#: then fails with E2BIG.
LONGEST = (1 << 15) - 4
#: The longest command line that is read here; longer ones are deferred to procfs.
_MOST = LONGEST - 1024


def missing(facts: Facts) -> str:
    """What this kernel lacks for this group; "" if nothing."""
    # Since Linux kernel commit dd6e10fbd9fb ("bpf: Add bpf_copy_from_user_task() helper")
    # (in v5.18), a sleepable program can read the memory of a task.  The other groups need
    # the RCU read lock, which such a program can take since v6.2.
    if not facts.has_enumerator("BPF_FUNC_copy_from_user_task"):
        return "helper bpf_copy_from_user_task (5.18)"
    if not facts.has("func", "bpf_rcu_read_lock"):
        return "kfunc bpf_rcu_read_lock (6.2)"
    return ""


def emit(c: Emitter, at: int) -> None:
    """Write the attribute at byte ``at`` of the arena, and set ``length`` to its end.

    Arguments are deferred to procfs if they are longer than a message, cannot be read, or were
    overwritten by setproctitle(3), since they may then extend into the environment.
    """
    done, empty, defer = c.fresh("cmdline"), c.fresh("empty"), c.fresh("defer")
    c.follow(R3, MM, "mm_struct", "arg_start")
    c.follow(R2, MM, "mm_struct", "arg_end")
    c.jump(">=", R3, R2, empty)
    c.set("arg_start", R3)
    c.alu("sub", R2, R3)
    c.set("args", R2)
    c.jump(">", R2, _MOST, defer)

    # Only anonymous memory is read, as in procfs since Linux kernel commit 7f7ccc2ccc2e
    # ("proc: do not access cmdline nor environ from file-backed areas") (in v4.17): a
    # process could map a file of a FUSE server over its arguments and block all readers.
    c.set("anonymous", 0)
    c.get(R1, "task")
    c.get(R2, "arg_start")
    c.function(R3, "is_anonymous")
    c.mov(R4, R10)
    c.alu("add", R4, c.local("anonymous"))
    c.mov(R5, 0)
    c.helper("find_vma")
    # Nothing is mapped there, or the memory is locked for writing.
    c.jump("!=", R0, 0, defer)
    # Where the mapping ends if it is anonymous, else 0.
    c.get(R1, "anonymous")
    c.get(R2, "arg_start")
    c.get(R3, "args")
    c.alu("add", R2, R3)
    c.jump("<", R1, R2, defer)

    c.mov(R1, ARENA)
    c.alu("add", R1, at + 4)
    c.get(R2, "args")
    c.jump(">", R2, _MOST, defer)
    c.get(R3, "arg_start")
    c.get(R4, "task")
    c.mov(R5, 0)
    c.helper("copy_from_user_task")
    c.jump("!=", R0, 0, defer)
    c.get(R1, "args")
    c.jump(">", R1, _MOST, defer)
    c.mov(R2, ARENA)
    c.alu("add", R2, R1)
    # If the last byte is not 0, setproctitle() has written into the environment.
    c.load(R3, R2, at + 3, 1)
    c.jump("!=", R3, 0, defer)
    c.store(R2, at + 4, 0, 4)
    c.alu("add", R1, 4)
    c.store(ARENA, at, R1, 2)
    c.store(ARENA, at + 2, int(Attr.CMDLINE), 2)
    c.alu("add", R1, at + 3)
    c.alu("and", R1, 0xFFFC)
    c.set("length", R1)
    c.goto(done)
    c.label(empty)
    c.store(ARENA, at, 4 | Attr.CMDLINE << 16, 4)
    c.set("length", at + 4)
    c.goto(done)
    c.label(defer)
    c.defer()
    c.set("length", at)
    c.label(done)


def is_anonymous(c: Emitter) -> None:
    """The callback of ``bpf_find_vma()``: ``*R3`` = the end of the VMA in R2 if it is anonymous."""
    c.label("is_anonymous")
    done = c.fresh("mapped")
    c.follow(R1, R2, "vm_area_struct", "vm_ops")
    c.jump("!=", R1, 0, done)
    c.follow(R1, R2, "vm_area_struct", "vm_end")
    c.store(R3, 0, R1)
    c.label(done)
    c.mov(R0, 0)
    c.exit()
