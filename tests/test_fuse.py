"""The file: open, write, read, as programs for the kernel interface of 2016 do."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

import taskdiag
from conftest import missing, need
from population import UNUSED_ID, Population, child, forked, plain_user, until
from serving import ROOT, Service, compare, directory, kept_from_bpf, running, start
from taskdiag import Dump, Request, Show
from taskdiag.decoder import decode

pytestmark = pytest.mark.root
EVERYTHING = int(sum(Show))


class Mounted:
    def __init__(self, path: str, service: Service) -> None:
        self.path = path
        self.service = service


def need_fuse() -> None:
    """Skip the test where FUSE cannot be served."""
    need("libfuse3.so")
    if not os.path.exists("/dev/fuse"):
        missing("there is no /dev/fuse")


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    need_fuse()
    with directory() as where:
        mountpoint = f"{where}/mount"
        os.mkdir(mountpoint)
        with running("--file", f"{mountpoint}/task_diag") as service:
            yield Mounted(f"{mountpoint}/task_diag", service)
        assert os.listdir(mountpoint) == []


@pytest.fixture
def file(mounted: Mounted) -> Iterator[int]:
    fd = os.open(mounted.path, os.O_RDWR)
    yield fd
    os.close(fd)


def read(fd: int, size: int = 16384) -> bytes:
    return b"".join(iter(lambda: os.read(fd, size), b""))


def refused(fd: int, data: bytes) -> int:
    with pytest.raises(OSError) as error:  # noqa: PT011
        os.write(fd, data)
    assert error.value.errno is not None
    return error.value.errno


def test_directory(mounted: Mounted) -> None:
    where, name = os.path.split(mounted.path)
    assert os.listdir(where) == [name]
    assert os.stat(mounted.path).st_mode & 0o7777 == 0o666
    with pytest.raises(FileNotFoundError):
        os.open(f"{where}/other", os.O_RDWR)
    with pytest.raises(PermissionError):
        forked_open(f"{where}/new")


def forked_open(path: str) -> None:
    def run() -> int:
        plain_user()()
        try:
            os.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            return error.errno or 0
        return 0

    code = forked(run)
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("show", [Show.BASE, Show.CMDLINE, EVERYTHING])
@pytest.mark.parametrize("strategy", [Dump.ONE, Dump.THREAD, Dump.CHILDREN])
def test_answers(file: int, population: Population, show: int, strategy: Dump) -> None:
    pid = os.getpid() if strategy == Dump.CHILDREN else population["threads"].pid
    request = Request(show, strategy, pid, seq=9)
    assert os.write(file, request.encode()) == 40
    found = {task.pid for task in decode([read(file)])}
    expected = {task.pid for task in taskdiag.dump("base", strategy, pid, engine="procfs")}
    assert found == expected


@pytest.mark.parametrize("size", [100, 4096, 16384, 1 << 20])
def test_reads_of_any_size(file: int, size: int) -> None:
    for show in (Show.BASE, Show.BASE | Show.CMDLINE):
        os.write(file, Request(show).encode())
        assert os.getpid() in {task.pid for task in decode([read(file, size)])}
        assert os.read(file, size) == b""


def test_busy_until_the_end(file: int) -> None:
    request = Request(Show.BASE).encode()
    os.write(file, request)
    assert refused(file, request) == errno.EBUSY
    os.read(file, 100)
    assert refused(file, request) == errno.EBUSY
    read(file)
    assert os.write(file, request) == 40
    assert read(file)


def test_errors(file: int) -> None:
    good = Request(Show.BASE, Dump.ONE, os.getpid()).encode()
    assert os.read(file, 100) == b""
    assert refused(file, Request(Show.BASE, Dump.ONE, 4_000_000).encode()) == errno.ESRCH
    assert refused(file, good[:39]) == errno.EINVAL
    assert refused(file, good[:24] + b"\5" + good[25:]) == errno.EINVAL
    assert refused(file, good[:4] + b"\x02\xd1" + good[6:]) == errno.EOPNOTSUPP
    assert os.read(file, 100) == b""
    assert os.write(file, good) == 40
    assert [task.pid for task in decode([read(file)])] == [os.getpid()]
    with pytest.raises(OSError, match="seek"):
        os.lseek(file, 0, os.SEEK_SET)


def test_hidden_is_missing(mounted: Mounted, population: Population) -> None:
    target = population["plain"].pid

    def run() -> list[int]:
        plain_user(UNUSED_ID, UNUSED_ID)()
        fd = os.open(mounted.path, os.O_RDWR)
        codes = []
        for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
            for pid in (target, 4_000_000):
                try:
                    os.write(fd, Request(Show.BASE, strategy, pid).encode())
                    codes.append(0)
                except OSError as error:
                    codes.append(error.errno or 0)
        os.write(fd, Request(Show.BASE).encode())
        return codes + [task.pid - os.getpid() for task in decode([read(fd)])]

    assert forked(run) == [errno.ESRCH] * 6 + [0]


def test_as_the_socket(mounted: Mounted, population: Population) -> None:
    """The same eyes, by whichever way."""
    for who in (plain_user(), plain_user(1001, 2002), plain_user(1001, 2001, dumpable=0)):

        def run(who: object = who) -> list[list[int]]:
            assert callable(who)
            who()
            fd = os.open(mounted.path, os.O_RDWR)
            os.write(fd, Request(Show.BASE).encode())
            by_file = [task.pid for task in decode([read(fd)])]
            engine = mounted.service.engine()
            return [by_file, [task.pid for task in taskdiag.dump("base", engine=engine)]]

        by_file, by_socket = forked(run)
        assert by_file == by_socket
        assert by_file


def test_the_opener_counts(mounted: Mounted) -> None:
    """Root reads a file that a user opened, and the other way round."""
    request = Request(Show.BASE, Dump.ONE, os.getpid()).encode()
    fd = os.open(mounted.path, os.O_RDWR)

    def run() -> int:
        plain_user()()
        os.write(fd, request)
        return len(read(fd))

    assert forked(run) > 0
    os.close(fd)


def test_reference_client(mounted: Mounted) -> None:
    """A C program for /proc/task_diag, whose headers are garbage, on one descriptor."""
    need("gcc", "/usr/include/stdio.h")
    with directory() as where:
        program = f"{where}/reference"
        source = str(ROOT / "examples/reference.c")
        subprocess.run(
            ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-o", program, source], check=True
        )
        pid = os.getpid()
        found = subprocess.run(
            [program, mounted.path, str(pid), "4000000", str(pid)],
            check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        assert found[1:] == ["1 messages, 76 bytes", "No such process", "1 messages, 76 bytes"]
        count, size = int(found[0].split()[0]), int(found[0].split()[2])
        assert size == 76 * count


def test_from_a_shell(mounted: Mounted) -> None:
    """Languages without a client: nothing but open, write and read."""
    script = 'exec 3<>"$1"; printf "$2" >&3; exec head -c 76 <&3'
    request = "".join(
        f"\\{byte:03o}" for byte in Request(Show.BASE, Dump.ONE, os.getpid()).encode()
    )
    data = subprocess.run(
        ["/bin/sh", "-c", script, "sh", mounted.path, request], check=True, capture_output=True
    ).stdout
    assert [task.pid for task in decode([data])] == [os.getpid()]


def test_no_file_is_left_open(mounted: Mounted) -> None:
    """close(2) does not wait for FUSE's RELEASE: an answer's descriptors are closed later."""

    def descriptors() -> list[str]:
        with open(f"/proc/{mounted.service.pid}/task/{mounted.service.pid}/children") as file:
            (pid,) = file.read().split()
        found = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        return found

    def use() -> None:
        for show in (Show.BASE, Show.CMDLINE):
            fd = os.open(mounted.path, os.O_RDWR)
            os.write(fd, Request(show).encode())
            os.read(fd, 100)
            os.close(fd)

    use()
    until(lambda: "anon_inode:bpf_iter" not in descriptors(), "the first answers are closed")
    before = len(descriptors())
    for _ in range(50):
        use()
    until(lambda: len(descriptors()) <= before, "all answers are closed")


def test_compared_with_hidepid(mounted: Mounted, population: Population) -> None:
    hidden = kept_from_bpf()
    answer = compare(mounted.service.path, plain_user())
    assert set(answer["before"]) & set(answer["after"]) - hidden <= set(answer["found"])


def test_killed() -> None:
    """The file of a service that was killed says so, and its mount is replaced."""
    need_fuse()
    with directory() as where, child():
        mountpoint = f"{where}/mount"
        os.mkdir(mountpoint)
        path = f"{mountpoint}/task_diag"
        with running("--file", path) as service:
            with open(f"/proc/{service.pid}/task/{service.pid}/children") as file:
                (pid,) = file.read().split()
            fd = os.open(path, os.O_RDWR)
            os.write(fd, Request(Show.CMDLINE).encode())
            os.read(fd, 40)
            os.kill(int(pid), signal.SIGKILL)
            with pytest.raises(OSError):  # noqa: PT011
                read(fd)
            with contextlib.suppress(OSError):
                os.close(fd)
            # The rest of the service ends with it: somebody has to start both again.
            assert service.process.wait(20) == 1
            service.process.returncode = 0
        with running("--file", path):
            fd = os.open(path, os.O_RDWR)
            os.write(fd, Request(Show.BASE).encode())
            assert read(fd)
            os.close(fd)


def test_bad_mountpoint() -> None:
    with directory() as where:
        os.mkdir(f"{where}/full")
        os.mkdir(f"{where}/full/of")
        for bad, why in (
            (f"{where}/none/file", "which .* is not"),
            (f"{where}/full/", "which .* is not"),
            (f"{where}/full/file", "empty directory"),
        ):
            with pytest.raises(AssertionError, match=f"--file needs .*{why}"):
                start(f"{where}/socket", "--file", bad)
