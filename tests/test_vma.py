"""Mappings that a program cannot name or count by itself: the kernel engine beside procfs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import made_kernel
import taskdiag
from conftest import missing, need, open_engine
from population import (
    CLONE_NEWPID,
    PAGE,
    Child,
    SYS_exit,
    check,
    child,
    execed_by_thread,
    forked,
    headless,
    letter,
    libc,
    until,
    zombie,
)
from serving import Service, service
from taskdiag import Dump, Show, State, Vma, VmaFlag
from taskdiag.abi import MSG, align
from taskdiag.kernel import cmdline, vma
from taskdiag.kernel.asm import INSN
from taskdiag.kernel.compile import compile_request
from taskdiag.kernel.emit import Host
from taskdiag.kernel.facts import Facts
from taskdiag.kernel.viewer import Viewer
from taskdiag.procfs.maps import flags_of
from taskdiag.request import Request

if TYPE_CHECKING:
    from taskdiag.engine import Engine
    from taskdiag.kernel.asm import Code

__all__ = ("service",)

# <asm-generic/mman-common.h>, <linux/mman.h>
PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
MAP_GROWSDOWN, MAP_NORESERVE, MAP_HUGETLB = 0x100, 0x4000, 0x40000
MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTFORK, MADV_MERGEABLE = 1, 2, 10, 12
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP = 14, 15, 16

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def mapped(length: int, prot: int, flags: int, fd: int = -1) -> int:
    """The address of a new mapping.  Raises OSError."""
    address: int | None = _mmap(None, length, prot, flags, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address


def advise(address: int, length: int, advice: int) -> None:
    check(libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice))


def protect(address: int, length: int, prot: int) -> None:
    check(libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), prot))


# In a mount namespace of its own: a program on an overlay, run from there, and its
# mappings by both engines.
OVERLAY = r"""
import json, os, subprocess, sys
import taskdiag
base = sys.argv[1]
def mount(*args):
    subprocess.run(["mount", *args], check=True)
mount("-t", "tmpfs", "none", base)
for name in ("lower", "upper", "work", "merged"):
    os.mkdir(f"{base}/{name}")
subprocess.run(["cp", sys.argv[2], f"{base}/lower/program"], check=True)
layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
mount("-t", "overlay", "overlay", "-o", layers, f"{base}/merged")
process = subprocess.Popen([f"{base}/merged/program", "60"])
try:
    found = {}
    for engine in ("kernel", "procfs"):
        (task,) = taskdiag.dump("vma", pid=process.pid, engine=engine)
        found[engine] = [
            (vma.start, vma.end, vma.pgoff, vma.major, vma.minor, vma.inode, vma.name)
            for vma in task.vmas
        ]
    print(json.dumps(found))
finally:
    process.kill()
    process.wait()
