"""Who may see what: ``ptrace_may_access(task, PTRACE_MODE_READ_FSCREDS)`` in the program.

A procfs mounted with hidepid=2 decides by the same check (fs/proc/base.c,
``has_pid_permissions``), so an answer shows the tasks that such a mount would list.
Tasks that the viewer may not see are filtered out in the kernel.  Sources:
kernel/ptrace.c (``__ptrace_may_access``), security/commoncap.c
(``cap_ptrace_access_check``, ``cap_capable``).

Other security modules are not consulted: see docs/security.md.
"""

from __future__ import annotations

from ..capability import CAP_SYS_PTRACE
from .asm import R0, R1, R2, R3, R6, R7, R8, R9, R10, signed32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..abi import Show
    from .asm import Reg
    from .emit import Emitter
    from .viewer import Rule

__all__ = ("again", "check_groups", "filter_task", "subprograms")

# include/linux/mm_types.h (MMF_DUMPABLE_MASK), include/linux/coredump.h; macros.
_DUMPABLE_MASK = 3
_SUID_DUMP_USER = 1
#: User namespaces nest this deep (create_user_ns(): level > 32 is refused), and one more.
_DEEPEST = 34


def check_groups(show: Show, rule: Rule | None) -> None:
    """Raises AccessDenied if a group has a field for root only and ``rule`` is not None.

    The request is refused rather than answered without the field, because such an
    answer would look complete.
    """
    if rule is None:
        return
    from ..abi import GROUPS

    for attr, group in GROUPS.items():
        if show & (1 << attr) and group.visible == "root":
            from ..errors import AccessDenied

            raise AccessDenied(1, f"group {attr.name.lower()} is for root only")


def filter_task(c: Emitter) -> None:
    """Jump to ``skip`` unless the viewer may see the task in R6.

    For a thread its process must be visible as well, since procfs lists threads below
    the directory of their process.  Threads of one process can differ in credentials.
    """
    if c.viewer.rule is None:
        return
    c.note("access")
    c.mov(R1, R6)
    c.call_local("access")
    c.jump("==", R0, 0, "skip")
    if c.any_thread:
        c.load(R1, R6, c.facts.member("task_struct", "group_leader").offset)
        c.call_local("access")
        c.jump("==", R0, 0, "skip")


def again(c: Emitter) -> None:
    """Check again, after the task's memory has been read.

    Otherwise a task that executes a setuid program after the first check would show the
    mappings and arguments of that program.
    """
    filter_task(c)


def subprograms(c: Emitter) -> None:
    """The subprograms that `filter_task` calls; they go after the end of the program."""
    rule = c.viewer.rule
    if rule is None:
        return
    c.note("access")
    c.label("access")
    _may_access(c, rule)
    c.label("access.capable")
    _capable(c, rule)


def _may_access(c: Emitter, rule: Rule) -> None:
    """The subprogram ``__ptrace_may_access(R1)``: R0 = 1 if the viewer may, else 0."""
    c.mov(R6, R1)
    if rule.process is not None:
        # same_thread_group()
        tgid, start = rule.process
        c.follow(R1, R6, "task_struct", "tgid")
        c.jump("!=", R1, tgid, "access.other", bits=32)
        c.follow(R1, R6, "task_struct", "group_leader->start_boottime")
        c.mov(R2, start)
        c.jump("==", R1, R2, "access.yes")
        c.label("access.other")
    # R7 = the target's credentials, R8 = their user namespace, R9 = whether ids match.
    c.load(R7, R6, c.facts.member("task_struct", "real_cred").offset)
    c.load(R8, R7, c.facts.member("cred", "user_ns").offset)
    for members, own in (
        (("euid", "suid", "uid"), rule.fsuid),
        (("egid", "sgid", "gid"), rule.fsgid),
    ):
        for member in members:
            c.follow(R1, R7, "cred", member)
            c.jump("!=", R1, signed32(own), "access.stranger", bits=32)
    c.mov(R9, 1)
    c.goto("access.memory")
    c.label("access.stranger")
    c.mov(R9, 0)
    _require_capable(c, R8)

    c.label("access.memory")
    c.load(R1, R6, c.facts.member("task_struct", "mm").offset)
    c.jump("==", R1, 0, "access.no memory")
    # A word, and since v6.18 a structure that starts with the same word.
    c.load(R2, R1, c.facts.member("mm_struct", "flags").offset)
    c.alu("and", R2, _DUMPABLE_MASK)
    c.jump("==", R2, _SUID_DUMP_USER, "access.dumpable")
    c.load(R1, R1, c.facts.member("mm_struct", "user_ns").offset)
    c.call_local("access.capable")
    c.jump("==", R0, 0, "access.no")
    c.goto("access.dumpable")
    c.label("access.no memory")
    # Since Linux kernel commit 31e62c2ebbfd ("ptrace: slightly saner 'get_dumpable()'
    # logic") of May 2026, also in stable kernels, a task without memory has the dumpable
    # state of the memory that it had last.  A task that never had any (a kernel thread) is
    # visible only with CAP_SYS_PTRACE over the host.
    if c.facts.has_member("task_struct", "user_dumpable"):
        bit = c.facts.member("task_struct", "user_dumpable")
        c.load(R1, R6, bit.offset, bit.size)
        c.alu("and", R1, 1 << bit.bit_offset)
        # A viewer with that capability has no rule.
        c.jump("==", R1, 0, "access.no")

    c.label("access.dumpable")
    # If the ids do not match, the capability was checked above.
    c.jump("==", R9, 0, "access.yes")
    _same_namespace(c, rule, R8, "access.foreign")
    c.load(R1, R7, c.facts.member("cred", "cap_permitted").offset)
    c.mov(R2, ~rule.caps & 0xFFFFFFFFFFFFFFFF)
    c.alu("and", R1, R2)
    c.jump("==", R1, 0, "access.yes")
    c.label("access.foreign")
    _require_capable(c, R8)
    c.label("access.yes")
    c.mov(R0, 1)
    c.exit()
    c.label("access.no")
    c.mov(R0, 0)
    c.exit()


