"""State, times, faults and priorities of tasks.

fs/proc/array.c, kernel/sched/cputime.c, include/linux/sched.h.
"""

from __future__ import annotations

import os

from .asm import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10
from .emit import SIGNAL, TASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter
    from .facts import Facts

__all__ = (
    "add_thread",
    "adjust",
    "clock_t",
    "missing",
    "mul_div",
    "needs_room",
    "nice",
    "priority",
    "processor",
    "start_time",
    "state",
    "totals",
)

# From include/linux/sched.h.  They are macros, so they are not in BTF.
TASK_UNINTERRUPTIBLE = 0x2
TASK_REPORT = 0x7F
TASK_IDLE = 0x402
TASK_RTLOCK_WAIT = 0x1000
TASK_FROZEN = 0x8000
TASK_REPORT_IDLE = 0x80

_NSEC_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_TRIES = 4
#: PID_MAX_LIMIT (include/linux/threads.h): no process has more threads.
_MOST_THREADS = 4 << 20


def state(c: Emitter) -> None:
    """``task_state_index()``: R0 = the state, a value of `abi.State`."""
    # Since Linux kernel commit 2f064a59a11f ("sched: Change task_struct::state") (in
    # v5.14), the state is named "__state".
    member = "__state" if c.facts.has_member("task_struct", "__state") else "state"
    c.follow(R1, TASK, "task_struct", member)
    c.follow(R2, TASK, "task_struct", "exit_state")
    c.alu("or", R2, R1)
    c.alu("and", R2, TASK_REPORT)

    done, idle, waits = c.fresh("state"), c.fresh("idle"), c.fresh("waits")
    # Waiting for a lock on PREEMPT_RT and being frozen are shown as uninterruptible sleep.
    # Since Linux kernel commit f5d39b020809 ("freezer,sched: Rewrite core freezer logic")
    # (in v6.1), frozen tasks have a state of their own.
    c.jump("&", R1, TASK_RTLOCK_WAIT | TASK_FROZEN, waits)
    c.alu("and", R1, TASK_IDLE)
    c.jump("!=", R1, TASK_IDLE, idle)
    c.mov(R2, TASK_REPORT_IDLE)
    c.goto(idle)
    c.label(waits)
    c.mov(R2, TASK_UNINTERRUPTIBLE)
    c.label(idle)
    # fls(): the number of the highest bit, from 1; 0 for none.
    for index in range(8, 0, -1):
        c.mov(R0, index)
        c.jump(">=", R2, 1 << (index - 1), done)
    c.mov(R0, 0)
    c.label(done)


def missing(facts: Facts) -> str:
    """Return which feature this kernel lacks to sum over the threads of a process, or ""."""
    # Since Linux kernel commit e6f2dd0f8067 ("bpf: Add bpf_loop helper") (in v5.17).
    if _iterates(facts) or facts.has_enumerator("BPF_FUNC_loop"):
        return ""
    return "helper bpf_loop (5.17)"


def _iterates(facts: Facts) -> bool:
    # Since Linux kernel commit c68a78ffe2cb ("bpf: Introduce task open coded iterator
    # kfuncs") (in v6.7), a program can walk the threads of a process.
    return facts.has("func", "bpf_iter_task_new")


def needs_room(facts: Facts) -> bool:
    """Whether the sum over threads needs more stack than a message on the stack leaves.

    (The same is true of sums that do not start at the leader, on all kernels.)
    """
    return not _iterates(facts)


def _from_leader(c: Emitter) -> bool:
    """Whether the kernel's iterator can be used: it visits the threads after the given one."""
    return _iterates(c.facts) and not c.any_thread


