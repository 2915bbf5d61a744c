"""Names of mapped files of overlayfs: the kernel engine beside procfs and /proc/PID/maps."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

import taskdiag
from conftest import open_engine, public_directory
from population import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    HOSTILE_FILES,
    MS_REC_PRIVATE,
    check,
    forked,
    letter,
    libc,
    plain_user,
    until,
)
from serving import Service, mount, service
from taskdiag import Dump, Request, Show, Vma
from taskdiag.abi import DEFERRED, MSG, RESPONSE, Attr
from taskdiag.decoder import decode
from taskdiag.errors import NoSuchProcess
from taskdiag.kernel import KernelEngine, stacked, vma
from taskdiag.kernel.facts import Facts
from taskdiag.netlink import LONGEST, attr, pack_vma
from taskdiag.procfs import TaskReader
from taskdiag.procfs.reader import Directory
from taskdiag.service import ServiceEngine

__all__ = ("service",)

MS_BIND = 1 << 12
MAPPED = Show.BASE | Show.VMA

#: A process with few mappings of its own.  Each argument is a file that it maps three times:
#: two pages in two mappings, and the first page shared.  Then it takes commands.
MAPPER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, 9)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE
def mapped(path, times=1):
    fd = os.open(path, os.O_RDONLY)
    for _ in range(times):
        at = libc.mmap(None, 2 * PAGE, 1, 2, fd, 0)
        libc.mprotect(at + PAGE, PAGE, 3)
    libc.mmap(None, PAGE, 1, 1, fd, 0)
    os.close(fd)
    return at
single = None
def one(path):
    # In the place of the one before.
    global single
    fd = os.open(path, os.O_RDONLY)
    single = libc.mmap(single, PAGE, 1, 2 | (single and 0x10 or 0), fd, 0)
    os.close(fd)
for path in sys.argv[1:]:
    mapped(path)
print("ready", flush=True)
for line in sys.stdin.buffer:
    exec(line)
    print("done", flush=True)
"""


class Mapper:
    """A process that maps files; ``do`` has it run a line of Python."""

    def __init__(self, *paths: str | bytes) -> None:
        command = [sys.executable, "-S", "-E", "-c", MAPPER, *paths]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        self.pid = self.process.pid
        self._answer(b"ready\n")

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        self._answer(b"done\n")

    def _answer(self, expected: bytes) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == expected

    def __enter__(self) -> Mapper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Overlay:
    """An overlay, mounted at ``path``, with its lower and upper layer."""

    def __init__(self, where: str, lower: str = "") -> None:
        mount(b"tmpfs", where, 0, b"mode=755")
        self.lower = lower or f"{where}/lower"
        self.upper = f"{where}/upper"
        self.path = f"{where}/merged"
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{where}/{name}")
        layers = f"lowerdir={self.lower},upperdir={self.upper},workdir={where}/work"
        mount(b"overlay", self.path, 0, layers.encode())

    def below(self, name: str | bytes, layer: str = "lower") -> str:
        """Make a file in a layer; returns its path on the overlay."""
        name = os.fsdecode(name)
        Path(getattr(self, layer), name).write_bytes(bytes(2 * mmap.PAGESIZE))
        return f"{self.path}/{name}"


def within(function: Callable[[str], Any]) -> Any:
    """Call ``function(directory)`` in a forked process with mounts of its own."""
    open_engine("kernel")
    if vma.missing(Facts.live()):
        pytest.skip("mappings are not served by BPF here")
    if "\toverlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")

    def run() -> Any:
        check(libc.unshare(CLONE_NEWNS))
        mount(b"none", "/", MS_REC_PRIVATE)
        return function(where)

    with tempfile.TemporaryDirectory(prefix="taskdiag-", dir=public_directory()) as where:
        os.chmod(where, 0o755)
        return forked(run)


def folder(where: str, name: str) -> str:
    os.mkdir(f"{where}/{name}")
    return f"{where}/{name}"


