"""The service: what it answers, and how it begins and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import taskdiag
from conftest import need, public_interpreter, public_source
from population import PR_SET_DUMPABLE, Population, child, forked, plain_user, prctl, until
from serving import ROOT, Service, directory, running, service, start, stop
from taskdiag import Dump, Request, Show
from taskdiag.decoder import decode
from taskdiag.errors import EngineUnavailable, NoSuchProcess
from taskdiag.service import ServiceEngine
from taskdiag.service.protocol import reply, reply_error, socket_path
from taskdiag.service.sockets import activated, notify
from taskdiag.service.streams import Slots, Stream
from taskdiag.service.workers import WorkerPool

__all__ = ("service",)

EVERYTHING = int(sum(Show))
HEADER = struct.Struct("=IHHII")


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(30)
    sock.connect(path)
    return sock


def ask(sock: socket.socket, data: bytes) -> tuple[int, int]:
    """Send, and give errno and descriptor (-1 without one) of the reply."""
    sock.send(data)
    message, extra, _, _ = sock.recvmsg(256, socket.CMSG_SPACE(4))
    fds = array("i")
    for _, _, raw in extra:
        fds.frombytes(raw)
    assert len(fds) <= 1
    assert message[4:6] == b"\2\0"
    return reply_error(message), fds[0] if fds else -1


def read(fd: int) -> bytes:
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    finally:
        os.close(fd)


# --- Without a service ----------------------------------------------------------


def test_reply() -> None:
    request = Request(Show.BASE, seq=77).encode()
    assert reply_error(reply(3, request)) == 3
    message = reply(0, request)
    assert reply_error(message) == 0
    length, kind, _, seq, _ = HEADER.unpack_from(message)
    assert (length, kind, seq) == (len(message), 2, 77)
    assert message[20:36] == request[:16]
    assert len(reply(22, b"abc")) == len(message)
    for bad in (b"", message[:35], b"\0" * 36, struct.pack("=IHHIIi16x", 36, 2, 0, 0, 0, 5)):
        with pytest.raises(ValueError, match="reply"):
            reply_error(bad)


def test_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASKDIAG_SOCKET", raising=False)
    assert socket_path() == "/run/taskdiag.sock"
    monkeypatch.setenv("TASKDIAG_SOCKET", "/elsewhere")
    assert socket_path() == "/elsewhere"


def test_no_service() -> None:
    with directory() as where:
        with pytest.raises(EngineUnavailable, match="no service at"):
            ServiceEngine(f"{where}/none")
        path = f"{where}/dead"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(path)
        with pytest.raises(EngineUnavailable, match="no answer from the service"):
            ServiceEngine(path).stream(Request())


@pytest.mark.parametrize("words", [b"", b"hello", bytes(36), reply(0, b"")])
def test_strange_service(words: bytes) -> None:
    """Something else listens there: one clear sentence."""
    with directory() as where, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(f"{where}/socket")
        sock.listen()

        def serve() -> None:
            peer, _ = sock.accept()
            peer.recv(4096)
            if words:
                peer.send(words)
            peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(EngineUnavailable):
            ServiceEngine(f"{where}/socket").stream(Request())
        thread.join()


def test_streams_hold_back_the_end() -> None:
    """Until the answer is whole, what was written of it never looks whole."""
    messages = [bytes([n]) * 100 for n in range(5)]
    gone = threading.Event()

    def chunks() -> Iterator[bytes]:
        try:
            yield from messages
        finally:
            gone.set()

    stream = Stream(chunks())
    assert stream.step() is False
    stream.close()
    assert gone.is_set()

    class Broken(Exception):
        pass

    def breaking() -> Iterator[bytes]:
        yield from messages
        raise Broken

    stream = Stream(breaking())
    with pytest.raises(Broken):
        stream.step()
    reader, stream.reader = stream.reader, -1
    stream.close()
    assert read(reader) == b"".join(messages)[:-4]

    endless = iter(lambda: b"x" * 1000, b"")
    stream = Stream(endless)
    while stream.step():
        pass
    reader, stream.reader = stream.reader, -1
    stream.close()
    assert len(read(reader)) % 1000 != 0

    empty = Stream(iter(()))
    assert empty.step() is False
    reader, empty.reader = empty.reader, -1
    empty.close()
    assert read(reader) == b""


def test_turns_are_fair() -> None:
    """However long one user's line is, the other's first piece is at most one turn away."""
    pool = WorkerPool(1, 1)
    order: list[str] = []
    hold, done = threading.Event(), threading.Event()
    pool.add("a", hold.wait)
    for _ in range(50):
        pool.add("a", lambda: order.append("a"))
    for _ in range(3):
        pool.add("b", lambda: order.append("b"))
    pool.add("b", done.set)
    hold.set()
    assert done.wait(10)
    assert order.index("b") <= 1
    assert "".join(order[:7]).count("b") == 3
    assert pool.end(5)


def test_turns_leave_workers_for_others() -> None:
    pool = WorkerPool(3, 2)
    hold, done = threading.Event(), threading.Event()
    for _ in range(10):
        pool.add("a", hold.wait)
    pool.add("b", done.set)
    assert done.wait(10)
    hold.set()
    assert pool.end(5)


def test_slots() -> None:
    slots = Slots(3, 2)
    taken: list[str] = []

    def wants(user: str) -> Callable[[], None]:
        return lambda: taken.append(user)

    for user in "aaabb":
        slots.take(user, wants(user))
    assert taken == ["a", "a", "b"]
    assert all(slots.holds_up(user) for user in "ab")
    slots.free("a")
    assert taken[3:] in (["a"], ["b"])
    slots.free("b")
    assert sorted(taken) == list("aaabb")
    assert not any(slots.holds_up(user) for user in "ab")


def test_slots_hold_up_only_who_could_use_them() -> None:
    slots = Slots(4, 2)
    for user in "aaab":
        slots.take(user, lambda: None)
    # One of a's waits for a's own limit: that others end would not help it.
    assert slots.holds_up("a")
    assert not slots.holds_up("b")
    slots.take("c", lambda: None)
    assert not slots.holds_up("b")
    # All are taken, and d could have one of anybody's.
    slots.take("d", lambda: None)
    assert all(slots.holds_up(user) for user in "abc")
    slots.free("b")
    assert not slots.holds_up("c")
    assert slots.holds_up("a")
    slots.free("a")
    assert not slots.holds_up("a")


def test_activation() -> None:
    assert activated({}) is None
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert activated(environ) is None
    assert environ == {}


def test_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    with directory() as where, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{where}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{where}/notify")
        notify("READY=1")
        assert sock.recv(100) == b"READY=1"
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "strange")
    notify("READY=1")


# --- Answers -----------------------------------------------------------------------

root = pytest.mark.root


@root
@pytest.mark.parametrize("strategy", list(Dump))
@pytest.mark.parametrize(
    "show", [Show.BASE, Show.CMDLINE, EVERYTHING & ~int(Show.STAT | Show.SCHED)]
)
def test_as_procfs(service: Service, population: Population, strategy: Dump, show: int) -> None:
    """The same tasks with the same values, by whichever way they come."""
    pid = os.getpid() if strategy == Dump.CHILDREN else population["threads"].pid
    standing = {*population.pids(), *population["threads"].facts}
    answers = []
    for engine in (service.engine(), "procfs"):
        tasks = taskdiag.dump(show, strategy, pid, engine=engine)
        answers.append({task.pid: task for task in tasks if task.pid in standing})
    ours, theirs = answers
    assert ours.keys() == theirs.keys()
    assert ours
    for number, task in ours.items():
        other = theirs[number]
        assert (task.base, task.cred, task.cmdline) == (other.base, other.cred, other.cmdline)
        assert (task.vmas is None) == (other.vmas is None)
        assert [vma.name for vma in task.vmas or ()] == [vma.name for vma in other.vmas or ()]


@root
def test_as_a_user_long_command_lines_and_statistics(service: Service) -> None:
    """What a program leaves to procfs is read for who may see it."""
    argument = "x" * 100_000

    def run() -> list[Any]:
        plain_user(1001, 2001)()
        process = subprocess.Popen(["sleep", "1000"], executable="/bin/sleep")
        long = subprocess.Popen(["/bin/sh", "-c", "read line", argument], stdin=subprocess.PIPE)
        try:
            until(lambda: len(Path(f"/proc/{long.pid}/cmdline").read_bytes()) > 9, "exec")
            until(lambda: b"sleep" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "exec")
            tasks = {
                task.pid: task
                for task in taskdiag.dump("cmdline,vma_stat", engine=service.engine())
            }
            assert tasks[long.pid].cmdline == ["/bin/sh", "-c", "read line", argument]
            vmas = tasks[process.pid].vmas
            assert vmas is not None
            return [len(vmas) > 5, all(vma.stat is not None for vma in vmas)]
        finally:
            for one in (process, long):
                one.kill()
                one.wait()

    assert forked(run) == [True, True]


@root
def test_errors(service: Service) -> None:
    engine = service.engine()
    for strategy in (Dump.ONE, Dump.THREAD, Dump.CHILDREN):
        with pytest.raises(NoSuchProcess, match="no process has pid 4000000"):
            engine.stream(Request(Show.BASE, strategy, 4_000_000))
    good = Request(Show.BASE, Dump.ONE, os.getpid()).encode()
    with contextlib.closing(connect(service.path)) as sock:
        for data, code in (
            (b"x", 22),
            (good[:39], 22),
            (b"\x27\0\0\0" + good[4:], 22),
            (b"\x29\0\0\0" + good[4:], 22),
            (good[:24] + b"\5" + good[25:], 22),
            (good[:32] + bytes(8), 3),
            (good[:4] + b"\x02\xd1" + good[6:], 95),
            (bytes(5000), 90),
        ):
            assert ask(sock, data) == (code, -1)
        # And all the same the connection goes on.  Unknown show flags are ignored.
        code, fd = ask(sock, good[:16] + b"\1\0\4\0\0\0\0\x80" + good[24:] + b"whatever follows")
        assert code == 0
        assert [task.pid for task in decode([read(fd)])] == [os.getpid()]


@root
def test_sequence_numbers(service: Service) -> None:
    with contextlib.closing(connect(service.path)) as sock:
        for show in (Show.BASE, Show.CMDLINE):
            for strategy in (Dump.ALL, Dump.ONE):
                request = Request(show, strategy, os.getpid(), seq=0xDEADBEEF)
                code, fd = ask(sock, request.encode())
                assert code == 0
                assert read(fd)[8:12] == struct.pack("=I", 0xDEADBEEF)


@root
def test_several_requests_at_once(service: Service) -> None:
    """Replies come in the order of requests, answers may be read in any."""
    with contextlib.closing(connect(service.path)) as sock:
        pids = [os.getpid(), os.getppid()]
        for pid in pids:
            sock.send(Request(Show.BASE, Dump.ONE, pid).encode())
        fds = []
        for _ in pids:
            _, (fd,), _, _ = socket.recv_fds(sock, 256, 1)
            fds.append(fd)
        assert [next(decode([read(fd)])).pid for fd in reversed(fds)] == pids[::-1]


@root
def test_command_line(service: Service) -> None:
    """Everybody's commands find the service with no option given."""
    need("setpriv")
    environ = {
        **os.environ, "TASKDIAG_SOCKET": service.path, "PYTHONPATH": public_source(),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    user = ["setpriv", "--reuid=1001", "--regid=2001", "--clear-groups"]
    command = [*user, public_interpreter(), "-m", "taskdiag"]
    before = service.cpu()
    found = subprocess.run(
        [*command, "--engine", "service", "ps", "ax", "-o", "pid,args"],
        env=environ, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"taskdiag --engine service ps ax" in found.stdout
    assert service.cpu() >= before
    environ["TASKDIAG_SOCKET"] = "/nonexistent"
    found = subprocess.run(
        [*command, "--engine", "service", "ps"], env=environ, capture_output=True, timeout=60
    )
    assert found.returncode == 1
    assert found.stderr == (b"taskdiag: no service at /nonexistent: No such file or directory\n")


@contextlib.contextmanager
def as_user() -> Iterator[None]:
    """Asks as a user for a while: one who does not see process 1.

    Where the kernel hides that from iterators, no iterator answers who sees it.
    """
    os.setegid(2001)
    os.seteuid(1001)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        prctl(PR_SET_DUMPABLE, 1)


@root
def test_one_iterator_or_a_pipe(service: Service) -> None:
    """Where one iterator answers, the data does not pass through the service."""
    for show, kind in ((Show.BASE, "anon_inode:bpf_iter"), (Show.CMDLINE, "pipe:")):
        with as_user():
            fd = service.engine()._ask(Request(show))
        assert os.readlink(f"/proc/self/fd/{fd}").startswith(kind)
        os.close(fd)


@root
def test_c_client(service: Service) -> None:
    need("gcc", "/usr/include/stdio.h")
    with directory() as where:
        header = subprocess.run(
            [sys.executable, "-m", "taskdiag", "abi"], check=True, capture_output=True
        ).stdout
        Path(where, "taskdiag.h").write_bytes(header)
        program = f"{where}/client"
        subprocess.run(
            ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", f"-I{where}", "-o", program,
             str(ROOT / "examples/client.c")],
            check=True,
        )  # fmt: skip
        environ = {"TASKDIAG_SOCKET": service.path}
        lines = subprocess.run(
            [program], env=environ, check=True, capture_output=True
        ).stdout.splitlines()
        assert b"%d %d" % (os.getpid(), os.getppid()) in [
            line.rpartition(b" ")[0] for line in lines
        ]
        lost = subprocess.run(
            [program], env={"TASKDIAG_SOCKET": f"{where}/none"}, capture_output=True
        )
        assert (lost.returncode, lost.stderr) == (1, b"taskdiag: No such file or directory\n")


# --- Beginning and end ---------------------------------------------------------------


@root
def test_a_living_service_is_not_replaced(service: Service) -> None:
    with pytest.raises(AssertionError, match="another service answers there"):
        start(service.path)
    assert list(taskdiag.dump("base", pid=os.getpid(), engine=service.engine()))


@root
def test_what_is_no_socket_is_not_replaced() -> None:
    with directory() as where:
        Path(where, "file").write_text("precious")
        with pytest.raises(AssertionError, match="it is no socket"):
            start(f"{where}/file")
        assert Path(where, "file").read_text() == "precious"


@root
def test_killed_and_started_again() -> None:
    """A stale socket is replaced; what clients were reading ends in an error or is whole."""
    with directory() as where, child(plain_user()) as it, contextlib.ExitStack() as stack:
        path = f"{where}/socket"
        first = start(path)
        assert first.process.stderr is not None
        engine = first.engine()
        # An iterator goes on without the service; a pipe that it fills does not.
        with as_user():
            iterator = engine._ask(Request(Show.BASE))
        for _ in range(40):
            process = subprocess.Popen(
                ["/bin/sh", "-c", "read line", "x" * 20_000], stdin=subprocess.PIPE
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        pipe = engine._ask(Request(Show.CMDLINE))
        first.process.kill()
        first.process.wait()
        first.process.stderr.close()
        assert it.pid in {task.pid for task in decode([read(iterator)])}
        cut = read(pipe)
        with pytest.raises(taskdiag.DecodeError, match=r"truncated|left"):
            list(decode([cut]))
        assert os.path.exists(path)
        with pytest.raises(EngineUnavailable):
            engine.stream(Request())
        second = start(path)
        assert os.getpid() in {task.pid for task in taskdiag.dump("base", engine=engine)}
        assert stop(second)[0] == 0
        assert not os.path.exists(path)


@root
def test_restarted_under_load() -> None:
    """Every answer is whole, or an error says that it is not."""
    with directory() as where:
        path = f"{where}/socket"
        running_now = start(path)
        ended = threading.Event()
        whole, errors = [0], [0]

        def load() -> None:
            engine = ServiceEngine(path)
            while not ended.is_set():
                try:
                    pids = {task.pid for task in taskdiag.dump("cmdline", engine=engine)}
                    assert os.getpid() in pids
                    whole[0] += 1
                except EngineUnavailable:
                    errors[0] += 1
                    time.sleep(0.01)

        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                load()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded) for _ in range(4)]
        for thread in threads:
            thread.start()
        for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            seen = whole[0]
            until(lambda seen=seen: whole[0] > seen + 3 or bool(failures), "answers come")
            running_now.process.send_signal(kill)
            running_now.process.wait()
            assert running_now.process.stderr is not None
            running_now.process.stderr.close()
            running_now = start(path)
        ended.set()
        for thread in threads:
            thread.join()
        stop(running_now)
        assert not failures
        assert whole[0] > 9


