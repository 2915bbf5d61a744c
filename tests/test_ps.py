"""``taskdiag ps`` beside procps-ng's ps, line by line, on processes that stand still."""

from __future__ import annotations

import ctypes
import os
import pty
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import taskdiag
from conftest import ENGINES, missing, need, open_engine
from population import Child, child, comm_of, end, letter, stopped, threaded, until, zombie
from streams import Made
from taskdiag import DecodeError
from taskdiag.abi import GROUPS, Attr, Show
from taskdiag.cli import ps as command
from taskdiag.errors import RequestError
from taskdiag.netlink import pack_task
from taskdiag.terminal import cells, clean, clip
from taskdiag.views.columns import COLUMNS, column
from taskdiag.views.ps import Table

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC"}


@contextmanager
def sleeper(*args: bytes, setsid: bool = False, user: int | None = None) -> Iterator[Child]:
    """A shell that waits, with these arguments, argv[0] first; it has used next to no time."""
    with subprocess.Popen(
        [args[0], b"-c", b"read line", *args[1:]],
        executable="/bin/sh", stdin=subprocess.PIPE, start_new_session=setsid, user=user,
    ) as process:  # fmt: skip
        try:
            until(lambda: letter(process.pid) == "S", "the shell to wait")
            yield Child(process.pid)
        finally:
            process.kill()


def burn(seconds: float) -> None:
    """Use processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@contextmanager
def on_terminal() -> Iterator[Child]:
    """A process that leads a session on a terminal of its own."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvp("sleep", ["sleep", "1000"])
    try:
        until(lambda: letter(pid) == "S", "sleep to sleep")
        yield Child(pid)
    finally:
        end(pid)
        os.close(master)


@pytest.fixture(scope="module")
def standing() -> Iterator[str]:
    """The pids of a population, as a list for -p.  All but one have used next to no time."""
    need("ps")
    if b"procps-ng 4.0" not in version():
        pytest.skip("the oracle is ps of procps-ng 4.0, and here is another ps")
    if os.geteuid() != 0:
        missing("the population of the comparison needs root")
    with ExitStack() as stack:
        enter = stack.enter_context
        children = [
            enter(stopped()),
            enter(zombie()),
            enter(zombie(b"a) Z (\x1b[31m")),
            enter(threaded(3)),
            enter(child(lambda: os.nice(7))),
            enter(child(lambda: burn(0.5))),
            enter(child(lambda: comm_of(b"a) R 1 (\n\x1b[3"))),
            enter(child(lambda: comm_of("日本語x".encode()))),
            enter(child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(7)))),
            enter(child(lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)))),
            enter(sleeper(b"a b", b"c d ")),
            enter(sleeper(b"a\nb", b"c\n")),
            enter(sleeper(b"t", b"", b"")),
            enter(sleeper("é\u0085x".encode())),
            enter(sleeper(b"\xe9bad", "é".encode())),
            enter(sleeper(b"e\x1b[31m\x7f\t")),
            enter(sleeper(b"long", *[b"x" * 50] * 9)),
            enter(sleeper(b"leader", setsid=True)),
            enter(sleeper(b"nobody", user=65534)),
            enter(sleeper(b"unnamed", user=123456)),
            enter(on_terminal()),
        ]
        pids = [one.pid for one in children]
        # kthreadd, whose name is not one that ps makes longer.
        pids += [2] if taskdiag_comm(2) == "kthreadd" else []
        yield ",".join(map(str, pids))


def version() -> bytes:
    return subprocess.run(["ps", "--version"], capture_output=True).stdout


def taskdiag_comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def ours(
    args: list[str], engine: str = "procfs", environment: dict[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "taskdiag", "--engine", engine, "ps", *args],
        capture_output=True, env=environment, timeout=60,
    )  # fmt: skip