def shown(pid: int) -> list[tuple[str, str, str, str, str]]:
    """What maps shows: range, offset, device, inode, name with its newlines escaped."""
    lines = Path(f"/proc/{pid}/maps").read_bytes().decode(errors="surrogateescape").split("\n")
    words = [line.split(" ", 5) for line in lines[:-1]]
    return [(w[0], w[2], w[3], w[4], w[5].lstrip(" ")) for w in words]


def as_shown(vmas: list[Vma] | None) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            f"{one.start:08x}-{one.end:08x}",
            f"{one.pgoff:08x}",
            f"{one.major:02x}:{one.minor:02x}",
            str(one.inode),
            (one.name or "").replace("\n", "\\012"),
        )
        for one in vmas or ()
    ]


def answers(
    engine: KernelEngine, show: int, strategy: Dump = Dump.ALL, pid: int = 0
) -> dict[int, taskdiag.Task]:
    """The tasks of an answer; no byte of the marker may be in it."""
    chunks = list(engine.stream(Request(show, strategy, pid)))
    assert engine.host.marker not in b"".join(chunks)
    return {task.pid: task for task in decode(chunks)}


def by_procfs(pid: int) -> list[Any]:
    (task,) = taskdiag.dump(Show.VMA, pid=pid, engine="procfs")
    # It does not know the generation.
    return [one._replace(generation=0) for one in task.vmas or ()]


def agree(engine: KernelEngine, pid: int, *, procfs: bool = True) -> None:
    """The answer for a process is what maps shows, by every strategy that includes it."""
    found = [
        answers(engine, MAPPED, Dump.ONE, pid)[pid],
        answers(engine, MAPPED, Dump.THREAD, pid)[pid],
        answers(engine, MAPPED | Show.CMDLINE)[pid],
        answers(engine, MAPPED, Dump.ALL_THREAD)[pid],
        answers(engine, MAPPED, Dump.CHILDREN, os.getpid())[pid],
    ]
    for task in found:
        assert as_shown(task.vmas) == shown(pid)
    if procfs:
        assert [one._replace(generation=0) for one in found[0].vmas or ()] == by_procfs(pid)


@contextlib.contextmanager
def counted(owner: Any, name: str) -> Iterator[list[Any]]:
    """The arguments of each call of a method, without the object."""
    real = getattr(owner, name)
    calls: list[Any] = []

    def call(self: Any, *args: Any) -> Any:
        calls.append(args)
        return real(self, *args)

    setattr(owner, name, call)
    try:
        yield calls
    finally:
        setattr(owner, name, real)


# --- All kinds of files -------------------------------------------------------------------


@pytest.mark.root
def test_files_of_both_layers() -> None:
    def run(where: str) -> None:
        layers = Overlay(where)
        paths = [layers.below("lower"), layers.below("upper", "upper"), layers.below("copied")]
        with open(paths[2], "ab") as file:
            file.write(b"x")
        paths += [layers.below(name) for name in HOSTILE_FILES]
        long = f"{layers.lower}/{'d' * 200}/{'e' * 200}"
        os.makedirs(long)
        # One that the program can be given, one that is too long for that.
        paths += [layers.below(f"{'d' * 200}/f"), layers.below(f"{'d' * 200}/{'e' * 200}/f")]
        engine = KernelEngine()
        with Mapper(*paths) as one, Mapper(*paths, "/usr/bin/env", paths[0]) as two:
            with counted(TaskReader, "read") as reads:
                for it in (one, two):
                    agree(engine, it.pid, procfs=False)
            # None of them was left to procfs.
            pids = {one.pid, two.pid}
            assert not [args for args in reads if args[1] in pids]
            for it in (one, two):
                agree(engine, it.pid)
            names = {name for *_, name in shown(one.pid)}
            assert {path.replace("\n", "\\012") for path in paths} <= names

    within(run)