def _require_capable(c: Emitter, namespace: Reg) -> None:
    c.mov(R1, namespace)
    c.call_local("access.capable")
    c.jump("==", R0, 0, "access.no")


def _capable(c: Emitter, rule: Rule) -> None:
    """The subprogram ``ns_capable(R1, CAP_SYS_PTRACE)``: R0 = 1 or 0.

    A viewer is capable over a namespace below its own if it has the capability in its
    own, or if it owns the ancestor of that namespace directly below its own.  The
    kernel's loop upwards stops at that ancestor, so this code goes there first.
    """
    level = c.facts.member("user_namespace", "level")
    own = bool(rule.caps & 1 << CAP_SYS_PTRACE)
    c.mov(R6, R1)
    c.load(R2, R6, level.offset, level.size)
    c.jump("<=", R2, rule.level + 1, "capable.near", bits=32)
    _climb(c, rule)
    c.load(R2, R6, level.offset, level.size)
    c.jump(">", R2, rule.level + 1, "capable.no", bits=32)
    c.label("capable.near")
    c.jump("<", R2, rule.level, "capable.no", bits=32)
    c.jump("==", R2, rule.level, "capable.own", bits=32)
    c.load(R7, R6, c.facts.member("user_namespace", "parent").offset)
    _same_namespace(c, rule, R7, "capable.no")
    if not own:
        c.follow(R1, R6, "user_namespace", "owner")
        c.jump("!=", R1, signed32(rule.euid), "capable.no", bits=32)
    c.label("capable.yes")
    c.mov(R0, 1)
    c.exit()
    c.label("capable.own")
    if own:
        _same_namespace(c, rule, R6, "capable.no")
        c.goto("capable.yes")
    c.label("capable.no")
    c.mov(R0, 0)
    c.exit()


def _climb(c: Emitter, rule: Rule) -> None:
    """R6 = the ancestor of the user namespace R6 at the level below the viewer's."""
    level = c.facts.member("user_namespace", "level")
    parent = c.facts.member("user_namespace", "parent")
    # Since Linux kernel commit 6018e1f407cc ("bpf: implement numbers iterator") (in v6.4),
    # the verifier does not follow every iteration of a loop, which takes milliseconds here.
    if not c.facts.has("func", "bpf_iter_num_new"):
        c.mov(R3, _DEEPEST)
        c.label("capable.up")
        c.load(R6, R6, parent.offset)
        c.load(R2, R6, level.offset, level.size)
        c.jump("<=", R2, rule.level + 1, "capable.near", bits=32)
        c.alu("sub", R3, 1)
        c.jump("!=", R3, 0, "capable.up")
        return

    def iterator() -> None:
        c.mov(R1, R10)
        c.alu("add", R1, -8)

    iterator()
    c.mov(R2, 0)
    c.mov(R3, _DEEPEST)
    c.kfunc("bpf_iter_num_new")
    c.label("capable.up")
    iterator()
    c.kfunc("bpf_iter_num_next")
    c.jump("==", R0, 0, "capable.top")
    c.load(R6, R6, parent.offset)
    c.load(R2, R6, level.offset, level.size)
    c.jump(">", R2, rule.level + 1, "capable.up", bits=32)
    c.label("capable.top")
    iterator()
    c.kfunc("bpf_iter_num_destroy")


def _same_namespace(c: Emitter, rule: Rule, namespace: Reg, other: str) -> None:
    """Jump to ``other`` unless ``namespace`` is the viewer's own user namespace."""
    level = c.facts.member("user_namespace", "level")
    c.load(R1, namespace, level.offset, level.size)
    # There is only one at level 0.
    c.jump("!=", R1, rule.level, other, bits=32)
    if not rule.level:
        return
    # The descriptor of an answer may outlive the namespace, whose address and inode
    # number can then be reused.
    c.mov(R2, rule.namespace)
    c.jump("!=", namespace, R2, other)
    for member, value in (("ns.inum", rule.inum), ("owner", rule.owner)):
        c.follow(R1, namespace, "user_namespace", member)
        c.jump("!=", R1, signed32(value), other, bits=32)
    # Since v6.18 namespaces have an id that is never reused.
    if c.facts.has_member("user_namespace", "ns.ns_id"):
        c.follow(R1, namespace, "user_namespace", "ns.ns_id")
        c.mov(R2, rule.ns_id)
        c.jump("!=", R1, R2, other)