def assert_same(
    args: list[str], engine: str = "procfs", environment: dict[str, str] = ENVIRONMENT
) -> None:
    """Both print the same lines.  What moves with time lies between two answers of ps."""

    def theirs() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["ps", *args], capture_output=True, env=environment, timeout=60)

    before = theirs()
    for _ in range(8):
        mine = ours(args, engine, environment)
        after = theirs()
        if mine.returncode == after.returncode and is_between(
            before.stdout, mine.stdout, after.stdout
        ):
            return
        before = after
    assert mine.stderr == b""
    assert mine.stdout.split(b"\n") == after.stdout.split(b"\n")
    assert mine.returncode == after.returncode


def is_between(before: bytes, mine: bytes, after: bytes) -> bool:
    """Whether an answer is the same as two others, but for numbers between theirs.

    The %CPU of a young process falls by tenths faster than two commands can be run.

    >>> is_between(b"a  8.9 x", b"a  8.7 x", b"a  8.6 x")
    True
    """
    if mine in (before, after):
        return True
    # Numbers at odd places, what is around them at even ones.
    texts = [re.split(rb"([0-9]+(?:\.[0-9]+)?)", text) for text in (before, mine, after)]
    if len({len(text) for text in texts}) > 1:
        return False
    for at, (first, middle, last) in enumerate(zip(*texts, strict=True)):
        if first == middle == last:
            continue
        if at % 2 == 0:
            return False
        low, high = sorted((float(first), float(last)))
        if not low <= float(middle) <= high:
            return False
    return True


FORMATS = """
-p LIST
p LIST
u p LIST
j p LIST
-f -p LIST
-F -p LIST
-j -p LIST
-fj -p LIST
-c -p LIST
-fc -p LIST
-P p LIST
-fP -p LIST
n u p LIST
c u p LIST
h p LIST
--no-headers -p LIST
-q LIST
-L -p LIST
-T -p LIST
H p LIST
uH p LIST
u -T p LIST
-fL -p LIST
-o pid=,comm= -p LIST
-o pid= -o comm= -p LIST
-o pid=AVERYLONGHEADER,comm:3,user:3,args:10,tty -p LIST
-o comm,args,pid -p LIST
-o user,args:30,stat -p LIST
-o user:3,ruser:20,group:2,pid -p LIST
-o pid,user -p LIST
-o rss,vsz,sz,size,pid -p LIST
-o rss,rss,rss,rss,pid,comm -p LIST
-o rss:1,vsz:1,pid:1,ppid,comm,stat:1,tty -p LIST
-o pmem,%mem,pid -p LIST
-o %cpu,pcpu,c,cp,util,pid -p LIST
-o ni,nice,pri,opri,intpri,priority,pri_api,pri_bar,pri_baz,pri_foo,rtprio -p LIST
-o cls,class,policy,sched,psr,lastcpu,cpuid -p 2
-o cls,class,policy,sched,pid -p LIST
-o uid,euid,ruid,suid,fuid,svuid,fsuid,gid,egid,rgid,sgid,fsgid,fgid,svgid -p LIST
-o user,euser,ruser,suser,fuser,uname,group,egroup,rgroup,sgroup,fgroup -p LIST
-o pid,tgid,tid,lwp,spid,ppid,pgid,pgrp,sid,sess,session,tpgid -p LIST
-o start,lstart,start_time,stime,bsdstart,pid -p LIST
-o etime,etimes,pid -p LIST
-o time,cputime,atime,times,cputimes,bsdtime,pid -p LIST
-o minflt,min_flt,maj_flt,majflt,pagein,pid -p LIST
-o nlwp,thcount,f,flags,flag,pid -p LIST
-o stat,state,s,pid -p LIST
-o tt,tty,tname,tty8,longtname,pid -p LIST
-o fname,pid -p LIST
-o ucmd,ucomm,comm,command,cmd -p LIST
-o pid, -p LIST
-O rss -p LIST
--sort -rss -o pid,rss -p LIST
--sort +comm,-pid -o pid -p LIST
--sort ppid,-minflt,pid -o pid,minflt -p LIST
k -pid p LIST
--sort user,pid -o user,pid -p LIST
--cols 40 u p LIST
--cols 60 -f -p LIST
--width=50 -o args,pid -p LIST
--columns 5 -o pid,comm -p LIST
w --cols 40 u p LIST
-w -w --cols 40 u p LIST
u FIRST SECOND
-u nobody -o pid,user,comm
-U 123456 -o pid,ruser
-C sh,sleep -o comm= --sort pid
-p 4194305
-p 4194305 -o pid=
"""


