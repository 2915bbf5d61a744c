"""The kernel engine as a holder of kernel objects: what it loads, reuses, narrows and gives back.

What its answers say is tested with those of the other engines, in test_engines.py.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise, zip_longest
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from conftest import missing, open_engine
from population import Population
from taskdiag import NoSuchProcess, Request, Show, decode
from taskdiag.abi import Dump
from taskdiag.errors import EngineUnavailable
from taskdiag.kernel import KernelEngine, bpf, compile, programs
from taskdiag.kernel import engine as module
from taskdiag.kernel.asm import R0, R10
from taskdiag.kernel.compile import missing_features
from taskdiag.kernel.emit import Emitter
from test_environments import ONLY_BPF, PID_NAMESPACE, execute, interpreter

pytestmark = pytest.mark.root

EVERYTHING = Show(sum(Show)) & ~Show.VMA_STAT


@pytest.fixture
def engine() -> Iterator[KernelEngine]:
    """An engine of its own, which holds nothing yet."""
    open_engine("kernel")
    made = KernelEngine()
    # What is asked once, so that counting starts behind it.
    list(made.stream(Request(EVERYTHING, Dump.ONE, os.getpid())))
    made.close()
    yield made
    made.close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors of programs as they are loaded."""
    seen: list[int] = []
    original = bpf.load_program

    def load(*args: Any, **options: Any) -> int:
        seen.append(original(*args, **options))
        return seen[-1]

    monkeypatch.setattr(bpf, "load_program", load)
    return seen


def descriptors() -> set[str]:
    """What is open here, by number and by what it is."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is closed again.
        with suppress(FileNotFoundError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


def read(engine: KernelEngine, show: int, strategy: Dump = Dump.ONE, pid: int = 0) -> bytes:
    return b"".join(engine.stream(Request(show, strategy, pid or os.getpid())))


# --- Reuse --------------------------------------------------------------------------------


def test_requests_of_one_shape_share_a_program(
    engine: KernelEngine, loads: list[int], population: Population
) -> None:
    for _ in range(3):
        read(engine, Show.BASE | Show.STAT, Dump.ALL)
    assert len(loads) == 1
    for pid in (population["plain"].pid, population["threads"].pid):
        read(engine, Show.BASE | Show.STAT, Dump.ONE, pid)
    assert len(loads) == 2
    read(engine, Show.BASE | Show.STAT, Dump.ALL_THREAD)
    assert len(loads) == 3
    # Another program tells whose thread it is.
    for pid in (population["plain"].pid, population["threads"].pid):
        read(engine, Show.BASE | Show.STAT, Dump.THREAD, pid)
    assert len(loads) == 4
    read(engine, Show.BASE)
    assert len(loads) == 5


def test_only_so_many_programs_are_kept(engine: KernelEngine) -> None:
    before = descriptors()
    for seq in range(1, programs._KEPT + 10):
        list(engine.stream(Request(Show.BASE, Dump.ONE, os.getpid(), seq)))
    held = descriptors() - before
    assert len(held) == programs._KEPT
    assert all("bpf-prog" in name for name in held)
    engine.close()
    assert descriptors() == before


def test_a_closed_engine_answers_again(engine: KernelEngine) -> None:
    first = read(engine, Show.BASE)
    engine.close()
    assert read(engine, Show.BASE) == first


# --- Nothing is left behind ---------------------------------------------------------------


@pytest.mark.parametrize("show", [Show.BASE, EVERYTHING])
def test_abandoned_streams_leave_nothing(engine: KernelEngine, show: Show) -> None:
    before = descriptors()
    for _ in range(5):
        stream = engine.stream(Request(show, Dump.ALL_THREAD))
        next(stream)
        assert descriptors() != before
        stream.close()  # type: ignore[attr-defined]
        assert descriptors() == before
        unread = engine.stream(Request(show, Dump.ALL))
        del unread
    engine.close()
    assert descriptors() == before


def test_refused_requests_leave_nothing(engine: KernelEngine) -> None:
    before = descriptors()
    for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
        with pytest.raises(NoSuchProcess):
            list(engine.stream(Request(EVERYTHING, strategy, 0x7FFFFFFF)))
    engine.close()
    assert descriptors() == before


def test_a_thousand_dumps_do_not_grow(engine: KernelEngine, population: Population) -> None:
    pid = population["plain"].pid

    def some(count: int) -> None:
        for number in range(count):
            list(engine.stream(Request(EVERYTHING, Dump.ONE, pid)))
            if number % 50 == 0:
                list(engine.stream(Request(Show.BASE | Show.STAT)))

    some(100)
    before, memory = descriptors(), [_resident()]
    for _ in range(4):
        some(250)
        memory.append(_resident())
    assert descriptors() == before
    # In KiB.  The allocator takes some for a new thread now and then; leaked answers, of
    # at least 10 KiB, would take more each time.
    assert min(after - earlier for earlier, after in pairwise(memory)) < 1024, memory


def _resident() -> int:
    """Private memory in KiB: what a leak would add to."""
    match = re.search(r"^RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)
    assert match is not None
    return int(match[1])


_PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID = 13, 14


def objects_of(pid: int) -> set[tuple[int, int]]:
    """The programs and maps that a process holds, as (command to open one by id, id)."""
    found = set()
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = file.read_text()
        except OSError:
            continue
        for key, command in (("prog_id", _PROG_GET_FD_BY_ID), ("map_id", _MAP_GET_FD_BY_ID)):
            match = re.search(rf"^{key}:\s+(\d+)$", text, re.M)
            if match is not None:
                found.add((command, int(match[1])))
    return found


def loaded(command: int, number: int) -> bool:
    """Whether a program or map with that id is in the kernel.  Ids are not used again."""
    try:
        os.close(bpf.bpf(command, pack("=III", number, 0, 0)))
    except bpf.BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def gone(objects: set[tuple[int, int]]) -> bool:
    """Whether all are freed, which happens some time after the last descriptor is closed."""
    stop = time.monotonic() + 20
    while any(loaded(*item) for item in objects):
        if time.monotonic() > stop:
            return False
        time.sleep(0.02)
    return True


_READER = """
import sys, time
from taskdiag import Request, Show
from taskdiag.abi import Dump
from taskdiag.kernel import KernelEngine
engine = KernelEngine()
stream = engine.stream(Request(sum(Show) & ~Show.VMA_STAT, Dump.ALL_THREAD))
next(stream)
print("reading", flush=True)
if sys.argv[1] == "paused":
    time.sleep(600)
