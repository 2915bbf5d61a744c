"""Processes that tests know everything about, made and ended by context managers.

Children are forked, set themselves up, report what they are, and wait to be killed.
All of them die with the test run (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_MM = 35
PR_SET_MM_MAP = 14
PR_SET_VMA = 0x53564D41
PTRACE_TRACEME = 0
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_REC_PRIVATE = 0x4000 | 0x40000
SYS_exit = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
PAGE = mmap.PAGESIZE
#: A user and a group of whom no process is expected on this host.
UNUSED_ID = 30_000 + os.getpid() % 20_000

#: Names that try to break parsers and terminals.
HOSTILE_NAMES = [
    b"a) R 1 (",
    b"new\nline\\n",
    b"\\\\n\n\\",
    b"\x1b[31m\x07\r\x01",
    b"kworker/0:1-abc",
    b"kworker/u8:0+ev",
    b"a+b-c",
    b"\xff\xfe\xc3(",
    b"fifteen bytes!!",
    b" ",
    b"",
]
HOSTILE_FILES = [
    b"new\nline and  spaces",
    b"back\\012slash",
    b"both\\012of\nthem",
    b"not gone (deleted)",
    b"trailing space ",
    b"\x1b[2J\xff\\",
]


def check(result: int) -> int:
    """Raise OSError if a libc call failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, *args: Any) -> None:
    values = [arg if isinstance(arg, bytes) else ctypes.c_ulong(arg) for arg in args]
    values += [ctypes.c_ulong(0)] * (4 - len(values))
    check(libc.prctl(option, *values))