@pytest.mark.parametrize("line", FORMATS.split("\n")[1:-1])
def test_beside_procps(line: str, standing: str) -> None:
    first, second = standing.split(",")[:2]
    words = {"LIST": standing, "FIRST": first, "SECOND": second}
    assert_same([words.get(word, word) for word in line.split()])


@pytest.mark.parametrize("line", ["u p LIST", "-f -p LIST", "-o pid,ppid,stat,comm -p LIST"])
def test_beside_procps_by_the_kernel(line: str, standing: str) -> None:
    open_engine("kernel")
    assert_same([standing if arg == "LIST" else arg for arg in line.split()], "kernel")


SELECTIONS = """

a
x
ax
-a
-d
-ad
-e
-A
-N
g
T
r
-t -
t ?
-p LIST r
-u 0
-u root,nobody
-N -u 0
--ppid ME
-s LIST
-g LIST
--group 0
-G root
-C sleep
-ax
-p LIST -u nobody
a -p LIST
-FIRST
+LAST
"""


def test_selections_beside_procps(standing: str) -> None:
    """Which processes: of those that stand, since others come and go."""
    known = set(standing.split(","))
    first, last = standing.split(",")[0], standing.split(",")[-1]
    for line in SELECTIONS.split("\n")[1:-1]:
        words = {
            "LIST": standing,
            "ME": str(os.getpid()),
            "-FIRST": f"-{first}",
            "+LAST": f"+{last}",
        }
        args = [words.get(word, word) for word in line.split()]
        theirs = subprocess.run(["ps", "-o", "pid=", *args], capture_output=True, env=ENVIRONMENT)
        mine = ours(["-o", "pid=", *args])
        assert mine.stderr == b"", args
        found = {pid.decode() for pid in mine.stdout.split()}
        wanted = {pid.decode() for pid in theirs.stdout.split()}
        assert found & known == wanted & known, args


#: Names with every kind of character and of damage; a name has 15 bytes.
HOSTILE = (
    b"abcde\xcc\x81f", "abc日本".encode(), "abcd日".encode(), b"a\xf4\x90\x80\x80b",
    b"a\xf7\xbf\xbf\xbfb", b"a\xf8\x88\x80\x80\x80b", b"a\xf0\x80\x80\x80b", b"a\xe0\x80\x80b",
    b"a\xed\xa0\x80b", b"a\xc0\x80b", b"\xf4\x80\x80", b"\xff\xfe", b"ab\xe6\x97\xa5\xe6",
    b"\xe6\x97\xe6\x97\xa5", "\u1112\u1161\u11abx".encode(), "\u1160\u1161ab".encode(),
    "\u0600ab".encode(), "\u4dc0ab".encode(), "\U0001f200ab".encode(), "\u200bx".encode(),
    "\u00adx".encode(), "\u0301x".encode(), "\u0378x".encode(), "\u2028x".encode(),
    "\x85\x9bx".encode(), "\ufffex".encode(), "\ue000x".encode(), "\U000e0001x".encode(),
    "\U0001f600\U0001f600\U0001f600".encode(), b"\x1b[31m\x7f\t",
)  # fmt: skip


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_hostile_names_beside_procps(locale: str, standing: str) -> None:
    pick = random.Random(1)
    pieces = [name[at : at + 2] for name in HOSTILE for at in range(len(name))]
    mixed = [b"".join(pick.choices(pieces, k=5)) for _ in range(100)]
    environment = {**ENVIRONMENT, "LANG": locale}
    with ExitStack() as stack:
        enter = stack.enter_context
        pids = [enter(child(partial(comm_of, name))).pid for name in (*HOSTILE, *mixed)]
        listed = ",".join(map(str, pids))
        for columns in ("comm", "comm,pid", "comm:5,pid", "comm:4,s,comm:3,s", "fname,s"):
            assert_same(["-o", columns, "-p", listed], "procfs", environment)


