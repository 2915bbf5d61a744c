"""Input from strangers: nothing that a client does hurts the service, or another client."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskdiag
from population import child, forked, plain_user, until
from serving import Service, running, service
from taskdiag import Dump, Request, Show
from taskdiag.decoder import decode
from taskdiag.errors import EngineUnavailable
from taskdiag.service import ServiceEngine

__all__ = ("service",)
pytestmark = pytest.mark.root

#: The full runs are TASKDIAG_FUZZ_REQUESTS=100000 and TASKDIAG_CLIENTS=1000.
REQUESTS = int(os.environ.get("TASKDIAG_FUZZ_REQUESTS", "3000"))
CLIENTS = int(os.environ.get("TASKDIAG_CLIENTS", "100"))
USERS = 20


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(60)
    sock.connect(path)
    return sock


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, fds, _, _ = socket.recv_fds(sock, 256, 4)
    return data, list(fds)


def still_serves(service: Service) -> None:
    (task,) = taskdiag.dump("base,cmdline", pid=os.getpid(), engine=service.engine())
    assert task.pid == os.getpid()


def settled(service: Service, descriptors: int) -> None:
    """What a client had is given back when it is gone."""
    until(lambda: service.descriptors() <= descriptors, "its descriptors are closed")


REQUEST = struct.Struct("=IHHIIQQI4x")


def randomly(chance: random.Random) -> bytes:
    """Bytes that are a request, more or less."""
    kind = chance.random()
    if kind < 0.2:
        return chance.randbytes(chance.choice((1, 15, 16, 39, 40, 41, 64, 100, 4096, 4097, 20000)))
    data = REQUEST.pack(
        40 if kind < 0.9 else chance.getrandbits(chance.choice((6, 32))),
        chance.choice((0, 0xD101, 0xD102, chance.getrandbits(16))),
        chance.getrandbits(16),
        chance.choice((0, 0, 0, chance.getrandbits(32))),
        chance.getrandbits(32),
        chance.choice((0, 1, 2, 3, 16, 17, 64, 1 << 32, 1 << 33, chance.getrandbits(64))),
        chance.choice((1, 1, 1, 1, 3, 4, 0, 2, 5, chance.getrandbits(64))),
        chance.choice((0, os.getpid(), os.getpid(), 2, 4_000_000, chance.getrandbits(32))),
    )
    if kind > 0.97:
        data = data[: chance.randrange(1, 40)]
    elif kind > 0.94:
        data += chance.randbytes(chance.randrange(1, 5000))
    elif kind > 0.9:
        at = chance.randrange(len(data))
        data = data[:at] + chance.randbytes(1) + data[at + 1 :]
    return data


def storm(path: str, seed: int, requests: int) -> dict[str, int]:
    """Bounded random requests; what became of them."""
    chance = random.Random(seed)
    found = {"answers": 0, "errors": 0, "connections": 0}
    sock = None
    pending = 0
    for _ in range(requests):
        if sock is None:
            sock = connect(path)
            found["connections"] += 1
            pending = 0
        sock.send(randomly(chance))
        pending += 1
        behaviour = chance.random()
        if behaviour < 0.01:
            sock.close()
            sock = None
            continue
        if behaviour < 0.03 and pending < 4:
            continue
        if behaviour < 0.04:
            with contextlib.suppress(OSError):
                socket.send_fds(sock, [b"x"], [sock.fileno(), 1, 2])
                pending += 1
        for _ in range(pending):
            data, fds = receive(sock)
            assert len(data) == 36
            (error,) = struct.unpack_from("=i", data, 16)
            found["errors" if error else "answers"] += 1
            assert len(fds) == (not error)
            for fd in fds:
                if chance.random() < 0.5:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 1 << chance.randrange(18))
                os.close(fd)
        pending = 0
    if sock is not None:
        sock.close()
    return found


def test_random_requests(service: Service) -> None:
    """No crash, and nothing that grows."""
    descriptors = service.descriptors()
    storm(service.path, 1, REQUESTS // 10)
    memory = service.memory()
    found = storm(service.path, 2, REQUESTS)
    assert found["answers"] > REQUESTS // 10
    assert found["errors"] > REQUESTS // 10
    still_serves(service)
    settled(service, descriptors + 64)
    assert service.memory() < memory + (24 << 20)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    messages=st.lists(
        st.binary(max_size=200)
        | st.builds(
            REQUEST.pack,
            st.integers(0, 100), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF),
            st.integers(0, 127) | st.integers(0, (1 << 64) - 1),
            st.integers(0, 6) | st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFFFFFF),
        ),
        min_size=1,
        max_size=5,
    )
)  # fmt: skip
def test_any_messages_in_any_order(service: Service, messages: list[bytes]) -> None:
    """Every message has its one reply; an empty one ends the connection."""
    with contextlib.closing(connect(service.path)) as sock:
        for message in messages:
            try:
                sock.send(message)
                data, fds = receive(sock)
            except (BrokenPipeError, ConnectionResetError):
                data, fds = b"", []
            for fd in fds:
                os.close(fd)
            if not message or not data:
                assert not data
                break
            assert len(data) == 36


def test_silent_connections(service: Service) -> None:
    """Hundreds that say nothing; the others are served, and one user has only so many."""
    descriptors = service.descriptors()
    held = [connect(service.path) for _ in range(600)]
    still_serves(service)
    for sock in held:
        sock.close()
    settled(service, descriptors + 8)


def test_one_user_does_not_take_all_connections(service: Service) -> None:
    def run() -> list[Any]:
        plain_user(1001, 2001)()
        held, refused = [], 0
        for _ in range(1200):
            sock = connect(service.path)
            held.append(sock)
        good = Request(Show.BASE, Dump.ONE, os.getpid()).encode()
        for sock in held:
            try:
                sock.send(good)
                data, fds = receive(sock)
                for fd in fds:
                    os.close(fd)
                refused += struct.unpack_from("=i", data, 16)[0] == -11
            except (BrokenPipeError, ConnectionResetError):
                refused += 1
        return [len(held) - refused, refused]

    served, refused = forked(run)
    assert served <= 1024
    assert refused >= 150
    still_serves(service)


def test_answers_that_are_never_read(service: Service) -> None:
    """A user who holds all their pipes waits for them; other users do not wait."""
    descriptors = service.descriptors()
    engine = service.engine()
    with child() as first:
        long = [
            os.posix_spawn("/bin/sh", ["/bin/sh", "-c", "read line", "x" * 100_000], {})
            for _ in range(8)
        ]
        stopped = [os.kill(pid, signal.SIGSTOP) for pid in long]
        assert len(stopped) == 8
        held: list[int] = []
        try:
            # As many as root may have at a time; the pipes hold less than the answer.
            for _ in range(8):
                held.append(engine._ask(Request(Show.CMDLINE | Show.VMA)))

            def run() -> int:
                plain_user(1001, 2001)()
                started = time.monotonic()
                (task,) = taskdiag.dump("cmdline", pid=os.getpid(), engine=engine)
                assert time.monotonic() - started < 60
                return task.pid

            assert forked(run) > 0
            # The next of the hoarder's own comes when one of the old was given up.
            late = engine._ask(Request(Show.CMDLINE | Show.VMA))
            held.append(late)
            assert first.pid
        finally:
            for fd in held:
                os.close(fd)
            for pid in long:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    settled(service, descriptors + 64)
    still_serves(service)


def test_replies_that_are_never_read(service: Service) -> None:
    """A client that sends requests and reads nothing delays only itself."""
    descriptors = service.descriptors()
    sock = connect(service.path)
    sock.setblocking(False)
    good = Request(Show.BASE).encode()
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 10_000:
            sock.send(good)
            sent += 1
    assert 0 < sent < 10_000
    still_serves(service)
    sock.close()
    settled(service, descriptors + 16)


def test_clients_that_leave_at_once(service: Service) -> None:
    descriptors = service.descriptors()
    for number in range(300):
        sock = connect(service.path)
        if number % 3:
            sock.send(Request(Show.CMDLINE if number % 2 else Show.BASE).encode())
        if number % 5 == 0:
            sock.shutdown(socket.SHUT_RD)
        sock.close()
    still_serves(service)
    settled(service, descriptors + 64)


def test_descriptors_from_clients(service: Service) -> None:
    """What a client sends along is closed at once."""
    descriptors = service.descriptors()
    sock = connect(service.path)
    back, forth = os.pipe()
    for _ in range(20):
        socket.send_fds(sock, [Request(Show.BASE, Dump.ONE, os.getpid()).encode()], [forth] * 50)
        _, fds = receive(sock)
        for fd in fds:
            os.close(fd)
    os.close(forth)
    # Nobody else has the pipe's end any more.
    assert os.read(back, 1) == b""
    os.close(back)
    sock.close()
    settled(service, descriptors + 16)


def test_garbage_sequence_numbers(service: Service) -> None:
    """Each makes a program of its own, and they do not pile up."""
    descriptors = service.descriptors()
    with contextlib.closing(connect(service.path)) as sock:
        for seq in range(1, 200):
            sock.send(Request(Show.BASE, seq=seq * 7919).encode())
            _, fds = receive(sock)
            for fd in fds:
                os.close(fd)
    settled(service, descriptors + 32)


def test_many_identities() -> None:
    """Programs for viewers that do not come back are freed."""
    with running() as service:
        still_serves(service)
        descriptors = service.descriptors()

        def run() -> int:
            # Undumpable, so that each process needs a rule of its own.
            plain_user(1001, 2001, dumpable=0)()
            return len(list(taskdiag.dump("base", engine=service.engine())))

        for _ in range(40):
            assert forked(run) >= 1
        assert service.descriptors() <= descriptors + 8 * 8 + 8


def client(path: str, user: int) -> list[Any]:
    """One dump of one user: what it saw, whether all that is its own, seconds."""
    engine = ServiceEngine(path)
    started = time.monotonic()
    data = b"".join(engine.stream(Request(Show.BASE | Show.CRED)))
    seconds = time.monotonic() - started
    tasks = list(decode([data]))
    right = all(task.cred is not None and task.cred.uid == user for task in tasks)
    return [os.getpid() in {task.pid for task in tasks}, right, seconds]


def test_many_clients_of_many_users(service: Service) -> None:
    """All at once, and each sees its own tasks, all of them and no others."""
    each = max(1, CLIENTS // USERS)
    gate, opened = os.pipe()
    results, report = os.pipe()
    pids = []
    for user in range(20_001, 20_001 + USERS):
        for _ in range(each):
            pid = os.fork()
            if pid == 0:
                os.close(opened)
                try:
                    plain_user(user, user)()
                    os.read(gate, 1)
                    seen, right, seconds = client(service.path, user)
                    line = f"{seen:d} {right:d} {seconds:.6f}\n"
                except BaseException as error:
                    line = f"0 0 {type(error).__name__} {error}\n"
                os.write(report, line.encode()[:500])
                os._exit(0)
            pids.append(pid)
    os.close(report)
    cpu = service.cpu()
    os.close(opened)
    with os.fdopen(results) as file:
        lines = [line.split(None, 2) for line in file]
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(gate)
    assert len(lines) == len(pids)
    assert all(line[:2] == ["1", "1"] for line in lines), [
        line for line in lines if line[:2] != ["1", "1"]
    ][:5]
    times = sorted(float(line[2]) for line in lines)
    spent = service.cpu() - cpu
    print(
        f"{len(times)} clients of {USERS} users: p50 {times[len(times) // 2] * 1e3:.1f} ms, "
        f"p99 {times[int(len(times) * 0.99)] * 1e3:.1f} ms, "
        f"{spent / len(times) * 1e6:.0f} us of the service each"
    )


def test_threads_of_one_client(service: Service) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for show in ("base", "cmdline", "base,stat"):
                found = {task.pid for task in taskdiag.dump(show, engine=service.engine())}
                assert os.getpid() in found
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_confined_clients_are_refused(service: Service) -> None:
    """Landlock would hide tasks that our rule shows: so they are asked to use /proc."""
    from taskdiag.service import confinement

    def run() -> str:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        create, restrict = confinement._SYS_CREATE_RULESET, confinement._SYS_RESTRICT_SELF
        if libc.syscall(create, None, ctypes.c_size_t(0), 1) < 1:
            return "no Landlock here"
        plain_user()()
        attr = ctypes.create_string_buffer((1 << 11).to_bytes(8, "little"), 8)
        ruleset = libc.syscall(create, attr, ctypes.c_size_t(8), ctypes.c_uint(0))
        libc.prctl(38, ctypes.c_ulong(1), 0, 0, 0)
        assert libc.syscall(restrict, ruleset, ctypes.c_uint(0)) == 0
        try:
            service.engine().stream(Request())
        except EngineUnavailable as error:
            return str(error)
        return "served"

    answer = forked(run)
    if answer == "no Landlock here":
        pytest.skip("this kernel has no Landlock")
    assert answer.endswith("refuses: Permission denied")