def die_with(parent: int) -> None:
    """Be killed when the parent ends, be it that it has ended already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Child:
    """A forked process: its pid and what it reported about itself."""

    def __init__(self, pid: int, facts: Any = None) -> None:
        self.pid = pid
        self.facts = facts


@contextlib.contextmanager
def child(setup: Callable[[], Any] = lambda: None) -> Iterator[Child]:
    """A process that has run ``setup`` and waits; facts are what that returned."""
    back, forth = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _live(setup, forth, parent)
    os.close(forth)
    try:
        with os.fdopen(back, "rb") as pipe:
            line = pipe.readline()
        kind, facts = json.loads(line or '["error", "ended without a word"]')
        if kind != "ready":
            raise AssertionError(f"child failed: {facts}")
        yield Child(pid, facts)
    finally:
        end(pid)


def _live(setup: Callable[[], Any], forth: int, parent: int) -> None:
    try:
        die_with(parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        answer = ["ready", setup()]
    except BaseException:
        answer = ["error", traceback.format_exc()]
    with contextlib.suppress(BaseException):
        os.write(forth, json.dumps(answer).encode() + b"\n")
        os.close(forth)
        while answer[0] == "ready":
            signal.pause()
    os._exit(1)


def end(pid: int) -> None:
    """Kill and reap a child of ours; no error if it is reaped already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def forked(function: Callable[[], Any]) -> Any:
    """Run a function in a forked process, which may drop privileges; its result comes back."""
    back, forth = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = ["value", function()]
        except BaseException:
            answer = ["error", traceback.format_exc()]
        with os.fdopen(forth, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        os._exit(0)
    os.close(forth)
    try:
        with os.fdopen(back, "rb") as pipe:
            kind, value = json.loads(pipe.read() or b'["error", "ended without a word"]')
    finally:
        os.waitpid(pid, 0)
    if kind == "error":
        raise AssertionError(value)
    return value


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does; fail after 20 seconds."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"waited in vain until {what}")


def letter(pid: int, tid: int | None = None) -> str:
    """The state letter in /proc/PID/stat."""
    with open(f"/proc/{pid}/task/{tid or pid}/stat", "rb") as file:
        return chr(file.read().rpartition(b") ")[2][0])


def comm_of(name: bytes) -> None:
    prctl(PR_SET_NAME, name + b"\0")


# --- Kinds of processes ---------------------------------------------------


@contextlib.contextmanager
def stopped() -> Iterator[Child]:
    with child() as it:
        os.kill(it.pid, signal.SIGSTOP)
        os.waitpid(it.pid, os.WUNTRACED)
        yield it


@contextlib.contextmanager
def zombie(name: bytes = b"gone-zombie") -> Iterator[Child]:
    pid = os.fork()
    if pid == 0:
        comm_of(name)
        os._exit(3)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        yield Child(pid)
    finally:
        end(pid)


@contextlib.contextmanager
def traced() -> Iterator[Child]:
    """A tracer; its fact is the pid of its child, which it traces and has stopped."""

    def setup() -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with(parent)
            check(libc.ptrace(PTRACE_TRACEME, 0, None, None))
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitpid(pid, 0)
        return pid

    with child(setup) as it:
        yield it


@contextlib.contextmanager
def threaded(count: int = 200) -> Iterator[Child]:
    """Facts: the tids of ``count`` threads besides the leader."""

    def setup() -> list[int]:
        threading.stack_size(64 * 1024)
        block = threading.Lock()
        block.acquire()
        threads = [threading.Thread(target=block.acquire, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        return [thread.native_id or 0 for thread in threads]

    with child(setup) as it:
        yield it


@contextlib.contextmanager
def headless(count: int = 2) -> Iterator[Child]:
    """A process whose leader has exited while its threads live.  Facts: their tids."""

    def setup() -> list[int]:
        # The main thread leaves; the reporting is done by the first of the others.
        start = threading.Event()
        tids: list[int] = []

        def run() -> None:
            tids.append(threading.get_native_id())
            start.wait()
            time.sleep(100000)

        threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        while len(tids) < count:
            time.sleep(0.01)
        start.set()
        signal.signal(signal.SIGALRM, lambda *_: libc.syscall(SYS_exit, 0))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return tids

    with child(setup) as it:
        until(lambda: letter(it.pid) == "Z", "the leader is gone")
        until(lambda: all(letter(it.pid, tid) == "S" for tid in it.facts), "its threads sleep")
        yield it


@contextlib.contextmanager
def execed_by_thread() -> Iterator[Child]:
    """A process whose second thread called execve: it takes over the leader's number."""

    def setup() -> None:
        def run() -> None:
            time.sleep(0.1)
            os.execv("/bin/sleep", ["by-thread", "100000"])

        threading.Thread(target=run, daemon=True).start()

    with child(setup) as it:
        until(lambda: _comm(it.pid) == b"sleep\n", "a thread has called exec")
        yield it


def _comm(pid: int) -> bytes:
    with open(f"/proc/{pid}/comm", "rb") as file:
        return file.read()


def change_ids() -> None:
    os.setgroups([7, 8])
    os.setresgid(2001, 2002, 2003)
    os.setresuid(1001, 1002, 1003)


def change_fsids() -> None:
    """Every one of the eight ids different; a root that is none any more."""
    os.setresgid(2001, 2002, 2003)
    libc.setfsgid(2001)
    os.setresuid(1001, 1002, 1003)
    libc.setfsuid(1001)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def set_caps(effective: int, permitted: int, inheritable: int) -> None:
    header = _CapHeader(0x20080522, 0)
    data = (_CapData * 2)()
    for half in range(2):
        shift = 32 * half
        data[half].effective = effective >> shift & 0xFFFFFFFF
        data[half].permitted = permitted >> shift & 0xFFFFFFFF
        data[half].inheritable = inheritable >> shift & 0xFFFFFFFF
    check(libc.capset(ctypes.byref(header), data))


CAP_KILL, CAP_SETPCAP, CAP_SYS_PTRACE = 1 << 5, 1 << 8, 1 << 19
CAP_WAKE_ALARM = 1 << 35


def change_caps() -> None:
    """Effective, permitted, inheritable and bounding sets all different."""
    set_caps(CAP_SETPCAP | CAP_KILL, CAP_SETPCAP | CAP_KILL | CAP_WAKE_ALARM, CAP_WAKE_ALARM)
    prctl(PR_CAPBSET_DROP, 35)
    prctl(PR_CAPBSET_DROP, 2)


def map_files(directory: str) -> Callable[[], Any]:
    """Map files of hostile names, a deleted one and memory of other sorts; facts: where."""

    def setup() -> list[tuple[int, int, str]]:
        facts = []
        keep = globals().setdefault("_kept", [])

        def note(mapping: mmap.mmap, name: bytes) -> None:
            keep.append(mapping)
            at = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
            facts.append((at, len(mapping), name.hex()))

        root = os.fsencode(directory)
        for name in HOSTILE_FILES:
            path = os.path.join(root, name)
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 3 * PAGE)
            note(mmap.mmap(fd, 2 * PAGE, offset=PAGE), path)
            os.close(fd)
        path = os.path.join(root, b"gone \n\\012")
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, PAGE)
        note(mmap.mmap(fd, PAGE, flags=mmap.MAP_PRIVATE), path + b" (deleted)")
        os.unlink(path)
        os.close(fd)
        fd = os.memfd_create("mem fd")
        os.ftruncate(fd, 4 * PAGE)
        mapping = mmap.mmap(fd, 4 * PAGE)
        mapping[: 2 * PAGE] = b"x" * (2 * PAGE)
        note(mapping, b"/memfd:mem fd (deleted)")
        os.close(fd)
        return facts

    return setup


def lock_memory() -> list[int]:
    mapping = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    globals().setdefault("_kept", []).append(mapping)
    at = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    check(libc.mlock(ctypes.c_void_p(at), ctypes.c_size_t(16 * PAGE)))
    return [at, 16 * PAGE]


def many_mappings(count: int) -> Callable[[], None]:
    """Have about that many mappings: every other page may be written, so they do not merge."""

    def setup() -> None:
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        size, private = count * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start: int = libc.mmap(None, size, mmap.PROT_READ, private, -1, 0)
        for at in range(start, start + size, 2 * PAGE):
            check(libc.mprotect(ctypes.c_void_p(at), PAGE, mmap.PROT_READ | mmap.PROT_WRITE))

    return setup


def advise_huge() -> list[int]:
    mapping = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    globals().setdefault("_kept", []).append(mapping)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    mapping[:PAGE] = b"x" * PAGE
    at = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    return [at, 8 << 20]


def _own_stat() -> list[int]:
    with open("/proc/self/stat", "rb") as file:
        rest = file.read().rpartition(b") ")[2].split()
    return [0, 0, 0, *(int(value) if value.lstrip(b"-").isdigit() else 0 for value in rest)]


def empty_cmdline() -> None:
    """Set arg_start and arg_end equal, leaving everything else as it is (prctl(2))."""
    stat = _own_stat()
    libc.sbrk.restype = ctypes.c_ulong
    brk = libc.sbrk(ctypes.c_long(0))
    values = [
        stat[26], stat[27], stat[45], stat[46], stat[47], brk,
        stat[28], stat[48], stat[48], stat[50], stat[51], 0,
    ]  # fmt: skip
    packed = b"".join(value.to_bytes(8, sys.byteorder) for value in values)
    packed += (0).to_bytes(4, sys.byteorder) + (0xFFFFFFFF).to_bytes(4, sys.byteorder)
    prctl(PR_SET_MM, PR_SET_MM_MAP, packed, len(packed))


def retitle(overflow: bool) -> Callable[[], str]:
    """Write over the arguments as setproctitle does; facts: what /proc shows then."""

    def setup() -> str:
        stat = _own_stat()
        start, stop = stat[48], stat[49]
        room = stop - start
        if not overflow:
            title = b"worker: idle".ljust(room, b"\0")[:room]
            ctypes.memmove(start, title, room)
            return title.hex()
        # Over the end and into the environment: shown up to the first NUL.
        title = (b"worker: " + b"x" * room)[: room + 3]
        ctypes.memmove(start, title + b"\0", len(title) + 1)
        return title.hex()

    return setup


@contextlib.contextmanager
def arguments(*args: str) -> Iterator[Child]:
    """A shell that waits, with these arguments; facts: its whole command line."""
    argv = ["/bin/sh", "-c", "echo ready; read line", *args]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield Child(process.pid, argv)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def in_pid_namespace() -> Iterator[Child]:
    """A process with a child that is the first of a pid namespace.  Fact: its pid here."""

    def setup() -> int:
        check(libc.unshare(CLONE_NEWPID))
        back, forth = os.pipe()
        pid = os.fork()
        if pid == 0:
            # Its parent has no number here; but a pipe tells when it is gone.
            os.close(forth)
            os.read(back, 1)
            os._exit(0)
        os.close(back)
        return pid

    with child(setup) as it:
        yield it


def new_user_namespace() -> None:
    """Become root of a user namespace whose root is uid 1234 outside."""
    os.setresgid(4321, 4321, 4321)
    os.setresuid(1234, 1234, 1234)
    prctl(PR_SET_DUMPABLE, 1)
    check(libc.unshare(CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", "0 1234 1"), ("gid_map", "0 4321 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def drop_dumpable() -> None:
    change_ids()
    os.setresgid(2001, 2001, 2001)
    os.setresuid(1001, 1001, 1001)
    prctl(PR_SET_DUMPABLE, 0)


def plain_user(uid: int = 1001, gid: int = 2001, dumpable: int = 1) -> Callable[[], None]:
    def setup() -> None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        prctl(PR_SET_DUMPABLE, dumpable)

    return setup


def refused_to_root() -> set[int]:
    """Tasks that a security module keeps from everyone: engines do not ask for root."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                os.readlink(f"/proc/{name}/exe")
            except PermissionError:
                found.add(int(name))
            except OSError:
                pass
    return found


class Population(dict[str, Child]):
    """The standing processes by name."""

    def pids(self) -> list[int]:
        """Every process of it, those too that are named only in facts."""
        inner = [self["tracer"].facts, self["pidns"].facts]
        return sorted([it.pid for it in self.values()] + inner)


@contextlib.contextmanager
def standing() -> Iterator[Population]:
    """One of each kind."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        found = Population()
        found["plain"] = enter(child())
        found["stopped"] = enter(stopped())
        found["zombie"] = enter(zombie())
        found["tracer"] = enter(traced())
        found["threads"] = enter(threaded())
        found["headless"] = enter(headless())
        found["thread-exec"] = enter(execed_by_thread())
        found["ids"] = enter(child(change_ids))
        found["fsids"] = enter(child(change_fsids))
        found["caps"] = enter(child(change_caps))
        found["session"] = enter(child(os.setsid))
        found["group"] = enter(child(lambda: os.setpgid(0, 0)))
        for at, name in enumerate(HOSTILE_NAMES):
            found[f"name{at}"] = enter(child(lambda name=name: comm_of(name)))
        directory = enter(tempfile.TemporaryDirectory(prefix="taskdiag test\n"))
        found["files"] = enter(child(map_files(directory)))
        found["locked"] = enter(child(lock_memory))
        found["huge"] = enter(child(advise_huge))
        found["noargs"] = enter(child(empty_cmdline))
        found["long"] = enter(arguments(*(f"argument {i}" for i in range(500)), ""))
        found["longer"] = enter(arguments("x" * 100_000, "y" * 50_000))
        found["title"] = enter(child(retitle(False)))
        found["title-over"] = enter(child(retitle(True)))
        found["pidns"] = enter(in_pid_namespace())
        found["userns"] = enter(child(new_user_namespace))
        found["user"] = enter(child(plain_user()))
        found["undumpable"] = enter(child(plain_user(dumpable=0)))
        found["other-gid"] = enter(child(plain_user(gid=2002)))
        # Whatever still runs would move counters between two reads.
        for pid in found.pids():
            until(lambda pid=pid: letter(pid) != "R", f"{pid} sleeps")
        yield found
