"""Memory of a process: counters, peaks and sizes in pages.

fs/proc/task_mmu.c (task_mem), include/linux/mm.h.
"""

from __future__ import annotations

import os

from .asm import R0, R1, R2, R3, R10
from .emit import MM, TASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter
    from .facts import Facts

__all__ = (
    "PF_KTHREAD",
    "hiwater_rss",
    "hiwater_vm",
    "lib",
    "load_mm",
    "missing",
    "possible_cpus",
    "read_counters",
    "rss",
    "text",
)

PF_KTHREAD = 0x00200000

_PAGE_SHIFT = os.sysconf("SC_PAGE_SIZE").bit_length() - 1
_COUNTERS = ("MM_ANONPAGES", "MM_FILEPAGES", "MM_SHMEMPAGES", "MM_SWAPENTS")


def possible_cpus() -> int:
    """One more than the highest possible CPU number (``nr_cpu_ids``)."""
    try:
        with open("/sys/devices/system/cpu/possible", "rb", 0) as file:
            last = file.read(4096).strip().split(b",")[-1].split(b"-")[-1]
            return int(last) + 1
    except (OSError, ValueError):
        return os.sysconf("SC_NPROCESSORS_CONF")


def load_mm(c: Emitter) -> None:
    """``get_task_mm()``: R7 = the task's mm, 0 for kernel threads and tasks that have exited."""
    user = c.fresh("user")
    c.follow(R1, TASK, "task_struct", "flags")
    c.load(MM, TASK, c.facts.member("task_struct", "mm").offset)
    # A kernel thread may use the memory of a process for a while (kthread_use_mm()).
    c.alu("and", R1, PF_KTHREAD)
    c.jump("==", R1, 0, user)
    c.mov(MM, 0)
    c.label(user)


def _percpu(facts: Facts) -> bool:
    # Since Linux kernel commit f1a7941243c1 ("mm: convert mm's rss stats into
    # percpu_counter") (in v6.2), each counter has a part for every CPU.
    return not facts.has_member("mm_struct", "rss_stat.count")


def missing(facts: Facts) -> str:
    """What this kernel lacks to read the counters; "" if nothing."""
    # Since Linux kernel commit a35b9af4ec2c ("bpf: Add a kfunc for generic type cast")
    # (in v6.2), a program can read through an address that it has computed.
    if _percpu(facts) and not facts.has("func", "bpf_rdonly_cast"):
        return "kfunc bpf_rdonly_cast (6.2)"
    return ""


def read_counters(c: Emitter, offsets: dict[str, int]) -> None:
    """Write the counters (``get_mm_counter_sum()``) at these offsets of the message."""
    if not _percpu(c.facts):
        here = c.local("counter")
        for name in _COUNTERS:
            # A plain load would be rejected: the verifiers of those kernels look into arrays
            # of structures, but not into arrays of a typedef such as atomic_long_t.
            c.mov(R3, MM)
            c.alu("add", R3, c.facts.member("mm_struct", f"rss_stat.count[{name}]").offset)
            c.mov(R1, R10)
            c.alu("add", R1, here)
            c.mov(R2, 8)
            c.helper("probe_read_kernel")
            c.load(R0, R10, here)
            c.not_negative(R0)
            c.put(offsets[name], R0, 8)
        return
    atomic = c.facts.member("signal_struct", "live").type_id
    for name in _COUNTERS:
        c.follow(R0, MM, "mm_struct", f"rss_stat[{name}].count")
        c.put(offsets[name], R0, 8)
        for distance in c.host.per_cpu:
            c.follow(R1, MM, "mm_struct", f"rss_stat[{name}].counters")
            c.mov(R2, distance)
            c.alu("add", R1, R2)
            c.mov(R2, atomic)
            c.kfunc("bpf_rdonly_cast")
            c.load(R1, R0, 0, 4)
            c.alu("lsh", R1, 32)
            c.alu("arsh", R1, 32)
            c.take(R2, offsets[name], 8)
            c.alu("add", R2, R1)
            c.put(offsets[name], R2, 8)
    for name in _COUNTERS:
        c.take(R0, offsets[name], 8)
        c.not_negative(R0)
        c.put(offsets[name], R0, 8)


def rss(c: Emitter, offsets: dict[str, int]) -> None:
    """``get_mm_rss()`` from the counters in the message."""
    c.take(R0, offsets["MM_ANONPAGES"], 8)
    for name in ("MM_FILEPAGES", "MM_SHMEMPAGES"):
        c.take(R1, offsets[name], 8)
        c.alu("add", R0, R1)


def hiwater_rss(c: Emitter, offsets: dict[str, int]) -> None:
    """``get_mm_hiwater_rss()``: R0 = the peak of the resident pages."""
    rss(c, offsets)
    c.follow(R1, MM, "mm_struct", "hiwater_rss")
    c.at_least(R0, R1)


def hiwater_vm(c: Emitter) -> None:
    """``get_mm_hiwater_vm()``: R0 = the peak of the mapped pages."""
    c.follow(R0, MM, "mm_struct", "hiwater_vm")
    c.follow(R1, MM, "mm_struct", "total_vm")
    c.at_least(R0, R1)


def text(c: Emitter) -> None:
    """The pages of program text: from start_code to end_code, but at most exec_vm."""
    small = c.fresh("text")
    c.follow(R0, MM, "mm_struct", "end_code")
    c.alu("add", R0, (1 << _PAGE_SHIFT) - 1)
    c.alu("rsh", R0, _PAGE_SHIFT)
    c.follow(R1, MM, "mm_struct", "start_code")
    c.alu("rsh", R1, _PAGE_SHIFT)
    c.alu("sub", R0, R1)
    c.follow(R1, MM, "mm_struct", "exec_vm")
    c.jump("<=", R0, R1, small)
    c.mov(R0, R1)
    c.label(small)


def lib(c: Emitter) -> None:
    """The pages of executable mappings that are not program text."""
    text(c)
    c.follow(R1, MM, "mm_struct", "exec_vm")
    c.alu("sub", R1, R0)
    c.mov(R0, R1)
