"""A message made in one go is the message made in steps, or none is made."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from population import Population, child, zombie
from taskdiag import Show
from taskdiag.abi import VMA
from taskdiag.errors import EngineUnavailable
from taskdiag.netlink import pack_task
from taskdiag.procfs import pair, reader
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


def number_passes_on(
    monkeypatch: pytest.MonkeyPatch, pid: int, heir: int, before: str
) -> list[str]:
    """Let the number lead to another process from the first time on that a file is opened."""
    real = os.open
    opened: list[str] = []

    def open_late(path: str, flags: int, *, dir_fd: int) -> int:
        opened.append(path)
        if path == f"{pid}/{before}":
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if not os.path.exists(f"/proc/{pid}"):
            path = path.replace(str(pid), str(heir), 1)
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(reader, "_open", open_late)
    return opened


def started(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


@pytest.mark.parametrize("before", ["smaps", "stat"])
def test_no_mappings_of_a_task_that_took_the_number(
    root: int, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Whichever of the two files is the first to be of the other task."""
    if not os.path.exists("/proc/self/smaps"):
        pytest.skip("this kernel has no CONFIG_PROC_PAGE_MONITOR")
    with child() as it, child() as heir:
        pid, since = it.pid, started(heir.pid)
        opened = number_passes_on(monkeypatch, pid, heir.pid, before)
        asked: list[int] = []
        task = TaskReader(root, int(Show.VMA | Show.VMA_STAT), old=lambda start: start < since)
        open_files = os.listdir("/proc/self/fd")
        assert task.read(pid, pid, lambda start: bool(asked.append(start))) is None
        assert opened[:2] == [f"{pid}/smaps", f"{pid}/stat"]
        # Before it is said to be another task, it is read once more below its directory.
        assert asked == [since]
        assert os.listdir("/proc/self/fd") == open_files


@pytest.mark.parametrize("threads", [False, True])
def test_an_old_task_is_read_without_asking(root: int, threads: bool) -> None:
    show = int(Show.VMA | Show.VMA_STAT)
    with child() as it:
        fast = TaskReader(root, show, threads=threads, old=lambda start: True)
        slow = TaskReader(root, show, threads=threads)

        def never(start: int) -> bool:
            raise AssertionError(start)

        found = fast.read(it.pid, it.pid, never)
        right = slow.read(it.pid, it.pid, lambda start: True)
        assert found is not None
        assert right is not None
        assert found[1]
        # The statistics change with what we do to pages that we share with it.
        assert [vma[: VMA.size] for vma in found[1]] == [vma[: VMA.size] for vma in right[1]]


def test_an_old_task_without_memory(root: int) -> None:
    """It has no mappings, which the steps find out."""
    with zombie() as it:
        pid = it.pid
        answer = TaskReader(root, int(Show.VMA | Show.VMA_STAT), old=lambda start: True).read(
            pid, pid, lambda start: True
        )
        assert answer in (None, ([], []))
        assert answer == TaskReader(root, int(Show.VMA | Show.VMA_STAT)).read(
            pid, pid, lambda start: True
        )
