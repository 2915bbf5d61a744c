"""Paths start at the root directory of who asks, as in the asker's own /proc.

The oracle is /proc/PID/maps, read by the asker.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import taskdiag
from conftest import missing, need, open_engine
from population import (
    CLONE_NEWNS,
    MS_REC_PRIVATE,
    PR_SET_DUMPABLE,
    check,
    end,
    forked,
    letter,
    libc,
    plain_user,
    prctl,
    until,
)
from serving import Service, directory, mount, running, service
from taskdiag import Request, Show
from taskdiag.decoder import decode
from taskdiag.errors import AccessDenied, EngineUnavailable
from taskdiag.kernel.facts import Facts
from taskdiag.kernel.identity_reader import Reader
from taskdiag.kernel.viewer_root import ViewerRoot
from taskdiag.service import ServiceEngine

pytestmark = pytest.mark.root
__all__ = ("service",)

MS_BIND, MS_REC, MNT_DETACH = 1 << 12, 1 << 14, 2
SHOWS = {"vma": Show.VMA, "vma_stat": Show.VMA_STAT, "all": sum(Show)}
_LINE = re.compile(rb"\S+ \S+ \S+ \S+ (\d+) *(.*)")

Ask = Callable[[int], list[list[str]]]


def mapped(where: str) -> int:
    """A process that stands still, with a file mapped whose name has a newline in it."""
    path = f"{where}/two\nlines"
    with open(path, "wb") as file:
        file.truncate(mmap.PAGESIZE)
    back, forth = os.pipe()
    pid = os.fork()
    if pid == 0:
        prctl(1, signal.SIGKILL)
        fd = os.open(path, os.O_RDONLY)
        held = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        os.write(forth, b".")
        while held is not None:
            signal.pause()
    os.read(back, 1)
    os.close(back)
    os.close(forth)
    return pid


def by_proc(proc: int, pid: int) -> list[str]:
    """The names of mapped files, from a descriptor of /proc."""
    fd = os.open(f"{pid}/maps", os.O_RDONLY, dir_fd=proc)
    with os.fdopen(fd, "rb") as file:
        found = [_LINE.fullmatch(line) for line in file.read().splitlines()]
    names = [one.group(2) for one in found if one is not None and int(one.group(1))]
    assert names
    return [os.fsdecode(name.replace(b"\\012", b"\n")) for name in names]


def names_in(stream: Any) -> list[str]:
    (task,) = decode(stream)
    return [os.fsdecode(vma.name) for vma in task.vmas or () if vma.inode and vma.name]


def by_socket(path: str) -> Ask:
    """Asks the service for the mappings of a process, in every way there is."""

    def ask(pid: int) -> list[list[str]]:
        engine = ServiceEngine(path)
        return [names_in(engine.stream(Request(show, 1, pid))) for show in SHOWS.values()]

    return ask


def by_file(path: str) -> Ask:
    def ask(pid: int) -> list[list[str]]:
        out = []
        for show in SHOWS.values():
            fd = os.open(path, os.O_RDWR)
            os.write(fd, Request(show, 1, pid).encode())
            out.append(names_in([b"".join(iter(lambda fd=fd: os.read(fd, 16384), b""))]))
            os.close(fd)
        return out

    return ask


def own_mounts() -> None:
    check(libc.unshare(CLONE_NEWNS))
    mount(b"none", "/", MS_REC_PRIVATE)


# --- Roots ---------------------------------------------------------------------------


def bound(where: str) -> None:
    """A chroot to the same tree, seen through a bind mount in a mount namespace of its own."""
    own_mounts()
    check(libc.mount(b"/", os.fsencode(where), None, MS_BIND | MS_REC, None))
    os.chroot(where)
    os.chdir("/")


def bound_nested(where: str) -> None:
    """A chroot in a chroot."""
    bound(where)
    bound(where)


def pivoted(where: str) -> None:
    """A container: the bind mount becomes the root of the mount namespace."""
    own_mounts()
    check(libc.mount(b"/", os.fsencode(where), None, MS_BIND | MS_REC, None))
    os.chdir(where)
    if not hasattr(libc, "pivot_root"):
        missing("the C library has no pivot_root()")
    check(libc.pivot_root(b".", b"."))
    check(libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


ROOTS: dict[str, Callable[[str], None]] = {
    "host": lambda where: None,
    "own mounts": lambda where: own_mounts(),
    "chroot": bound,
    "chroot in a chroot": bound_nested,
    "pivot_root": pivoted,
}


def look(where: str, become: Callable[[str], None], ask: Ask, user: bool) -> Any:
    """In a forked process with that root: the names in its own /proc, and in the answer."""

    def run() -> Any:
        with tempfile.TemporaryDirectory(dir=where) as root:
            os.chmod(root, 0o755)

            def inside() -> Any:
                become(root)
                if user:
                    plain_user()()
                pid = mapped(shared)
                try:
                    return [by_proc(os.open("/proc", os.O_RDONLY), pid), ask(pid)]
                finally:
                    end(pid)

            shared = tempfile.mkdtemp(dir=where)
            os.chmod(shared, 0o777)
            try:
                return forked(inside)
            finally:
                os.unlink(f"{shared}/two\nlines")
                os.rmdir(shared)

    return forked(run)


def agree(found: Any, show: dict[str, int] = SHOWS) -> None:
    expected, answers = found
    assert any(name.endswith("/two\nlines") for name in expected)
    for name, answer in zip(show, answers, strict=True):
        assert answer == expected, name


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
@pytest.mark.parametrize("kind", ROOTS)
def test_over_the_socket(service: Service, kind: str, user: bool) -> None:
    with directory() as where:
        agree(look(where, ROOTS[kind], by_socket(service.path), user))


@pytest.mark.parametrize("kind", ROOTS)
def test_through_the_file(kind: str) -> None:
    if not os.path.exists("/dev/fuse"):
        missing("there is no /dev/fuse")
    need("libfuse3.so")
    if importlib.util.find_spec("mfusepy") is None:
        missing("mfusepy is not installed: pip install mfusepy")
    with directory() as where:
        mountpoint = f"{where}/mount"
        os.mkdir(mountpoint)
        with running("--file", f"{mountpoint}/task_diag"):
            agree(look(where, ROOTS[kind], by_file(f"{mountpoint}/task_diag"), False))


def test_chroot_among_the_hosts_mounts(service: Service) -> None:
    """No mount tells this root from the host's; what lies outside keeps its whole path."""
    with directory() as where:
        pid = mapped(where)
        try:

            def run() -> Any:
                proc = os.open("/proc", os.O_RDONLY)
                folder, name = os.path.split(service.path)
                # Everything that is needed is imported by asking once.
                by_socket(service.path)(pid)
                os.chdir(folder)
                os.chroot("/usr")
                return [by_proc(proc, pid), by_socket(name)(pid)]

            found = forked(run)
        finally:
            end(pid)
        agree(found)
        assert any(name.startswith(where) for name in found[0])


