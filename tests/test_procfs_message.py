"""A message made in one go is the message made in steps, or none is made."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from population import Population, zombie
from taskdiag import Show
from taskdiag.errors import EngineUnavailable
from taskdiag.netlink import pack_task
from taskdiag.procfs import pair
from taskdiag.procfs.plan import Plan, plan_for
from taskdiag.procfs.reader import Directory, Vanished, open_procfs
from taskdiag.procfs.task import TaskReader, read_directory

FIXED = [Show.BASE, Show.CRED, Show.STAT, Show.STATM, Show.TTY, Show.SCHED, Show.NAME]
SHOWS = [int(show) for show in FIXED] + [
    int(Show.BASE | Show.CRED | Show.STAT | Show.STATM),
    int(Show.CRED | Show.TTY),
    int(sum(FIXED)),
]


@pytest.fixture
def root() -> Iterator[int]:
    fd = open_procfs()
    yield fd
    os.close(fd)


class Bytes(Directory):
    """A directory whose files are what a test says."""

    def __init__(self, pid: int, files: dict[str, bytes]) -> None:
        super().__init__(-1, str(pid), pinned=False)
        self.files = files

    def read(self, name: str) -> bytes:
        return self.files[name]


def in_one_go(plan: Plan, pid: int, status: bytes, stat: bytes) -> bytes | None:
    """What the first function makes that makes something."""
    made = (make(status, stat, pid, pid, 7) for make in plan.messages)
    return next((message for message in made if message is not None), None)


def in_steps(plan: Plan, pid: int, status: bytes, stat: bytes) -> bytes:
    directory = Bytes(pid, {"status": status, "stat": stat})
    directory.pinned = True
    attrs, vmas = read_directory(plan, directory, pid, None, False)
    return pack_task(pid, pid, attrs, vmas, 7)


def files_of(root: int, pid: int, plan: Plan) -> tuple[bytes, bytes]:
    """The files that a plan needs, the others empty."""
    with Directory(root, str(pid)) as directory:
        status = directory.read("status") if plan.status is not None else b""
        return status, directory.read("stat") if plan.stat else b""


@pytest.mark.root
@pytest.mark.parametrize("show", SHOWS)
def test_equals_the_steps(root: int, population: Population, show: int) -> None:
    plan = plan_for(show)
    for pid in population.pids():
        files = files_of(root, pid, plan)
        message = in_one_go(plan, pid, *files)
        assert message is None or message == in_steps(plan, pid, *files)
    for name in ("plain", "stopped", "ids", "caps", "threads", "session"):
        pid = population[name].pid
        assert in_one_go(plan, pid, *files_of(root, pid, plan)) is not None


@pytest.mark.parametrize("show", SHOWS)
def test_a_task_without_memory(root: int, show: int) -> None:
    plan = plan_for(show)
    with zombie(b"gone") as it:
        files = files_of(root, it.pid, plan)
        assert in_one_go(plan, it.pid, *files) == in_steps(plan, it.pid, *files)
    with zombie(b"a-b") as it:
        status, stat = files_of(root, it.pid, plan)
        # Of such a name the steps must find out whether it is a kernel thread's.
        assert (in_one_go(plan, it.pid, status, stat) is None) == bool(show & Show.BASE)


def own_files() -> tuple[bytes, bytes]:
    with open("/proc/self/status", "rb") as status, open("/proc/self/stat", "rb") as stat:
        return status.read(), stat.read()


STATUS, STAT = own_files()
#: Changes to a file: where, how many bytes go, what comes instead.
CHANGES = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=12)), max_size=3
)


def changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, gone, instead in changes:
        data = data[:at] + instead + data[at + gone :]
    return data


@given(st.sampled_from(SHOWS), CHANGES, CHANGES)
@example(SHOWS[-1], [(0, 2000, b"")], [])
@example(SHOWS[-1], [(6, 4, b"a\\nb\\\\")], [])
@example(SHOWS[-1], [], [(0, 2000, b"1 (a) R 1 ")])
def test_files_of_anything(
    show: int, status: list[tuple[int, int, bytes]], stat: list[tuple[int, int, bytes]]
) -> None:
    """Whatever the files say: no exception, and nothing that the steps would not say."""
    plan = plan_for(show)
    files = changed(STATUS, status), changed(STAT, stat)
    message = in_one_go(plan, os.getpid(), *files)
    if message is None:
        return
    try:
        steps = in_steps(plan, os.getpid(), *files)
    except (EngineUnavailable, Vanished):
        # The steps see keys and fields that nobody asked for missing.
        return
    assert message == steps


@pytest.mark.parametrize("size", [4095, 4096, 5000])
def test_a_long_file_is_left_to_the_steps(size: int) -> None:
    plan = plan_for(int(Show.CRED))
    status = STATUS + b"More:\t".ljust(size - len(STATUS), b"x")
    assert (in_one_go(plan, os.getpid(), status, b"") is None) == (size >= 4096)


@pytest.mark.parametrize("show", [int(Show.BASE), int(Show.BASE | Show.STAT | Show.CMDLINE)])
def test_a_thread_is_no_process(root: int, show: int) -> None:
    """Its directory opens though it is not listed: its number may have been a process's."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        tid, pid = thread.native_id or 0, os.getpid()
        assert TaskReader(root, show).message(tid, tid) is None
        assert TaskReader(root, show, threads=True).message(pid, tid) is not None
    finally:
        end.set()
        thread.join()


def test_no_file_of_a_task_that_took_the_number(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that ends between the two is not shown, even if its number was reused."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    real = os.open

    def open_late(path: str, flags: int, *, dir_fd: int) -> int:
        if path.endswith("/stat"):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            path = "self/stat"
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(pair, "_open", open_late)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Vanished):
        pair.read_pair(root, str(pid), "status", "stat", False)
    assert os.listdir("/proc/self/fd") == before