#: Arguments beside "-o pid=" and whether procps-ng takes them: lists and numbers as
#: strtoul(3) reads them in base 0.
NUMBERS = r"""
-p 0x1
-p 0X1
-p 01
-p 010
-p 08
-p +1
-p -1
-p -0xffffffffffffffff
-p -18446744073709551615
-p 18446744073709551617
-p 0
-p 0x
-p 0b1
-p 1_0
-p \u0661
-p 1x
-p --1
-p +-1
-p 2147483647
-p 2147483648
-p ''
-p '1 2'
-p '1\t2'
-p '1\n2'
-p '\n1'
-p '\v\f\r1'
-p '1\n'
-p ' 1'
-p 1,
-p ,1
-p 1,,2
--pid=1
--pid:0x1
--pid= 1
-q 0x1
-s 09
-s 0x7fffffff
-s 0
-g 0x7fffffff
-g 1,nosuchgroup
--ppid 0x7fffffff
--ppid 0
-u -1
-u nosuchuser
-u 4294967294
-u 4294967295
-u 0xfffffffe
-U 037777777776
-G 0xfffffffe
-G nosuchgroup
--group 0xfffffffe
-C kthreadd,
-C 'kthreadd\nx'
0x1
01 0x2
08
1,2
'1 2'
1 +1
1 --1
-p 1 --cols 0x20
-p 1 --cols -1
-p 1 --cols 1999999999
-p 1 --cols 2000000000
-p 1 -o pid,
-p 1 -o pid,,comm
-p 1 -o pid:010
-p 1 --sort pid,
-p 1 --sort pid,,comm
-p 1 --sort ,pid
-p 1 h h
-p 1 --no-headers=1
"""


@pytest.mark.parametrize("line", NUMBERS.split("\n")[1:-1])
def test_lists_and_numbers_beside_procps(line: str, standing: str) -> None:
    words = shlex.split(line.encode().decode("unicode_escape") if "\\" in line else line)
    args = ["-o", "pid=", *words]
    theirs = subprocess.run(["ps", *args], capture_output=True, env=ENVIRONMENT)
    mine = ours(args)
    assert mine.stdout == theirs.stdout
    if theirs.returncode == 0 or not theirs.stderr:
        assert mine.returncode == theirs.returncode
        assert mine.stderr == b""
    else:
        assert (theirs.returncode, mine.returncode) == (1, 2)
        assert re.fullmatch(rb"taskdiag: [^\n]+\n", mine.stderr)


@pytest.mark.parametrize(
    "option", ["-u NUMBER", "-U NUMBER", "U NUMBER", "--user NUMBER", "-G NUMBER", "--group NUMBER",
               "-g 0,NUMBER", "-u root,NUMBER"],
)  # fmt: skip
@pytest.mark.parametrize("number", ["0x1e240", "0361100", "+123456", "-0xfffffffffffe1dc0"])
def test_ids_in_every_base(option: str, number: str, standing: str) -> None:
    args = ["-o", "pid=", *option.replace("NUMBER", number).split()]
    known = {pid.encode() for pid in standing.split(",")}
    theirs = subprocess.run(["ps", *args], capture_output=True, env=ENVIRONMENT)
    assert set(ours(args).stdout.split()) & known == set(theirs.stdout.split()) & known


@pytest.mark.parametrize("line", ["-N -u nosuchuser", "-N -G nosuchgroup", "-N -u -1"])
def test_ids_that_nobody_has_may_be_left_out(line: str, standing: str) -> None:
    args = ["-o", "pid=", *line.split()]
    assert {pid.encode() for pid in standing.split(",")} <= set(ours(args).stdout.split())


