"""Memory mappings, with the names that /proc/PID/maps shows.

fs/proc/task_mmu.c (show_map_vma, get_vma_name), include/linux/mm.h (VM_* bits).
"""

from __future__ import annotations

import os
import sys
from struct import Struct

from .. import abi
from ..abi import Attr, VmaFlag
from . import pid
from .asm import R0, R1, R2, R3, R4, R5, R7, R8, R10
from .cmdline import LONGEST
from .emit import ARENA, MM, SIGNAL, TASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter
    from .facts import Facts

__all__ = (
    "KEY",
    "MARKED",
    "MARKER",
    "NAMES",
    "NAMES_KEPT",
    "NAME_KEPT",
    "STAMP",
    "emit",
    "gate_record",
    "missing",
)

_PAGE_SHIFT = os.sysconf("SC_PAGE_SIZE").bit_length() - 1
_NAME = abi.VMA.size
_PATH_MAX = 4096
#: The longest name given by prctl(2) or by the kernel itself, with its NUL
#: (ANON_VMA_NAME_MAX_LEN, mm/madvise.c).
_NAME_MAX = 80

#: The map with names of files of stacking file systems (`stacked`): at most ``NAMES_KEPT``
#: entries, each a KEY and a NAME_KEPT, which is the length of the name and the name, both with
#: its NUL.
NAMES, NAMES_KEPT = "names", 1024
NAME_KEPT = Struct("=Q256s")
#: What identifies such a file: mount, dentry, the dentry's parent, the hash of its name with
#: the highest bit set if it was deleted; inode number, device, generation.
KEY = Struct("=QQQQQQQ")
#: In a record without a name, these bytes are a random number that only this process knows
#: (``Host.marker``), and the KEY follows in the place of the name.  Behind it is a STAMP: the
#: numbers of changes of the mappings, and of programs that the task has executed.
MARKER = slice(abi.VMA["vma_len"].offset, abi.VMA.size)
STAMP = Struct("=Q")
MARKED = abi.VMA.size + KEY.size + STAMP.size

# include/linux/mm.h, include/linux/fs.h, arch/x86/include/asm/mmu.h; macros.
FMODE_BACKING = 1 << 24
FMODE_BACKING_OLD = 1 << 25
MM_CONTEXT_HAS_VSYSCALL = 1 << 1
# RWSEM_WRITER_LOCKED, kernel/locking/rwsem.c; a macro.
_WRITER_LOCKED = 1 << 0

# How the kernel's VM_* bits become those of the ABI: shift right, then keep these bits.
_FLAG_MOVES = (
    (0, 0x1FF),
    (1, VmaFlag.PFNMAP | VmaFlag.LOCKED | VmaFlag.IO | VmaFlag.SEQ_READ | VmaFlag.RAND_READ
        | VmaFlag.DONTCOPY | VmaFlag.DONTEXPAND),
    (2, VmaFlag.ACCOUNT | VmaFlag.NORESERVE | VmaFlag.HUGETLB),
    (3, VmaFlag.ARCH_1),
    (4, VmaFlag.DONTDUMP | VmaFlag.SOFTDIRTY | VmaFlag.MIXEDMAP | VmaFlag.HUGEPAGE
        | VmaFlag.NOHUGEPAGE | VmaFlag.MERGEABLE),
)  # fmt: skip

# R7 and R8 hold the record being written and the VMA while the mappings are walked.
_RECORD, _VMA = R7, R8

# Labels: where the next mapping is visited, where a record is finished, with the length of its
# name in R0 or without a name, and where the mappings are deferred to procfs.
_NEXT, _NAMED, _NAMELESS, _DEFER = "vma", "vma named", "vma nameless", "vma defer"