def totals(c: Emitter, minflt: int, majflt: int, utime: int, stime: int) -> None:
    """Write faults and unscaled times at these offsets of the message, and set ``rtime``.

    ``rtime`` is the local for the run time.  For thread strategies the values are those of
    the task.  For others they are those of the process: the totals of its dead threads,
    which are in signal_struct, plus the values of the live threads.
    """
    dead = ("min_flt", "maj_flt", "utime", "stime", "sum_sched_runtime")
    live = ("min_flt", "maj_flt", "utime", "stime", "se.sum_exec_runtime")
    offsets = (minflt, majflt, utime, stime)
    if c.threads:
        for member, off in zip(live, offsets, strict=False):
            c.follow(R1, TASK, "task_struct", member)
            c.put(off, R1, 8)
        c.follow(R1, TASK, "task_struct", live[-1])
        c.set("rtime", R1)
        return

    many, done = c.fresh("many"), c.fresh("totals")
    c.follow(R1, SIGNAL, "signal_struct", "nr_threads")
    c.jump("!=", R1, 1, many)
    for index, off in enumerate(offsets):
        c.follow(R1, SIGNAL, "signal_struct", dead[index])
        c.follow(R2, TASK, "task_struct", live[index])
        c.alu("add", R1, R2)
        c.put(off, R1, 8)
    c.follow(R1, SIGNAL, "signal_struct", dead[-1])
    c.follow(R2, TASK, "task_struct", live[-1])
    c.alu("add", R1, R2)
    c.set("rtime", R1)
    c.goto(done)

    # A thread that exits adds its counters to signal_struct under stats_lock.  If the lock's
    # sequence number has changed, that happened during the walk, and the sum is repeated.
    c.label(many)
    again, last = c.fresh("again"), c.fresh("last")
    sequence = "stats_lock.seqcount.seqcount.sequence"
    c.set("tries", _TRIES)
    c.label(again)
    c.follow(R1, SIGNAL, "signal_struct", sequence)
    c.set("sequence", R1)
    for member, off in zip(dead, offsets, strict=False):
        c.follow(R1, SIGNAL, "signal_struct", member)
        c.put(off, R1, 8)
    c.follow(R1, SIGNAL, "signal_struct", dead[-1])
    c.set("rtime", R1)
    _each_thread(c, live, offsets)
    c.get(R1, "tries")
    c.alu("sub", R1, 1)
    c.jump("==", R1, 0, last)
    c.set("tries", R1)
    c.follow(R2, SIGNAL, "signal_struct", sequence)
    c.get(R3, "sequence")
    c.jump("!=", R2, R3, again)
    c.jump("&", R2, 1, again)
    c.label(last)
    c.label(done)


def _each_thread(c: Emitter, members: tuple[str, ...], offsets: tuple[int, ...]) -> None:
    """Add these members of every live thread to the numbers in the message."""
    if not _from_leader(c):
        _walk_threads(c, offsets)
        return
    loop, end = c.fresh("thread"), c.fresh("threads")
    iterator = c.scratch()

    def argument() -> None:
        c.mov(R1, R10)
        c.alu("add", R1, iterator)

    argument()
    c.get(R2, "task")
    c.mov(R3, c.facts.enumerator("BPF_TASK_ITER_PROC_THREADS"))
    c.kfunc("bpf_iter_task_new")
    c.label(loop)
    argument()
    c.kfunc("bpf_iter_task_next")
    c.jump("==", R0, 0, end)
    for member, off in zip(members, offsets, strict=False):
        c.take(R1, off, 8)
        c.follow(R2, R0, "task_struct", member)
        c.alu("add", R1, R2)
        c.put(off, R1, 8)
    c.get(R1, "rtime")
    c.follow(R2, R0, "task_struct", members[-1])
    c.alu("add", R1, R2)
    c.set("rtime", R1)
    c.goto(loop)
    c.label(end)
    argument()
    c.kfunc("bpf_iter_task_destroy")


# The structure that _walk_threads() passes to its callback: the current node of the list,
# the list's head, and five sums.
_CURSOR, _HEAD, _SUMS = 0, 8, 16
_LIVE = ("min_flt", "maj_flt", "utime", "stime", "se.sum_exec_runtime")


