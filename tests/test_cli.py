"""The command line as a user meets it: real processes, their output and their status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import taskdiag
from conftest import need, open_engine
from population import child, comm_of, stopped
from taskdiag import Dump
from taskdiag.cli import COMMANDS
from taskdiag.netlink import pack_task

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "taskdiag", *args]


def run(*args: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*args),
        input=stdin,
        capture_output=True,
        env={**ENVIRONMENT, **environment},
        timeout=60,
    )


def refused(status: int, pattern: str, *args: str, stdin: bytes = b"", **environment: str) -> None:
    """One sentence on standard error, nothing on standard output, that status."""
    done = run(*args, stdin=stdin, **environment)
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b""), text
    assert re.search(pattern, text), text
    assert text.startswith("taskdiag: ")
    assert text.count("\n") == 1


# --- Bad input ------------------------------------------------------------

#: Arguments, and what the one sentence about them must say.  ``{tmp}`` is an empty directory.
BAD_USAGE: list[tuple[Sequence[str], str]] = [
    ((), "which command"),
    (("",), "unknown command '': choose from ps, "),
    (("dmup",), "did you mean 'dump'"),
    (("PS",), "did you mean 'ps'"),
    (("qqqq",), "choose from ps, dump, decode, "),
    (("--nosuch",), "unknown option '--nosuch'.*--help"),
    (("-x",), "unknown option '-x'.*--help"),
    (("--engin", "procfs", "ps"), "did you mean --engine"),
    # --engine
    (("--engine", "nosuch", "ps"), "unknown engine 'nosuch': choose from auto, kernel, "),
    (("--engine", "kernl", "ps"), "unknown engine 'kernl': did you mean 'kernel'"),
    (("--engine=", "ps"), "--engine needs a name: auto, kernel, service or procfs"),
    (("--engine",), "--engine needs a name"),
    (("--engine", "dump"), "--engine needs a name"),
    (("--engine", "procfs"), "which command"),
    *(
        ((name, "--engine", "procfs"), f"before the command: taskdiag --engine procfs {name}$")
        for name in COMMANDS
    ),
    (("ps", "aux", "--engine=kernel"), "taskdiag --engine kernel ps$"),
    (("dump", "--one", "1", "--engine"), "taskdiag --engine NAME dump$"),
    (("--engine", "procfs", "serve"), "by the kernel engine, not by procfs"),
    # dump and explain
    (("dump", "--show", "nosuch"), "unknown group 'nosuch': choose from base, cred"),
    (("dump", "--show", "bse"), "unknown group 'bse': did you mean 'base'"),
    (("dump", "--show", "base,creds"), "unknown group 'creds': did you mean 'cred'"),
    (("dump", "--show", "base,"), "empty group name in 'base,': choose from base, "),
    (("dump", "--show", ",base"), "empty group name"),
    (("dump", "--show", "base,,cred"), "empty group name"),
    (("dump", "--show", " "), "empty group name"),
    (("dump", "--show"), "--show needs group names, such as"),
    (("dump", "--show="), "--show needs group names, such as"),
    (("dump", "--nosuch"), "unknown argument '--nosuch'.*dump --help"),
    (("dump", "--row"), "did you mean --raw"),
    (("dump", "-x"), "unknown argument '-x'"),
    (("dump", ""), "unknown argument ''"),
    (("dump", "1"), "unknown argument '1'"),
    (("dump", "--raw=1"), "--raw takes no value"),
    (("dump", "--all=1"), "--all takes no value"),
    (("dump", "--one"), "--one needs a pid, such as --one 1"),
    (("dump", "--one="), "--one needs a pid, such as"),
    (("dump", "--one", "x"), "needs a pid, not 'x'"),
    (("dump", "--one", "--raw"), "needs a pid, not '--raw'"),
    (("dump", "--one", "1.5"), "needs a pid, not '1.5'"),
    (("dump", "--one", "+1"), r"needs a pid, not '\+1'"),
    (("dump", "--one", "0x1"), "needs a pid, not '0x1'"),
    (("dump", "--one", "\u0661"), "needs a pid, not "),
    (("dump", "--one", "1,2"), "needs a pid, not '1,2'"),
    (("dump", "--one", "0"), "pid 0 is out of range: a pid is from 1 to"),
    (("dump", "--one", "-1"), "pid -1 is out of range"),
    (("dump", "--one", "4294967296"), "pid 4294967296 is out of range"),
    (("dump", "--children", "9" * 5000), "is out of range"),
    (("dump", "--one", "1", "--one", "2"), "--one is given twice"),
    (("dump", "--thread", "1", "--all"), "exclude each other: choose one"),
    (("dump", "--threads", "--thread", "1"), "exclude each other"),
    (("explain", "--show", "vmas"), "unknown group 'vmas': did you mean 'vma'"),
    (("explain", "--raw"), "unknown argument '--raw'.*explain --help"),
    (("explain", "base"), "unknown argument 'base'"),
    # decode, abi, doctor, serve
    (("decode", "a", "b"), "decode takes one file"),
    (("decode", ""), "name of the file is empty"),
    (("decode", "--nosuch"), "unknown argument '--nosuch'.*decode --help"),
    (("abi", "x"), "unknown argument 'x': taskdiag abi takes no arguments"),
    (("abi", "--json"), "unknown argument '--json'"),
    (("doctor", "--jsn"), "did you mean --json"),
    (("doctor", "x"), "unknown argument 'x'.*doctor --help"),
    (("serve", "x"), "unknown argument 'x'.*serve --help"),
    (("serve", "--fil", "x"), "did you mean --file"),
    (("serve", "--file"), "--file needs "),
    (("serve", "--file="), "--file needs "),
    (("serve", "--socket"), "--socket needs a path"),
    (("serve", "--socket", "a", "--socket", "b"), "--socket is given twice"),
    # ps
    (("ps", "-o", "pidd"), "unknown column 'pidd': did you mean pid"),
    (("ps", "-o", "qqqqqqq"), "taskdiag ps L"),
    (("ps", "-o", "pid,,comm"), "empty item"),
    (("ps", "-o", "pid:x"), "column width 'x'"),
    (("ps", "-o", ""), "needs a value"),
    (("ps", "-o"), "-o needs a value"),
    (("ps", "--format"), "--format needs a value"),
    (("ps", "-p", "1,,2"), "has an empty item"),
    (("ps", "-p"), "-p needs a value"),
    (("ps", "-p", "x"), "'x' is not a process id"),
    (("ps", "-p", "99999999999"), "out of range"),
    (("ps", "--ppid", "x"), "'x' is not a process id"),
    (("ps", "-C", ","), "has an empty item"),
    (("ps", "-u", "no such user"), "no user is called"),
    (("ps", "-G", "no such group"), "no group is called"),
    (("ps", "-t", "nosuch"), "no terminal is called"),
    (("ps", "--cols", "x"), "--cols needs a number of columns, not 'x'"),
    (("ps", "-Q"), "unknown option '-Q'"),
    (("ps", "--sort", "nosuch"), "unknown column 'nosuch'"),
    (("ps", "--sort", ","), "has an empty item"),
    (("ps", "--nosuch"), "unknown option '--nosuch'"),
    (("ps", "-l"), "option -l is not supported yet"),
    (("ps", "-f", "-o", "pid"), "user-defined format"),
    (("ps", "-"), "unknown argument"),
]


@pytest.mark.parametrize(("args", "pattern"), BAD_USAGE)
def test_bad_usage(args: Sequence[str], pattern: str) -> None:
    refused(2, pattern, *args)


def test_unknown_engine_of_the_environment() -> None:
    refused(2, "TASKDIAG_ENGINE: unknown engine 'nosuch'", "ps", TASKDIAG_ENGINE="nosuch")
    refused(2, "TASKDIAG_ENGINE: .*'service'", "dump", TASKDIAG_ENGINE="servce")


def test_engines_that_cannot_work(tmp_path: Path) -> None:
    nosuch = str(tmp_path / "nosuch")
    refused(
        1, f"no service at {nosuch}: No such file", "--engine", "service", "dump",
        TASKDIAG_SOCKET=nosuch,
    )  # fmt: skip
    if os.geteuid():
        refused(1, "needs CAP_BPF and CAP_PERFMON.*doctor", "--engine", "kernel", "dump")


@pytest.mark.parametrize("option", ["--one", "--children", "--thread"])
def test_a_pid_that_does_not_exist(option: str) -> None:
    refused(1, "no process has pid 4294967295", "--engine", "procfs", "dump", option, "4294967295")


@pytest.mark.root
def test_a_pid_that_is_not_ones_own_to_see() -> None:
    """To root a missing process is missing; a user cannot tell it from one that is hidden."""
    from test_environments import taskdiag

    with stopped() as one:
        for pid in (str(one.pid), "4294967295"):
            done = taskdiag("unprivileged", "dump", "--one", pid, engine="procfs")
            said = f"taskdiag: no process has pid {pid}, or it is not yours to see\n"
            assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    refused(1, "no process has pid 4294967295$", "dump", "--one", "4294967295")


def test_decode_of_what_is_not_a_stream(tmp_path: Path) -> None:
    import bz2
    import gzip
    import lzma

    stream = pack_task(1, 1, [(6, b"a\0b\0")])
    swapped = int.from_bytes(stream[:4], sys.byteorder).to_bytes(4, sys.byteorder)[::-1]
    swapped += stream[4:6][::-1] + stream[6:]
    for data, what in (
        (b"x" * 100, "text; taskdiag dump --raw makes a stream"),
        (b"short", "text"),
        (b"PID TTY\n", "text"),
        (b'{"pid": 1}\n', "JSON already"),
        (gzip.compress(stream), "compressed by gzip"),
        (bz2.compress(stream), "compressed by bzip2"),
        (lzma.compress(stream), "compressed by xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "compressed by zstd"),
        (swapped, "byte order of another machine"),
        (b"\x7fELF" + bytes(range(100)), "its first message has type 0x"),
        (bytes(100), "its first message has type 0x0 instead of 0xd101"),
    ):
        refused(1, f"standard input is not a taskdiag stream: .*{what}", "decode", stdin=data)
    path = tmp_path / "notes"
    path.write_bytes(b"hello, world, how are you?\n" * 2)
    refused(1, "notes is not a taskdiag stream: it is text", "decode", str(path))
    refused(1, "nosuch: No such file", "decode", str(tmp_path / "nosuch"))
    refused(1, "Is a directory", "decode", str(tmp_path))


def test_decode_of_nothing_is_nothing() -> None:
    """An empty stream is the answer about no task, such as the children of a childless one."""
    done = run("decode")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pid": "1"}, "pid must be an integer, not '1'"),
        ({"pid": 1.5}, "pid must be an integer, not 1.5"),
        ({"strategy": "all"}, "strategy must be a Dump, such as Dump.ALL, not 'all'"),
        ({"show": None}, "show must be group names, such as 'base,cred', or Show, not None"),
        ({"show": b"base"}, "show must be group names"),
        ({"show": ["base", 4]}, "a group is named by a string, such as 'base', not by 4"),
        ({"engine": 5}, "engine must be the name of an engine or an engine, not 5"),
    ],
)
def test_arguments_of_a_wrong_type(arguments: dict[str, Any], said: str) -> None:
    for function in (taskdiag.dump, taskdiag.stream):
        with pytest.raises(TypeError) as caught:
            function(**arguments)
        assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pid": 0}, "pid 0 is out of range"),
        ({"pid": -1}, "pid -1 is out of range"),
        ({"pid": 1 << 32}, "out of range"),
        ({"strategy": 9}, "unknown dump strategy 9"),
        ({"show": ""}, "empty group name"),
        ({"show": "bse"}, "did you mean 'base'"),
        ({"show": 1 << 60}, "unknown "),
        ({"engine": "nosuch"}, "unknown engine 'nosuch'"),
    ],
)
def test_arguments_of_a_wrong_value(arguments: dict[str, Any], said: str) -> None:
    for function in (taskdiag.dump, taskdiag.stream):
        with pytest.raises(taskdiag.RequestError, match=said):
            function(**arguments)


def test_decode_of_a_cut_stream_prints_nothing_else(tmp_path: Path) -> None:
    raw = b"".join(pack_task(pid, pid, [(6, b"a\0b\0")]) for pid in (1, 2, 3))
    path = tmp_path / "saved"
    # A cut between messages leaves a whole stream; anywhere else it is told where.
    for cut in (1, 27, 29, 35, 37, 71, 73, 107):
        path.write_bytes(raw[:cut])
        refused(1, r"saved is not a whole stream: byte \d+: ", "decode", str(path))
    path.write_bytes(raw)
    assert run("decode", str(path)).stdout.count(b"\n") == 3


def test_names_of_files_are_safe_to_print(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[31m\nname"
    path.write_bytes(b"x" * 40)
    refused(1, r"evil\?\[31m\?name is not", "decode", str(path))


# --- What works -----------------------------------------------------------


def test_version_and_help() -> None:
    assert run("--version").stdout == f"taskdiag {taskdiag.__version__}\n".encode()
    text = run("--help").stdout.decode()
    for name in COMMANDS:
        assert f"\n  {name}" in text
    assert run("-V").stdout == run("--version").stdout
    assert run("-h").stdout == run("help").stdout == run("--help").stdout
    for name in COMMANDS:
        done = run(name, "--help")
        assert done.stdout.startswith(f"usage: taskdiag {name}".encode())
        assert (done.returncode, done.stderr) == (0, b"")
        if name != "ps":  # where h is an option of BSD's
            assert run(name, "-h").stdout == done.stdout


def test_dump_is_what_the_library_says() -> None:
    with child() as one:
        done = run(
            "--engine", "procfs", "dump", "--show", "base,cred,stat,cmdline", "--one", str(one.pid)
        )
        (task,) = taskdiag.dump("base,cred,stat,cmdline", pid=one.pid, engine="procfs")
    found = json.loads(done.stdout)
    assert task.base is not None
    assert task.cred is not None
    assert list(found) == ["pid", "tgid", "base", "cred", "stat", "cmdline"]
    assert found["base"] == {**task.base._asdict(), "state": task.base.state.letter}
    assert found["cred"] == task.cred._asdict()
    assert found["cmdline"] == task.cmdline


def test_dump_of_mappings() -> None:
    with child() as one:
        done = run("--engine", "procfs", "dump", "--show", "vma_stat", "--one", str(one.pid))
        (task,) = taskdiag.dump("vma_stat", pid=one.pid, engine="procfs")
    (found,) = map(json.loads, done.stdout.splitlines())
    assert task.vmas is not None
    assert [(vma["start"], vma["name"]) for vma in found["vmas"]] == [
        (vma.start, vma.name) for vma in task.vmas
    ]
    flags = {name for vma in found["vmas"] for name in vma["flags"]}
    assert {"read", "write", "exec"} <= flags
    assert all(vma["stat"]["resident"] >= 0 for vma in found["vmas"])


def test_dump_strategies() -> None:
    me = str(os.getpid())
    with stopped() as one:
        children = run("--engine", "procfs", "dump", "--children", me).stdout
        assert one.pid in [json.loads(line)["pid"] for line in children.splitlines()]
        (line,) = run("--engine", "procfs", "dump", "--one", str(one.pid)).stdout.splitlines()
        assert json.loads(line)["base"]["state"] == "T"
    everything = run("--engine", "procfs", "dump", "--threads").stdout.splitlines()
    pids = [json.loads(line)["pid"] for line in everything]
    assert pids == sorted(set(pids))
    wanted = [task.pid for task in taskdiag.dump("base", Dump.THREAD, os.getpid(), engine="procfs")]
    assert set(wanted) <= set(pids)


@pytest.mark.parametrize("name", ["procfs", "kernel"])
def test_a_saved_stream_decodes_to_the_same(name: str) -> None:
    open_engine(name)
    with stopped() as one:
        # Without VMA_STAT: shares of pages change with what other processes do.
        groups = "base,cred,vma,stat,statm,cmdline,tty,sched"
        args = ("--engine", name, "dump", "--show", groups, "--one", str(one.pid))
        raw = run(*args, "--raw")
        assert raw.returncode == 0, raw.stderr
        plain = run(*args)
        again = run("decode", stdin=raw.stdout)
    assert again.stdout == plain.stdout
    assert again.stdout.count(b"\n") == 1


def test_engine_of_the_environment_and_of_the_option() -> None:
    with stopped() as one:
        args = ("dump", "--one", str(one.pid))
        assert run(*args, TASKDIAG_ENGINE="procfs").returncode == 0
        assert run("--engine=procfs", *args, TASKDIAG_ENGINE="nosuch").returncode == 0


def test_abi_prints_the_header() -> None:
    from taskdiag.cheader import header

    assert run("abi").stdout.decode() == header()


# --- Ends -----------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [("dump",), ("dump", "--raw"), ("ps", "ax"), ("abi",), ("--help",)]
)
def test_a_reader_that_goes_away(args: Sequence[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command("--engine", "procfs", *args), stdout=write, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == -signal.SIGPIPE


def test_head_of_a_long_answer(tmp_path: Path) -> None:
    need("bash")
    saved = tmp_path / "saved"
    saved.write_bytes(b"".join(pack_task(pid, pid, [(6, b"x" * 5000)]) for pid in range(1, 2000)))
    script = '"$@" | head -n 1; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command("decode", str(saved))],
        capture_output=True,
        timeout=60,
    )
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    assert done.returncode == 128 + signal.SIGPIPE


def test_control_c_ends_quietly() -> None:
    reader = subprocess.Popen(
        command("decode"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stderr is not None
    with reader:
        # It waits for more in read(2) once what was written is gone from the pipe.
        raw = pack_task(1, 1, [])
        reader.stdin.write(raw * 100_000)
        reader.stdin.flush()
        reader.send_signal(signal.SIGINT)
        assert reader.wait(timeout=60) == -signal.SIGINT
        assert reader.stderr.read() == b""
        assert reader.stdout.read() == b""


def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command("abi"), stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    assert done.stderr == b"taskdiag: standard output: No space left on device\n"


@pytest.mark.parametrize("name", ["procfs", "kernel"])
@pytest.mark.parametrize("args", [("abi",), ("dump",), ("dump", "--raw"), ("ps", "ax")])
def test_a_closed_standard_output(args: Sequence[str], name: str) -> None:
    """No file that the command opens becomes its standard output."""
    open_engine(name)
    done = closing(">&-", "--engine", name, *args)
    assert done.stderr == b"taskdiag: standard output: Bad file descriptor\n"
    assert done.returncode == 1


def test_other_closed_descriptors(tmp_path: Path) -> None:
    done = closing("<&-", "decode")
    assert done.stderr == b"taskdiag: standard input: Bad file descriptor\n"
    assert done.returncode == 1
    # Nothing is left to tell it to.
    done = closing("<&- >&- 2>&-", "--engine", "procfs", "dump")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    # The answer is not mixed with errors, nor an error written into a file of ours.
    assert closing("2>&-", "--engine", "procfs", "dump").returncode == 0
    saved = tmp_path / "saved"
    saved.write_bytes(b"no stream, but enough of it for a message")
    assert closing("<&- 2>&-", "decode", str(saved)).returncode == 1
    assert saved.read_bytes() == b"no stream, but enough of it for a message"


def closing(redirections: str, *args: str) -> subprocess.CompletedProcess[bytes]:
    script = f'exec "$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", script, "sh", *command(*args)], capture_output=True, timeout=60
    )


def test_json_of_hostile_names_is_ascii() -> None:
    with child(lambda: comm_of(b"a) R 1 (\n\x1b\xff\xfe")) as one:
        done = run("--engine", "procfs", "dump", "--one", str(one.pid))
    assert done.stdout.isascii()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    (line,) = done.stdout.splitlines()
    assert os.fsencode(json.loads(line)["base"]["comm"]) == b"a) R 1 (\n\x1b\xff\xfe"


@pytest.mark.parametrize(
    "columns", ["pid,comm", "comm,pid", "pid,args", "args,pid", "pid,comm,args"]
)
def test_ps_of_hostile_names_is_safe(columns: str) -> None:
    with child(lambda: comm_of(b"a) R 1 (\n\x1b\xff\xfe")) as one:
        done = run("--engine", "procfs", "ps", "-o", columns, "-p", str(one.pid))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 2
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    done.stdout.decode("utf-8")


def test_a_rejected_program_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of the verifier's log only what it says at the end; the whole is in the exception."""
    open_engine("kernel")
    from taskdiag import cli, engine
    from taskdiag.kernel import compile
    from taskdiag.kernel.asm import R0, R10
    from taskdiag.kernel.emit import Emitter

    def nice(c: Emitter) -> None:
        c.load(R0, R10, 8)

    monkeypatch.setitem(compile.FUNCTIONS, "nice(task)", nice)
    monkeypatch.setattr(engine, "_opened", {})
    assert cli.main(["--engine", "kernel", "dump", "--show", "sched"]) == 1
    said = capfd.readouterr().err
    assert said.startswith("taskdiag: the kernel's verifier rejected sched.nice: ")
    assert "invalid read from stack" in said
    assert said.count("\n") == 1
