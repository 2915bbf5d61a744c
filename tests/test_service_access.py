"""The service shows each requester what a procfs mounted with hidepid=2 would show.

The oracle is the kernel's own: that mount, listed by the same process that asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskdiag
from conftest import need
from population import (
    CAP_KILL,
    CAP_SYS_PTRACE,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    UNUSED_ID,
    Child,
    Population,
    check,
    child,
    end,
    forked,
    libc,
    new_user_namespace,
    plain_user,
    prctl,
    set_caps,
)
from serving import (
    Service,
    compare,
    hidepid,
    kept_from_bpf,
    listed,
    look,
    running,
    service,
    started,
)
from taskdiag import Dump, Show
from taskdiag.decoder import decode
from taskdiag.errors import EngineUnavailable, NoSuchProcess
from taskdiag.kernel import KernelEngine
from taskdiag.request import Request

pytestmark = pytest.mark.root
__all__ = ("service",)

EXAMPLES = int(os.environ.get("TASKDIAG_FUZZ_ACCESS", "60"))
ALL_CAPS = (1 << 40) - 1


def with_caps(
    effective: int, permitted: int, uid: int = 3333, gid: int = 3333
) -> Callable[[], None]:
    def setup() -> None:
        os.setgroups([])
        prctl(PR_SET_KEEPCAPS, 1)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        set_caps(effective, permitted, 0)
        prctl(PR_SET_DUMPABLE, 1)

    return setup


def powerless_root() -> None:
    os.setgroups([])
    set_caps(0, 0, 0)


def root_without_ptrace() -> None:
    caps = ALL_CAPS & ~CAP_SYS_PTRACE
    with open("/proc/self/status") as file:
        held = int(file.read().split("CapPrm:")[1].split()[0], 16)
    set_caps(caps & held, caps & held, 0)


def ids(
    uids: tuple[int, int, int],
    gids: tuple[int, int, int] = (2001, 2001, 2001),
    *,
    fsuid: int | None = None,
    fsgid: int | None = None,
    groups: tuple[int, ...] = (),
) -> Callable[[], None]:
    def setup() -> None:
        os.setgroups(groups)
        os.setresgid(*gids)
        if fsgid is not None:
            libc.setfsgid(fsgid)
        os.setresuid(*uids)
        if fsuid is not None:
            libc.setfsuid(fsuid)
        prctl(PR_SET_DUMPABLE, 1)

    return setup


def nested_user_namespaces() -> None:
    new_user_namespace()
    check(libc.unshare(CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        with contextlib.suppress(PermissionError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def user_namespace_powerless() -> None:
    new_user_namespace()
    set_caps(0, 0, 0)


def undumpable_setuid() -> None:
    """As a program that has given up privileges and was not executed since."""
    os.setgroups([])
    os.setresgid(2001, 2001, 2001)
    os.setresuid(1001, 1001, 1001)


REQUESTERS: dict[str, Callable[[], Any]] = {
    "root": lambda: None,
    "root without ptrace": root_without_ptrace,
    "powerless root": powerless_root,
    "nobody": plain_user(65534, 65534),
    "user": plain_user(1001, 2001),
    "user, undumpable": plain_user(1001, 2001, dumpable=0),
    "user, never executed": undumpable_setuid,
    "user, other gid": plain_user(1001, 2002),
    "user, third gid": plain_user(1001, 2003),
    "supplementary groups": ids((1001, 1001, 1001), (2003,) * 3, groups=(0, 2001, 2002)),
    "saved uid": ids((1001, 1001, 1003)),
    "effective uid": ids((1003, 1001, 1003)),
    "file system uid": ids((0, 0, 0), fsuid=1001),
    "file system gid": ids((1001,) * 3, (2002,) * 3, fsgid=2001),
    "saved gid": ids((1001,) * 3, (2001, 2001, 2002)),
    "ptrace alone": with_caps(CAP_SYS_PTRACE, CAP_SYS_PTRACE),
    "ptrace permitted": with_caps(0, CAP_SYS_PTRACE),
    "kill alone": with_caps(CAP_KILL, CAP_KILL, 1001, 2001),
    "root of a user namespace": new_user_namespace,
    "root of a nested one": nested_user_namespaces,
    "powerless in a user namespace": user_namespace_powerless,
}


def loader(uid: int, gid: int, extra: int = 0) -> Callable[[], None]:
    """Who may load programs, and else is a plain user."""
    caps = 1 << 38 | 1 << 39 | extra  # CAP_PERFMON, CAP_BPF
    return with_caps(caps, caps, uid, gid)


@contextlib.contextmanager
def targets() -> Iterator[dict[str, Child]]:
    """Kinds that the population lacks."""
    setups: dict[str, Callable[[], Any]] = {
        "capable": with_caps(CAP_KILL, CAP_KILL, 1001, 2001),
        "permitted": with_caps(0, CAP_KILL, 1001, 2001),
        "setuid": ids((1001, 0, 0)),
        "setgid": ids((1001,) * 3, (2001, 0, 0)),
        "fsuid": ids((1001,) * 3, fsuid=1001),
        "nested": nested_user_namespaces,
        "never executed": undumpable_setuid,
        "namespace owner": plain_user(1234, 4321),
    }
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(child(setup)) for name, setup in setups.items()}


@pytest.fixture(scope="module", autouse=True)
def standing() -> Iterator[dict[str, Child]]:
    with targets() as found:
        yield found


def agree(answer: dict[str, Any], hidden: set[int]) -> None:
    """Tasks listed with hidepid before and after are shown, and none that were in neither list."""
    before, found, after = (set(answer[key]) - hidden for key in ("before", "found", "after"))
    steady, single = set(answer["steady"]) - hidden, set(answer["single"])
    assert steady <= found
    # A process that started in between may be gone again, or have become somebody else.
    assert not {pid for pid in found - before - after if started(pid) < answer["began"]}
    assert steady & set(answer["asked"]) <= single
    assert single <= set(answer["before"])


@pytest.mark.parametrize("show", ["base", "cmdline", "base,vma_stat"])
@pytest.mark.parametrize("who", REQUESTERS)
def test_equals_hidepid(
    service: Service, population: Population, standing: dict[str, Child], who: str, show: str
) -> None:
    hidden = kept_from_bpf()
    answer = compare(service.path, REQUESTERS[who], show)
    agree(answer, hidden | kept_from_bpf())


def test_the_oracle_can_tell(
    service: Service, population: Population, standing: dict[str, Child]
) -> None:
    """The matrix would be worth nothing if everybody saw everything, or nothing."""
    seen = {
        who: set(compare(service.path, REQUESTERS[who])["found"])
        for who in ("root", "user", "nobody", "kill alone", "root of a user namespace")
    }
    assert {it.pid for it in standing.values()} <= seen["root"]
    assert population["user"].pid in seen["user"]
    for name in ("undumpable", "other-gid", "ids"):
        assert population[name].pid not in seen["user"]
    for name in ("capable", "permitted", "setuid", "setgid", "never executed"):
        assert standing[name].pid not in seen["user"]
    assert standing["capable"].pid in seen["kill alone"]
    assert not {it.pid for it in standing.values()} & seen["nobody"]
    assert standing["namespace owner"].pid not in seen["root of a user namespace"]


@pytest.mark.parametrize("show", ["base", "cmdline", "base,vma_stat"])
@pytest.mark.parametrize("extra", [0, CAP_KILL, CAP_SYS_PTRACE])
def test_the_kernel_engine_of_who_may_load_programs(
    population: Population, show: str, extra: int
) -> None:
    """CAP_BPF and CAP_PERFMON are for loading programs, not for seeing tasks."""

    def run() -> dict[str, Any]:
        return look("", loader(1001, 2001, extra), show, engine=KernelEngine())

    hidden = kept_from_bpf()
    answer = forked(run)
    agree(answer, hidden | kept_from_bpf())
    assert population["user"].pid in answer["found"]
    assert (population["plain"].pid in answer["found"]) == (extra == CAP_SYS_PTRACE)


def test_the_kernel_engine_of_who_gives_up_privileges(population: Population) -> None:
    """What was loaded as root does not go on showing what root sees."""

    def run() -> list[list[int]]:
        engine = KernelEngine()
        before = [task.pid for task in taskdiag.dump("base", engine=engine)]
        loader(1001, 2001)()
        return [before, [task.pid for task in taskdiag.dump("base", engine=engine)]]

    before, after = forked(run)
    assert population["plain"].pid in before
    assert population["plain"].pid not in after
    assert population["user"].pid in after


@pytest.mark.parametrize("who", ["owner", "root of it", "root of another"])
def test_user_namespaces_of_others(service: Service, who: str) -> None:
    """Who owns a user namespace has all capabilities over it; its root over those in it."""

    def run() -> Any:
        if who == "root of another":
            with child(new_user_namespace), child(nested_user_namespaces):
                return look(service.path, new_user_namespace, "base")
        if who == "owner":
            with child(new_user_namespace), child(nested_user_namespaces):
                return look(service.path, plain_user(1234, 4321), "base")

        def become() -> None:
            new_user_namespace()
            for prepare in (lambda: None, user_below):
                if os.fork() == 0:
                    prctl(1, signal.SIGKILL)
                    prepare()
                    while True:
                        signal.pause()

        return look(service.path, become, "base", wait=0.3)

    def user_below() -> None:
        check(libc.unshare(CLONE_NEWUSER))

    hidden = kept_from_bpf()
    answer = forked(run)
    agree(answer, hidden | kept_from_bpf())
    if who != "root of another":
        assert len(answer["found"]) >= 3


def test_own_process_always(service: Service) -> None:
    """Undumpable, with threads whose credentials differ: a process sees itself."""

    def run() -> list[int]:
        plain_user(1001, 2001, dumpable=0)()
        engine = service.engine()
        found = [task.pid for task in taskdiag.dump("base", engine=engine)]
        (one,) = taskdiag.dump("base", pid=os.getpid(), engine=engine)
        return [os.getpid(), one.pid, *found]

    own, one, *found = forked(run)
    assert one == own
    assert own in found


# --- Pid namespaces ----------------------------------------------------------------


def in_new_pid_namespace(function: Callable[[], Any]) -> Any:
    """The result of a function that is called in process 1 of a new pid namespace."""

    def run() -> Any:
        check(libc.unshare(CLONE_NEWPID))
        return forked(function)

    return forked(run)


@pytest.mark.parametrize("who", ["root", "user", "root of a user namespace"])
@pytest.mark.parametrize("show", ["base", "base,cred,cmdline,vma", "base,vma_stat"])
def test_from_a_child_pid_namespace(
    service: Service, population: Population, who: str, show: str
) -> None:
    """Its own tasks, under its own numbers."""

    def run() -> Any:
        pids = []
        for setup in (lambda: None, plain_user(1001, 2001), new_user_namespace):
            pid = os.fork()
            if pid == 0:
                prctl(1, signal.SIGKILL)
                setup()
                while True:
                    signal.pause()
            pids.append(pid)
        answer = look(service.path, REQUESTERS[who], show, wait=0.3)
        tasks = list(taskdiag.dump("base", engine=service.engine()))
        answer["families"] = [
            [task.pid, task.base.ppid, task.base.pgid] for task in tasks if task.base is not None
        ]
        for pid in pids:
            with contextlib.suppress(PermissionError):
                os.kill(pid, signal.SIGKILL)
        return answer

    answer = in_new_pid_namespace(run)
    agree(answer, set())
    assert answer["self"] == 1
    assert 1 in answer["found"]
    for pid, parent, group in answer["families"]:
        assert pid in (1, 2, 3, 4)
        assert (parent, group) == (0 if pid == 1 else 1, 0)


def test_by_pid_from_a_child_pid_namespace(service: Service, population: Population) -> None:
    """Numbers in a request are those of the requester's namespace, and of no other."""
    outside = population["plain"].pid

    def run() -> list[Any]:
        answer: list[Any] = []
        for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
            for pid in (1, outside, 4_000_000):
                try:
                    found = taskdiag.dump("base", strategy, pid, engine=service.engine())
                    answer.append([task.pid for task in found])
                except NoSuchProcess:
                    answer.append("missing")
        return answer

    assert in_new_pid_namespace(run) == [
        [1], "missing", "missing",
        [1], "missing", "missing",
        [], "missing", "missing",
    ]  # fmt: skip