@settings(deadline=None)
@given(st.text("0123456789abcdefxX+- \t\n\v\f\r_\u0661", max_size=24))
def test_numbers_are_those_of_strtoul(text: str) -> None:
    libc = ctypes.CDLL(None)
    libc.strtoul.restype = ctypes.c_ulong
    raw = ctypes.create_string_buffer(text.encode())
    end = ctypes.c_char_p()
    number = libc.strtoul(raw, ctypes.byref(end), 0)
    # Where there is no number, strtoul() stops at the start.
    whole = end.value == b"" and text != ""
    assert command._number(text) == (number if whole else None)


@pytest.mark.parametrize("zeros", ["", "0" * 5000, "0x" + "0" * 5000])
def test_numbers_of_any_length(zeros: str) -> None:
    assert command._number("9" * 5000) == 2**64 - 1
    assert command._number(zeros + "1") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--engine procfs", "--engine goes before the command"),
        ("--engine=procfs", "--engine goes before the command"),
        ("-V -e", "option -V goes alone"),
        ("--version -e", "option --version goes alone"),
        ("L -e", "option L goes alone"),
        ("-p 1,,2", "process id list '1,,2' has an empty item"),
        ("-o pid,,comm", "column list 'pid,,comm' has an empty item"),
        ("-g nosuchgroup", "'nosuchgroup' is a list neither of session ids nor of groups"),
        # About the first reading, although the second one gets further.
        ("-o pid -u -1", "user id -1 is out of range"),
    ],
)
def test_messages(line: str, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        command.parse(line.split())


@pytest.mark.parametrize("option", ["-V", "V", "--version"])
def test_version(option: str) -> None:
    assert ours([option]).stdout == f"ps from taskdiag {taskdiag.__version__}\n".encode()


def test_help() -> None:
    assert ours(["-p", "1", "--help"]).stdout.startswith(b"usage: taskdiag ps ")
    # There it is a name.
    assert ours(["-C", "--help"]).stdout.count(b"\n") == 1


def long_names() -> dict[int, str]:
    """Kernel threads whose name is longer than a comm, but for workers, whose names change."""
    found = {pid: taskdiag_comm(pid) for pid in range(3, 300)}
    return {
        pid: name
        for pid, name in found.items()
        if len(name) > 15 and "kworker" not in name and not os.path.exists(f"/proc/{pid}/exe")
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_full_names_of_kernel_threads(engine: str, standing: str) -> None:
    open_engine(engine)
    if not (names := long_names()):
        pytest.skip("no kernel thread has a name longer than 15 bytes here")
    pids = ",".join(map(str, names))
    for line in (
        "-o comm -p LIST", "-o args -p LIST", "-o ucmd,pid -p LIST", "-o ucomm:20,pid -p LIST",
        "-o fname,comm -p LIST", "-o args:12,comm:40,cmd -p LIST", "-f -p LIST", "u c -p LIST",
        "--sort comm -o comm -p LIST", "--sort -args -o pid -p LIST",
    ):  # fmt: skip
        assert_same([pids if word == "LIST" else word for word in line.split()], engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_commands_are_found_by_their_full_name(engine: str, standing: str) -> None:
    open_engine(engine)
    names = [name for name in long_names().values() if "," not in name and " " not in name]
    for name in [
        *names[:3],
        *(name[:15] for name in names[:3]),
        *(name + "x" for name in names[:3]),
    ]:
        assert_same(["-o", "pid=,comm=", "-C", name], engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_commands_of_processes_are_found_by_their_first_15_bytes(
    engine: str, standing: str
) -> None:
    open_engine(engine)
    with child(lambda: comm_of(b"fifteen-bytes.x")) as it:
        for asked in ("fifteen-bytes.x", "fifteen-bytes.xyz", "fifteen-bytes.x-" + "y" * 100):
            assert ours(["-o", "pid=", "-C", asked], engine).stdout.split() == [b"%d" % it.pid]
            assert_same(["-o", "pid=", "-C", asked], engine)
        assert ours(["-o", "pid=", "-C", "fifteen-bytes."], engine).stdout == b""


def test_known_columns_are_those_of_procps(standing: str) -> None:
    """Each with its header; ours are a part of theirs."""
    theirs = subprocess.run(["ps", "L"], capture_output=True, env=ENVIRONMENT).stdout.split(b"\n")
    mine = ours(["L"]).stdout.split(b"\n")
    assert len(mine) == len(COLUMNS) + 1
    assert set(mine) <= set(theirs)


@pytest.mark.parametrize("name", COLUMNS)
def test_header_and_width_of_each_column(name: str, standing: str) -> None:
    assert_same(["-o", f"{name},{name},pid", "-p", "4194305"])


# --- Without an oracle ----------------------------------------------------


def lines(columns: str, chunks: list[bytes], **options: object) -> list[bytes]:
    table = Table(command.parse_columns(columns), **options)  # type: ignore[arg-type]
    return b"".join(table.format_chunks(chunks)).split(b"\n")[:-1]


def task(
    pid: int, comm: bytes = b"x", cmdline: bytes | None = None, state: int = 1, **vm: int
) -> Made:
    made = Made(pid, pid)
    made.groups[Attr.BASE] = (pid, pid, 1, 0, pid, pid, state, comm)
    made.groups[Attr.NAME] = (comm,)
    if vm:
        made.groups[Attr.STATM] = tuple(vm.get(item.name, 0) for item in GROUPS[Attr.STATM].fields)
    made.cmdline = cmdline
    return made


@settings(deadline=None)
@given(st.lists(st.integers(1, 2**32 - 1), max_size=30), st.integers(1, 10))
def test_rows_do_not_depend_on_chunks(pids: list[int], step: int) -> None:
    parts = [task(pid).pack() for pid in pids]
    chunks = [b"".join(parts[at : at + step]) for at in range(0, len(parts), step)]
    wanted = [b"%5d %5d" % (pid, 1) for pid in pids]
    assert [line.split() for line in lines("pid,ppid", chunks)] == [line.split() for line in wanted]
    assert lines("pid,ppid", chunks) == lines("pid,ppid", parts)
    assert lines("ppid,pid", chunks) == lines("ppid,pid", parts)
    assert lines("pid,comm", chunks) == lines("pid,comm", parts)


def test_values_that_are_too_wide_push_what_follows_and_no_more() -> None:
    chunks = [task(7, total_rss=10**6, cmdline=b"a").pack()]
    assert lines("rss:5,rss:12,pid:3,args", chunks) == [b"4000000    4000000   7 a"]
    assert lines("rss:2,pid:3,args", chunks) == [b"4000000 7 a"]


def test_who_has_no_arguments() -> None:
    chunks = [
        task(1, b"kworker/0:0").pack(),
        task(2, b"gone", state=6).pack(),
        task(3, b"e\x1bil", b"", total_vm=1).pack(),
        task(4, b"blank", b"\0\0", total_vm=1).pack(),
        task(5, b"sh", b"sh\0-c\0a\nb\0", total_vm=1).pack(),
    ]
    wanted = [b"[kworker/0:0]", b"[gone] <defunct>", b"[e?il]", b"?", b"sh -c a b"]
    assert lines("args", chunks) == wanted
    assert lines("args,s", chunks) == [
        text.ljust(28) + state
        for text, state in zip(wanted, (b"S", b"Z", b"S", b"S", b"S"), strict=True)
    ]
    assert lines("vsz,args", chunks)[0] == b"     0 [kworker/0:0]"


def test_messages_of_every_kind_in_one_chunk() -> None:
    """Fast paths and slow: kernel threads, joined messages, unknown attributes, odd orders."""
    odd = pack_task(
        4,
        4,
        [
            (Attr.CMDLINE, b"odd\0"),
            (77, b"new"),
            (0, GROUPS[Attr.BASE].struct.pack(4, 4, 1, 0, 4, 4, 1, b"odd")),
            (Attr.NAME, GROUPS[Attr.NAME].struct.pack(b"odd")),
        ],
    )
    parts = [
        task(1, b"kernel").pack(),
        task(2, b"one", b"one\0", total_rss=5).pack(),
        task(3, b"long", b"x" * 70_000, total_rss=5).pack(),
        odd,
        task(5, b"last", b"last\0", total_rss=5).pack(),
    ]
    wanted = [
        b"    1     0 [kernel]",
        b"    2    20 one",
        b"    3    20 " + b"x" * 70_000,
        b"    4     0 odd",
        b"    5    20 last",
    ]
    assert lines("pid:5,rss,args", [b"".join(parts)]) == wanted
    assert lines("pid:5,rss,args", parts) == wanted


@settings(deadline=None)
@given(st.data())
def test_damage_is_a_decode_error_with_its_offset(data: st.DataObject) -> None:
    parts = [task(pid, b"name", b"a\0b\0", total_rss=5).pack() for pid in range(1, 6)]
    raw = b"".join(parts)
    cut = data.draw(st.integers(1, len(raw) - 1))
    for columns in ("pid,ppid", "pid,rss,args", "comm"):
        if cut % len(parts[0]) == 0:
            continue
        with pytest.raises(DecodeError) as caught:
            lines(columns, [raw, raw[:cut]])
        assert len(raw) <= caught.value.offset <= len(raw) + cut
        assert str(caught.value).startswith(f"byte {caught.value.offset}: ")


@given(st.binary(max_size=40), st.integers(0, 30))
def test_text_for_terminals(raw: bytes, room: int) -> None:
    for utf8 in (True, False):
        safe = clean(raw, utf8)
        text = safe.decode("utf-8" if utf8 else "ascii")
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
        assert clean(safe, utf8) == safe
    assert cells(clip(safe, room)) <= room
    assert safe.startswith(clip(safe, room))


def test_cells() -> None:
    assert cells("日本".encode()) == 4
    assert cells("e\u0301".encode()) == 1
    assert clip("日本".encode(), 3) == "日".encode()


def test_sorting_is_stable_and_over_all_chunks() -> None:
    chunks = [task(pid, total_rss=pid % 3, cmdline=b"").pack() for pid in range(1, 8)]
    kinds = [(column("rss").kind, True)]
    assert [int(line) for line in lines("pid", chunks, order=kinds)] == [2, 5, 1, 4, 7, 3, 6]


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ("", "pid tname time ucmd"),
        ("ax", "pid tname stat bsdtime args"),
        ("aux", "user pid pcpu pmem vsz rss tname stat start_time bsdtime args"),
        ("-aux", "user pid pcpu pmem vsz rss tname stat start_time bsdtime args"),
        ("-ef", "uid_hack pid ppid c stime tname time cmd"),
        ("-efL", "uid_hack pid ppid lwp c nlwp stime tname time cmd"),
        ("-eo pid,ppid -o args", "pid ppid args"),
    ],
)
def test_formats(args: str, names: str) -> None:
    found = command.choose_columns(command.parse(args.split()))
    assert [item.name for item in found] == names.split()


def test_unknown_columns_name_the_nearest() -> None:
    with pytest.raises(RequestError, match="unknown column 'usr': did you mean"):
        column("usr")


def test_only_what_columns_need_is_asked_for() -> None:
    shows = {
        "pid": "BASE", "ppid": "BASE", "comm": "NAME",
        "rss": "STATM", "user": "CRED", "args": "BASE|CMDLINE|NAME",
        "tty,start": "TTY|SCHED", "time": "STAT",
    }  # fmt: skip
    for columns, wanted in shows.items():
        show = Table([column(name) for name in columns.split(",")]).show
        # Python 3.10 cannot iterate over a combination of flags.
        assert "|".join(str(flag.name) for flag in Show if flag & show) == wanted