def test_roots_do_not_mix(service: Service) -> None:
    """Clients with different roots, at the same time, over and over."""
    with directory() as where, contextlib.ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(dir=where))
        target = mapped(where)
        stack.callback(end, target)
        wait, go = os.pipe()
        answers = []
        for become in (bound, lambda root: None, bound, lambda root: None):
            back, forth = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    become(root)
                    os.read(wait, 1)
                    expected = by_proc(os.open("/proc", os.O_RDONLY), target)
                    good = all(
                        answer == expected
                        for _ in range(5)
                        for answer in by_socket(service.path)(target)
                    )
                    os.write(forth, b"same" if good else b"different")
                finally:
                    os._exit(0)
            os.close(forth)
            answers.append((pid, back))
        os.write(go, b"....")
        for pid, back in answers:
            assert os.read(back, 16) == b"same"
            os.close(back)
            os.waitpid(pid, 0)
        os.close(wait)
        os.close(go)


# --- Where the root cannot be taken -----------------------------------------------------


@pytest.fixture(scope="module")
def powerless() -> Iterator[Service]:
    with running(prefix=("setpriv", "--bounding-set=-sys_chroot")) as it:
        yield it


def test_refused_without_the_capability(powerless: Service) -> None:
    """Mappings are refused, so that the client goes on with /proc; the rest is answered."""

    def ask(pid: int) -> Any:
        engine = ServiceEngine(powerless.path)
        out = []
        for show in SHOWS.values():
            with pytest.raises(EngineUnavailable) as caught:
                engine.stream(Request(show, 1, pid))
            out.append(caught.value.errno)
        (task,) = decode(engine.stream(Request(Show.BASE | Show.CMDLINE, 1, pid)))
        assert task.pid == pid
        return out

    with directory() as where:
        _, codes = look(where, bound, ask, False)
    assert codes == [errno.EACCES] * len(SHOWS)


def test_another_engine_answers_then(powerless: Service) -> None:
    def ask(pid: int) -> list[list[str]]:
        os.environ["TASKDIAG_SOCKET"] = powerless.path
        return [
            [
                os.fsdecode(vma.name)
                for task in taskdiag.dump(show, pid=pid)
                for vma in task.vmas or ()
                if vma.inode and vma.name
            ]
            for show in SHOWS.values()
        ]

    with directory() as where:
        agree(look(where, bound, ask, True))