@root
def test_socket_activation_and_readiness() -> None:
    with directory() as where:
        path = f"{where}/activated"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen(16)
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(f"{where}/notify")
        manager.settimeout(30)
        # A client may come before the service is there.
        early = connect(path)
        early.send(Request(Show.BASE, Dump.ONE, os.getpid()).encode())
        pid = os.fork()
        if pid == 0:
            os.dup2(listener.fileno(), 3)
            os.environ.update(
                LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", NOTIFY_SOCKET=f"{where}/notify"
            )
            os.execv(sys.executable, [sys.executable, "-m", "taskdiag", "serve"])
        try:
            assert manager.recv(100) == b"READY=1"
            _, (fd,), _, _ = socket.recv_fds(early, 256, 1)
            assert next(decode([read(fd)])).pid == os.getpid()
        finally:
            os.kill(pid, signal.SIGTERM)
            _, status = os.waitpid(pid, 0)
            for sock in (listener, manager, early):
                sock.close()
        assert status == 0
        # It is systemd's socket, and stays.
        assert os.path.exists(path)


def unit() -> dict[str, list[str]]:
    """The settings of the unit, by name."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "packaging/systemd/taskdiag.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@root
def test_with_the_capabilities_of_the_unit() -> None:
    """The service needs no more than the unit gives it, and shows users as much."""
    need("setpriv")
    caps = unit()["CapabilityBoundingSet"][-1].split()
    names = ",".join("+" + cap.removeprefix("CAP_").lower() for cap in caps)
    prefix = (
        "setpriv", "--no-new-privs", f"--bounding-set=-all,{names}", f"--inh-caps=-all,{names}",
        f"--ambient-caps=-all,{names}", "--securebits=+noroot,+noroot_locked",
    )  # fmt: skip
    with running(prefix=prefix) as narrow, running() as wide, child(plain_user()):
        status = Path(f"/proc/{narrow.pid}/status").read_text()
        held = int(status.split("CapEff:")[1].split()[0], 16)
        assert held.bit_count() == len(caps)

        def run() -> list[list[int]]:
            plain_user()()
            return [
                [task.pid for task in taskdiag.dump(EVERYTHING, engine=service.engine())]
                for service in (narrow, wide, narrow)
            ]

        first, expected, last = map(set, forked(run))
        assert first & last <= expected <= first | last
        assert len(expected) >= 2
        answers = [
            {task.pid for task in taskdiag.dump("cmdline,vma_stat", engine=one.engine())}
            for one in (narrow, wide, narrow)
        ]
        assert answers[0] & answers[2] <= answers[1]


def test_units() -> None:
    """systemd understands the units, if it is here to be asked."""
    need("systemd-analyze")
    units = sorted(map(str, (ROOT / "packaging/systemd").iterdir()))
    found = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stderr) == (0, "")
    with open(ROOT / "packaging/systemd/taskdiag.socket") as file:
        assert "ListenSequentialPacket=/run/taskdiag.sock\n" in file.read()
