"""The programs that read an identity; `identity.decode` reads what they write.

A record is a sequence of u64 numbers, in the order in which the functions here write them,
followed by the extents of the uid map and of the gid map.
"""

from __future__ import annotations

from .asm import R0, R1, R2, R3, R6, R7, R8, R9, R10, Assembler
from .emit import HELPERS
from .identity import (
    CRED,
    EXTENT,
    INLINE_EXTENTS,
    MOST_EXTENTS,
    NAMESPACE,
    SECURITY_WORDS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .asm import Code, Reg
    from .facts import Facts

__all__ = ("socket_program", "task_program")

#: How many extents of a separate array are copied at once.
_PIECE = 34
_DEEPEST = 34
#: How many threads are searched for a live one, and how many mounts on top of each other are
#: followed.  The verifier follows every iteration, so more would make loading slower.
_MOST_THREADS, _MOST_MOUNTS = 8, 4
# include/linux/mm_types.h (MMF_DUMPABLE_MASK)
_DUMPABLE_MASK = 3

# Offsets in the frame: the seq_file; a buffer of 408 bytes for what is read and written; a
# thread; a counter.
_SEQ = -8
_BUFFER = -8 - 12 * _PIECE
_THREAD = _BUFFER - 8
_COUNT = _BUFFER - 16


class _Program(Assembler):
    """An assembler for programs that read structures by address.

    R6 = the credentials, R7 = the struct pid of the process.  To the verifier an address is
    not a BTF pointer, so every load is a call of probe_read_kernel().
    """

    def __init__(self, facts: Facts, context: str, level: int) -> None:
        super().__init__()
        self.facts = facts
        self.level = level
        self.load(R2, R1, facts.member(context, "meta").offset)
        self.load(R2, R2, facts.member("bpf_iter_meta", "seq").offset)
        self.store(R10, _SEQ, R2)

    def read(self, dst: Reg, base: Reg, struct: str, path: str) -> None:
        """``dst = base->path``; ``base`` is an address, and ``path`` follows no pointer."""
        member = self.facts.member(struct, path)
        self.fetch(dst, base, member.offset, min(member.size, 8))

    def fetch(self, dst: Reg, base: Reg, off: int, size: int) -> None:
        self.store(R10, _BUFFER, 0)
        self.copy(base, off, size)
        self.load(dst, R10, _BUFFER, size)

    def copy(self, base: Reg, off: int, size: int) -> None:
        """Copy to the buffer; memory that cannot be read gives 0."""
        self.mov(R3, base)
        if off:
            self.alu("add", R3, off)
        self.mov(R1, R10)
        self.alu("add", R1, _BUFFER)
        self.mov(R2, size)
        self.call(HELPERS["probe_read_kernel"])

    def write(self, number: Reg) -> None:
        """Write a number to the output."""
        self.store(R10, _BUFFER, number)
        self.hand(8)

    def hand(self, size: int) -> None:
        """Write the first ``size`` bytes of the buffer to the output."""
        self.load(R1, R10, _SEQ)
        self.mov(R2, R10)
        self.alu("add", R2, _BUFFER)
        self.mov(R3, size)
        self.call(HELPERS["seq_write"])

    def finish(self) -> Code:
        self.label("end")
        self.mov(R0, 0)
        self.exit()
        return self.assemble()


def socket_program(facts: Facts, level: int) -> Code:
    a = _Program(facts, "bpf_iter__task_file", level)
    a.load(R6, R1, facts.member("bpf_iter__task_file", "file").offset)
    a.jump("==", R6, 0, "end")
    a.load(R8, R1, facts.member("bpf_iter__task_file", "fd").offset, 4)
    a.load(R9, R1, facts.member("bpf_iter__task_file", "task").offset)
    a.jump("==", R9, 0, "end")
    a.map_value(R2, "wanted")
    a.load(R2, R2, 0)
    a.jump("!=", R8, R2, "end")
    # The descriptor came from accept(2), so its file is a socket.
    a.load(R6, R6, facts.member("file", "private_data").offset)
    a.read(R8, R6, "socket", "sk")
    a.read(R6, R8, "sock", "sk_peer_cred")
    a.jump("==", R6, 0, "end")
    a.read(R7, R8, "sock", "sk_peer_pid")
    a.jump("==", R7, 0, "end")
    _identity(a, peer=True)
    return a.finish()


def task_program(facts: Facts, level: int) -> Code:
    a = _Program(facts, "bpf_iter__task", level)
    a.load(R9, R1, facts.member("bpf_iter__task", "task").offset)
    a.jump("==", R9, 0, "end")
    a.store(R10, _THREAD, R9)
    # The subjective credentials, with which the task acts; real_cred are the objective ones.
    a.read(R6, R9, "task_struct", "cred")
    a.read(R8, R9, "task_struct", "signal")
    a.read(R7, R8, "signal_struct", "pids[PIDTYPE_TGID]")
    a.jump("==", R7, 0, "end")
    _identity(a)
    return a.finish()


def _identity(a: _Program, peer: bool = False) -> None:
    """Write the whole record about the credentials in R6 and the process in R7.

    The thread is the one in the local `_THREAD`, or with ``peer`` any thread of the process.
    """
    facts = a.facts
    for name in CRED:
        a.read(R0, R6, "cred", name)
        a.write(R0)
    for name in ("cap_effective", "cap_permitted"):
        a.read(R0, R6, "cred", name)
        a.write(R0)
    _security(a)
    a.read(R8, R6, "cred", "user_ns")
    a.write(R8)
    for name in NAMESPACE:
        a.read(R0, R8, "user_namespace", name)
        a.write(R0)
    a.mov(R0, 0)
    if facts.has_member("user_namespace", "ns.ns_id"):
        a.read(R0, R8, "user_namespace", "ns.ns_id")
    a.write(R0)
    _top_owner(a)
    _process(a)
    _leader(a)
    if peer:
        _living_thread(a)
    else:
        a.load(R9, R10, _THREAD)
    _boottime_offset(a)
    _root(a)
    a.read(R6, R6, "cred", "user_ns")
    for name in ("uid_map", "gid_map"):
        a.read(R0, R6, "user_namespace", f"{name}.nr_extents")
        a.write(R0)
    for name in ("uid_map", "gid_map"):
        _map(a, name)


def _security(a: _Program) -> None:
    """Write the first words of the security modules' blob; zeros if there is none."""
    words = 8 * SECURITY_WORDS
    for index in range(SECURITY_WORDS):
        a.store(R10, _BUFFER + 8 * index, 0)
    if a.facts.has_member("cred", "security"):
        a.read(R8, R6, "cred", "security")
        a.copy(R8, 0, words)
    a.hand(words)


def _top_owner(a: _Program) -> None:
    """Write the owner of the ancestor at level 1 of the user namespace in R8, which is lost."""
    a.mov(R0, 0)
    a.store(R10, _COUNT, _DEEPEST)
    a.label("up")
    a.read(R0, R8, "user_namespace", "level")
    a.jump("s<=", R0, 1, "top", bits=32)
    a.read(R8, R8, "user_namespace", "parent")
    a.load(R1, R10, _COUNT)
    a.alu("sub", R1, 1)
    a.store(R10, _COUNT, R1)
    a.jump("!=", R1, 0, "up")
    a.label("top")
    a.read(R0, R8, "user_namespace", "owner")
    a.write(R0)


def _process(a: _Program) -> None:
    """Write the numbers of the process in R7.

    These are its address, level, pid namespace and number on the host, then its pid namespace
    and number at the reader's level.
    """
    numbers = a.facts.member("pid", "numbers").offset
    nr = a.facts.member("upid", "nr").offset
    size = a.facts.size(a.facts.type_id("struct", "upid"))
    a.write(R7)
    a.read(R8, R7, "pid", "level")
    a.write(R8)
    a.read(R8, R7, "pid", "level")
    a.alu("mul", R8, size)
    a.alu("add", R8, numbers)
    a.alu("add", R8, R7)
    _pid_ns(a)
    a.fetch(R0, R7, numbers + nr, 4)
    a.write(R0)
    # If the process has no number at that level, this is not one: `identity.decode` notices.
    a.mov(R8, R7)
    a.alu("add", R8, numbers + size * a.level)
    _pid_ns(a)
    a.fetch(R0, R7, numbers + size * a.level + nr, 4)
    a.write(R0)


def _pid_ns(a: _Program) -> None:
    """Write the inode number of the pid namespace of the struct upid in R8, which is lost."""
    a.fetch(R8, R8, a.facts.member("upid", "ns").offset, 8)
    a.fetch(R0, R8, a.facts.member("pid_namespace", "ns.inum").offset, 4)
    a.write(R0)


def _leader(a: _Program) -> None:
    """Write facts about the leader of the process in R7.

    These are: when it was started; whether it has the credentials in R6 and is the only
    thread; whether it is dumpable; and last the address of its struct pid, which is R7 if it
    was the leader all the time.
    """
    gone, other, same = a.fresh("gone"), a.fresh("other"), a.fresh("same")
    a.read(R9, R7, "pid", "tasks[PIDTYPE_TGID].first")
    a.jump("==", R9, 0, gone)
    a.alu("sub", R9, a.facts.member("task_struct", "pid_links[PIDTYPE_TGID]").offset)
    a.label(gone)
    a.read(R0, R9, "task_struct", "start_boottime")
    a.write(R0)
    for name in ("cred", "real_cred"):
        a.read(R0, R9, "task_struct", name)
        a.jump("!=", R0, R6, other)
    a.read(R8, R9, "task_struct", "signal")
    a.read(R0, R8, "signal_struct", "nr_threads")
    a.jump("==", R0, 1, same)
    a.label(other)
    a.mov(R0, 0)
    a.label(same)
    a.write(R0)
    a.read(R8, R9, "task_struct", "mm")
    a.read(R0, R8, "mm_struct", "flags")
    a.alu("and", R0, _DUMPABLE_MASK)
    a.write(R0)
    a.read(R8, R9, "task_struct", "signal")
    a.read(R0, R8, "signal_struct", "pids[PIDTYPE_TGID]")
    a.write(R0)


def _living_thread(a: _Program) -> None:
    """R9 = the first live thread of the process whose leader is in R9, or 0.

    The threads of a process share its time namespace, and its root directory too unless they
    have unshared it.
    """
    thread_node = a.facts.member("task_struct", "thread_node").offset
    found, loop, none = a.fresh("living"), a.fresh("thread"), a.fresh("none")
    a.jump("==", R9, 0, found)
    a.read(R8, R9, "task_struct", "signal")
    a.alu("add", R8, a.facts.member("signal_struct", "thread_head").offset)
    a.store(R10, _COUNT, _MOST_THREADS)
    a.label(loop)
    a.read(R0, R9, "task_struct", "nsproxy")
    a.jump("!=", R0, 0, found)
    a.fetch(R9, R9, thread_node, 8)
    a.jump("==", R9, R8, none)
    a.jump("==", R9, 0, none)
    a.alu("sub", R9, thread_node)
    _repeat(a, loop)
    a.label(none)
    a.mov(R9, 0)
    a.label(found)


def _repeat(a: _Program, loop: str) -> None:
    """Go to ``loop`` again, as often as the local at _COUNT says."""
    a.load(R1, R10, _COUNT)
    a.alu("sub", R1, 1)
    a.store(R10, _COUNT, R1)
    a.jump("!=", R1, 0, loop)


def _boottime_offset(a: _Program) -> None:
    """Write the boot time offset of the time namespace of the thread in R9: s, then ns."""
    member = a.facts.member
    # Time namespaces exist since Linux kernel commit 769071ac9f20 ("ns: Introduce Time
    # Namespace") (in v5.6), if CONFIG_TIME_NS is set.
    known = a.facts.has_member("nsproxy", "time_ns") and a.facts.has_member(
        "time_namespace", "offsets.boottime"
    )
    if known:
        a.read(R8, R9, "task_struct", "nsproxy")
        a.read(R8, R8, "nsproxy", "time_ns")
    for part in ("tv_sec", "tv_nsec"):
        a.mov(R0, 0)
        if known:
            at = member("time_namespace", "offsets.boottime").offset
            a.fetch(R0, R8, at + member("timespec64", part).offset, 8)
        a.write(R0)


def _root(a: _Program) -> None:
    """Write the mount and the dentry of the root directory of the thread in R9, and a flag.

    The flag is 1 if the directory is the root of the mount namespace, reached only through
    roots of mounts, else 0.  R7 is lost.
    """
    member = a.facts.member
    inside = member("mount", "mnt").offset
    loop, top, no, done = a.fresh("mount"), a.fresh("top"), a.fresh("no"), a.fresh("root")
    a.read(R8, R9, "task_struct", "fs")
    a.fetch(R7, R8, member("fs_struct", "root.mnt").offset, 8)
    a.write(R7)
    a.fetch(R8, R8, member("fs_struct", "root.dentry").offset, 8)
    a.write(R8)
    a.jump("==", R7, 0, no)
    # Go up as prepend_path() does (fs/d_path.c); R7 = a vfsmount, R8 = a directory in it.
    a.store(R10, _COUNT, _MOST_MOUNTS)
    a.label(loop)
    a.read(R0, R7, "vfsmount", "mnt_root")
    a.jump("!=", R0, R8, no)
    a.alu("sub", R7, inside)
    a.read(R0, R7, "mount", "mnt_parent")
    a.jump("==", R0, R7, top)
    a.read(R8, R7, "mount", "mnt_mountpoint")
    a.read(R7, R7, "mount", "mnt_parent")
    a.alu("add", R7, inside)
    _repeat(a, loop)
    a.label(no)
    a.mov(R0, 0)
    a.goto(done)
    a.label(top)
    a.mov(R0, 1)
    a.label(done)
    a.write(R0)


def _map(a: _Program, name: str) -> None:
    """Write the extents of a map of the user namespace in R6: 5 from the map, or all 340."""
    member = a.facts.member
    many, done = a.fresh("many"), a.fresh("map")
    a.read(R0, R6, "user_namespace", f"{name}.nr_extents")
    a.jump(">", R0, INLINE_EXTENTS, many)
    a.copy(R6, member("user_namespace", f"{name}.extent").offset, INLINE_EXTENTS * EXTENT.size)
    a.hand(INLINE_EXTENTS * EXTENT.size)
    a.goto(done)
    a.label(many)
    a.read(R8, R6, "user_namespace", f"{name}.forward")
    # The kernel always allocates room for all of them (insert_extent()).
    for index in range(MOST_EXTENTS // _PIECE):
        a.copy(R8, index * _PIECE * EXTENT.size, _PIECE * EXTENT.size)
        a.hand(_PIECE * EXTENT.size)
    a.label(done)