def test_a_service_in_a_pid_namespace_refuses_those_outside() -> None:
    need("unshare")
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with running(prefix=prefix) as inner:
        with pytest.raises(EngineUnavailable):
            list(taskdiag.dump("base", engine=inner.engine()))
        # SIGTERM is for the service, not for unshare, which ignores it.
        with open(f"/proc/{inner.pid}/task/{inner.pid}/children") as file:
            os.kill(int(file.read()), signal.SIGTERM)
        inner.process.wait(20)


# --- Ids ---------------------------------------------------------------------------


def test_ids_are_those_of_the_requesters_user_namespace(service: Service) -> None:
    def run() -> list[Any]:
        new_user_namespace()
        (task,) = taskdiag.dump("cred", pid=os.getpid(), engine=service.engine())
        (same,) = taskdiag.dump("cred", pid=os.getpid(), engine="procfs")
        assert task.cred == same.cred
        assert task.cred is not None
        return [task.cred.uid, task.cred.gid]

    assert forked(run) == [0, 0]


def test_many_extents(service: Service) -> None:
    """A user namespace whose map has more extents than fit the structure itself."""
    ready, go = os.pipe(), os.pipe()

    def write_maps() -> None:
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write("\n".join(f"{10 * n} {1000 * n + 7} 5" for n in range(300)))
        os.write(go[1], b".")

    def run() -> list[int]:
        check(libc.unshare(CLONE_NEWUSER))
        os.write(ready[1], b".")
        os.read(go[0], 1)
        os.setresgid(70, 70, 70)
        os.setresuid(2994, 2994, 2994)
        prctl(PR_SET_DUMPABLE, 1)
        (task,) = taskdiag.dump("cred", pid=os.getpid(), engine=service.engine())
        assert task.cred is not None
        return [task.cred.uid, task.cred.fsuid, task.cred.gid]

    back, forth = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(forth, repr(run()).encode())
        except BaseException as error:
            os.write(forth, repr(error).encode())
        os._exit(0)
    os.close(forth)
    write_maps()
    assert os.read(back, 4096) == b"[2994, 2994, 70]"
    os.waitpid(pid, 0)
    for fd in (*ready, *go, back):
        os.close(fd)


