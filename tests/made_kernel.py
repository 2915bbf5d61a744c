"""Invented kernels: BTF with the structures that programs read, of a new and an old kernel.

With these, the compiler is tested without privilege and independently of the host's kernel.
"""

from __future__ import annotations

import re

from taskdiag.kernel.btf import Btf
from taskdiag.kernel.btf_build import BtfBuilder
from taskdiag.kernel.cache import Cache
from taskdiag.kernel.facts import Facts

#: The members of each structure, as "name type".  A type is "u32" and the like, "struct",
#: "*struct" for a pointer, or "type[count]".  A dot in a name makes a nested structure.
_COMMON = {
    "seq_file": "buf u64",
    "bpf_iter_meta": "seq *seq_file",
    "bpf_iter__task": "meta *bpf_iter_meta, task *task_struct",
    "atomic_t": "counter int",
    "pid_namespace": "ns.inum u32",
    "upid": "nr int, ns *pid_namespace",
    "kuid_t": "val u32",
    "user_namespace": "parent *user_namespace, level int, owner kuid_t, ns.inum u32, ns.ns_id u64",
    "tty_driver": "major int, minor_start int",
    "super_block": "s_dev u32",
    "inode": "i_ino u64, i_sb *super_block, i_generation u32",
    "dentry": "d_parent *dentry, d_name.hash_len u64, d_hash.pprev u64, d_inode *inode",
    "path": "mnt u64, dentry *dentry",
    "file": "f_mode u32, f_inode *inode, f_path path",
    "vm_special_mapping": "name *void",
    "signal_struct": (
        "live atomic_t, nr_threads int, thread_head.next u64, pids *pid[4], utime u64, stime u64,"
        "cutime u64, cstime u64, prev_cputime.utime u64, prev_cputime.stime u64, min_flt u64,"
        "cmin_flt u64, maj_flt u64, cmaj_flt u64, sum_sched_runtime u64, tty *tty_struct,"
        "stats_lock.seqcount.seqcount.sequence u32"
    ),
    "vm_area_struct": (
        "vm_start u64, vm_end u64, vm_mm *mm_struct, vm_flags u64, vm_ops *void, vm_pgoff u64,"
        "vm_file *file, vm_private_data *void"
    ),
}
_TASK = (
    "exit_state int, flags u32, ptrace u32, prio int, static_prio int, rt_priority u32,"
    "se.sum_exec_runtime u64, policy u32, mm *mm_struct, user_dumpable u32, pid int, tgid int,"
    "real_parent *task_struct, parent *task_struct, group_leader *task_struct, thread_pid *pid,"
    "thread_node.next u64, utime u64, stime u64, prev_cputime.utime u64, prev_cputime.stime u64,"
    "start_boottime u64, min_flt u64, maj_flt u64, real_cred *cred, comm char[16],"
    "signal *signal_struct, self_exec_id u64"
)
_CRED = (
    "uid kuid_t, gid kuid_t, suid kuid_t, sgid kuid_t, euid kuid_t, egid kuid_t, fsuid kuid_t,"
    "fsgid kuid_t, cap_inheritable {cap}, cap_permitted {cap}, cap_effective {cap},"
    "cap_bset {cap}, user_ns *user_namespace"
)
_MM = (
    "hiwater_rss u64, hiwater_vm u64, total_vm u64, locked_vm u64, pinned_vm u64, data_vm u64,"
    "exec_vm u64, stack_vm u64, start_code u64, end_code u64, start_brk u64, brk u64,"
    "start_stack u64, arg_start u64, arg_end u64, env_start u64, env_end u64, flags u64,"
    "pgtables_bytes u64, user_ns *user_namespace, context.flags u64, context.vdso u64"
)