def missing(facts: Facts) -> str:
    """What this kernel lacks for this group; "" if nothing."""
    # Since Linux kernel commit 4ac454682158 ("bpf: Introduce task_vma open-coded
    # iterator kfuncs") (in v6.7), a program can walk the mappings of a task.
    if not facts.has("func", "bpf_iter_task_vma_new"):
        return "kfunc bpf_iter_task_vma_new (6.7)"
    if not facts.has_member("mm_struct", "context.vdso"):
        return "mm_struct::context.vdso"
    if _may_skip(facts) and not _counts_changes(facts):
        return "mm_struct::mm_lock_seq as a seqcount (6.13)"
    return ""


def gate_record() -> bytes:
    """The record of the gate VMA ([vsyscall]), which is in no mm; b"" if there is none.

    It is the same for every process of a host.
    """
    try:
        with open("/proc/self/maps", "rb", 0) as file:
            maps = b"".join(iter(lambda: file.read(1 << 16), b""))
    except OSError:
        return b""
    line = maps[maps.rfind(b"\n", 0, -1) + 1 :].split()
    if len(line) != 6 or line[5] != b"[vsyscall]":
        return b""
    start, _, end = line[0].partition(b"-")
    # It has none of the flags that maps does not show (arch/x86/entry/vsyscall/vsyscall_64.c).
    perms = sum(
        int(flag)
        for letter, flag in ((b"r", VmaFlag.READ), (b"w", VmaFlag.WRITE), (b"x", VmaFlag.EXEC))
        if letter in line[1]
    )
    name = b"[vsyscall]\0"
    length = _NAME + len(name) + 7 & ~7
    head = abi.VMA.struct.pack(
        int(start, 16), int(end, 16), perms, 0, 0, 0, 0, 0, length, _NAME, len(name), 0, 0
    )
    return (head + name).ljust(length, b"\0")


def emit(c: Emitter) -> None:
    """Write the attribute at ``length`` of the arena, and move ``length`` to its end.

    No attribute is written if a task has no mappings, nor, for thread strategies, in the
    messages about a process other than that of `_pick_thread`.

    Mappings are deferred to procfs if there are more than fit a message, or if the task is
    changing its mappings.  Names of files of stacking file systems are left to `stacked`.
    """
    done, close = "vma done", "vma close"
    iterator = c.scratch()
    c.set("mm", MM)
    if c.threads:
        _pick_thread(c, iterator, done)
    # The attribute's header is written last, when its length is known.
    c.get(R1, "length")
    c.set("first", R1)
    c.set("last file", 0)
    c.alu("add", R1, 4)
    c.set("length", R1)
    _walk(c, iterator)
    _gate(c)
    _header(c, close)
    c.goto(close)

    c.label("vma defer walk")
    _call(c, iterator, "bpf_iter_task_vma_destroy")
    c.label(_DEFER)
    c.defer()
    c.get(R1, "first")
    c.set("length", R1)
    c.label(close)
    c.load(SIGNAL, TASK, c.facts.member("task_struct", "signal").offset)
    c.label(done)
    c.get(MM, "mm")


def _call(c: Emitter, iterator: int, kfunc: str) -> None:
    """Call a function of an iterator whose only argument is the iterator."""
    c.mov(R1, R10)
    c.alu("add", R1, iterator)
    c.kfunc(kfunc)