@pytest.mark.root
def test_deleted_and_renamed() -> None:
    """Also between two answers of one program, which has been given the earlier name."""

    def run(where: str) -> None:
        layers = Overlay(where)
        paths = {
            name: layers.below(name, layer)
            for layer in ("lower", "upper")
            for name in (f"{layer}-deleted", f"{layer}-renamed", f"{layer}-linked")
        }
        engine = KernelEngine()
        with Mapper(*paths.values()) as one, Mapper(*paths.values()) as two:
            agree(engine, one.pid)
            for name, path in paths.items():
                if "deleted" in name:
                    os.unlink(path)
                elif "linked" in name:
                    os.link(path, path + "-again")
                    os.unlink(path)
                else:
                    os.mkdir(path + "-into")
                    os.rename(path, f"{path}-into/there")
            for it in (one, two):
                agree(engine, it.pid)
            names = [name for *_, name in shown(two.pid)]
            assert sum(name.endswith(" (deleted)") for name in names) >= 4 * 3
            assert any(name.endswith("upper-renamed-into/there") for name in names)

    within(run)


@pytest.mark.root
def test_two_containers_with_one_lower_layer() -> None:
    """The same files below, under two paths."""

    def run(where: str) -> None:
        first = Overlay(folder(where, "a"))
        paths = [first.below("one"), first.below("two")]
        second = Overlay(folder(where, "b"), first.lower)
        others = [path.replace(first.path, second.path) for path in paths]
        engine = KernelEngine()
        with Mapper(*paths) as one, Mapper(*others) as two, Mapper(*others, *paths) as both:
            for it in (one, two, both):
                agree(engine, it.pid)
            everybody = answers(engine, MAPPED)
            names = {one.name for one in everybody[both.pid].vmas or ()}
            assert {*paths, *others} <= names

    within(run)


def two_mounts(where: str) -> tuple[str, str]:
    """The paths of one file on an overlay that is mounted twice."""
    layers = Overlay(folder(where, "a"))
    bind = folder(where, "bind")
    check(libc.mount(os.fsencode(layers.path), os.fsencode(bind), None, MS_BIND, None))
    return layers.below("file"), f"{bind}/file"


@pytest.mark.root
def test_one_file_through_two_mounts() -> None:
    def run(where: str) -> None:
        path, other = two_mounts(where)
        engine = KernelEngine()
        with Mapper(path, other) as one, Mapper(other) as two:
            for it in (one, two):
                agree(engine, it.pid)

    within(run)


@pytest.mark.root
@pytest.mark.parametrize(("times", "name"), [(100, "f"), (110, "n" * 250), (130, "f"), (400, "f")])
def test_about_as_many_as_a_message_holds(times: int, name: str) -> None:
    """With names, the message may be too long for one, or already without them."""

    def run(where: str) -> None:
        layers = Overlay(where)
        os.makedirs(f"{layers.lower}/{'d' * 250}")
        path = layers.below(f"{'d' * 250}/{name}")
        engine = KernelEngine()
        with Mapper(path) as it:
            it.do(f"mapped({path!r}, {times})")
            agree(engine, it.pid)

    within(run)


@pytest.mark.root
def test_a_path_longer_than_the_longest() -> None:
    def run(where: str) -> None:
        layers = Overlay(where)
        with Mapper() as it:
            it.do(f"os.chdir({layers.path!r})")
            for _ in range(17):
                it.do(f"os.mkdir({'d' * 250!r}), os.chdir({'d' * 250!r})")
            it.do(f"open('f', 'wb').write(bytes({2 * mmap.PAGESIZE}))")
            it.do("mapped('f')")
            assert max(len(name) for *_, name in shown(it.pid)) > 4096
            agree(KernelEngine(), it.pid)
            it.do("os.chdir('/')")

    within(run)


# --- How often /proc is read ---------------------------------------------------------------


@pytest.mark.root
def test_each_file_is_looked_up_once() -> None:
    def run(where: str) -> None:
        layers = Overlay(where)
        programs = [f"{layers.path}/{name}" for name in ("one", "two", "three")]
        for program in programs:
            shutil.copy(shutil.which("sleep") or "", program)
        engine = KernelEngine()
        with contextlib.ExitStack() as stack:
            pids = []
            for index in range(300):
                process = subprocess.Popen([programs[index % 3], "1000"])
                pids.append(process.pid)
                stack.callback(process.wait)
                stack.callback(process.kill)
            for pid in pids:
                until(lambda pid=pid: letter(pid) == "S", "it sleeps")
            with (
                counted(TaskReader, "read") as completed,
                counted(stacked.StackedNames, "_read") as lookups,
            ):
                found = answers(engine, MAPPED)
            assert not {args[1] for args in completed} & set(pids)
            keys = [key for tid, wanted in lookups if tid in pids for key in wanted]
            assert len(keys) == len(set(keys)) == 3
            for pid in pids:
                assert as_shown(found[pid].vmas) == shown(pid)

    within(run)


