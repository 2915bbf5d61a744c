"""Process 1, which some kernels hide from BPF: shown like every other task, to whom it is due.

On hosts that do not hide it the same must hold, by the ordinary way.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

import taskdiag
from population import forked, new_user_namespace, plain_user
from serving import Service, service
from taskdiag import Dump, Show
from taskdiag.decoder import decode
from taskdiag.errors import NoSuchProcess
from taskdiag.kernel import KernelEngine, first_process
from taskdiag.kernel.viewer import Rule, Viewer
from taskdiag.procfs import ProcfsEngine
from taskdiag.request import Request

pytestmark = pytest.mark.root
__all__ = ("service",)

GROUPS = [Show.BASE, Show.CRED, Show.TTY, Show.CMDLINE, Show.VMA, Show.BASE | Show.VMA_STAT]
#: What does not move while it is looked at.
STANDS = ("base", "cred", "tty", "cmdline")


def shown(engine: Any, show: int, strategy: Dump, pid: int = 0) -> list[Any]:
    """The tasks of process 1 in an answer, without what moves."""
    return [
        [task.pid, *(repr(getattr(task, name)) for name in STANDS if name != "base"),
         task.base and (task.base.ppid, task.base.pgid, task.base.sid, task.base.comm),
         [(vma.start, vma.name) for vma in task.vmas or ()]]
        for task in decode(engine.stream(Request(show, strategy, pid)))
        if task.tgid == 1
    ]  # fmt: skip


@pytest.mark.parametrize("show", GROUPS)
def test_equals_procfs(service: Service, show: Show) -> None:
    engine = service.engine()
    for strategy, pid in ((Dump.ALL, 0), (Dump.ONE, 1), (Dump.ALL_THREAD, 0), (Dump.THREAD, 1)):
        for _ in range(5):
            expected = shown(ProcfsEngine(), show, strategy, pid)
            found = shown(engine, show, strategy, pid)
            if found == expected:
                break
        assert found == expected
        assert [task[0] for task in found][:1] == [1]


def test_times(service: Service) -> None:
    """STAT is of the whole process, or of each thread."""
    for strategy in (Dump.ONE, Dump.THREAD):
        before = list(decode(ProcfsEngine().stream(Request(Show.STAT, strategy, 1))))
        found = list(decode(service.engine().stream(Request(Show.STAT, strategy, 1))))
        after = list(decode(ProcfsEngine().stream(Request(Show.STAT, strategy, 1))))
        assert found[0].pid == 1
        for low, middle, high in zip(before, found, after, strict=False):
            assert low.stat is not None
            assert middle.stat is not None
            assert high.stat is not None
            ticks = [one.stat.utime + one.stat.stime for one in (low, middle, high) if one.stat]
            assert ticks[0] - 1 <= ticks[1] <= ticks[2] + 1
            assert low.stat.minflt <= middle.stat.minflt <= high.stat.minflt


def test_children(service: Service) -> None:
    found = {task.pid for task in taskdiag.dump("base", Dump.CHILDREN, 1, engine=service.engine())}
    for _ in range(20):
        expected = {task.pid for task in taskdiag.dump("base", Dump.CHILDREN, 1, engine="procfs")}
        found = {
            task.pid for task in taskdiag.dump("base", Dump.CHILDREN, 1, engine=service.engine())
        }
        if found == expected:
            return
    assert found == expected


def test_in_order(service: Service) -> None:
    for strategy in (Dump.ALL, Dump.ALL_THREAD):
        found = [task.pid for task in taskdiag.dump("base", strategy, engine=service.engine())]
        assert found == sorted(set(found))
        assert found[0] == 1


@pytest.mark.parametrize("become", [plain_user(), plain_user(65534, 65534), new_user_namespace])
def test_not_for_everyone(service: Service, become: Any) -> None:
    """Users who may not see it cannot distinguish it from a process that does not exist."""

    def run() -> list[Any]:
        become()
        out: list[Any] = []
        for show in (Show(0), Show.BASE, Show.CMDLINE, Show.VMA_STAT):
            for strategy in (Dump.ALL, Dump.ALL_THREAD):
                found = taskdiag.dump(show, strategy, engine=service.engine())
                out += [task.pid for task in found if task.tgid == 1]
            for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
                for pid in (1, first_process.threads()[-1]):
                    try:
                        found = taskdiag.dump(show, strategy, pid, engine=service.engine())
                        out += [task.pid for task in found]
                    except NoSuchProcess:
                        continue
        return out

    assert forked(run) == []


def test_the_rule_is_applied_to_it() -> None:
    """A user with the same credentials sees it; one with fewer capabilities does not."""
    taskdiag.engine.choose("kernel")
    (task,) = taskdiag.dump("cred", pid=1, engine="procfs")
    cred = task.cred
    assert cred is not None
    everything = (1 << 64) - 1

    def sees(rule: Rule) -> bool:
        engine = KernelEngine(viewer=Viewer(rule=rule))
        try:
            return any(one.pid == 1 for one in decode(engine.stream(Request(Show.BASE))))
        finally:
            engine.close()

    assert sees(Rule(cred.uid, cred.gid, cred.euid, everything))
    assert not sees(Rule(cred.uid, cred.gid, cred.euid, 0))
    assert not sees(Rule(cred.uid + 1, cred.gid, cred.euid, 0))


def test_of_a_pid_namespace() -> None:
    """The first process of a container is an ordinary one to the host."""
    from population import CLONE_NEWPID, check, libc

    taskdiag.engine.choose("kernel")

    def run() -> list[int]:
        check(libc.unshare(CLONE_NEWPID))

        def inside() -> list[int]:
            return [task.pid for task in taskdiag.dump("base", engine=KernelEngine())] + [
                os.getpid()
            ]

        answer: list[int] = forked(inside)
        return answer

    assert forked(run) == [1, 1]