while True:
    for _ in engine.stream(Request(sum(Show) & ~Show.VMA_STAT, Dump.ALL_THREAD)):
        pass
"""


@pytest.mark.parametrize(
    ("how", "seconds"), [("paused", 0), ("busy", 0), ("busy", 0.02), ("busy", 0.1)]
)
def test_killed_at_any_moment_nothing_stays_loaded(
    engine: KernelEngine, how: str, seconds: float
) -> None:
    reader = subprocess.Popen([sys.executable, "-c", _READER, how], stdout=subprocess.PIPE)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        objects = objects_of(reader.pid)
        assert any(command == _PROG_GET_FD_BY_ID for command, _ in objects)
        if not missing_features(engine.facts)[Show.VMA]:
            assert any(command == _MAP_GET_FD_BY_ID for command, _ in objects)
        if how == "paused":
            assert all(loaded(*item) for item in objects)
        time.sleep(seconds)
    finally:
        reader.send_signal(signal.SIGKILL)
        reader.wait()
        assert reader.stdout is not None
        reader.stdout.close()
    assert gone(objects)


def test_nothing_is_pinned_or_left_by_a_command(engine: KernelEngine) -> None:
    """The links and iterators of a finished answer are gone as well: no descriptor is left."""
    read(engine, EVERYTHING)
    kinds = {re.sub(r"^\d+ ", "", name) for name in descriptors() if "bpf" in name}
    assert kinds <= {"anon_inode:bpf-prog", "anon_inode:bpf-map"}


# --- Streams side by side -------------------------------------------------------------------


def by_pid(data: bytes, pids: set[int]) -> dict[int, Any]:
    """What an answer says of these processes that does not change with time."""
    return {
        task.pid: (task.base, task.cred, task.cmdline, task.vmas)
        for task in decode([data])
        if task.pid in pids
    }


def test_streams_of_one_engine_may_be_read_in_turns(
    engine: KernelEngine, population: Population
) -> None:
    request = Request(Show.BASE | Show.CRED | Show.CMDLINE | Show.VMA)
    pids = {population[name].pid for name in ("plain", "stopped", "session")}
    expected = by_pid(b"".join(engine.stream(request)), pids)
    assert set(expected) == pids
    answers: list[list[bytes]] = [[], [], []]
    for chunks in zip_longest(*(engine.stream(request) for _ in answers), fillvalue=b""):
        for answer, chunk in zip(answers, chunks, strict=True):
            answer.append(chunk)
    for answer in answers:
        assert by_pid(b"".join(answer), pids) == expected


def test_threads_may_share_an_engine(engine: KernelEngine, population: Population) -> None:
    request = Request(Show.BASE | Show.CRED | Show.CMDLINE | Show.VMA)
    pids = {population[name].pid for name in ("plain", "stopped", "session")}
    expected = by_pid(b"".join(engine.stream(request)), pids)
    found: list[dict[int, Any]] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(4):
                found.append(by_pid(b"".join(engine.stream(request)), pids))
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert len(found) == 16
    assert all(answer == expected for answer in found)


def test_a_pause_of_the_kernel_is_not_the_end(
    engine: KernelEngine, monkeypatch: pytest.MonkeyPatch, population: Population
) -> None:
    """An iterator that went a long way without output says EAGAIN once and goes on."""
    original, paused = os.read, set()

    def hesitant(fd: int, size: int) -> bytes:
        name = os.readlink(f"/proc/self/fd/{fd}")
        if "bpf_iter" in name and fd not in paused:
            paused.add(fd)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        paused.discard(fd)
        return original(fd, size)

    monkeypatch.setattr(os, "read", hesitant)
    stream = engine.stream(Request(Show.BASE))
    found = [task.pid for task in decode(stream)]
    assert found == sorted(set(found))
    expected = {population[name].pid for name in ("plain", "stopped", "session", "threads")}
    assert expected <= set(found)


# --- Narrow requests ------------------------------------------------------------------------


def test_one_and_thread_do_not_walk_the_host(
    engine: KernelEngine, monkeypatch: pytest.MonkeyPatch, population: Population
) -> None:
    """The iterator visits only that task, so the program is not called for others."""
    links: list[tuple[int, int]] = []
    original = bpf.create_link

    def create(program: int, tid: int = 0, pid: int = 0) -> int:
        links.append((tid, pid))
        return original(program, tid, pid)

    monkeypatch.setattr(bpf, "create_link", create)
    plain, threads = population["plain"].pid, population["threads"].pid
    read(engine, EVERYTHING, Dump.ONE, plain)
    assert links == [(plain, 0)]
    read(engine, EVERYTHING, Dump.THREAD, threads)
    assert links[1:] == [(threads, 0), (0, threads)]
    read(engine, Show.BASE, Dump.ALL)
    assert links[3:] == [(0, 0)]
    del links[:]
    read(engine, Show.BASE, Dump.CHILDREN, os.getpid())
    # Whether there is such a process is asked of it alone.
    assert links[0] == (os.getpid(), 0)


def test_a_descriptor_that_is_handed_out_outlives_the_engine(engine: KernelEngine) -> None:
    fd = engine.open(Request(Show.BASE, Dump.ONE, os.getpid(), 7))
    assert fd is not None
    try:
        engine.close()
        data = os.read(fd, 1 << 16)
        assert [task.pid for task in decode([data])] == [os.getpid()]
        assert os.read(fd, 1 << 16) == b""
    finally:
        os.close(fd)


@pytest.mark.parametrize("show", [Show.CMDLINE, Show.VMA, Show.VMA_STAT])
def test_what_takes_more_than_one_iterator_is_not_handed_out(
    engine: KernelEngine, show: Show
) -> None:
    assert engine.open(Request(show)) is None
    assert engine.open(Request(Show.BASE, Dump.THREAD, 1)) is None


def test_programs_with_an_arena_are_not_handed_out(
    engine: KernelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers of one arena would write into each other's messages."""
    original = compile.sched.needs_room
    monkeypatch.setattr(compile.sched, "needs_room", lambda facts: True)
    before = descriptors()
    fd = engine.open(Request(Show.BASE | Show.STAT))
    if fd is not None:
        os.close(fd)
    assert fd is None
    monkeypatch.setattr(compile.sched, "needs_room", original)
    engine.close()
    assert descriptors() == before