def _pick_thread(c: Emitter, iterator: int, other: str) -> None:
    """Jump to ``other`` unless this is the thread whose message has the process's mappings.

    That is the leader.  If the leader has exited, it has no mm; then it is the thread with the
    lowest number, in the viewer's pid namespace, of those that still have an mm.
    """
    first, loop, end = c.fresh("first"), c.fresh("thread"), c.fresh("threads")
    c.follow(R1, TASK, "task_struct", "pid")
    c.follow(R2, TASK, "task_struct", "tgid")
    c.jump("==", R1, R2, first, bits=32)
    c.follow(R1, TASK, "task_struct", "group_leader->mm")
    c.jump("!=", R1, 0, other)
    pid.pid_nr(c)
    c.set("number", R0)
    c.set("lower", 0)
    # The iterator starts at the thread that it is given, so it is given the leader.  It takes
    # no reference: nothing is freed before the end of this RCU section.
    thread = _RECORD
    c.get(R1, "task")
    c.load(R1, R1, c.facts.member("task_struct", "group_leader").offset)
    c.kfunc("bpf_task_acquire")
    c.jump("==", R0, 0, other)
    c.mov(thread, R0)
    c.mov(R1, R10)
    c.alu("add", R1, iterator)
    c.mov(R2, thread)
    c.mov(R3, c.facts.enumerator("BPF_TASK_ITER_PROC_THREADS"))
    c.kfunc("bpf_iter_task_new")
    c.mov(R1, thread)
    c.kfunc("bpf_task_release")
    c.label(loop)
    _call(c, iterator, "bpf_iter_task_next")
    c.jump("==", R0, 0, end)
    c.mov(thread, R0)
    c.follow(R1, thread, "task_struct", "mm")
    c.jump("==", R1, 0, loop)
    pid.pid_nr(c, thread)
    # A number of 0 means that the thread was reaped meanwhile.
    c.jump("==", R0, 0, loop)
    c.get(R1, "number")
    c.jump(">=", R0, R1, loop)
    c.set("lower", 1)
    c.label(end)
    _call(c, iterator, "bpf_iter_task_destroy")
    c.get(R1, "lower")
    c.jump("!=", R1, 0, other)
    c.label(first)


def _walk(c: Emitter, iterator: int) -> None:
    """Append a record for each mapping of the task."""
    loop, end, file, defer = _NEXT, "vma end", "vma file", "vma defer walk"
    counts = _counts_changes(c.facts)
    if counts:
        _changes(c)
        c.set("changes", R0)
    c.mov(R1, R10)
    c.alu("add", R1, iterator)
    c.get(R2, "task")
    c.mov(R3, 0)
    c.kfunc("bpf_iter_task_vma_new")
    # The memory is locked for writing.
    c.jump("!=", R0, 0, defer)
    c.label(loop)
    _call(c, iterator, "bpf_iter_task_vma_next")
    c.jump("==", R0, 0, end)
    c.follow(R1, R0, "vm_area_struct", "vm_file")
    c.set("file", R1)
    c.untrusted(_VMA, R0, "vm_area_struct")
    c.get(R1, "length")
    c.jump(">", R1, LONGEST, defer)
    c.mov(_RECORD, ARENA)
    c.alu("add", _RECORD, R1)
    _fixed(c)
    c.get(R1, "file")
    c.jump("!=", R1, 0, file)
    _anonymous_name(c)
    c.goto(_NAMELESS)
    c.label(file)
    _file(c, defer)
    _finish_record(c, defer)
    c.goto(loop)
    c.label(end)
    _call(c, iterator, "bpf_iter_task_vma_destroy")
    if counts:
        _changes(c)
        c.get(R1, "changes")
        c.jump("!=", R0, R1, _DEFER)


def _may_skip(facts: Facts) -> bool:
    """Whether the iterator passes over mappings that are being changed."""
    # Linux kernel commit bee9ef4a40a2 ("bpf: switch task_vma iterator from mmap_lock to
    # per-VMA locks"), also in 6.18.44: the mmap lock is no longer held from one mapping to
    # the next, and a mapping that is locked for writing is left out.  Without
    # CONFIG_PER_VMA_LOCK it can no longer be used, and every task is deferred.
    return facts.has_member("bpf_iter_task_vma_kern_data", "next_addr") and (
        facts.has_member("mm_struct", "mm_lock_seq")
    )


def _counts_changes(facts: Facts) -> bool:
    """Whether `_changes` can be asked."""
    return facts.has_member("mm_struct", "mm_lock_seq.sequence") or (
        facts.has_member("mm_struct", "mm_lock_seq")
        and facts.has_member("mm_struct", "mmap_lock.count.counter")
    )