def _walk_threads(c: Emitter, offsets: tuple[int, ...]) -> None:
    """Do what `_each_thread` does along ``signal->thread_head``, with a callback per thread."""
    shared = c.local("walk", _SUMS + 8 * len(_LIVE))
    for index in range(len(_LIVE)):
        c.store(R10, shared + _SUMS + 8 * index, 0)
    c.mov(R3, SIGNAL)
    c.alu("add", R3, c.facts.member("signal_struct", "thread_head").offset)
    c.store(R10, shared + _HEAD, R3)
    c.mov(R1, R10)
    c.alu("add", R1, shared + _CURSOR)
    c.mov(R2, 8)
    c.helper("probe_read_kernel")
    c.mov(R1, _MOST_THREADS)
    c.function(R2, "add_thread")
    c.mov(R3, R10)
    c.alu("add", R3, shared)
    c.mov(R4, 0)
    c.helper("loop")
    for index, off in enumerate(offsets):
        c.take(R1, off, 8)
        c.load(R2, R10, shared + _SUMS + 8 * index)
        c.alu("add", R1, R2)
        c.put(off, R1, 8)
    c.get(R1, "rtime")
    c.load(R2, R10, shared + _SUMS + 8 * len(offsets))
    c.alu("add", R1, R2)
    c.set("rtime", R1)


def add_thread(c: Emitter) -> None:
    """The callback of ``bpf_loop()``: add the current thread and go to the next.

    Returns 1 at the end of the list, which ends the loop.
    """
    if _from_leader(c):
        return
    c.label("add_thread")
    node = c.facts.member("task_struct", "thread_node").offset
    c.mov(R6, R2)
    c.load(R7, R6, _CURSOR)
    c.load(R8, R6, _HEAD)
    c.jump("==", R7, R8, "add_thread.end")
    c.jump("==", R7, 0, "add_thread.end")
    places = [c.facts.member("task_struct", name).offset - node for name in _LIVE]
    for index, place in enumerate([*places, 0]):
        c.mov(R1, R10)
        c.alu("add", R1, -8)
        c.mov(R2, 8)
        c.mov(R3, R7)
        c.alu("add", R3, place)
        c.helper("probe_read_kernel")
        c.load(R1, R10, -8)
        if index < len(places):
            c.load(R2, R6, _SUMS + 8 * index)
            c.alu("add", R1, R2)
            c.store(R6, _SUMS + 8 * index, R1)
    c.store(R6, _CURSOR, R1)
    c.mov(R0, 0)
    c.exit()
    c.label("add_thread.end")
    c.mov(R0, 1)
    c.exit()


def adjust(c: Emitter, utime: int, stime: int) -> None:
    """``cputime_adjust()``: scale the times at these offsets, in clock ticks.

    The scheduler measures how long a task ran; the tick samples in which mode it runs.  The
    sum of the two times is the measured time, their ratio is the sampled one, and neither is
    less than what /proc has shown before (``prev_cputime``).  docs/kernel-engine.md says how
    far they can go back between two runs of a program.
    """
    base, struct = (TASK, "task_struct") if c.threads else (SIGNAL, "signal_struct")
    store, previous, update = c.fresh("store"), c.fresh("previous"), c.fresh("update")

    # R6 to R8 hold the program's pointers.  R1 = stime, R2 = utime; R4 and R5 = the same, as
    # last shown by /proc.
    c.follow(R4, base, struct, "prev_cputime.stime")
    c.follow(R5, base, struct, "prev_cputime.utime")
    c.get(R2, "rtime")
    c.mov(R1, R4)
    c.alu("add", R1, R5)
    c.jump(">=", R1, R2, previous)
    c.take(R1, stime, 8)
    c.jump("==", R1, 0, update)
    # take() uses R3 as scratch, so the sampled utime is read into another register.
    c.take(R0, utime, 8)
    c.get(R2, "rtime")
    scaled = c.fresh("scaled")
    c.jump("!=", R0, 0, scaled)
    c.mov(R1, R2)
    c.goto(update)
    c.label(scaled)
    c.mov(R3, R1)
    c.alu("add", R3, R0)
    c.call_local("mul_div")
    c.mov(R1, R0)
    c.follow(R4, base, struct, "prev_cputime.stime")
    c.follow(R5, base, struct, "prev_cputime.utime")
    c.label(update)
    # R1 = stime, which must be at least R4; utime = rtime - stime must be at least R5.
    c.get(R3, "rtime")
    c.at_least(R1, R4)
    c.mov(R2, R3)
    c.alu("sub", R2, R1)
    c.jump(">=", R2, R5, store)
    c.mov(R2, R5)
    c.mov(R1, R3)
    c.alu("sub", R1, R2)
    c.goto(store)
    c.label(previous)
    c.mov(R1, R4)
    c.mov(R2, R5)
    c.label(store)
    for register, off in ((R1, stime), (R2, utime)):
        c.alu("div", register, _NSEC_PER_TICK)
        c.put(off, register, 8)