# --- The descriptor ----------------------------------------------------------------


def test_a_descriptor_keeps_the_eyes_of_who_asked(service: Service) -> None:
    """Root reads what a user was given, and sees what the user would."""
    # Of that user no other process is expected.
    lone = plain_user(UNUSED_ID, UNUSED_ID)
    for show in (Show.BASE, Show.BASE | Show.CMDLINE):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            lone()
            fd = service.engine()._ask(Request(show))
            socket.send_fds(theirs, [b"."], [fd])
            while True:
                signal.pause()
        try:
            _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
            data = b"".join(iter(lambda fd=fd: os.read(fd, 65536), b""))
            os.close(fd)
        finally:
            end(pid)
            ours.close()
            theirs.close()
        assert [task.pid for task in decode([data])] == [pid]


# --- The fuzzer --------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1001, 1002])
CAPS = st.sampled_from([0, CAP_SYS_PTRACE, CAP_KILL, CAP_KILL | CAP_SYS_PTRACE])


class Who:
    """Some credentials, and how to get them."""

    def __init__(
        self,
        uids: tuple[int, int, int, int],
        gids: tuple[int, int, int, int],
        permitted: int,
        effective: int,
        dumpable: int,
        namespaces: int,
        groups: list[int],
    ) -> None:
        self.uids, self.gids = uids, gids
        self.permitted, self.effective = permitted, effective & permitted
        self.dumpable, self.namespaces, self.groups = dumpable, namespaces, groups

    def become(self) -> None:
        os.setgroups(self.groups)
        prctl(PR_SET_KEEPCAPS, 1)
        os.setresgid(*self.gids[:3])
        libc.setfsgid(self.gids[3])
        os.setresuid(*self.uids[:3])
        libc.setfsuid(self.uids[3])
        if self.namespaces:
            set_caps(0, 0, 0)
            prctl(PR_SET_DUMPABLE, 1)
            # The second is refused to ids without a number in the first.
            for _ in range(self.namespaces):
                libc.unshare(CLONE_NEWUSER)
        # In a user namespace of its own it has them all to choose from.
        with contextlib.suppress(OSError):
            set_caps(self.effective, self.permitted, 0)
        prctl(PR_SET_DUMPABLE, self.dumpable)

    def __repr__(self) -> str:
        return f"Who({', '.join(f'{key}={value}' for key, value in vars(self).items())})"