@pytest.mark.parametrize("kind", ["host", "own mounts", "pivot_root"])
def test_not_needed_elsewhere(powerless: Service, kind: str) -> None:
    """A client whose root is that of its mount namespace has the same paths as the service."""
    with directory() as where:
        agree(look(where, ROOTS[kind], by_socket(powerless.path), False))


@pytest.fixture
def reader() -> Iterator[Reader]:
    open_engine("kernel")
    it = Reader(Facts.live())
    yield it
    it.close()


def test_whoever_is_gone_or_changed(reader: Reader) -> None:
    def steps() -> list[int]:
        back, forth = os.pipe()
        pid = os.fork()
        if pid == 0:
            prctl(1, signal.SIGKILL)
            os.read(back, 1)
            os.chroot("/usr")
            os.chdir("/")
            while True:
                signal.pause()
        return [pid, forth]

    pid, go = steps()
    try:
        identity = reader.of_task(pid)
        forked(lambda: ViewerRoot.of(identity, reader).close())
        os.write(go, b".")
        while os.readlink(f"/proc/{pid}/root") != "/usr":
            time.sleep(0.01)
        with pytest.raises(AccessDenied, match="changed"):
            ViewerRoot.of(identity, reader)
    finally:
        os.close(go)
        end(pid)
    with pytest.raises(AccessDenied):
        ViewerRoot.of(identity, reader)


def test_an_exited_leader(reader: Reader) -> None:
    """Root and clock are those of the threads that go on."""
    from population import headless

    with headless() as it:
        found, own = reader.of_task(it.pid), reader.of_task(os.getpid())
        assert found.nr == it.pid
        # The leader itself has none any more.
        assert found.root is None
        tid = next(int(name) for name in os.listdir(f"/proc/{it.pid}/task") if int(name) != it.pid)
        thread = reader.of_task(tid)
        assert thread.root == own.root
        assert thread.tid == tid


def test_a_peer_whose_leader_has_exited(reader: Reader) -> None:
    """Root and clock of a peer are those of a thread that lives."""
    with directory() as where, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{where}/socket")
        listening.listen()
        pid = os.fork()
        if pid == 0:
            prctl(1, signal.SIGKILL)

            def connect() -> None:
                until(lambda: letter(os.getpid(), os.getpid()) == "Z", "the leader has exited")
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(f"{where}/socket")
                    sock.recv(1)
                os._exit(0)

            threading.Thread(target=connect).start()
            # exit(2) ends this thread alone.
            libc.pthread_exit(None)
        listening.settimeout(20)
        sock, _ = listening.accept()
        with sock:
            found, own = reader.of_socket(sock.fileno()), reader.of_task(os.getpid())
        end(pid)
    assert found.nr == pid
    assert found.root == own.root
    assert found.at_top == own.at_top


# --- One thread, one call -----------------------------------------------------------------


def test_only_for_the_call() -> None:
    def run() -> list[Any]:
        def here() -> list[int]:
            status = os.stat("/")
            return [status.st_dev, status.st_ino]

        before = here()
        root = ViewerRoot(os.open("/usr", os.O_PATH))
        out = [before, root.call(here), here()]
        with contextlib.suppress(ZeroDivisionError):
            root.call(lambda: 1 // 0)
        out.append(here())
        root.close()
        status = os.stat("/usr")
        return [*out, [status.st_dev, status.st_ino]]

    before, during, after, later, usr = forked(run)
    assert before == after == later
    assert during == usr


def test_what_cannot_be_entered() -> None:
    def run() -> str:
        with directory() as where, open(f"{where}/file", "w"):
            try:
                ViewerRoot(os.open(f"{where}/file", os.O_PATH))
            except AccessDenied as error:
                return str(error)
        return "entered"

    held = os.listdir("/proc/self/fd")
    assert "cannot be taken on" in forked(run)
    assert len(os.listdir("/proc/self/fd")) == len(held)


def test_a_root_that_cannot_be_restored_ends_the_process() -> None:
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_DUMPABLE, 0)
        root = ViewerRoot(os.open("/usr", os.O_PATH))

        def give_up() -> None:
            os.closerange(3, 64)

        root.call(give_up)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGABRT


def test_no_library_is_loaded_below_the_root() -> None:
    """The interpreter ends while a thread has another root, where there is no library."""
    script = """
import os, sys, threading
from taskdiag.kernel.viewer_root import ViewerRoot

ready, done = os.pipe()

def held(fd, size):
    os.write(done, b".")
    while True:
        os.pread(fd, size, 0)

def work():
    root = ViewerRoot(os.open(sys.argv[1], os.O_PATH))
    root.call(held, os.open("/proc/self/maps", os.O_RDONLY), 1 << 16)

threading.Thread(target=work, daemon=True).start()
os.read(ready, 1)
"""
    with directory() as where:
        done = subprocess.run(
            [sys.executable, "-c", script, where], check=False, capture_output=True, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")