def mul_div(c: Emitter) -> None:
    """The subprogram ``mul_u64_u64_div_u64()``: R0 = R1 * R2 / R3, exactly.

    R1 must be at most R3; if it is not, the result is R2.  The product has 128 bits, and the
    division is ``divlu`` of Hacker's Delight (Warren).
    """
    c.label("mul_div")
    no, wide = "mul_div.no", "mul_div.wide"
    c.jump("==", R3, 0, no)
    c.jump(">", R1, R3, no)
    _product(c)
    c.jump("!=", R4, 0, wide)
    c.mov(R0, R5)
    c.alu("div", R0, R3)
    c.exit()
    c.label(no)
    c.mov(R0, R2)
    c.exit()

    # Shift until the divisor's top bit is set; R4 < R3, so no bit is lost.  There are no
    # branches, because the verifier would follow each of their 64 combinations.
    c.label(wide)
    c.jump(">=", R4, R3, no)
    for shift in (32, 16, 8, 4, 2, 1):
        # R6 = shift if the divisor's upper bits are 0, else 0
        c.mov(R6, R3)
        c.alu("rsh", R6, 64 - shift)
        c.mov(R7, 0)
        c.alu("sub", R7, R6)
        c.alu("rsh", R7, 63)
        c.mov(R6, 1)
        c.alu("sub", R6, R7)
        c.alu("lsh", R6, shift.bit_length() - 1)
        c.alu("lsh", R3, R6)
        c.alu("lsh", R4, R6)
        c.mov(R8, R5)
        c.alu("lsh", R5, R6)
        # The upper R6 bits of R5 go to R4, in two shifts, since a shift by 64 has no effect.
        c.mov(R7, 63)
        c.alu("sub", R7, R6)
        c.alu("rsh", R8, R7)
        c.alu("rsh", R8, 1)
        c.alu("or", R4, R8)
    c.mov(R6, R3)
    c.alu("rsh", R6, 32)
    c.alu("mov", R7, R3, bits=32)
    c.mov(R1, R5)
    c.alu("rsh", R1, 32)
    _digit(c)
    c.store(R10, -8, R0)
    # The remainder: R4 * 2**32 + R1 - R0 * R3, which fits.
    c.alu("lsh", R4, 32)
    c.alu("add", R4, R1)
    c.alu("mul", R0, R3)
    c.alu("sub", R4, R0)
    c.alu("mov", R1, R5, bits=32)
    _digit(c)
    c.load(R1, R10, -8)
    c.alu("lsh", R1, 32)
    c.alu("add", R0, R1)
    c.exit()


