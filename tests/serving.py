"""A service for tests, and requesters that ask it beside a procfs with hidepid=2."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import taskdiag
from conftest import missing, public_directory
from population import CLONE_NEWNS, MS_REC_PRIVATE, check, forked, libc, refused_to_root
from taskdiag.errors import NoSuchProcess
from taskdiag.service import ServiceEngine

if TYPE_CHECKING:
    from taskdiag.engine import Engine

#: A group that nobody is in: members of the mount's group are exempt from hidepid.
NO_GROUP = 54321


class Service:
    """A running ``taskdiag serve``: its process and the path of its socket."""

    def __init__(self, path: str, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process
        self.pid = process.pid

    def engine(self) -> ServiceEngine:
        return ServiceEngine(self.path)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Resident, in bytes."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(path: str, *args: str, prefix: tuple[str, ...] = (), **options: Any) -> Service:
    """Start a service and wait until it listens."""
    command = [*prefix, sys.executable, "-m", "taskdiag", "serve", "--socket", path, *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    assert process.stderr is not None
    said = [process.stderr.readline()]
    while said[-1] and b"listening" not in said[-1]:
        said.append(process.stderr.readline())
    if not said[-1]:
        rest = b"".join(said)
        process.wait()
        process.stderr.close()
        raise AssertionError(f"the service did not start: {rest.decode()}")
    os.set_blocking(process.stderr.fileno(), False)
    return Service(path, process)


def stop(service: Service) -> tuple[int, bytes]:
    """End a service with SIGTERM; its exit status and what it has logged."""
    process = service.process
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    assert process.stderr is not None
    log = process.stderr.read() or b""
    process.stderr.close()
    return status, log


@contextlib.contextmanager
def directory() -> Iterator[str]:
    """A temporary directory that everybody may look into."""
    with tempfile.TemporaryDirectory(prefix="taskdiag-", dir=public_directory()) as where:
        os.chmod(where, 0o755)
        yield where


@contextlib.contextmanager
def running(*args: str, **options: Any) -> Iterator[Service]:
    """A service that runs for a while."""
    if os.geteuid() != 0:
        missing("the service needs root")
    try:
        taskdiag.engine.choose("kernel")
    except (taskdiag.EngineUnavailable, ImportError) as error:
        missing(f"the kernel engine is not available: {error}")
    with directory() as where:
        service = start(f"{where}/socket", *args, **options)
        try:
            yield service
        finally:
            status, log = stop(service)
        assert status == 0, log
        assert b"internal error" not in log, log
        assert b"answer failed" not in log, log


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One service for the tests of a module."""
    with running() as it:
        yield it


# --- What hidepid=2 shows --------------------------------------------------------


def mount(kind: bytes, where: str, flags: int = 0, options: bytes = b"") -> None:
    check(libc.mount(kind, os.fsencode(where), kind, flags, options))


def hidepid() -> int:
    """A descriptor of a procfs with hidepid=2, of this process' pid namespace."""
    check(libc.unshare(CLONE_NEWNS))
    mount(b"none", "/", MS_REC_PRIVATE)
    with tempfile.TemporaryDirectory() as where:
        os.chmod(where, 0o755)
        mount(b"proc", where, 0, b"hidepid=2,gid=%d" % NO_GROUP)
        inside = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        check(libc.umount2(os.fsencode(where), 2))
    return inside


def listed(inside: int) -> set[int]:
    """The processes that a procfs lists."""
    return {int(name) for name in os.listdir(inside) if name.isdigit()}


def fingerprints(inside: int) -> dict[int, tuple[bytes, bytes]]:
    """The processes that a procfs lists, each with its name and when it started."""
    found = {}
    for pid in listed(inside):
        try:
            fd = os.open(f"{pid}/stat", os.O_RDONLY, dir_fd=inside)
        except OSError:
            continue
        with open(fd, "rb") as file, contextlib.suppress(OSError):
            head, _, rest = file.read().rpartition(b") ")
            found[pid] = head, rest.split()[19]
    return found


def started(pid: int) -> float:
    """When a process started, in ticks since boot; never if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return float(file.read().rpartition(b") ")[2].split()[19])
    except OSError:
        return float("inf")


def compare(
    path: str,
    become: Callable[[], Any],
    show: str = "base",
    wait: float = 0,
) -> dict[str, Any]:
    """In a forked process: what it sees in a hidepid=2 mount, by the service, and again."""

    def run() -> dict[str, Any]:
        return look(path, become, show, wait)

    answer: dict[str, Any] = forked(run)
    return answer


def look(
    path: str,
    become: Callable[[], Any],
    show: str,
    wait: float = 0,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """The same in this very process, which is not what it was afterwards.

    Everything is asked between the two listings: the processes of others come and go, get
    numbers that others had, and become other users.  ``steady`` are those that both
    listings show and that were the same, ``asked`` those that were asked for one by one,
    ``began`` is when that was, in ticks since boot.
    """
    inside = hidepid()
    become()
    engine = engine or ServiceEngine(path)
    began = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    before = fingerprints(inside)
    time.sleep(wait)
    found = [task.pid for task in taskdiag.dump(show, engine=engine)]
    assert found == sorted(set(found))
    asked = [*sorted(before)[-40:], 4_000_000]
    single = []
    for pid in asked:
        try:
            single += [task.pid for task in taskdiag.dump(show, pid=pid, engine=engine)]
        except NoSuchProcess:
            continue
    after = fingerprints(inside)
    return {
        "before": sorted(before), "found": found, "after": sorted(after), "single": single,
        "steady": [pid for pid in before if before[pid] == after.get(pid)],
        "asked": asked, "began": began, "self": os.getpid(),
    }  # fmt: skip


def kept_from_bpf() -> set[int]:
    """Processes that this host's security modules keep from everybody, or from iterators.

    Some hardened guests hide their first process.  What they hide says nothing about us.
    """
    shown = {task.pid for task in taskdiag.dump(0, engine="kernel")}
    from taskdiag.kernel import KernelEngine
    from taskdiag.kernel.viewer import Viewer

    plain = taskdiag.dump(0, engine=KernelEngine(viewer=Viewer()))
    return refused_to_root() | (shown - {task.pid for task in plain})


ROOT = Path(__file__).parent.parent