def _changes(c: Emitter) -> None:
    """R0 = how often the mmap lock was taken for writing; jumps to _DEFER while it is.

    If the number is the same before and after a walk, no mapping has changed meanwhile, as in
    mmap_lock_speculate_retry() (include/linux/mmap_lock.h).  The functions of the iterator are
    barriers, since they take and drop a reference to the mm.
    """
    c.get(R4, "mm")
    # Since Linux kernel commit eb449bd96954 ("mm: convert mm_lock_seq to a proper seqcount")
    # (in v6.13), the number is odd while the lock is held; before, it changes only when the
    # lock is released.
    if c.facts.has_member("mm_struct", "mm_lock_seq.sequence"):
        c.follow(R0, R4, "mm_struct", "mm_lock_seq.sequence")
        c.jump("&", R0, 1, _DEFER)
    else:
        c.follow(R0, R4, "mm_struct", "mmap_lock.count.counter")
        c.jump("&", R0, _WRITER_LOCKED, _DEFER)
        c.follow(R0, R4, "mm_struct", "mm_lock_seq")


def _finish_record(c: Emitter, defer: str) -> None:
    """Set the lengths in a record, and move ``length`` to its end.

    At _NAMED, R0 is the length of the name with its NUL; the name follows the structure.
    """
    done = c.fresh("record")
    c.label(_NAMED)
    c.jump("s<=", R0, 0, _NAMELESS)
    c.jump(">", R0, _PATH_MAX, defer)
    c.store(_RECORD, abi.VMA["name_off"].offset, _NAME, 2)
    c.store(_RECORD, abi.VMA["name_len"].offset, R0, 2)
    c.mov(R1, _RECORD)
    c.alu("add", R1, R0)
    # The padding; at most 7 of these bytes belong to the record.
    c.store(R1, _NAME, 0)
    c.alu("add", R0, _NAME + 7)
    c.alu("and", R0, 0xFFF8)
    c.goto(done)
    c.label(_NAMELESS)
    c.mov(R0, _NAME)
    c.label(done)
    c.store(_RECORD, abi.VMA["vma_len"].offset, R0, 2)
    c.get(R1, "length")
    c.alu("add", R1, R0)
    c.jump(">", R1, LONGEST, defer)
    c.set("length", R1)


def _header(c: Emitter, close: str) -> None:
    """Write the attribute's header, or take it back if no mapping follows."""
    c.get(R1, "length")
    c.get(R2, "first")
    c.alu("sub", R1, R2)
    c.jump(">", R2, LONGEST, close)
    c.mov(R3, ARENA)
    c.alu("add", R3, R2)
    c.store(R3, 0, R1, 2)
    c.store(R3, 2, int(Attr.VMA), 2)
    c.jump("!=", R1, 4, close)
    c.set("length", R2)


def _fixed(c: Emitter) -> None:
    """Write the addresses and flags, and 0 everywhere else."""
    for field, member in (("start", "vm_start"), ("end", "vm_end")):
        c.follow(R0, _VMA, "vm_area_struct", member)
        c.store(_RECORD, abi.VMA[field].offset, R0)
    c.follow(R0, _VMA, "vm_area_struct", "vm_flags")
    c.mov(R1, 0)
    for shift, mask in _FLAG_MOVES:
        c.mov(R2, R0)
        c.alu("rsh", R2, shift)
        c.alu("and", R2, int(mask))
        c.alu("or", R1, R2)
    c.store(_RECORD, abi.VMA["vm_flags"].offset, R1)
    for at in range(abi.VMA["pgoff"].offset, abi.VMA.size, 8):
        c.store(_RECORD, at, 0)