#: As Linux 6.18 has it.
NEW = {
    **_COMMON,
    "kthread": "data *void, full_name *void",
    "worker": "current_work *void, pool *void, desc char[32]",
    "pid": "level u32, numbers upid[0]",
    "percpu_counter": "count s64, counters *void",
    "backing_file": "file file, user_path path",
    "kernel_cap_t": "val u64",
    "cred": _CRED.format(cap="kernel_cap_t"),
    "tty_struct": "index int, driver *tty_driver, ctrl.pgrp *pid",
    "mm_struct": f"{_MM}, rss_stat percpu_counter[4]",
    "task_struct": f"thread_info.cpu u32, __state u32, worker_private *void, {_TASK}",
}
#: As Linux 5.10 has it.
OLD = {
    **_COMMON,
    "kthread": "data *void",
    "worker": "current_work *void, pool *void, desc char[24]",
    "pid": "level u32, numbers upid[1]",
    "kernel_cap_struct": "cap u32[2]",
    "cred": _CRED.format(cap="kernel_cap_struct"),
    "tty_struct": "index int, driver *tty_driver, pgrp *pid",
    "mm_struct": f"{_MM}, rss_stat.count u64[4]",
    "task_struct": f"state s64, cpu u32, set_child_tid *int, {_TASK}",
}
KFUNCS = (
    "bpf_rdonly_cast", "bpf_rcu_read_lock", "bpf_rcu_read_unlock", "bpf_iter_task_new",
    "bpf_iter_task_next", "bpf_iter_task_destroy", "bpf_iter_task_vma_new",
    "bpf_iter_task_vma_next", "bpf_iter_task_vma_destroy", "bpf_iter_num_new",
    "bpf_iter_num_next", "bpf_iter_num_destroy", "bpf_task_acquire", "bpf_task_release",
)  # fmt: skip
_ENUMS = {
    "pid_type": ["PIDTYPE_PID", "PIDTYPE_TGID", "PIDTYPE_PGID", "PIDTYPE_SID"],
    "counters": ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SWAPENTS", "MM_SHMEMPAGES"],
}
_NUMBERS = {"u32": (4, False), "int": (4, True), "u64": (8, False), "s64": (8, True)}


class _Maker:
    """Builds the types; a second pass knows the ids of the structures pointed to."""

    def __init__(self, structures: dict[str, str], known: dict[str, int]) -> None:
        self.build = BtfBuilder()
        self.known = known
        self.ids: dict[str, int] = {"void": 0}
        self.sizes: dict[int, int] = {}
        for name, (size, signed) in _NUMBERS.items():
            self.ids[name] = self._sized(self.build.integer(name, size, signed=signed), size)
        self.ids["char"] = self._sized(self.build.integer("char", 1, char=True), 1)
        for name, members in structures.items():
            self.ids[name] = self._struct(name, re.split(r",\s*", members))

    def _sized(self, type: int, size: int) -> int:
        self.sizes[type] = size
        return type

    def _type(self, text: str) -> int:
        text, bracket, count = text.partition("[")
        if text.startswith("*"):
            type = self._sized(self.build.ptr(self.known.get(text[1:], 0)), 8)
        else:
            type = self.ids[text]
        if not bracket:
            return type
        length = int(count.rstrip("]"))
        array = self.build.array(type, length, self.ids["u32"])
        return self._sized(array, length * self.sizes[type])

    def _struct(self, name: str, members: list[str]) -> int:
        inner: dict[str, list[str]] = {}
        for member in members:
            head, dot, tail = member.partition(".")
            inner.setdefault(head if dot else member, []).extend([tail] if dot else [])
        fields: list[tuple[str | int, ...]] = []
        at = 0
        for head, nested in inner.items():
            if nested:
                field, type = head, self._struct(f"{name}__{head}", nested)
            else:
                field, text = head.split(" ")
                type = self._type(text)
            size = self.sizes[type]
            at = (
                -(-at // min(8, size or 8)) * min(8, size or 8)
                if size in (1, 2, 4)
                else at + 7 & ~7
            )
            fields.append((field, type, 8 * at))
            at += size
        return self._sized(self.build.struct(name, at + 7 & ~7, fields), at + 7 & ~7)


def made(structures: dict[str, str], kfuncs: tuple[str, ...], helpers: tuple[str, ...]) -> Facts:
    """Facts about a kernel with these structures, kernel functions and helpers."""
    maker = _Maker(structures, _Maker(structures, {}).ids)
    build = maker.build
    for name, values in _ENUMS.items():
        build.enum(name, [(value, index) for index, value in enumerate(values)])
    build.enum("bpf_func_id", [(f"BPF_FUNC_{name}", index) for index, name in enumerate(helpers)])
    flags = [("BPF_TASK_ITER_PROC_THREADS", 2), ("WORKER_ID_LEN", 42)] if kfuncs else []
    build.enum("flags", flags)
    proto = build.func_proto(0, [])
    for name in ("bpf_iter_task", *kfuncs):
        build.func(name, proto)
    blob = build.blob()
    return Facts(Cache("made", None), lambda: Btf(blob))


def new_kernel() -> Facts:
    """A kernel that has everything."""
    return made(NEW, KFUNCS, ("copy_from_user_task", "loop"))


def old_kernel() -> Facts:
    """A kernel older than any that is supported, without kernel functions and helpers."""
    return made(OLD, (), ("unspec",))
