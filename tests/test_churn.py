"""Dumps on a host where processes and threads are born and die all the time."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import taskdiag
from population import Population, child, end
from taskdiag import Dump, Show

if TYPE_CHECKING:
    from taskdiag.engine import Engine

pytestmark = pytest.mark.root

EVERYTHING = int(sum(Show))
#: How long each storm is dumped, in seconds.
LONG = 1.5


@contextlib.contextmanager
def storm(body: str) -> Iterator[int]:
    """A process that runs ``body`` over and over, up to 500 times a second for 60 s."""
    source = (
        "import ctypes, os, threading, time\n"
        "ctypes.CDLL(None).prctl(1, 9)\n"
        f"def once():\n    {body}\n"
        "stop = time.monotonic() + 60\n"
        "os.write(1, b'.')\n"
        "while time.monotonic() < stop:\n    once(); time.sleep(0.002)\n"
    )
    back, forth = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-S", "-c", source],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, forth, 1)],
    )
    os.close(forth)
    try:
        assert os.read(back, 1) == b"."
        yield pid
    finally:
        os.close(back)
        end(pid)


FORKS = "pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)"
EXECS = "pid = os.fork(); pid or os.execv('/bin/true', ['true', 'x' * 9000]); os.waitpid(pid, 0)"
THREADS = "t = threading.Thread(target=time.sleep, args=(0.004,)); t.start()"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def check_answer(tasks: list[taskdiag.Task], parents: set[int]) -> None:
    """Ascending, no task twice, and no group half filled or of another task.

    What must not be 0 is looked at in the processes that ``parents`` started, with the
    privileges of this one; in those of strangers anything may be.
    """
    (own,) = taskdiag.dump("cred", pid=os.getpid(), engine="procfs")
    assert own.cred is not None
    tids = [task.pid for task in tasks]
    assert tids == sorted(set(tids))
    for task in tasks:
        base, cred, stat, sched = task.base, task.cred, task.stat, task.sched
        assert base is not None
        assert cred is not None
        assert stat is not None
        assert sched is not None
        assert (base.pid, base.tgid) == (task.pid, task.tgid)
        assert stat.threads >= 1
        # A session of 0xFFFFFFFF is what /proc shows of a task that is being released.
        assert base.sid < 2**22
        for vma in task.vmas or []:
            assert vma.start < vma.end
        if base.ppid in parents or base.tgid in parents:
            assert cred.cap_bset == own.cred.cap_bset
            assert sched.start_time > 0
            if task.statm is not None:
                assert task.statm.total_vm > 0


@pytest.mark.parametrize("body", [FORKS, EXECS, THREADS], ids=["forks", "execs", "threads"])
@pytest.mark.parametrize("strategy", [Dump.ALL, Dump.ALL_THREAD])
def test_storm(engine: Engine, population: Population, body: str, strategy: Dump) -> None:
    wanted = set(population.pids())
    if strategy == Dump.ALL_THREAD:
        wanted |= {*population["threads"].facts, *population["headless"].facts}
    shows = [EVERYTHING & ~Show.VMA_STAT, EVERYTHING & ~(Show.VMA | Show.VMA_STAT)]
    with storm(body) as pid:
        for show in shows:
            list(taskdiag.dump(show, strategy, engine=engine))
        before = descriptors()
        stop = time.monotonic() + LONG
        dumps = 0
        while time.monotonic() < stop or dumps < 2:
            tasks = list(taskdiag.dump(shows[dumps % 2], strategy, engine=engine))
            check_answer(tasks, {pid})
            assert wanted <= {task.pid for task in tasks}
            dumps += 1
        assert descriptors() <= before


def test_mappings_are_whole_or_not_at_all(engine: Engine) -> None:
    """A process that execs over and over: its list of mappings ends with its last one."""

    def setup() -> None:
        # The same number, a new address space every few milliseconds.
        again = 'x=$((${0#sh} + 1)); [ $x -lt 3000 ] && exec sh -c "$1" sh$x "$1"; exec sleep 1000'

        def run() -> None:
            os.execv("/bin/sh", ["sh", "-c", again, "sh0", again])

        threading.Timer(0.05, run).start()

    with open("/proc/self/maps") as file:
        last = file.read().splitlines()[-1].split(None, 5)[-1].strip()
    if last != "[vsyscall]":
        pytest.skip("no mapping here is always the last")
    whole = 0
    with child(setup) as it:
        stop = time.monotonic() + LONG
        while time.monotonic() < stop or whole <= 10:
            (task,) = taskdiag.dump("base,vma,cmdline", pid=it.pid, engine=engine)
            if task.vmas is None:
                # Only a task that is ending has none.
                assert task.base is not None
                assert task.base.state in (taskdiag.State.ZOMBIE, taskdiag.State.DEAD)
                continue
            if engine.name == "procfs":
                assert task.vmas[-1].name == last
            starts = [vma.start for vma in task.vmas]
            assert starts == sorted(set(starts))
            whole += 1


def test_recycled_pids(engine: Engine) -> None:
    """With few pids to give, numbers come back during a dump; each is reported once."""
    path = "/proc/sys/kernel/ns_last_pid"
    if not os.access(path, os.W_OK):
        pytest.skip(f"{path} cannot be written here")
    body = (
        f"open('{path}', 'w').write(str(30000)); "
        "pids = [os.fork() or os._exit(0) for _ in range(8)]; [os.waitpid(p, 0) for p in pids]"
    )
    with storm(body) as pid:
        stop = time.monotonic() + LONG
        while time.monotonic() < stop:
            check_answer(list(taskdiag.dump(EVERYTHING & ~Show.VMA_STAT, engine=engine)), {pid})


def test_no_descriptor_is_left_behind(engine: Engine, population: Population) -> None:
    def ask() -> None:
        list(taskdiag.dump("base,stat,cmdline", pid=population["plain"].pid, engine=engine))
        with pytest.raises(taskdiag.NoSuchProcess):
            list(taskdiag.dump("base", pid=0x7FFFFFFF, engine=engine))
        abandoned = taskdiag.dump("base,vma", Dump.ALL_THREAD, engine=engine)
        next(abandoned)
        del abandoned

    # An engine may keep what it made for requests of a shape; that is bounded by the shapes.
    ask()
    before = descriptors()
    for _ in range(50):
        ask()
    assert descriptors() <= before


def test_children_that_vanish(engine: Engine) -> None:
    with storm(FORKS) as pid:
        stop = time.monotonic() + LONG
        while time.monotonic() < stop:
            for task in taskdiag.dump(EVERYTHING, Dump.CHILDREN, pid, engine=engine):
                assert task.base is not None
                assert task.base.ppid == pid
        os.kill(pid, signal.SIGSTOP)


#: A process that changes the protection of one of its 128 pages all the time.
MPROTECT = """
import ctypes, mmap, os
ctypes.CDLL(None).prctl(1, 9)
page = mmap.PAGESIZE
area = mmap.mmap(-1, 128 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 3)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
mprotect = ctypes.CDLL(None).mprotect
mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
for at in range(start, start + 128 * page, 2 * page):
    mprotect(at, page, 1)
os.write(1, b"%x\\n" % start)
while True:
    for protection in (0, 1):
        mprotect(start + 64 * page, page, protection)
"""


def test_no_mapping_is_left_out_while_it_is_changed(engine: Engine) -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", MPROTECT], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            start = int(process.stdout.readline(), 16)
            until = time.monotonic() + LONG
            while time.monotonic() < until:
                (task,) = taskdiag.dump("vma", pid=process.pid, engine=engine)
                at = start
                for vma in task.vmas or ():
                    if vma.start == at:
                        at = vma.end
                assert at >= start + 128 * mmap.PAGESIZE
        finally:
            process.kill()