def _file(c: Emitter, defer: str) -> None:
    """Write offset, device, inode and name of a mapping of the file in R1."""
    other = c.fresh("file")
    c.follow(R2, _VMA, "vm_area_struct", "vm_pgoff")
    c.alu("lsh", R2, _PAGE_SHIFT)
    c.store(_RECORD, abi.VMA["pgoff"].offset, R2)
    # Since Linux kernel commit d09e8ca6cb93 ("mm: anonymous shared memory naming") (in
    # v6.2), prctl(2) also gives names to shared memory, which the kernel keeps in a file.
    if c.facts.has_member("vm_area_struct", "anon_name"):
        path = c.fresh("path")
        c.follow(R2, _VMA, "vm_area_struct", "anon_name")
        c.jump("==", R2, 0, path)
        _inode(c)
        c.follow(R2, _VMA, "vm_area_struct", "anon_name")
        _given_name(c, b"[anon_shmem:")
        c.get(R1, "file")
        c.label(path)
    c.get(R2, "last file")
    c.jump("!=", R1, R2, other)
    _copy_last(c, other)
    c.label(other)
    c.get(R1, "file")
    c.set("last file", R1)
    c.get(R2, "length")
    c.set("last record", R2)
    # Since Linux kernel commit def3ae83da02 ("fs: store real path instead of fake path
    # in backing file f_path") (in v6.7), what a stacking file system maps has a path of
    # the layer below, which maps does not show.
    if c.facts.has("struct", "backing_file"):
        plain = c.fresh("plain")
        c.follow(R2, R1, "file", "f_mode")
        c.alu("and", R2, _backing(c.facts))
        c.jump("==", R2, 0, plain)
        if c.facts.has_member("backing_file", "user_path") and _counts_changes(c.facts):
            _stacked_file(c, defer)
        else:
            c.goto(defer)
        c.label(plain)
    _inode(c)
    c.alu("add", R1, c.facts.member("file", "f_path").offset)
    c.mov(R2, _RECORD)
    c.alu("add", R2, _NAME)
    c.mov(R3, _PATH_MAX)
    c.helper("d_path")
    # A path longer than PATH_MAX.
    c.jump("s<", R0, 0, defer)


def _copy_last(c: Emitter, other: str) -> None:
    """If the mapping before is of the same file, copy from its record and jump to _NAMED.

    The mappings of a program or library follow each other, and d_path() takes many times as
    long as the copy.
    """
    c.get(R4, "last record")
    c.jump(">", R4, LONGEST, other)
    c.mov(R3, ARENA)
    c.alu("add", R3, R4)
    for at in range(abi.VMA["major"].offset, abi.VMA["generation"].offset + 1, 8):
        c.load(R0, R3, at)
        c.store(_RECORD, at, R0)
    c.load(R2, R3, abi.VMA["name_len"].offset, 2)
    c.jump("==", R2, 0, other)
    c.jump(">", R2, _PATH_MAX, other)
    c.alu("add", R3, _NAME)
    _copy_name(c)


def _copy_name(c: Emitter) -> None:
    """Jump to _NAMED with the name at R3, of R2 bytes with its NUL."""
    c.set("word", R2)
    c.mov(R1, _RECORD)
    c.alu("add", R1, _NAME)
    c.helper("probe_read_kernel")
    c.get(R0, "word")
    c.goto(_NAMED)