def _product(c: Emitter) -> None:
    """R4 and R5 = the upper and the lower half of R1 * R2, computed from halves of 32 bits.

    Changes R6 to R9.
    """
    c.mov(R6, R1)
    c.alu("rsh", R6, 32)
    c.mov(R7, R2)
    c.alu("rsh", R7, 32)
    c.alu("mov", R8, R1, bits=32)
    c.alu("mov", R9, R2, bits=32)
    c.mov(R5, R8)
    c.alu("mul", R5, R9)  # low * low
    c.alu("mul", R8, R7)  # low * high
    c.alu("mul", R9, R6)  # high * low
    c.alu("mul", R6, R7)  # high * high
    c.alu("rsh", R5, 32)
    for column in (R8, R9):
        c.alu("mov", R4, column, bits=32)
        c.alu("add", R5, R4)
        c.alu("rsh", column, 32)
        c.alu("add", R6, column)
    c.alu("rsh", R5, 32)
    c.mov(R4, R6)
    c.alu("add", R4, R5)
    c.mov(R5, R1)
    c.alu("mul", R5, R2)


def _digit(c: Emitter) -> None:
    """One step of the division: R0 = (R4 * 2**32 + R1) / (R6 * 2**32 + R7), a 32-bit number.

    Changes R2, R8 and R9.
    """
    done = c.fresh("digit")
    c.mov(R0, R4)
    c.alu("div", R0, R6)
    c.mov(R8, R0)
    c.alu("mul", R8, R6)
    c.mov(R2, R4)
    c.alu("sub", R2, R8)
    # The estimate is too large by at most 2.
    for _ in range(2):
        less = c.fresh("less")
        c.mov(R8, R0)
        c.alu("rsh", R8, 32)
        c.jump("!=", R8, 0, less)
        c.mov(R8, R0)
        c.alu("mul", R8, R7)
        c.mov(R9, R2)
        c.alu("lsh", R9, 32)
        c.alu("add", R9, R1)
        c.jump("<=", R8, R9, done)
        c.label(less)
        c.alu("sub", R0, 1)
        c.alu("add", R2, R6)
        c.mov(R8, R2)
        c.alu("rsh", R8, 32)
        c.jump("!=", R8, 0, done)
    c.label(done)


def clock_t(c: Emitter) -> None:
    """``nsec_to_clock_t()``: convert R0 from nanoseconds to clock ticks."""
    c.alu("div", R0, _NSEC_PER_TICK)


def start_time(c: Emitter) -> None:
    """When the task was started, in clock ticks since boot.

    /proc/PID/stat adds the offset of the reader's time namespace (fs/proc/array.c,
    ``do_task_stat``); here that of the viewer is added.
    """
    # Since Linux kernel commit cf25e24db61c ("time: Rename tsk->real_start_time to
    # ->start_boottime") (in v5.5), it is named start_boottime.
    new = c.facts.has_member("task_struct", "start_boottime")
    c.follow(R0, TASK, "task_struct", "start_boottime" if new else "real_start_time")
    # Since Linux kernel commit 769071ac9f20 ("ns: Introduce Time Namespace") (in v5.6).
    if c.viewer.boottime_offset:
        c.mov(R1, c.viewer.boottime_offset)
        c.alu("add", R0, R1)
    clock_t(c)


def nice(c: Emitter) -> None:
    """``task_nice()``: R0 = the nice value."""
    c.follow(R0, TASK, "task_struct", "static_prio")
    c.alu("sub", R0, 120)


def priority(c: Emitter) -> None:
    """``task_prio()``: R0 = the priority, as in /proc/PID/stat."""
    c.follow(R0, TASK, "task_struct", "prio")
    c.alu("sub", R0, 100)


def processor(c: Emitter) -> None:
    """``task_cpu()``: R0 = the CPU that the task runs on, or ran on last."""
    # Since Linux kernel commit bcf9033e5449 ("sched: move CPU field back into
    # thread_info if THREAD_INFO_IN_TASK=y") (in v5.16), it is in thread_info.
    new = c.facts.has_member("task_struct", "thread_info.cpu")
    c.follow(R0, TASK, "task_struct", "thread_info.cpu" if new else "cpu")