WHO = st.builds(
    Who,
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS) | NUMBERS.map(lambda n: (n, n, n, n)),
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS) | NUMBERS.map(lambda n: (n, n, n, n)),
    CAPS,
    CAPS,
    st.sampled_from([1, 1, 1, 0]),
    st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.lists(NUMBERS, max_size=2),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(requester=WHO, others=st.lists(WHO, min_size=1, max_size=6))
def test_fuzz(service: Service, requester: Who, others: list[Who]) -> None:
    """Any credentials look at any others, also from below the same user namespace."""
    with contextlib.ExitStack() as stack:
        pids = {stack.enter_context(child(other.become)).pid for other in others}

        def run() -> list[list[int]]:
            inside = hidepid()
            requester.become()
            below = []
            for _ in range(2):
                pid = os.fork()
                if pid == 0:
                    prctl(1, signal.SIGKILL)
                    if below:
                        libc.unshare(CLONE_NEWUSER)
                        libc.unshare(CLONE_NEWUSER)
                    while True:
                        signal.pause()
                below.append(pid)
            engine = service.engine()
            wanted = pids | {os.getpid(), *below}
            before = listed(inside) & wanted
            found = {task.pid for task in taskdiag.dump("base", engine=engine)} & wanted
            after = listed(inside) & wanted
            for pid in below:
                with contextlib.suppress(PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return [sorted(before), sorted(found), sorted(after)]

        before, found, after = map(set, forked(run))
        assert before & after <= found
        assert found <= before | after