def _stacked_file(c: Emitter, defer: str) -> None:
    """Finish the record of the file in R1, which a stacking file system has opened.

    The name is taken from the map NAMES.  If it is not there, the record gets the marker and
    is completed by `stacked`.  d_path() cannot be called: the verifier allows that only for
    a path in an object behind a trusted pointer, and none leads to a ``struct backing_file``.
    """
    unknown = c.fresh("unknown")
    c.untrusted(R1, R1, "backing_file")
    c.follow(R2, R1, "backing_file", "user_path.mnt")
    c.store(_RECORD, _NAME, R2)
    c.follow(R1, R1, "backing_file", "user_path.dentry")
    c.store(_RECORD, _NAME + 8, R1)
    c.follow(R2, R1, "dentry", "d_parent")
    c.store(_RECORD, _NAME + 16, R2)
    hashed = c.fresh("hashed")
    c.follow(R2, R1, "dentry", "d_name.hash_len")
    c.follow(R3, R1, "dentry", "d_hash.pprev")
    c.jump("!=", R3, 0, hashed)
    c.mov(R3, 1 << 63)
    c.alu("or", R2, R3)
    c.label(hashed)
    c.store(_RECORD, _NAME + 24, R2)
    # Since Linux kernel commit 3efdc78fdc21 ("fs/proc: show correct device and inode numbers
    # in /proc/pid/maps") (in v6.8), maps shows those of this inode.  Before, the names are
    # rejected as those of other files, and the mappings are deferred.
    c.follow(R2, R1, "dentry", "d_inode")
    _inode_numbers(c)
    for index, field in enumerate(("inode", "major", "generation")):
        c.load(R2, _RECORD, abi.VMA[field].offset)
        c.store(_RECORD, _NAME + 32 + 8 * index, R2)
    c.map(R1, NAMES)
    c.mov(R2, _RECORD)
    c.alu("add", R2, _NAME)
    c.helper("map_lookup_elem")
    c.jump("==", R0, 0, unknown)
    c.load(R2, R0, 0)
    c.jump(">", R2, NAME_KEPT.size - 8, unknown)
    c.mov(R3, R0)
    c.alu("add", R3, 8)
    _copy_name(c)

    c.label(unknown)
    # The next record must not be copied from this one.
    c.set("last file", 0)
    c.mov(R2, int.from_bytes(c.host.marker[:4], sys.byteorder))
    c.store(_RECORD, MARKER.start, R2, 4)
    c.mov(R2, int.from_bytes(c.host.marker[4:], sys.byteorder))
    c.store(_RECORD, MARKER.start + 4, R2)
    c.follow(R2, TASK, "task_struct", "self_exec_id")
    c.alu("lsh", R2, 32)
    c.get(R1, "changes")
    c.alu("or", R2, R1)
    c.store(_RECORD, _NAME + KEY.size, R2)
    c.count_deferred()
    c.get(R1, "length")
    c.alu("add", R1, MARKED)
    c.jump(">", R1, LONGEST, defer)
    c.set("length", R1)
    c.goto(_NEXT)


def _inode(c: Emitter) -> None:
    """Write device, inode number and generation of the file in R1.  Keeps R1."""
    c.follow(R2, R1, "file", "f_inode")
    _inode_numbers(c)


def _inode_numbers(c: Emitter) -> None:
    """Write device, inode number and generation of the inode in R2.  Keeps R1."""
    c.follow(R3, R2, "inode", "i_ino")
    c.store(_RECORD, abi.VMA["inode"].offset, R3)
    c.follow(R3, R2, "inode", "i_generation")
    c.store(_RECORD, abi.VMA["generation"].offset, R3, 4)
    c.follow(R3, R2, "inode", "i_sb->s_dev")
    c.mov(R4, R3)
    c.alu("rsh", R4, 20)
    c.store(_RECORD, abi.VMA["major"].offset, R4, 4)
    c.alu("and", R3, 0xFFFFF)
    c.store(_RECORD, abi.VMA["minor"].offset, R3, 4)


def _backing(facts: Facts) -> int:
    """The bits of ``f_mode`` that may mark a file of a stacking file system."""
    # Since Linux kernel commit 95101401bb50 ("fsnotify: opt-in for permission events at
    # file open time") (in v6.14), FMODE_BACKING is bit 24, and bit 25 is set on most
    # files without a name.  BTF does not tell, except by functions that came with it.
    for name in (
        "file_set_fsnotify_mode",
        "file_set_fsnotify_mode_from_watchers",
        "fsnotify_open_perm_and_set_mode",
    ):
        if facts.has("func", name):
            return FMODE_BACKING
    return FMODE_BACKING | FMODE_BACKING_OLD


def _anonymous_name(c: Emitter) -> None:
    """Jump to _NAMED with the name of a mapping without a file, if it has one."""
    _special_name(c)
    c.get(R4, "mm")
    c.follow(R1, _VMA, "vm_area_struct", "vm_start")
    c.follow(R2, _VMA, "vm_area_struct", "vm_end")
    other = c.fresh("heap")
    c.follow(R3, R4, "mm_struct", "brk")
    c.jump(">=", R1, R3, other)
    c.follow(R3, R4, "mm_struct", "start_brk")
    c.jump("<=", R2, R3, other)
    _literal(c, b"[heap]")
    c.label(other)
    other = c.fresh("stack")
    c.follow(R3, R4, "mm_struct", "start_stack")
    c.jump(">", R1, R3, other)
    c.jump("<", R2, R3, other)
    _literal(c, b"[stack]")
    c.label(other)
    # Since Linux kernel commit 9a10064f5625 ("mm: add a field to store names for
    # private anonymous memory") (in v5.17), and if configured, prctl(2) gives names.
    if c.facts.has_member("vm_area_struct", "anon_name"):
        other = c.fresh("anon")
        c.follow(R2, _VMA, "vm_area_struct", "anon_name")
        c.jump("==", R2, 0, other)
        _given_name(c, b"[anon:")
        c.label(other)