"""


def need_vma() -> None:
    """Skip where mappings come from procfs."""
    open_engine("kernel")
    if vma.missing(Facts.live()):
        pytest.skip("mappings are not served by BPF here")


def both(pid: int, show: Show) -> tuple[taskdiag.Task, taskdiag.Task]:
    (kernel,) = taskdiag.dump(show, pid=pid, engine=open_engine("kernel"))
    (procfs,) = taskdiag.dump(show, pid=pid, engine="procfs")
    return kernel, procfs


@pytest.mark.root
def test_files_of_an_overlay_have_the_name_that_their_user_knows(tmp_path: Path) -> None:
    need("mount", "unshare")
    need_vma()
    if "\toverlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", OVERLAY, tmp_path, shutil.which("sleep") or ""],
        capture_output=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode and b"wrong fs type" in done.stderr:
        pytest.skip("overlayfs cannot be mounted here")
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["kernel"] == found["procfs"]
    assert f"{tmp_path}/merged/program" in {name for *_, name in found["kernel"]}


@pytest.mark.root
def test_more_mappings_than_a_message_of_the_kernel_holds() -> None:
    def setup() -> int:
        # Every other page may be written, so that they do not merge.
        size = 4000 * PAGE
        start = mapped(size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)
        for at in range(start, start + size, 2 * PAGE):
            protect(at, PAGE, PROT_READ | PROT_WRITE)
        return start

    with child(setup) as many:
        kernel, procfs = both(many.pid, Show.BASE | Show.CMDLINE | Show.VMA)
    assert kernel.vmas is not None
    assert procfs.vmas is not None
    assert len(kernel.vmas) > 4000
    assert [vma[:2] for vma in kernel.vmas] == [vma[:2] for vma in procfs.vmas]
    assert kernel.cmdline_raw == procfs.cmdline_raw
    assert kernel.base == procfs.base


@pytest.mark.root
def test_arguments_in_a_file_are_not_read(tmp_path: Path) -> None:
    """Else whoever maps a file of a file system of his own there could hold up readers."""
    file = tmp_path / "arguments"
    file.write_bytes(b"not the arguments\0".ljust(1 << 21, b"\0"))

    def setup() -> None:
        stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start = int(stat[45]) & -mmap.PAGESIZE
        end = (int(stat[46]) + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
        fd = os.open(file, os.O_RDONLY)
        if _mmap(start, end - start, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) != start:
            raise OSError(ctypes.get_errno(), "mmap")

    with child(setup) as hostile:
        if Path(f"/proc/{hostile.pid}/cmdline").read_bytes():
            missing("this kernel reads arguments from files")
        kernel, procfs = both(hostile.pid, Show.CMDLINE)
    assert procfs.cmdline_raw == b""
    assert kernel.cmdline_raw == b""


# --- The end of a message ---------------------------------------------------------------


def shown(pid: int | str, tid: int | None = None) -> list[tuple[str, str, str, str]]:
    """What maps shows: range, permissions, offset and name of each mapping."""
    where = f"/proc/{pid}/maps" if tid is None else f"/proc/{pid}/task/{tid}/maps"
    lines = Path(where).read_text().splitlines()
    return [
        (words[0], words[1], words[2], words[5].lstrip() if len(words) > 5 else "")
        for words in (line.split(" ", 5) for line in lines)
    ]


def as_shown(vmas: list[Vma] | None) -> list[tuple[str, str, str, str]]:
    """The same of an answer."""
    column = zip("rwx", (VmaFlag.READ, VmaFlag.WRITE, VmaFlag.EXEC), strict=True)
    letters = list(column)
    return [
        (
            f"{one.start:08x}-{one.end:08x}",
            "".join(letter if one.flags & flag else "-" for letter, flag in letters)
            + ("s" if one.flags & VmaFlag.MAYSHARE else "p"),
            f"{one.pgoff:08x}",
            one.name or "",
        )
        for one in vmas or ()
    ]


#: Makes mappings until their records have as many bytes as is said, and waits: a process of
#: its own, since that of the tests has more mappings than a message holds.
FILL = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, 9)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
PAGE, wanted, name = mmap.PAGESIZE, int(sys.argv[1]), sys.argv[2]
def records():
    with open("/proc/self/maps", "rb") as file:
        words = [line.rstrip(b"\\n").split(b" ", 5) for line in file]
    names = [word[5].lstrip() if len(word) > 5 else b"" for word in words]
    return sum(64 + (len(name) + 8 & ~7 if name else 0) for name in names)
def protect(page, prot):
    if libc.mprotect(ctypes.c_void_p(pages + page * PAGE), ctypes.c_size_t(PAGE), prot):
        sys.exit("mprotect failed")
pages = libc.mmap(None, 1000 * PAGE, 0, 0x22, -1, 0)
protect(1, 1)
records()
rest = (wanted - records()) % 64
if rest:
    # A name that brings the rest to a whole number of records without one.
    name += "f" * ((rest - len(name) - 1) % 64)
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGE)
    libc.mmap(None, PAGE, 1, 2, fd, 0)
    os.close(fd)
page = 2
while (lacking := wanted - records()) > 0 and not lacking % 64:
    for _ in range(lacking // 64):
        protect(page, 1 if page % 2 else 3)
        page += 1
print(records(), flush=True)
time.sleep(1000)
"""


BUFFER = 8 * PAGE
GATE = 80