# --- Changes between the kernel's answer and the look at /proc -----------------------------


def before_reading(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> list[int]:
    """Call ``action`` before maps is read for the first time."""
    done: list[int] = []
    real = stacked.StackedNames._read

    def read(self: stacked.StackedNames, tid: int, wanted: set[bytes]) -> Any:
        if not done:
            done.append(tid)
            action()
        return real(self, tid, wanted)

    monkeypatch.setattr(stacked.StackedNames, "_read", read)
    return done


@pytest.mark.root
@pytest.mark.parametrize("strategy", [Dump.ONE, Dump.THREAD, Dump.CHILDREN])
def test_another_file_in_the_same_place(monkeypatch: pytest.MonkeyPatch, strategy: Dump) -> None:
    """No record has the numbers of one file and the name of the other."""

    def run(where: str) -> None:
        layers = Overlay(where)
        first, second = layers.below("first"), layers.below("second")
        engine = KernelEngine()
        with Mapper() as it:
            it.do(f"one({first!r})")
            done = before_reading(monkeypatch, lambda: it.do(f"one({second!r})"))
            pid = os.getpid() if strategy == Dump.CHILDREN else it.pid
            task = answers(engine, MAPPED, strategy, pid)[it.pid]
            assert done == [it.pid]
            assert as_shown(task.vmas) == shown(it.pid)
            assert second in {one.name for one in task.vmas or ()}

    within(run)


@pytest.mark.root
@pytest.mark.parametrize("again", [False, True])
def test_a_task_cannot_choose_the_name_that_others_get(
    monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It maps the same file in the same place by another mount, only while maps is read."""

    def run(where: str) -> None:
        path, other = two_mounts(where)
        engine = KernelEngine()
        real = stacked._shown
        calls = []
        with Mapper() as bad, Mapper(path) as good:
            bad.do(f"one({path!r})")

            def maps(directory: Directory, heads: dict[bytes, bytes]) -> dict[bytes, bytes]:
                calls.append(directory.where)
                bad.do(f"one({other!r})")
                found = real(directory, heads)
                if again:
                    bad.do(f"one({path!r})")
                return found

            monkeypatch.setattr(stacked, "_shown", maps)
            found = answers(engine, MAPPED, Dump.CHILDREN, os.getpid())
            assert calls[0] == str(bad.pid)
            for it in (bad, good):
                assert as_shown(found[it.pid].vmas) == shown(it.pid)

    within(run)


@pytest.mark.root
def test_gone_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(where: str) -> None:
        layers = Overlay(where)
        path = layers.below("file")
        engine = KernelEngine()
        with Mapper(path) as one:
            before_reading(monkeypatch, lambda: one.__exit__())
            with pytest.raises(NoSuchProcess):
                answers(engine, MAPPED, Dump.ONE, one.pid)
        with Mapper(path) as one, Mapper(path) as two:
            monkeypatch.undo()
            before_reading(monkeypatch, lambda: one.__exit__())
            found = answers(engine, MAPPED, Dump.CHILDREN, os.getpid())
            assert one.pid not in found
            assert as_shown(found[two.pid].vmas) == shown(two.pid)

    within(run)


@pytest.mark.root
def test_executed_another_program_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(where: str) -> None:
        layers = Overlay(where)
        path = layers.below("file")

        def execute() -> None:
            assert it.process.stdin is not None
            it.process.stdin.write(b"os.execv('/bin/sleep', ['sleep', '1000'])\n")
            it.process.stdin.flush()
            comm = Path(f"/proc/{it.pid}/comm")
            until(lambda: comm.read_bytes() == b"sleep\n", "it is sleep")
            until(lambda: "libc" in Path(f"/proc/{it.pid}/maps").read_text(), "it has started")
            # The linker goes on changing the mappings until then.
            until(lambda: letter(it.pid) == "S", "it sleeps")

        engine = KernelEngine()
        with Mapper(path) as it:
            done = before_reading(monkeypatch, execute)
            task = answers(engine, MAPPED, Dump.ONE, it.pid)[it.pid]
            assert done
            assert path not in {one.name for one in task.vmas or ()}
            assert as_shown(task.vmas) == shown(it.pid)

    within(run)


@pytest.mark.root
def test_a_name_that_cannot_be_known_for_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """maps escapes a newline, but not a backslash; the link in map_files is looked at."""

    def run(where: str) -> None:
        layers = Overlay(where)
        paths = [layers.below(b"a\nb"), layers.below(b"a\\012b")]
        engine = KernelEngine()
        with Mapper() as it:
            it.do(f"one({paths[0]!r})")
            real = Directory.readlink

            def readlink(self: Directory, name: str) -> bytes:
                monkeypatch.setattr(Directory, "readlink", real)
                it.do(f"one({paths[1]!r})")
                return real(self, name)

            monkeypatch.setattr(Directory, "readlink", readlink)
            task = answers(engine, MAPPED, Dump.ONE, it.pid)[it.pid]
            assert as_shown(task.vmas) == shown(it.pid)
            assert [one.name for one in task.vmas or () if one.name in paths] == paths[1:]

    within(run)


# --- For others ----------------------------------------------------------------------------


def names_by(socket: str, pid: int, show: Show = MAPPED) -> list[Any]:
    found = {task.pid: task for task in decode(ServiceEngine(socket).stream(Request(show)))}
    return as_shown(found[pid].vmas)


@pytest.mark.root
@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
def test_roots_of_clients(service: Service, user: bool) -> None:
    """Clients with different roots, one after the other: the program keeps no name."""

    def run(where: str) -> None:
        layers = Overlay(folder(where, "overlay"))
        path = layers.below("two\nlines")
        mount(b"proc", folder(where, "proc"))
        socket, inside = os.path.dirname(service.path), folder(where, "service")
        check(libc.mount(os.fsencode(socket), os.fsencode(inside), None, MS_BIND, None))

        def client(chroot: bool) -> list[Any]:
            def ask() -> list[Any]:
                socket = service.path
                if chroot:
                    os.chroot(where)
                    os.chdir("/")
                    socket = f"/service/{os.path.basename(socket)}"
                if user:
                    plain_user()()
                return [[list(line) for line in shown(pid)], names_by(socket, pid)]

            expected, found = forked(ask)
            assert found == expected
            return [name for *_, name in found]

        with Mapper(path) as it:
            pid = it.pid
            if user:
                it.do("os.setgroups([]), os.setresgid(*[2001] * 3), os.setresuid(*[1001] * 3)")
                it.do("libc.prctl(4, 1)")
            seen = [client(chroot) for chroot in (True, False, True, False)]
        assert seen[0] == seen[2]
        assert seen[1] == seen[3]
        escaped = path.replace("\n", "\\012")
        assert escaped in seen[1]
        assert escaped.removeprefix(where) in seen[0]

    within(run)


@pytest.mark.root
def test_a_client_in_another_pid_namespace(service: Service) -> None:
    """Processes are found in our /proc although the client knows them by other numbers."""

    def run(where: str) -> Any:
        layers = Overlay(folder(where, "overlay"))
        path = layers.below("file")
        proc = folder(where, "proc")
        check(libc.unshare(CLONE_NEWPID))

        def inside() -> list[Any]:
            mount(b"proc", proc)
            with Mapper(path) as it:
                lines = Path(f"{proc}/{it.pid}/maps").read_text().splitlines()
                names = [line.split(" ", 5)[5].strip() for line in lines]
                found = names_by(service.path, it.pid)
                return [names, [name for *_, name in found]]

        expected, found = forked(inside)
        assert found == expected
        assert path in found

    within(run)


@pytest.mark.root
def test_the_descriptor_of_an_iterator_has_no_such_records() -> None:
    engine: Any = open_engine("kernel")
    for strategy in Dump:
        assert engine.open(Request(MAPPED, strategy, os.getpid())) is None


# --- Completing records ---------------------------------------------------------------------

MARKER = b"a marker 12b"


def record(start: int, key: int) -> bytes:
    head = Struct("=QQQQIIQI").pack(start, start + 4096, 1, 0, 1, 2, key, 0)
    return head + MARKER + vma.KEY.pack(*[key] * 7) + vma.STAMP.pack(start)


def message(records: list[bytes], pid: int = 7) -> bytes:
    body = attr(Attr.CMDLINE, b"x" * 5) + attr(Attr.VMA, b"".join(records))
    return MSG.pack(MSG.size + len(body), RESPONSE, 2, 0, 0, pid, pid, 0) + body


class Names(stacked.StackedNames):
    """Instead of /proc, names that the test gives."""

    def __init__(self, name: Callable[[int], bytes | None]) -> None:
        self.told: list[tuple[bytes, bytes]] = []
        self.asked: list[int] = []
        super().__init__(-1, MARKER, lambda tid: b"", None, lambda *item: self.told.append(item))
        self._name_of = name

    def _read(self, tid: int, wanted: set[bytes]) -> dict[bytes, bytes]:
        keys = {key: vma.KEY.unpack(key)[0] for key in sorted(wanted)}
        self.asked += keys.values()
        found = {key: self._name_of(number) for key, number in keys.items()}
        return {key: name for key, name in found.items() if name}


def test_records_are_completed_in_place() -> None:
    names = Names(lambda key: b"/file/%d" % key)
    plain = pack_vma(1, 2, 3, 4, 5, 6, 7, 8, b"/plain")
    data = (
        message([plain], 1)
        + message([record(0, 1), plain, record(4096, 2), record(8192, 1)], 2)
        + message([plain], 3)
        + message([record(0, 2)], 4)
    )

    def named(start: int, key: int) -> bytes:
        return pack_vma(start, start + 4096, 1, 0, 1, 2, key, 0, b"/file/%d" % key)

    assert names.complete(data) == (
        message([plain], 1)
        + message([named(0, 1), plain, named(4096, 2), named(8192, 1)], 2)
        + message([plain], 3)
        + message([named(0, 2)], 4)
    )
    assert names.asked == [1, 2]
    assert [(vma.KEY.unpack(key)[0], name) for key, name in names.told] == [
        (1, b"/file/1"), (2, b"/file/2"),
    ]  # fmt: skip


def test_messages_that_cannot_be_completed_are_deferred() -> None:
    names = Names(lambda key: None if key == 1 else b"/" + b"x" * (4000 if key == 2 else 4))
    bad, long = message([record(0, 3), record(0, 1)], 1), message([record(0, 2)] * 20, 2)
    found = names.complete(bad + message([record(0, 3)], 3) + long)
    cut = MSG.size + 12
    for pid in (1, 2):
        at = 0 if pid == 1 else len(found) - cut
        length, *_, flags = MSG.unpack_from(found, at)
        assert (length, flags, MSG.unpack_from(found, at)[5]) == (cut, DEFERRED, pid)
    assert MARKER not in found
    assert all(len(one) <= LONGEST for one in (bad, long))
    assert found[cut:-cut] == message([pack_vma(0, 4096, 1, 0, 1, 2, 3, 0, b"/xxxx")], 3)


def test_no_more_names_than_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "_REMEMBERED", 4)
    names = Names(lambda key: b"/%d" % key)
    for first in (0, 2, 4, 0):
        data = message([record(0, key) for key in range(first, first + 3)])
        assert names.complete(data) == message(
            [pack_vma(0, 4096, 1, 0, 1, 2, key, 0, b"/%d" % key) for key in range(first, first + 3)]
        )
        assert len(names._known) <= 4
    assert names.asked == [0, 1, 2, 2, 3, 4, 4, 5, 6, 0, 1, 2]