def _special_name(c: Emitter) -> None:
    """The name of one of the kernel's own mappings, such as [vdso]."""
    word, plain = c.local("word"), c.fresh("plain")
    c.follow(R1, _VMA, "vm_area_struct", "vm_ops")
    c.mov(R2, c.host.special_ops)
    c.jump("!=", R1, R2, plain)
    c.follow(R3, _VMA, "vm_area_struct", "vm_private_data")
    c.alu("add", R3, c.facts.member("vm_special_mapping", "name").offset)
    c.mov(R1, R10)
    c.alu("add", R1, word)
    c.mov(R2, 8)
    c.helper("probe_read_kernel")
    c.load(R3, R10, word)
    c.mov(R1, _RECORD)
    c.alu("add", R1, _NAME)
    c.mov(R2, _NAME_MAX)
    c.helper("probe_read_kernel_str")
    c.goto(_NAMED)
    c.label(plain)


def _given_name(c: Emitter, prefix: bytes) -> None:
    """Jump to _NAMED with ``prefix``, the name in the ``struct anon_vma_name`` in R2, and "]".

    Such a name holds printable ASCII only, and none of ``\\`$[]`` (prctl_set_vma()).
    """
    none = c.fresh("given")
    c.mov(R3, R2)
    c.alu("add", R3, c.facts.member("anon_vma_name", "name").offset)
    _text(c, prefix)
    c.mov(R1, _RECORD)
    c.alu("add", R1, _NAME + len(prefix))
    c.mov(R2, _NAME_MAX)
    c.helper("probe_read_kernel_str")
    c.jump("s<=", R0, 0, none)
    c.jump(">", R0, _NAME_MAX, none)
    c.mov(R1, _RECORD)
    c.alu("add", R1, R0)
    c.store(R1, _NAME + len(prefix) - 1, ord("]"), 2)
    c.alu("add", R0, len(prefix) + 1)
    c.goto(_NAMED)
    c.label(none)


def _literal(c: Emitter, name: bytes) -> None:
    """Jump to _NAMED with this name of less than 8 bytes."""
    _text(c, name.ljust(8, b"\0"))
    c.mov(R0, len(name) + 1)
    c.goto(_NAMED)


def _text(c: Emitter, text: bytes) -> None:
    """Write an even number of bytes at the place of the name."""
    at = 0
    while at < len(text):
        size = next(size for size in (8, 4, 2) if at + size <= len(text))
        c.mov(R5, int.from_bytes(text[at : at + size], "little"))
        c.store(_RECORD, _NAME + at, R5, size)
        at += size


def _gate(c: Emitter) -> None:
    """Append the gate VMA, for processes that have one."""
    record = c.host.gate
    if not record or not c.facts.has_member("mm_struct", "context.flags"):
        return
    none = c.fresh("gate")
    c.get(R1, "mm")
    c.follow(R1, R1, "mm_struct", "context.flags")
    c.alu("and", R1, MM_CONTEXT_HAS_VSYSCALL)
    c.jump("==", R1, 0, none)
    c.get(R1, "length")
    c.jump(">", R1, LONGEST - len(record), _DEFER)
    c.mov(R2, ARENA)
    c.alu("add", R2, R1)
    for at in range(0, len(record), 8):
        c.mov(R3, Struct("=Q").unpack_from(record, at)[0])
        c.store(R2, at, R3)
    c.alu("add", R1, len(record))
    c.set("length", R1)
    c.label(none)