@pytest.mark.root
@pytest.mark.parametrize("show", [Show.VMA, Show.VMA | Show.CMDLINE])
@pytest.mark.parametrize("beyond", [-8, -4, 0, 4, 8, GATE // 2, GATE - 4, GATE, GATE + 4, GATE + 8])
def test_a_message_as_long_as_the_buffer_of_the_kernel(
    show: Show, beyond: int, tmp_path: Path
) -> None:
    """seq_write() leaves a byte free: a message that fills the buffer is an error to it."""
    engine = open_engine("kernel")
    # Of five digits.
    command = [sys.executable, "-S", "-E", "-c", FILL, "00000", str(tmp_path / "f")]
    args = sum(len(os.fsencode(arg)) + 1 for arg in command)
    fixed = MSG.size + 4 + (align(4 + args) if show & Show.CMDLINE else 0)
    # Records are multiples of 8 bytes.
    records = BUFFER + beyond - fixed & ~7
    command[5] = str(records)
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert int(process.stdout.readline()) == records
        (task,) = taskdiag.dump(show, pid=process.pid, engine=engine)
        assert as_shown(task.vmas) == shown(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.root
@pytest.mark.parametrize("beyond", range(-5, 6))
def test_command_lines_as_long_as_are_taken_from_memory(beyond: int) -> None:
    program = "/bin/sleep"
    length = cmdline._MOST + beyond
    args = [program, "100", *["0"] * 1000]
    args.append("0" * (length - sum(len(arg) + 1 for arg in args) - 1))
    process = subprocess.Popen(args)
    try:
        file = Path(f"/proc/{process.pid}/cmdline")
        until(lambda: file.read_bytes().startswith(b"/bin/sleep\0"), "it has its arguments")
        right = file.read_bytes()
        assert len(right) == length
        for show in (Show.CMDLINE, Show(int(sum(Show)) & ~Show.VMA_STAT)):
            kernel, procfs = both(process.pid, show)
            assert kernel.cmdline_raw == right
            assert procfs.cmdline_raw == right
    finally:
        process.kill()
        process.wait()


# --- Which thread has the mappings ---------------------------------------------------------


#: A process of few mappings, so that one message holds them.  Its leader exits, and the first
#: of its threads too; the others write their numbers and wait.
LEADERLESS = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
libc.prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
leave, last, tids = threading.Event(), threading.Event(), []
def run(event):
    tids.append(threading.get_native_id())
    event.wait()
def start(event, number=0):
    if number:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(number))
    threading.Thread(target=run, args=(event,), daemon=True).start()
    while len(tids) < count:
        time.sleep(0.001)
numbers = [int(number) for number in sys.argv[2:]] or [0, 0, 0, 0]
for count, number in enumerate(numbers, 1):
    start(leave if count == 1 else last, number)
time.sleep(0.1)
leave.set()
time.sleep(0.1)
print(os.getpid(), *tids[1:], flush=True)
libc.syscall(int(os.environ["EXIT"]), 0)
"""


@contextlib.contextmanager
def leaderless(*numbers: int, **options: Any) -> Iterator[Child]:
    """Such a process; facts are its threads that are left, in the order of their creation.

    With ``numbers`` these become the numbers of its threads, in its pid namespace.
    """
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", LEADERLESS, str(os.getpid()), *map(str, numbers)],
        env={"EXIT": str(SYS_exit)},
        stdout=subprocess.PIPE,
        **options,
    )
    assert process.stdout is not None
    try:
        pid, *tids = map(int, process.stdout.readline().split())
        if not numbers:
            until(lambda: letter(pid) == "Z", "the leader is gone")
            until(lambda: len(os.listdir(f"/proc/{pid}/task")) == 1 + len(tids), "a thread is gone")
        yield Child(pid, tids)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def with_mappings(engine: Engine, pid: int, strategy: Dump) -> list[int]:
    """The threads of a process whose messages have mappings."""
    found = taskdiag.dump(Show.VMA, strategy, pid, engine=engine)
    return [task.pid for task in found if task.vmas and task.tgid == pid]


@pytest.mark.root
@pytest.mark.parametrize("through", ["kernel", "service"])
def test_mappings_of_a_process_whose_leader_has_exited(through: str, service: Service) -> None:
    engine = service.engine() if through == "service" else open_engine("kernel")
    with leaderless() as it:
        first = it.facts[0]
        for strategy in (Dump.THREAD, Dump.ALL_THREAD):
            assert with_mappings(engine, it.pid, strategy) == [first]
        show = Show.BASE | Show.CMDLINE | Show.VMA
        threads = list(taskdiag.dump(show, Dump.THREAD, it.pid, engine=engine))
        assert [task.pid for task in threads] == [it.pid, *it.facts]
        assert as_shown(threads[1].vmas) == shown(it.pid, first)
        # A request for the process gives what /proc/PID shows: a zombie without memory.
        (process,) = taskdiag.dump(Show.BASE | Show.VMA, pid=it.pid, engine=engine)
        assert process.base is not None
        assert process.base.state == State.ZOMBIE
        assert process.vmas is None
        assert shown(it.pid) == []


@pytest.mark.root
def test_more_mappings_than_a_message_holds_without_a_leader() -> None:
    with headless(3) as it:
        assert len(shown(it.pid, it.facts[0])) > 100
        assert with_mappings(open_engine("kernel"), it.pid, Dump.THREAD) == [min(it.facts)]


@pytest.mark.root
def test_the_first_thread_is_the_one_with_the_lowest_number() -> None:
    """Where numbers have wrapped, that is not the one that was started first."""
    need_vma()

    def ask() -> list[int]:
        with leaderless(700, 600, 300, 400) as it:
            until(lambda: with_mappings(open_engine("kernel"), it.pid, Dump.THREAD) != [], "")
            return [*it.facts, *with_mappings(open_engine("kernel"), it.pid, Dump.THREAD)]

    def inside() -> list[int]:
        check(libc.unshare(CLONE_NEWPID))
        found: list[int] = forked(ask)
        return found

    *threads, first = forked(inside)
    assert threads == [601, 301, 401]
    assert first == 301


@pytest.mark.root
def test_mappings_come_with_the_leader_that_took_over_by_exec() -> None:
    with execed_by_thread() as it:
        assert with_mappings(open_engine("kernel"), it.pid, Dump.THREAD) == [it.pid]


@pytest.mark.root
def test_a_zombie_has_no_mappings() -> None:
    with zombie() as it:
        (task,) = taskdiag.dump(Show.VMA, Dump.THREAD, it.pid, engine=open_engine("kernel"))
        assert task.vmas is None


# --- Flags -----------------------------------------------------------------------------


def make_one_of_each_kind(folder: Path) -> dict[str, list[int]]:
    """Mappings of every kind: a kind's name to address and the flags that it must have."""
    made: dict[str, list[int]] = {}
    anonymous = MAP_PRIVATE | MAP_ANONYMOUS
    size = 4 * PAGE

    def add(name: str, address: int, flags: VmaFlag) -> int:
        made[name] = [address, int(flags)]
        # One between each two, so that they cannot merge.
        mapped(PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS)
        return address

    file = folder / "mapped"
    file.write_bytes(bytes(size))
    both_ways, read_only = os.open(file, os.O_RDWR), os.open(file, os.O_RDONLY)
    rw = PROT_READ | PROT_WRITE
    F = VmaFlag
    may = F.MAYREAD | F.MAYWRITE | F.MAYEXEC
    for prot, flags in (
        (PROT_NONE, F(0)), (PROT_READ, F.READ), (rw, F.READ | F.WRITE),
        (PROT_READ | PROT_EXEC, F.READ | F.EXEC), (rw | PROT_EXEC, F.READ | F.WRITE | F.EXEC),
    ):  # fmt: skip
        add(f"anonymous {prot}", mapped(size, prot, anonymous), flags | may)
        add(f"shared {prot}", mapped(size, prot, MAP_SHARED | MAP_ANONYMOUS),
            flags | may | F.SHARED | F.MAYSHARE)  # fmt: skip
        add(f"private file {prot}", mapped(size, prot, MAP_PRIVATE, both_ways), flags | may)
        add(f"shared file {prot}", mapped(size, prot, MAP_SHARED, both_ways),
            flags | may | F.SHARED | F.MAYSHARE)  # fmt: skip
    add("private file opened to read", mapped(size, rw, MAP_PRIVATE, read_only), may | F.WRITE)
    add("shared file opened to read", mapped(size, PROT_READ, MAP_SHARED, read_only),
        F.READ | F.MAYREAD | F.MAYEXEC | F.MAYSHARE)  # fmt: skip
    add("grows down", mapped(size, rw, anonymous | MAP_GROWSDOWN), F.GROWSDOWN)
    add("no reserve", mapped(size, rw, anonymous | MAP_NORESERVE), may)
    locked = add("locked", mapped(size, rw, anonymous), F.LOCKED)
    check(libc.mlock(ctypes.c_void_p(locked), ctypes.c_size_t(size)))
    for name, advice, flag in (
        ("random", MADV_RANDOM, F.RAND_READ), ("sequential", MADV_SEQUENTIAL, F.SEQ_READ),
        ("not forked", MADV_DONTFORK, F.DONTCOPY), ("not dumped", MADV_DONTDUMP, F.DONTDUMP),
        ("merged", MADV_MERGEABLE, F.MERGEABLE), ("huge", MADV_HUGEPAGE, F.HUGEPAGE),
        ("not huge", MADV_NOHUGEPAGE, F.NOHUGEPAGE),
    ):  # fmt: skip
        address = mapped(size, rw, anonymous)
        try:
            advise(address, size, advice)
        except OSError as error:
            # This kernel is configured without it.
            if error.errno != errno.EINVAL:
                raise
            flag = F(0)
        add(name, address, flag)
    with contextlib.suppress(OSError):
        # No huge pages are reserved, usually.
        add("huge page", mapped(2 << 20, rw, anonymous | MAP_HUGETLB), F.HUGETLB)
    for fd in (both_ways, read_only):
        os.close(fd)
    return made


@pytest.mark.root
def test_all_flags_are_equal_in_both_engines(tmp_path: Path) -> None:
    with child(lambda: make_one_of_each_kind(tmp_path)) as it:
        kernel, procfs = both(it.pid, Show.VMA)
        statistics = both(it.pid, Show.VMA | Show.VMA_STAT)
        assert kernel.vmas is not None
        for task in (procfs, *statistics):
            assert task.vmas is not None
            assert [one.flags for one in task.vmas] == [one.flags for one in kernel.vmas]
        by_start = {one.start: one for one in kernel.vmas}
        for name, (address, flags) in it.facts.items():
            assert by_start[address].flags & flags == flags, name
        read_only = by_start[it.facts["shared file opened to read"][0]].flags
        assert not read_only & (VmaFlag.MAYWRITE | VmaFlag.SHARED)
        # And of the mappings that every process has.
        assert {"[stack]", "[vdso]"} <= {one.name for one in kernel.vmas}


@pytest.mark.root
def test_all_flags_in_a_single_message() -> None:
    """Of a process of few mappings, which no engine but the kernel's has read."""
    need_vma()
    with leaderless() as it:
        (kernel,) = [
            task.vmas
            for task in taskdiag.dump(Show.VMA, Dump.THREAD, it.pid, engine=open_engine("kernel"))
            if task.vmas
        ]
        flags = re.findall(
            r"^VmFlags: (.*)$", Path(f"/proc/{it.pid}/task/{it.facts[0]}/smaps").read_text(), re.M
        )
        assert [one.flags for one in kernel] == [flags_of(names.encode()) for names in flags]


# --- Names given by prctl(2) ----------------------------------------------------------


NAMES = (b"x", b" leading space", b"a'quote\"and #?*", b"n" * 79)

#: In a process of its own, of few mappings: prints the addresses.
NAMED = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, 9)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
PAGE = mmap.PAGESIZE
def name(address, length, text):
    if libc.prctl(0x53564D41, 0, ctypes.c_ulong(address), ctypes.c_ulong(length),
                  text if text is None else text + b"\\0"):
        print(ctypes.get_errno(), flush=True)
        sys.exit()
for text in eval(sys.argv[1]):
    for flags in (0x22, 0x21):
        at = libc.mmap(None, 4 * PAGE, 3, flags, -1, 0)
        name(at, 4 * PAGE, text)
# One file in several parts: a name, none, another, none; and one that was taken back.
at = libc.mmap(None, 8 * PAGE, 3, 0x21, -1, 0)
name(at, PAGE, b"first part")
name(at + 4 * PAGE, PAGE, b"third part")
at = libc.mmap(None, 4 * PAGE, 3, 0x21, -1, 0)
name(at, 4 * PAGE, b"once")
name(at, 4 * PAGE, None)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.root
def test_names_of_memory_are_those_that_maps_shows() -> None:
    engine = open_engine("kernel")
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", NAMED, repr(NAMES)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline().strip()
        if said != b"ready":
            # EBADF before 6.2 for shared memory; EINVAL without CONFIG_ANON_VMA_NAME.
            assert int(said) in (errno.EINVAL, errno.EBADF)
            pytest.skip("memory cannot be named here")
        right = shown(process.pid)
        names = [name for *_, name in right]
        for name in NAMES:
            assert f"[anon:{name.decode()}]" in names
            assert f"[anon_shmem:{name.decode()}]" in names
        at = names.index("[anon_shmem:first part]")
        assert names[at + 1] == names[at + 3] == "/dev/zero (deleted)"
        assert names[at + 2] == "[anon_shmem:third part]"
        for answer in (engine, "procfs"):
            (task,) = taskdiag.dump(Show.VMA, pid=process.pid, engine=answer)
            assert as_shown(task.vmas) == right
            files = {one.name: (one.major, one.minor, one.inode) for one in task.vmas or ()}
            assert files["[anon_shmem:first part]"] == files["[anon_shmem:third part]"]
            assert files["[anon_shmem:first part]"][2]
            assert files["[anon:x]"] == (0, 0, 0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Named:
    """The running kernel as if files were named memory: by their names in their directories.

    So that the code for names runs where CONFIG_ANON_VMA_NAME is not set.
    """

    def __init__(self, real: Facts) -> None:
        self._real = real
        members = ("d_shortname", "d_iname")
        self._name = next(name for name in members if real.has_member("dentry", name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def has_member(self, struct: str, path: str) -> bool:
        return path == "anon_name" or self._real.has_member(struct, path)

    def path(self, struct: str, path: str) -> Any:
        if path == "anon_name":
            path = "vm_file->f_path.dentry"
        return self._real.path(struct, path)

    def member(self, struct: str, path: str) -> Any:
        if struct == "anon_vma_name":
            struct, path = "dentry", self._name
        return self._real.member(struct, path)


@pytest.mark.root
def test_named_files() -> None:
    need_vma()
    from taskdiag.kernel import KernelEngine

    engine = KernelEngine(facts=Named(Facts.live()))  # type: ignore[arg-type]
    with leaderless() as it:
        found = [
            task.vmas
            for task in taskdiag.dump(Show.VMA, Dump.THREAD, it.pid, engine=engine)
            if task.vmas
        ]
        right = shown(it.pid, it.facts[0])
        expected = [
            (*mapping, f"[anon_shmem:{os.path.basename(name)}]" if name[:1] == "/" else name)
            for *mapping, name in right
        ]
        assert as_shown(found[0]) == expected
        plain = taskdiag.dump(Show.VMA, Dump.THREAD, it.pid, engine=open_engine("kernel"))
        for named, one in zip(found[0], next(t.vmas for t in plain if t.vmas), strict=True):
            assert named._replace(name=one.name) == one


def vma_program(*, named: bool) -> Code:
    """The program for VMA on a kernel that was built with or without names."""
    kernel = dict(made_kernel.NEW)
    if named:
        kernel = {"anon_vma_name": "kref u32, name char[0]", **kernel}
        kernel["vm_area_struct"] += ", anon_name *anon_vma_name"
    facts = made_kernel.made(kernel, made_kernel.KFUNCS, ("copy_from_user_task", "loop"))
    host = Host(per_cpu=(0,), special_ops=0xFFFFFFFF81000000, gate=bytes(GATE))
    return compile_request(Request(Show.VMA, Dump.ALL_THREAD), facts, Viewer(0, 0), host).code


def test_names_are_asked_for_where_the_kernel_has_them() -> None:
    def immediates(code: Code) -> set[int]:
        return {imm for _, _, _, imm in INSN.iter_unpack(code.insns)}

    prefix = {int.from_bytes(text, "little") for text in (b"[ano", b"n_sh", b"mem:")}
    assert prefix <= immediates(vma_program(named=True))
    assert not prefix & immediates(vma_program(named=False))
