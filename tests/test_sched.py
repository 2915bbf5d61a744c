"""State and times: the emitted code is run by the kernel and compared with plain integers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conftest import open_engine
from sandbox import Sandbox, running
from taskdiag.abi import State
from taskdiag.kernel import sched
from taskdiag.kernel.asm import R0, R1, R2, R3, R9

pytestmark = pytest.mark.root

Run = Callable[[list[int]], list[int]]
TOP = 2**64 - 1
NSEC_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
#: Any number of 64 bits, and numbers next to a power of two.
EDGES = st.builds(
    lambda bit, off: max(0, min(TOP, (1 << bit) + off)), st.integers(0, 64), st.integers(-2, 2)
)
U64 = st.integers(0, TOP) | EDGES
#: Times and run times of tasks: nanoseconds of up to thirty years.
NSEC = st.integers(0, 2**60) | st.integers(0, 10**6)

SETTINGS = settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- mul_div ------------------------------------------------------------------------

BATCH = 16


@pytest.fixture(scope="module")
def mul_div() -> Iterator[Run]:
    """Runs up to BATCH divisions: three numbers each in, the quotient instead of the first."""
    open_engine("kernel")
    c = Sandbox({})
    for case in range(BATCH):
        for index, register in enumerate((R1, R2, R3)):
            c.load(register, R9, 8 * (3 * case + index))
        c.call_local("mul_div")
        c.store(R9, 24 * case, R0)
    c.end()
    sched.mul_div(c)
    with running(c, 3 * BATCH) as run:
        yield run


def quotients(mul_div: Run, cases: list[tuple[int, int, int]]) -> list[int]:
    return mul_div([number for case in cases for number in case])[: 3 * len(cases) : 3]


def expected(a: int, b: int, c: int) -> int:
    """For parts of a whole (a <= c) the exact quotient; for anything else b."""
    return a * b // c if c and a <= c else b


@SETTINGS
@given(cases=st.lists(st.tuples(U64, U64, U64), min_size=1, max_size=BATCH))
def test_any_numbers(mul_div: Run, cases: list[tuple[int, int, int]]) -> None:
    assert quotients(mul_div, cases) == [expected(*case) for case in cases]


@SETTINGS
@given(cases=st.lists(st.tuples(U64, U64, U64), min_size=1, max_size=BATCH))
@example(cases=[(TOP, TOP, TOP)])
@example(cases=[(TOP - 1, TOP, TOP)])
@example(cases=[(1 << 63, TOP, (1 << 63) + 1)])
@example(cases=[(1, 1 << 63, 1), (1 << 32, 1 << 32, 1 << 32), (0, TOP, TOP), (0, 0, 0)])
def test_parts_of_a_whole_with_products_of_128_bits(
    mul_div: Run, cases: list[tuple[int, int, int]]
) -> None:
    parts = [(min(a, c), b, max(a, c)) for a, b, c in cases]
    assert quotients(mul_div, parts) == [a * b // c if c else b for a, b, c in parts]


def test_divisors_of_every_width(mul_div: Run) -> None:
    """The digits that the estimate gets wrong are rare: many numbers, chosen alike each time."""
    chance = random.Random(20160407)
    cases = []
    for width in range(1, 65):
        for _ in range(3 * BATCH):
            c = chance.getrandbits(width) | 1 << (width - 1)
            cases.append((chance.randint(0, c), chance.getrandbits(64), c))
        # A divisor whose lower half is full takes the most corrections.
        c = 1 << (width - 1) | (1 << width // 2) - 1
        cases += [(c, TOP, c), (c - 1, TOP, c), (c - 1, TOP - 1, c)]
    for at in range(0, len(cases), BATCH):
        some = cases[at : at + BATCH]
        assert quotients(mul_div, some) == [expected(*case) for case in some]


# --- cputime_adjust() -----------------------------------------------------------------

_MEMBERS = {"prev_cputime.stime": 2, "prev_cputime.utime": 3}


@pytest.fixture(scope="module", params=[False, True], ids=["process", "thread"])
def adjust(request: pytest.FixtureRequest) -> Iterator[Run]:
    """utime, stime, their previous values (stime first) and rtime in; the first two change."""
    open_engine("kernel")
    c = Sandbox(_MEMBERS, threads=request.param)
    c.load(R1, R9, 32)
    c.set("rtime", R1)
    sched.adjust(c, 0, 8)
    c.end()
    sched.mul_div(c)
    with running(c, 5) as run:
        yield run


def cputime_adjust(utime: int, stime: int, before: tuple[int, int], rtime: int) -> tuple[int, int]:
    """kernel/sched/cputime.c, in Python: (utime, stime) to show; ``before`` likewise."""
    last_utime, last_stime = before
    if last_stime + last_utime >= rtime:
        return last_utime, last_stime
    if stime == 0:
        utime = rtime
    elif utime == 0:
        stime = rtime
    else:
        stime = stime * rtime // (stime + utime)
    stime = max(stime, last_stime)
    utime = rtime - stime
    if utime < last_utime:
        utime = last_utime
        stime = rtime - utime
    return utime, stime


@SETTINGS
@given(utime=NSEC, stime=NSEC, last_utime=NSEC, last_stime=NSEC, rtime=NSEC)
@example(utime=0, stime=0, last_utime=0, last_stime=0, rtime=0)
@example(utime=0, stime=0, last_utime=0, last_stime=0, rtime=10**9)
@example(utime=0, stime=4 * 10**6, last_utime=0, last_stime=0, rtime=10**9)
@example(utime=4 * 10**6, stime=0, last_utime=0, last_stime=0, rtime=10**9)
@example(utime=10**9, stime=10**9, last_utime=9 * 10**8, last_stime=0, rtime=10**9)
@example(utime=10**9, stime=10**9, last_utime=0, last_stime=9 * 10**8, rtime=10**9)
@example(utime=1, stime=1, last_utime=5 * 10**8, last_stime=6 * 10**8, rtime=10**9)
def test_times_are_scaled_as_proc_scales_them(
    adjust: Run, utime: int, stime: int, last_utime: int, last_stime: int, rtime: int
) -> None:
    ours = adjust([utime, stime, last_stime, last_utime, rtime])[:2]
    theirs = cputime_adjust(utime, stime, (last_utime, last_stime), rtime)
    assert ours == [part // NSEC_PER_TICK for part in theirs]


@SETTINGS
@given(
    utime=NSEC,
    stime=NSEC,
    rtime=NSEC,
    more=st.tuples(NSEC, NSEC, NSEC),
    last=st.tuples(NSEC, NSEC),
)
@example(utime=0, stime=10**7, rtime=10**11, more=(10**7, 0, 0), last=(0, 0))
@example(utime=0, stime=0, rtime=10**8, more=(0, 4 * 10**6, 0), last=(0, 0))
@example(utime=10**9, stime=10**9, rtime=2 * 10**9, more=(10**9, 0, 10**9), last=(0, 0))
def test_how_far_times_go_back(
    adjust: Run,
    utime: int,
    stime: int,
    rtime: int,
    more: tuple[int, int, int],
    last: tuple[int, int],
) -> None:
    """Between two reads with no reader of /proc in between: see docs/kernel-engine.md."""
    utime2, stime2, rtime2 = utime + more[0], stime + more[1], rtime + more[2]
    first = adjust([utime, stime, *last, rtime])[:2]
    second = adjust([utime2, stime2, *last, rtime2])[:2]
    # Together never by more than what is lost when both are rounded down.
    assert sum(second) >= sum(first) - 1
    sampled, sampled2 = utime + stime, utime2 + stime2
    for part, before, after in ((utime, first[0], second[0]), (stime, first[1], second[1])):
        # Without a tick so far all of it counts as utime.
        bound = rtime
        if sampled:
            too_much = rtime * (sampled2 - sampled) - sampled * (rtime2 - rtime)
            bound = max(0, too_much) * part // (sampled * sampled2) + 2
        assert before - after <= -(-bound // NSEC_PER_TICK)


# --- task_state_index() -----------------------------------------------------------------

#: include/linux/sched.h: __state, exit_state and what /proc makes of them.
STATES = [
    (0x0, 0x0, State.RUNNING),
    (0x1, 0x0, State.INTERRUPTIBLE),
    (0x2, 0x0, State.UNINTERRUPTIBLE),
    (0x102, 0x0, State.UNINTERRUPTIBLE),  # TASK_KILLABLE
    (0x104, 0x0, State.STOPPED),  # TASK_STOPPED
    (0x108, 0x0, State.TRACE_STOP),  # TASK_TRACED
    (0x40, 0x0, State.PARKED),
    (0x80, 0x10, State.DEAD),  # TASK_DEAD, EXIT_DEAD
    (0x80, 0x20, State.ZOMBIE),  # EXIT_ZOMBIE
    (0x0, 0x20, State.ZOMBIE),
    (0x80, 0x30, State.ZOMBIE),  # EXIT_TRACE
    (0x402, 0x0, State.IDLE),  # TASK_IDLE
    (0x400, 0x0, State.RUNNING),  # TASK_NOLOAD alone
    (0x403, 0x0, State.IDLE),
    (0x200, 0x0, State.RUNNING),  # TASK_WAKING
    (0x800, 0x0, State.RUNNING),  # TASK_NEW
    (0x1000, 0x0, State.UNINTERRUPTIBLE),  # TASK_RTLOCK_WAIT
    (0x2001, 0x0, State.INTERRUPTIBLE),  # TASK_FREEZABLE
    (0x2002, 0x0, State.UNINTERRUPTIBLE),
    (0x2402, 0x0, State.IDLE),
    (0x8000, 0x0, State.UNINTERRUPTIBLE),  # TASK_FROZEN
    (0x8402, 0x0, State.UNINTERRUPTIBLE),
]


def test_states_are_those_of_proc() -> None:
    open_engine("kernel")
    # Which of the two names the member has is the kernel's business.
    c = Sandbox({"__state": 0, "state": 0, "exit_state": 1})
    sched.state(c)
    c.store(R9, 0, R0)
    c.end()
    with running(c, 2) as run:
        found = [run([state, exit_state])[0] for state, exit_state, _ in STATES]
    assert found == [int(state) for _, _, state in STATES]
    assert {state for _, _, state in STATES} == set(State)


@pytest.mark.parametrize(
    ("emit", "member", "value", "expected"),
    [
        (sched.nice, "static_prio", 120, 0),
        (sched.nice, "static_prio", 100, -20),
        (sched.nice, "static_prio", 139, 19),
        (sched.priority, "prio", 120, 20),
        (sched.priority, "prio", 0, -100),
        (sched.processor, "thread_info.cpu", 7, 7),
    ],
)
def test_small_ones(
    emit: Callable[[Sandbox], None], member: str, value: int, expected: int
) -> None:
    open_engine("kernel")
    c = Sandbox({member: 0, "cpu": 0})
    emit(c)
    c.store(R9, 8, R0)
    c.end()
    with running(c, 2) as run:
        assert run([value, 0])[1] == expected & TOP