# --- Refusals -------------------------------------------------------------------------------


def test_a_rejection_by_the_verifier_names_the_field(
    engine: KernelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nice(c: Emitter) -> None:
        c.load(R0, R10, 8)

    before = descriptors()
    monkeypatch.setitem(compile.FUNCTIONS, "nice(task)", nice)
    with pytest.raises(bpf.VerifierError, match=r"verifier rejected sched\.nice:") as caught:
        engine.stream(Request(Show.BASE | Show.SCHED))
    assert caught.value.where == "sched.nice"
    assert "invalid read from stack" in caught.value.log
    assert descriptors() == before
    # The other groups are none the worse for it, and another engine answers for this one.
    assert read(engine, Show.BASE)
    from taskdiag.engine import Auto, _opened

    monkeypatch.setitem(_opened, "kernel", engine)
    (task,) = decode(Auto().stream(Request(Show.SCHED, Dump.ONE, os.getpid())))
    assert task.sched is not None


def test_who_insists_is_told_what_is_missing(
    engine: KernelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*args: Any, **options: Any) -> dict[Show, str]:
        return {**missing_features(*args, **options), Show.CMDLINE: "a good will"}

    monkeypatch.setattr(module, "missing_features", lacking)
    insistent = KernelEngine(insist=True)
    with pytest.raises(EngineUnavailable, match="cannot serve cmdline by BPF: it lacks a good"):
        insistent.stream(Request(Show.BASE | Show.CMDLINE))
    # Otherwise the answer is complete, and that group is from /proc.
    tasks = list(decode(engine.stream(Request(EVERYTHING, Dump.ONE, os.getpid()))))
    assert tasks[0].cmdline is not None
    assert tasks[0].vmas


# --- Elsewhere --------------------------------------------------------------------------------

#: Compares the engines on all tasks of wherever it runs, for what does not move.
_COMPARE = """
import os, subprocess, sys
from taskdiag import Request, Show, decode
from taskdiag.abi import Dump
from taskdiag.kernel import KernelEngine
from taskdiag.procfs import ProcfsEngine
children = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
def ask(engine, strategy, pid):
    shown = "base", "cred", "cmdline", "tty"
    return [
        (task.pid, task.tgid, *(repr(getattr(task, name)) for name in shown),
         task.stat and task.stat.threads,
         [(v.start, v.end, v.pgoff, v.major, v.minor, v.inode, v.name) for v in task.vmas or ()])
        for task in decode(engine.stream(Request(SHOW, strategy, pid)))
        # As process 1 this one has a namespace to itself; else others come and go.
        if task.tgid != os.getpid() and (os.getpid() == 1 or task.tgid in ours)
    ]
ours = {child.pid for child in children}
SHOW = sum(Show) & ~Show.VMA_STAT
try:
    for child in children:
        while b"sleep" not in open(f"/proc/{child.pid}/comm", "rb").read():
            pass
        while "S" not in open(f"/proc/{child.pid}/stat").read():
            pass
    for strategy in Dump:
        for pid in (os.getpid(), children[0].pid):
            before, mine, after = (
                {task[0]: task for task in ask(e, strategy, pid)}
                for e in (ProcfsEngine(), KernelEngine(), ProcfsEngine())
            )
            # The user may have other processes, which come, change and go meanwhile.
            assert before.keys() & after.keys() <= mine.keys(), strategy
            gone = mine.keys() - before.keys() - after.keys()
            assert not [pid for pid in gone if os.path.exists(f"/proc/{pid}")], strategy
            for pid in [pid for pid in before if before[pid] == after.get(pid)]:
                here = mine[pid]
                for one, other in zip(here, before[pid]):
                    assert one == other, (strategy, here[0], str(one)[:300], str(other)[:300])
    found = {task[0] for task in ask(KernelEngine(), Dump.ALL, 0)}
    assert {child.pid for child in children} <= found, found
    print(len(found), min(child.pid for child in children))
finally:
    for child in children:
        child.kill()
        child.wait()
"""


@pytest.mark.parametrize(
    "prefix",
    [PID_NAMESPACE, (*PID_NAMESPACE, *PID_NAMESPACE), ONLY_BPF],
    ids=["pid-namespace", "nested", "only-bpf"],
)
def test_numbers_equal_those_of_procfs_there(engine: KernelEngine, prefix: tuple[str, ...]) -> None:
    result = execute((*prefix, interpreter(prefix), "-c", _COMPARE))
    if "unshare failed" in result.stderr:
        missing(result.stderr)
    assert result.returncode == 0, result.stderr
    count, first = map(int, result.stdout.split())
    if prefix is not ONLY_BPF:
        # The comparing process is number 1 there, and has nobody else about it.
        assert count == 3
        assert first < 10


def test_an_interpreter_that_ends_in_the_middle_says_nothing(engine: KernelEngine) -> None:
    script = (
        "import sys\n"
        "from taskdiag import Request\n"
        "from taskdiag.kernel import KernelEngine\n"
        "engine = KernelEngine()\n"
        f"started, unread = (engine.stream(Request({int(EVERYTHING)}, 2)) for _ in range(2))\n"
        "next(started)\n"
        "sys.kept = engine, started, unread\n"  # until modules are taken apart
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
