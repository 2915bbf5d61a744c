"""The file: open, write, read, as programs for the kernel interface of 2016 do."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import mmap
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskdiag
from conftest import missing, need
from population import UNUSED_ID, Population, child, forked, libc, plain_user, until
from serving import ROOT, Service, compare, directory, kept_from_bpf, running, start
from taskdiag import Dump, EngineUnavailable, Request, RequestError, Show
from taskdiag.abi import Attr
from taskdiag.decoder import decode
from taskdiag.netlink import messages, pack_task, shorten
from taskdiag.service import answer, mount
from taskdiag.service.answer import LONGEST_MESSAGE, MessageBuffer
from taskdiag.service.mount import Mountpoint

pytestmark = pytest.mark.root
EVERYTHING = int(sum(Show))
LIBRARIES = {"libfuse 3": "libfuse3.so.3", "libfuse 2": "libfuse.so.2"}
TOOLS = {"libfuse 3": "libfuse3.so", "libfuse 2": "libfuse.so.2"}


class Mounted:
    def __init__(self, path: str, service: Service) -> None:
        self.path = path
        self.service = service


def need_fuse() -> None:
    """Skip the test where FUSE cannot be served."""
    if not os.path.exists("/dev/fuse"):
        missing("there is no /dev/fuse")
    if importlib.util.find_spec("mfusepy") is None:
        missing("mfusepy is not installed: pip install mfusepy")


def environment(library: str) -> dict[str, str]:
    """For a service that takes that library."""
    need(TOOLS[library])
    need_fuse()
    return {**os.environ, "FUSE_LIBRARY_PATH": LIBRARIES[library]}


@pytest.fixture(scope="module", params=LIBRARIES)
def mounted(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    env = environment(request.param)
    with directory() as where:
        with running("--file", f"{where}/mount/task_diag", env=env) as service:
            yield Mounted(f"{where}/mount/task_diag", service)
        # Made for the mount, and removed with it.
        assert os.listdir(where) == []


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, str]]:
    """The C programs, compiled."""
    need("gcc", "/usr/include/stdio.h")
    with directory() as where:
        found = {}
        for source in (ROOT / "examples/reference.c", ROOT / "tests/c/file.c"):
            found[source.stem] = f"{where}/{source.stem}"
            subprocess.run(
                ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-o", found[source.stem], source],
                check=True,
            )
        yield found


def file_process(service: Service) -> int:
    """The process that serves the file."""
    with open(f"/proc/{service.pid}/task/{service.pid}/children") as file:
        (pid,) = file.read().split()
    return int(pid)


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
@pytest.mark.parametrize("show", [Show.BASE, Show.BASE | Show.STAT | Show.STATM])
def test_each_read_returns_whole_messages(file: int, size: int, show: Show) -> None:
    size = max(size, 300)
    os.write(file, Request(show).encode())
    pieces = list(iter(lambda: os.read(file, size), b""))
    assert os.read(file, size) == b""
    found: list[int] = []
    for index, piece in enumerate(pieces):
        lengths = [end - at for at, end, *_ in messages(piece)]
        found += [pid for _, _, pid, *_ in messages(piece)]
        if index + 1 < len(pieces) and size <= 16384:
            # As many as fit: the first of the next read did not.
            following = next(end - at for at, end, *_ in messages(pieces[index + 1]))
            assert sum(lengths) + following > size
    assert found == sorted(set(found))
    assert os.getpid() in found


def test_long_messages_go_on_in_others(file: int, mounted: Mounted) -> None:
    """Command lines and mappings beyond 16,384 bytes, which a u16 still holds and not."""

    def setup() -> list[int]:
        held = [mmap.mmap(-1, mmap.PAGESIZE, prot=1 + index % 2) for index in range(2000)]
        globals()["held"] = held
        return []

    arguments = [str(number) * 50 for number in range(2000)]
    command = ["/bin/sh", "-c", "echo; read line", *arguments]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell,
        child(setup) as it,
    ):
        assert shell.stdout is not None
        shell.stdout.readline()
        for pid in (it.pid, shell.pid):
            os.write(file, Request(EVERYTHING, Dump.ONE, pid, seq=3).encode())
            pieces = list(iter(lambda: os.read(file, 16384), b""))
            assert len(pieces) > 1
            for piece in pieces:
                assert all(end - at <= 16384 for at, end, *_ in messages(piece))
            (task,) = decode([b"".join(pieces)])
            (same,) = taskdiag.dump(EVERYTHING, pid=pid, engine=mounted.service.engine())
            assert task.cmdline == same.cmdline
            assert task.vmas is not None
            assert same.vmas is not None
            assert [(vma.start, vma.name) for vma in task.vmas] == [
                (vma.start, vma.name) for vma in same.vmas
            ]
        shell.communicate(b"\n")


def test_a_message_that_does_not_fit_stays(file: int) -> None:
    os.write(file, Request(EVERYTHING, Dump.ONE, os.getpid()).encode())
    for _ in range(2):
        with pytest.raises(OSError, match="too long") as error:
            os.read(file, 300)
        assert error.value.errno == errno.EMSGSIZE
    (task,) = decode([read(file)])
    assert task.pid == os.getpid()


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
    """What is wrong with the form of a request is said at the write, the rest at the read."""
    good = Request(Show.BASE, Dump.ONE, os.getpid()).encode()
    assert os.read(file, 100) == b""
    assert refused(file, good[:39]) == errno.EINVAL
    assert refused(file, good[:24] + b"\5" + good[25:]) == errno.EINVAL
    assert refused(file, good[:4] + b"\x02\xd1" + good[6:]) == errno.EOPNOTSUPP
    assert os.read(file, 100) == b""
    for pid in (0, 4_000_000, 0xFFFFFFFF):
        assert os.write(file, good[:32] + pid.to_bytes(4, "little") + good[36:]) == 40
        assert answered(file) == errno.ESRCH
        assert os.read(file, 100) == b""
    assert os.write(file, good) == 40
    assert [task.pid for task in decode([read(file)])] == [os.getpid()]


def answered(fd: int) -> int:
    """The errno of a read, 0 if it gives something."""
    try:
        return 0 if os.read(fd, 16384) else -1
    except OSError as error:
        return error.errno or -1


def test_hidden_is_missing(mounted: Mounted, population: Population) -> None:
    target = population["plain"].pid

    def run() -> list[int]:
        plain_user(UNUSED_ID, UNUSED_ID)()
        fd = os.open(mounted.path, os.O_RDWR)
        codes = []
        for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
            for pid in (target, 4_000_000):
                os.write(fd, Request(Show.BASE, strategy, pid).encode())
                codes.append(answered(fd))
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


def test_reference_client(mounted: Mounted, programs: dict[str, str]) -> None:
    """A C program for /proc/task_diag, whose headers are garbage, on one descriptor."""
    pid = str(os.getpid())
    found = subprocess.run(
        [programs["reference"], mounted.path, pid, "4000000", pid],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    assert found[1:] == ["1 messages, 76 bytes", "No such process", "1 messages, 76 bytes"]
    count, size = int(found[0].split()[0]), int(found[0].split()[2])
    assert size == 76 * count


@pytest.mark.parametrize(
    "scenario",
    ["second request", "lseek", "writes", "two descriptors", "stops half way", "unknown pid",
     "small buffer", "sizes"],
)  # fmt: skip
def test_c_program(mounted: Mounted, programs: dict[str, str], scenario: str) -> None:
    """What C programs do with a file: tests/c/file.c."""
    done = subprocess.run(
        [programs["file"], mounted.path, scenario, str(os.getpid())],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


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
    """No iterator, and no /proc that completes an answer.

    The kernel does not wait for an answer when it tells a file system that a file was
    closed, so what it held goes a little later.  Threads of libfuse have pipes of their
    own, and come and go.
    """
    pid = file_process(mounted.service)

    def held() -> list[str]:
        names = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        return [name for name in names if "bpf_iter" in name or name.startswith("/proc")]

    until(lambda: not held(), "nothing is read")
    for show, times in ((Show.BASE, 40), (Show.CMDLINE, 40), (Show.BASE | Show.VMA_STAT, 2)):
        for _ in range(times):
            fd = os.open(mounted.path, os.O_RDWR)
            os.write(fd, Request(show).encode())
            os.read(fd, 16384)
            os.close(fd)
    until(lambda: not held(), "all is closed")


def test_compared_with_hidepid(mounted: Mounted, population: Population) -> None:
    hidden = kept_from_bpf()
    answer = compare(mounted.service.path, plain_user())
    assert set(answer["steady"]) - hidden <= set(answer["found"])


def test_libfuse_3_is_preferred() -> None:
    """The binding by itself takes libfuse 2 where both are installed."""
    environment("libfuse 3")
    env = {name: value for name, value in os.environ.items() if name != "FUSE_LIBRARY_PATH"}
    with (
        directory() as where,
        running("--file", f"{where}/mount/task_diag", env=env) as service,
        open(f"/proc/{file_process(service)}/maps") as maps,
    ):
        text = maps.read()
        assert "libfuse3.so" in text
        assert "libfuse.so.2" not in text


def test_without_libfuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are named that bring what is missing."""

    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(mount.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match="pip install mfusepy"):
        mount.load_binding()
    monkeypatch.setattr(mount.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(mount.ctypes, "CDLL", nothing)
    with pytest.raises(EngineUnavailable, match=r"libfuse3-3 of Debian.*fuse3-libs of Fedora"):
        mount.load_binding()


@pytest.mark.parametrize("library", LIBRARIES)
def test_killed(library: str) -> None:
    """The file of a service that was killed says so, and its mount is replaced."""
    env = environment(library)
    with directory() as where, child():
        path = f"{where}/mount/task_diag"
        with running("--file", path, env=env) as service:
            fd = os.open(path, os.O_RDWR)
            os.write(fd, Request(Show.CMDLINE).encode())
            os.read(fd, 16384)
            os.kill(file_process(service), signal.SIGKILL)
            with pytest.raises(OSError):  # noqa: PT011
                read(fd)
            with contextlib.suppress(OSError):
                os.close(fd)
            # The rest of the service ends with it: somebody has to start both again.
            assert service.process.wait(20) == 1
            service.process.returncode = 0
        both_killed(path, env)
        with running("--file", path, env=env):
            fd = os.open(path, os.O_RDWR)
            os.write(fd, Request(Show.BASE).encode())
            assert read(fd)
            os.close(fd)
            # But not from one that lives.
            with pytest.raises(EngineUnavailable, match="another service serves a file there"):
                Mountpoint(path).prepare()
        # It was there before this service, so it stays.
        assert os.listdir(where) == ["mount"]


def both_killed(path: str, env: dict[str, str]) -> None:
    """Leave a mount behind that nobody serves."""
    with directory() as where:
        service = start(f"{where}/socket", "--file", path, env=env)
        # The first would end by the death of the second.
        os.kill(service.pid, signal.SIGSTOP)
        os.kill(file_process(service), signal.SIGKILL)
        service.process.kill()
        service.process.wait()
        assert service.process.stderr is not None
        service.process.stderr.close()

    def dead() -> bool:
        try:
            os.statvfs(path)
        except OSError as error:
            return error.errno == errno.ENOTCONN
        return False

    # The second is not our child, and dies when it can.
    until(dead, "nobody serves the mount")


def test_dead_mounts_of_others_are_left_alone() -> None:
    need_fuse()
    with directory() as where:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        assert libc.mount(b"photos", where.encode(), b"fuse.other", 0, options) == 0
        try:
            os.close(device)
            with pytest.raises(EngineUnavailable, match="mount of photos whose server is gone"):
                Mountpoint(f"{where}/task_diag").prepare()
            assert f" {where} " in Path("/proc/self/mountinfo").read_text()
        finally:
            libc.umount2(where.encode(), 2)


def test_bad_mountpoint() -> None:
    with directory() as where:
        os.mkdir(f"{where}/full")
        os.mkdir(f"{where}/full/of")
        Path(f"{where}/plain").touch()
        for bad, why in (
            (f"{where}/none/at all/file", "there is no directory '.*/none'; .*only the last one"),
            (f"{where}/full/", "does not name a file"),
            (f"{where}/full/..", "does not name a file"),
            (f"{where}/full/file", "needs an empty directory"),
            (f"{where}/plain/file", "plain' is not a directory"),
        ):
            with pytest.raises(RequestError, match=f"--file.*{why}"):
                Mountpoint(bad).prepare()
        assert sorted(os.listdir(where)) == ["full", "plain"]
        with pytest.raises(AssertionError, match="--file: there is no directory"):
            start(f"{where}/socket", "--file", f"{where}/none/at all/file")


def test_a_mount_that_would_hide_the_socket() -> None:
    with directory() as where:
        os.mkdir(f"{where}/deep")
        os.symlink(where, f"{where}/deep/link")
        for socket in (f"{where}/socket", f"{where}/deep/socket", f"{where}/deep/link/socket"):
            with pytest.raises(AssertionError, match=r"a mount at .* would hide the socket"):
                start(socket, "--file", f"{where}/task_diag")
        Mountpoint(f"{where}/mount/task_diag").refuse_above(f"{where}/mount2/socket")
        assert os.listdir(where) == ["deep"]


# --- Cutting -----------------------------------------------------------------------


def message(length: int) -> bytes:
    return length.to_bytes(4, "little") + bytes(length - 4)


@pytest.mark.parametrize("lengths", [[28], [40] * 100, [40, 44] * 50, [28, 5000, 32, 16384, 28]])
@pytest.mark.parametrize("size", [40, 100, 5000, 16384, 100_000])
def test_message_buffer(lengths: list[int], size: int) -> None:
    """However the chunks are cut, as many messages as fit; one that does not fit stays."""
    whole = [message(length) for length in lengths]
    for each in (1, 3, 1000):
        chunks = [b"".join(whole[at : at + each]) for at in range(0, len(whole), each)]
        buffer = MessageBuffer(iter(chunks))
        rest = list(lengths)
        while rest:
            if rest[0] > size:
                with pytest.raises(OSError, match="too long"):
                    buffer.read(size)
                assert len(buffer.read(rest[0])) == rest.pop(0)
                continue
            expected = 0
            while rest and expected + rest[0] <= size:
                expected += rest.pop(0)
            assert len(buffer.read(size)) == expected
        assert buffer.read(size) == b""
        assert buffer.read(1) == b""


@pytest.mark.parametrize("size", [16384, 50_000, 1 << 20])
def test_message_buffer_divides_long_messages(size: int) -> None:
    """Wherever they are, also if all have the same length."""
    long, short = (pack_task(1, 1, [(Attr.CMDLINE, bytes(count))], [], 0) for count in (30000, 9))
    for order in ([long], [long] * 20, [short, long, short] * 9, [short] * 99 + [long]):
        buffer = MessageBuffer(iter([b"".join(order[:2]), *order[2:]]))
        pieces = list(iter(lambda: buffer.read(size), b""))  # noqa: B023
        assert b"".join(pieces) == shorten(b"".join(order), LONGEST_MESSAGE)
        for piece in pieces:
            assert len(piece) <= size
            at = 0
            while at < len(piece):
                (length,) = struct.unpack_from("=I", piece, at)
                assert length <= LONGEST_MESSAGE
                at += length
            assert at == len(piece)


def test_the_rest_of_a_chunk_is_not_copied_for_each_long_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    divided = []

    def counted(data: bytes, longest: int) -> bytes:
        divided.append(len(data))
        return shorten(data, longest)

    monkeypatch.setattr(answer, "shorten", counted)
    long = pack_task(1, 1, [(Attr.CMDLINE, bytes(60000))], [], 0)
    chunk = long * 50
    buffer = MessageBuffer(iter([chunk]))
    rests = set()
    while buffer.read(16384):
        if buffer._later is not None:
            # The chunk itself, however much of it is left.
            rests.add(id(buffer._later[0]))
    assert divided == [len(long)] * 50
    assert rests == {id(chunk)}
