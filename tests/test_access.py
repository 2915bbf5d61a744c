"""Who may see what: the procfs engine shows what a procfs with hidepid=2 would show.

The oracle is the kernel's: a procfs mounted with hidepid=2 in a mount namespace of its
own, listed by the same requester.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import taskdiag
from population import (
    CAP_SYS_PTRACE,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    MS_REC_PRIVATE,
    PR_SET_KEEPCAPS,
    PR_SET_PDEATHSIG,
    UNUSED_ID,
    Population,
    check,
    child,
    forked,
    libc,
    new_user_namespace,
    plain_user,
    prctl,
    refused_to_root,
    set_caps,
    until,
)
from serving import NO_GROUP, hidepid, mount
from taskdiag import Dump
from taskdiag.errors import EngineUnavailable, NoSuchProcess

pytestmark = pytest.mark.root


def ptracer() -> None:
    """A plain user with CAP_SYS_PTRACE and nothing else."""
    prctl(PR_SET_KEEPCAPS, 1)
    plain_user(3333, 3333)()
    set_caps(CAP_SYS_PTRACE, CAP_SYS_PTRACE, 0)


def powerless_root() -> None:
    """Uid 0 without a capability."""
    os.setgroups([])
    set_caps(0, 0, 0)


def saved_id_differs() -> None:
    os.setgroups([])
    os.setresgid(2001, 2001, 2001)
    os.setresuid(1001, 1001, 1003)


def fs_id_differs() -> None:
    os.setgroups([])
    os.setresgid(2001, 2001, 2001)
    libc.setfsuid(1001)
    set_caps(0, 0, 0)


REQUESTERS: dict[str, Callable[[], Any]] = {
    "root": lambda: None,
    "nobody": plain_user(65534, 65534),
    "user": plain_user(1001, 2001),
    "user-undumpable": plain_user(1001, 2001, dumpable=0),
    "user-other-gid": plain_user(1001, 2002),
    "user-third-gid": plain_user(1001, 2003),
    "saved-id": saved_id_differs,
    "fs-id": fs_id_differs,
    "ptracer": ptracer,
    "powerless-root": powerless_root,
    "user-namespace-root": new_user_namespace,
}


def ask(become: Callable[[], Any], show: str) -> dict[str, list[int]]:
    """In a forked process: what it sees in a hidepid=2 mount, then by the engine, then again."""

    def run() -> dict[str, list[int]]:
        inside = hidepid()
        become()
        before = {int(name) for name in os.listdir(inside) if name.isdigit()}
        found = [task.pid for task in taskdiag.dump(show, engine="procfs")]
        after = {int(name) for name in os.listdir(inside) if name.isdigit()}
        return {"before": sorted(before), "found": found, "after": sorted(after)}

    answer: dict[str, list[int]] = forked(run)
    return answer


@pytest.mark.parametrize("show", ["base", "base,stat,cmdline,vma", "base,vma_stat"])
@pytest.mark.parametrize("who", REQUESTERS)
def test_equals_hidepid(population: Population, who: str, show: str) -> None:
    answer = ask(REQUESTERS[who], show)
    before, found, after = (set(answer[key]) for key in ("before", "found", "after"))
    found -= refused_to_root()
    assert before & after <= found
    # Strangers that came after the first listing may be gone before the second.
    assert not {pid for pid in found - before - after if os.path.exists(f"/proc/{pid}")}
    standing = set(population.pids())
    visible = standing & found
    if who in ("root", "ptracer"):
        assert visible == standing
    elif who == "nobody":
        assert not visible
    elif who == "user":
        assert population["user"].pid in visible
        assert population["undumpable"].pid not in visible
        assert population["other-gid"].pid not in visible
        assert population["ids"].pid not in visible


def test_by_pid_hidden_is_missing(population: Population) -> None:
    """A hidden process cannot be distinguished from one that does not exist."""
    target = population["plain"].pid

    def run() -> list[str]:
        plain_user(UNUSED_ID, UNUSED_ID)()
        out = []
        for strategy in (Dump.ONE, Dump.CHILDREN, Dump.THREAD):
            for pid in (target, 0x7FFFFFFF):
                try:
                    out.append(str(list(taskdiag.dump("base", strategy, pid, engine="procfs"))))
                except NoSuchProcess as error:
                    out.append(str(error).replace(str(pid), "N"))
        return out

    assert forked(run) == ["no process has pid N, or it is not yours to see"] * 6


def test_threads_of_others_are_hidden(population: Population) -> None:
    def run() -> list[int]:
        plain_user(1001, 2001)()
        return [task.pid for task in taskdiag.dump("base", Dump.ALL_THREAD, engine="procfs")]

    found = set(forked(run))
    assert population["user"].pid in found
    assert not found & {*population["threads"].facts, population["threads"].pid}


def test_children_of_others_are_hidden() -> None:
    """Of a visible parent only the visible children."""

    def setup() -> list[int]:
        pids = []
        for uid in (1001, 1002):
            pid = os.fork()
            if pid == 0:
                plain_user(uid, 2001)()
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                while True:
                    signal.pause()
            pids.append(pid)
        plain_user(1001, 2001)()
        return pids

    def run() -> list[int]:
        plain_user(1001, 2001)()
        return [task.pid for task in taskdiag.dump("base", Dump.CHILDREN, it.pid, engine="procfs")]

    with child(setup) as it, contextlib.ExitStack() as stack:
        own, other = it.facts
        for pid in it.facts:
            # Their parent's death signal would need its permission to kill them.
            stack.callback(os.kill, pid, signal.SIGKILL)
        until(lambda: os.stat(f"/proc/{other}").st_uid == 1002, "the child has changed")
        until(lambda: os.stat(f"/proc/{own}").st_uid == 1001, "the child has changed")
        assert forked(run) == [own]


def test_procfs_mounted_with_hidepid() -> None:
    """/proc itself mounted with hidepid: not an error, just fewer tasks."""

    def run(option: bytes) -> list[int]:
        check(libc.unshare(CLONE_NEWNS))
        mount(b"none", "/", MS_REC_PRIVATE)
        mount(b"proc", "/proc", 0, b"gid=%d,hidepid=" % NO_GROUP + option)
        plain_user(UNUSED_ID, UNUSED_ID)()
        return [task.pid for task in taskdiag.dump("base,stat,vma", engine="procfs")]

    for option in (b"1", b"2", b"4"):
        found = forked(lambda option=option: [run(option), os.getpid()])
        assert found[0] == [found[1]]


def test_inside_a_pid_namespace() -> None:
    """With a procfs of its own, pids are those of the namespace."""

    def run() -> list[Any]:
        check(libc.unshare(CLONE_NEWPID | CLONE_NEWNS))

        def inside() -> list[Any]:
            mount(b"none", "/", MS_REC_PRIVATE)
            mount(b"proc", "/proc")
            (task,) = taskdiag.dump("base,cred", engine="procfs")
            assert task.base is not None
            return [os.getpid(), task.pid, task.base.ppid, task.base.sid]

        result: list[Any] = forked(inside)
        return result

    assert forked(run) == [1, 1, 0, 0]


def test_inside_a_user_namespace() -> None:
    """Ids are those of the requester's user namespace; unmapped ones are the overflow id."""

    def run() -> list[Any]:
        new_user_namespace()
        (task,) = taskdiag.dump("cred", pid=os.getpid(), engine="procfs")
        assert task.cred is not None
        check(libc.unshare(CLONE_NEWUSER))
        (again,) = taskdiag.dump("cred", pid=os.getpid(), engine="procfs")
        assert again.cred is not None
        return [task.cred.uid, task.cred.gid, again.cred.uid, again.cred.gid]

    assert forked(run) == [0, 0, 65534, 65534]


@pytest.mark.parametrize("cover", ["tmpfs", "foreign"])
def test_without_procfs(cover: str) -> None:
    """One clear sentence where /proc is not what it should be."""

    def run() -> str:
        check(libc.unshare(CLONE_NEWNS))
        mount(b"none", "/", MS_REC_PRIVATE)
        if cover == "tmpfs":
            mount(b"tmpfs", "/proc")
            return complaint()
        # A procfs of a pid namespace that this process is not in.
        back, forth = os.pipe()
        pid = os.fork()
        if pid == 0:
            check(libc.unshare(CLONE_NEWPID))

            def inside() -> None:
                mount(b"proc", "/proc")

            forked(inside)
            os.write(forth, b".")
            os._exit(0)
        os.read(back, 1)
        os.waitpid(pid, 0)
        return complaint()

    def complaint() -> str:
        try:
            next(taskdiag.dump("base", engine="procfs"))
        except EngineUnavailable as error:
            return str(error)
        return "no error"

    assert (
        forked(run)
        == {
            "tmpfs": "/proc is not a mounted procfs",
            "foreign": "/proc does not show this process: it belongs to another pid namespace",
        }[cover]
    )
