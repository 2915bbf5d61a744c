"""The pid of a request may be the id of any thread, whichever engine answers."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import taskdiag
from conftest import open_engine
from population import (
    CLONE_NEWPID,
    PR_SET_DUMPABLE,
    Child,
    Population,
    check,
    child,
    end,
    forked,
    libc,
    plain_user,
    prctl,
)
from serving import Service, service
from taskdiag import Dump, NoSuchProcess, Show

if TYPE_CHECKING:
    from taskdiag.engine import Engine

__all__ = ("service",)

EVERYTHING = Show(sum(Show))
#: The system call itself: the C library would change every thread.
SYS_setresuid = {"x86_64": 117, "aarch64": 147}[os.uname().machine]


def sleeper() -> int:
    """Start a thread that sleeps; its id."""
    ready = threading.Event()
    tids: list[int] = []

    def run() -> None:
        prctl(15, b"second\0")
        tids.append(threading.get_native_id())
        ready.set()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    return tids[0]


@pytest.fixture(scope="module")
def family() -> Iterator[tuple[Child, int, int]]:
    """A process with a child of its own: the process, its second thread, the child."""

    def setup() -> list[int]:
        tid = sleeper()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            prctl(1, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            while True:
                signal.pause()
        return [tid, pid]

    with child(setup) as it:
        yield it, *it.facts
        os.kill(it.facts[1], signal.SIGKILL)


def pids(engine: Engine, strategy: Dump, pid: int, show: Show = Show.BASE) -> list[tuple[int, int]]:
    return [(task.pid, task.tgid) for task in taskdiag.dump(show, strategy, pid, engine=engine)]


def asked(engine: Engine, family: tuple[Child, int, int]) -> None:
    it, tid, below = family
    for show in (Show(0), Show.BASE, Show.BASE | Show.CMDLINE, EVERYTHING):
        assert pids(engine, Dump.ONE, tid, show) == [(tid, it.pid)]
        assert pids(engine, Dump.ONE, it.pid, show) == [(it.pid, it.pid)]
        assert pids(engine, Dump.THREAD, tid, show) == [(it.pid, it.pid), (tid, it.pid)]
        assert pids(engine, Dump.CHILDREN, tid, show) == [(below, below)]


def test_every_strategy(engine: Engine, family: tuple[Child, int, int]) -> None:
    asked(engine, family)


@pytest.mark.root
def test_by_the_service(service: Service, family: tuple[Child, int, int]) -> None:
    asked(service.engine(), family)


def test_one_shows_what_proc_shows_under_that_number(
    engine: Engine, family: tuple[Child, int, int]
) -> None:
    """The name and state are the thread's, times and mappings those of the process."""
    it, tid, _ = family
    (task,) = taskdiag.dump(EVERYTHING, Dump.ONE, tid, engine=engine)
    (leader,) = taskdiag.dump(EVERYTHING, Dump.ONE, it.pid, engine=engine)
    assert task.base is not None
    assert leader.base is not None
    assert task.base.comm == "second"
    assert leader.base.comm != "second"
    assert task.base.ppid == os.getpid()
    assert task.stat is not None
    with open(f"/proc/{tid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    assert task.stat.threads == int(fields[17]) == 2
    assert task.stat.minflt == int(fields[7])
    assert task.stat.utime == int(fields[11])
    assert task.cmdline == leader.cmdline
    assert task.vmas
    with open(f"/proc/{tid}/maps", "rb") as file:
        starts = [int(line.partition(b"-")[0], 16) for line in file]
    assert {vma.start for vma in task.vmas} <= set(starts)


def test_numbers_of_no_thread(engine: Engine) -> None:
    for pid in (4_000_000, 1 << 22, 1 << 31, (1 << 32) - 1):
        for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
            with pytest.raises(NoSuchProcess) as error:
                list(taskdiag.dump("base", strategy, pid, engine=engine))
            assert error.value.pid == pid


@pytest.mark.root
@pytest.mark.parametrize("whose", ["thread", "leader"])
def test_both_must_be_visible(service: Service, whose: str) -> None:
    """A thread is shown to those who may see it and its process, in every engine."""

    def setup() -> list[int]:
        ready = threading.Event()
        tids: list[int] = []

        def user() -> None:
            check(libc.syscall(SYS_setresuid, *[ctypes.c_long(1001)] * 3))
            prctl(PR_SET_DUMPABLE, 1)

        def run() -> None:
            if whose == "thread":
                user()
            tids.append(threading.get_native_id())
            ready.set()
            threading.Event().wait()

        os.setgroups([])
        os.setresgid(2001, 2001, 2001)
        threading.Thread(target=run, daemon=True).start()
        ready.wait()
        if whose == "leader":
            user()
        return [threading.get_native_id(), tids[0]]

    with child(setup) as it:

        def run() -> list[list[Any]]:
            plain_user(1001, 2001)()
            answers = []
            for engine in (open_engine("procfs"), service.engine()):
                answer: list[Any] = []
                for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
                    for pid in it.facts:
                        try:
                            answer.append([task[0] for task in pids(engine, strategy, pid)])
                        except NoSuchProcess:
                            answer.append("missing")
                answers.append(answer)
            return answers

        leader = it.pid
        by_procfs, by_service = forked(run)
        assert by_procfs == by_service
        if whose == "thread":
            assert by_service == ["missing"] * 6
        else:
            assert by_service == [[leader], "missing", [leader], "missing", [], "missing"]


@pytest.mark.root
def test_from_a_child_pid_namespace(service: Service, population: Population) -> None:
    """Threads have other numbers there; the host's numbers are those of no thread."""
    host = population["threads"].facts[0]

    def inside() -> list[Any]:
        tid = sleeper()
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        engine = service.engine()
        answer: list[Any] = [tid, pid]
        for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
            answer.append(pids(engine, strategy, tid))
            try:
                answer.append(pids(engine, strategy, host))
            except NoSuchProcess:
                answer.append("missing")
        end(pid)
        return answer

    def run() -> Any:
        check(libc.unshare(CLONE_NEWPID))
        return forked(inside)

    tid, below, *answers = forked(run)
    assert answers == [
        [[tid, 1]], "missing",
        [[1, 1], [tid, 1]], "missing",
        [[below, below]], "missing",
    ]  # fmt: skip


@pytest.mark.root
def test_the_command_takes_them(family: tuple[Child, int, int]) -> None:
    it, tid, below = family
    expected = {"--one": [tid], "--thread": [it.pid, tid], "--children": [below]}
    for option, found in expected.items():
        for engine in ("kernel", "procfs"):
            done = subprocess.run(
                [sys.executable, "-m", "taskdiag", "--engine", engine, "dump", option, str(tid)],
                capture_output=True, check=True,
            )  # fmt: skip
            assert [json.loads(line)["pid"] for line in done.stdout.splitlines()] == found
